"""TrivialAugment: one operation of random strength, without any search."""

import numpy as np

from fewsight.augment.operations import Step
from fewsight.augment.policies.magnitudes import SIGNED, PolicySettings, magnitudes

# Source: Müller and Hutter, arXiv 2103.10158, the "wide" space: 14 operations, 31 strengths, translation in
# pixels. The enhancements have factor 1 ± magnitude, as in AutoAugment.
TRIVIALAUGMENT_RANGES: dict[str, tuple[float, float]] = {
    "identity": (0.0, 0.0),
    "shear_x": (0.0, 0.99),
    "shear_y": (0.0, 0.99),
    "translate_x": (0.0, 32.0),
    "translate_y": (0.0, 32.0),
    "rotate": (0.0, 135.0),
    "brightness": (0.0, 0.99),
    "color": (0.0, 0.99),
    "contrast": (0.0, 0.99),
    "sharpness": (0.0, 0.99),
    "posterize": (8.0, 2.0),
    "solarize": (256.0, 0.0),
    "autocontrast": (0.0, 0.0),
    "equalize": (0.0, 0.0),
}

TRIVIALAUGMENT_MAGNITUDES = magnitudes(TRIVIALAUGMENT_RANGES, 31)


def draw_trivialaugment(rng: np.random.Generator) -> Step:
    """Draw one operation of the wide space and its strength, both uniformly.

    Args:
        rng: the image's random stream, from which three uniforms are always taken.

    Returns:
        (operation, signed magnitude).

    Source: Müller and Hutter, arXiv 2103.10158.
    """
    which, level, sign = rng.random(3).tolist()
    operation = tuple(TRIVIALAUGMENT_MAGNITUDES)[int(which * len(TRIVIALAUGMENT_MAGNITUDES))]
    magnitudes = TRIVIALAUGMENT_MAGNITUDES[operation]
    magnitude = magnitudes[int(level * len(magnitudes))]
    return operation, -magnitude if operation in SIGNED and sign < 0.5 else magnitude


def trivialaugment(rng: np.random.Generator, settings: PolicySettings) -> list[Step]:
    """`trivialaugment`, which has no settings."""
    return [draw_trivialaugment(rng)]

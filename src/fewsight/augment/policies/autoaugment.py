"""AutoAugment's ImageNet policy.

It was searched with ImageNet labels, and Tiny ImageNet is a subset of ImageNet; TrivialAugment needs no search.
"""

import numpy as np

from fewsight.augment.operations import Step
from fewsight.augment.policies.magnitudes import SIGNED, PolicySettings, magnitudes

Entry = tuple[str, float, int]  # operation, probability, index of its magnitude

# Source: Cubuk et al., arXiv 1805.09501, table 9, in the order of DeepVoltaire/AutoAugment `ImageNetPolicy`.
# There are 25 entries, 20 of them distinct; the 25th repeats the 3rd, and that repository's text, which the paper
# quotes, counts 24.
SUB_POLICIES: tuple[tuple[Entry, Entry], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)

# Range of each operation's magnitude over the ten indices: shear as a slope, rotate in degrees, the four
# enhancements as a difference from factor 1, posterize in bits kept, solarize as a threshold.
AUTOAUGMENT_RANGES: dict[str, tuple[float, float]] = {
    "shear_x": (0.0, 0.3),
    "shear_y": (0.0, 0.3),
    "rotate": (0.0, 30.0),
    "color": (0.0, 0.9),
    "contrast": (0.0, 0.9),
    "sharpness": (0.0, 0.9),
    "brightness": (0.0, 0.9),
    "posterize": (8.0, 4.0),
    "solarize": (256.0, 0.0),
    "autocontrast": (0.0, 0.0),
    "equalize": (0.0, 0.0),
    "invert": (0.0, 0.0),
}

AUTOAUGMENT_MAGNITUDES = magnitudes(AUTOAUGMENT_RANGES, 10)


def draw_autoaugment(rng: np.random.Generator, *, num_policies: int = 24, rotate_signed: bool = True) -> list[Step]:
    """Draw one of the first `num_policies` sub-policies uniformly, then which of its two operations to apply.

    Args:
        rng: the image's random stream, from which five uniforms are always taken.
        num_policies: 1 to 25.
        rotate_signed: False rotates counterclockwise only, as the public code did in mid-2020.

    Returns:
        Zero, one or two (operation, signed magnitude).

    Raises:
        ValueError: `num_policies` is outside 1..25.

    Source: Cubuk et al., arXiv 1805.09501; the paper, section III.A, step 3.
    """
    if not 1 <= num_policies <= len(SUB_POLICIES):
        raise ValueError(f"num_policies is {num_policies}; it must be 1 to {len(SUB_POLICIES)}")
    which, *uniforms = rng.random(5).tolist()
    steps: list[Step] = []
    for position, (operation, prob, index) in enumerate(SUB_POLICIES[int(which * num_policies)]):
        chance, sign = uniforms[2 * position], uniforms[2 * position + 1]
        if chance < prob:
            magnitude = AUTOAUGMENT_MAGNITUDES[operation][index]
            signed = operation in SIGNED and (rotate_signed or operation != "rotate")
            steps.append((operation, -magnitude if signed and sign < 0.5 else magnitude))
    return steps


def autoaugment(rng: np.random.Generator, settings: PolicySettings) -> list[Step]:
    """`autoaugment`, with the recipe's `num_policies` and `rotate_signed`."""
    return draw_autoaugment(rng, num_policies=settings.num_policies, rotate_signed=settings.rotate_signed)

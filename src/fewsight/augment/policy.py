"""Augmentation policies: which operations AutoAugment's ImageNet policy and TrivialAugment draw for an image.

The AutoAugment policy was searched with ImageNet labels, and Tiny ImageNet is a subset of ImageNet; TrivialAugment and
"none" need no search.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from fewsight.augment.operations import Step

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

SIGNED = frozenset(
    (
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
        "rotate",
        "color",
        "contrast",
        "sharpness",
        "brightness",
    )
)


def _magnitudes(ranges: dict[str, tuple[float, float]], num_levels: int) -> dict[str, tuple[float, ...]]:
    """Evenly spaced magnitudes for every operation; whole bits for posterize, whole pixels for translation."""
    table = {name: np.linspace(low, high, num_levels) for name, (low, high) in ranges.items()}
    table["posterize"] = np.round(table["posterize"])
    for name in table.keys() & {"translate_x", "translate_y"}:
        table[name] = np.trunc(table[name])
    return {name: tuple(values.tolist()) for name, values in table.items()}


AUTOAUGMENT_MAGNITUDES = _magnitudes(AUTOAUGMENT_RANGES, 10)
TRIVIALAUGMENT_MAGNITUDES = _magnitudes(TRIVIALAUGMENT_RANGES, 31)


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


class PolicySettings(Protocol):
    """The settings in a recipe's `[augment]` that policies read."""

    @property
    def num_policies(self) -> int: ...
    @property
    def fill(self) -> int: ...
    @property
    def rotate_signed(self) -> bool: ...


Policy = Callable[[np.random.Generator, PolicySettings], list[Step]]

POLICIES: dict[str, Policy] = {
    "autoaugment": lambda rng, settings: draw_autoaugment(
        rng, num_policies=settings.num_policies, rotate_signed=settings.rotate_signed
    ),
    "trivialaugment": lambda rng, _: [draw_trivialaugment(rng)],
    "none": lambda _, __: [],
}

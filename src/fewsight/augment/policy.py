"""Per-image policies: AutoAugment's ImageNet policy and TrivialAugment, over operations on PIL images.

The AutoAugment policy was searched with ImageNet labels (Tiny ImageNet is ImageNet too); TrivialAugment and
"none" need no search.
"""

from collections.abc import Callable
from functools import cache
from typing import Protocol, cast

import numpy as np
from PIL import Image, ImageChops, ImageEnhance

LEVELS = np.arange(256)

Step = tuple[str, float]  # operation, signed magnitude
Entry = tuple[str, float, int]  # operation, probability, index of its magnitude

# Source: Cubuk et al., arXiv 1805.09501, table 9, in the order of DeepVoltaire/AutoAugment `ImageNetPolicy`.
# 25 entries, 20 of them distinct; the 25th repeats the 3rd, and that repository's text, which the report
# quotes, still counts 24.
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
# enhancements as a distance from factor 1, posterize in bits kept, solarize as a threshold.
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
# pixels. The enhancements are written as 1 ± m like AutoAugment's.
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
    """Evenly spaced magnitudes of every operation; whole bits for posterize, whole pixels for translation."""
    table = {name: np.linspace(low, high, num_levels) for name, (low, high) in ranges.items()}
    table["posterize"] = np.round(table["posterize"])
    for name in table.keys() & {"translate_x", "translate_y"}:
        table[name] = np.trunc(table[name])
    return {name: tuple(values.tolist()) for name, values in table.items()}


AUTOAUGMENT_MAGNITUDES = _magnitudes(AUTOAUGMENT_RANGES, 10)
TRIVIALAUGMENT_MAGNITUDES = _magnitudes(TRIVIALAUGMENT_RANGES, 31)


def autoaugment(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    num_policies: int = 24,
    fill: int = 128,
    rotate_signed: bool = True,
) -> Image.Image:
    """Apply one of the first `num_policies` sub-policies, drawn uniformly for this image.

    Args:
        image: RGB; it is not changed.
        rng: the image's own stream; always five uniforms are taken from it.
        num_policies: 1 to 25.
        fill: grey level, 0 to 255, of what shear and rotate bring in from outside.
        rotate_signed: False turns counterclockwise only, as the public code did in mid-2020.

    Returns:
        An RGB image of the same size; `image` itself when no operation was drawn.

    Raises:
        ValueError: `num_policies` is outside 1..25.

    Source: Cubuk et al., arXiv 1805.09501; the report, section III.A, step 3.
    """
    for operation, magnitude in draw_autoaugment(rng, num_policies=num_policies, rotate_signed=rotate_signed):
        image = apply_operation(image, operation, magnitude, fill)
    return image


def draw_autoaugment(rng: np.random.Generator, *, num_policies: int = 24, rotate_signed: bool = True) -> list[Step]:
    """Draw what `autoaugment` applies: zero, one or two (operation, signed magnitude)."""
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


def trivialaugment(image: Image.Image, rng: np.random.Generator, *, fill: int = 128) -> Image.Image:
    """Apply one operation of the wide space at one strength, both drawn uniformly; nothing was searched.

    Args:
        image: RGB; it is not changed.
        rng: the image's own stream; always three uniforms are taken from it.
        fill: grey level, 0 to 255, of what geometric operations bring in from outside.

    Returns:
        An RGB image of the same size.

    Source: Müller and Hutter, arXiv 2103.10158.
    """
    return apply_operation(image, *draw_trivialaugment(rng), fill)


def draw_trivialaugment(rng: np.random.Generator) -> Step:
    """Draw what `trivialaugment` applies: (operation, signed magnitude)."""
    which, level, sign = rng.random(3).tolist()
    operation = tuple(TRIVIALAUGMENT_MAGNITUDES)[int(which * len(TRIVIALAUGMENT_MAGNITUDES))]
    magnitudes = TRIVIALAUGMENT_MAGNITUDES[operation]
    magnitude = magnitudes[int(level * len(magnitudes))]
    return operation, -magnitude if operation in SIGNED and sign < 0.5 else magnitude


def apply_operation(image: Image.Image, operation: str, magnitude: float, fill: int = 128) -> Image.Image:
    """Apply one operation to an RGB image.

    Shear and rotate sample the nearest pixel. Shear keeps the corner (0, 0) of the image fixed, as PIL's
    affine transform and AutoAugment's code do; a shear of m reads output (x, y) at input (x + m y, y).
    Rotate turns counterclockwise about the centre of the image, as `Image.rotate` does.

    Args:
        image: RGB; it is not changed.
        operation: a key of `AUTOAUGMENT_RANGES` or `TRIVIALAUGMENT_RANGES`.
        magnitude: in the unit of that table; the enhancements have factor 1 + magnitude.
        fill: grey level of what comes in from outside.

    Returns:
        An RGB image of the same size; `image` itself where the magnitude asks for no change.
    """
    return OPERATIONS[operation](image, magnitude, fill)


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: int) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.NEAREST,
        fillcolor=(fill, fill, fill),
    )


def _rotate(image: Image.Image, degrees: float, fill: int) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.NEAREST, fillcolor=(fill, fill, fill))


def _posterize(image: Image.Image, bits: float, _: int) -> Image.Image:
    return image if bits >= 8 else _map_levels(image, _posterize_table(int(bits)))


def _solarize(image: Image.Image, threshold: float, _: int) -> Image.Image:
    return image if threshold > 255 else _map_levels(image, _solarize_table(threshold))


@cache
def _posterize_table(bits: int) -> bytes:
    mask = 256 - (1 << (8 - bits))
    return bytes(level & mask for level in range(256))


@cache
def _solarize_table(threshold: float) -> bytes:
    return bytes(level if level < threshold else 255 - level for level in range(256))


def _map_levels(image: Image.Image, table: bytes) -> Image.Image:
    """One table for all channels; at 64 px 2.5 times as fast as `Image.point`, which rounds it anew."""
    return Image.frombytes("RGB", image.size, image.tobytes().translate(table))


def _autocontrast(image: Image.Image, _: float, __: int) -> Image.Image:
    """`ImageOps.autocontrast` bit for bit: each channel is stretched from its extremes to 0..255."""
    tables = []
    for low, high in cast(tuple[tuple[int, int], ...], image.getextrema()):
        scale = 255.0 / (high - low) if high > low else 1.0
        offset = -low * scale if high > low else 0.0
        tables.append(np.clip(LEVELS * scale + offset, 0, 255).astype(np.uint8))
    return image.point(np.concatenate(tables).tolist())


def _equalize(image: Image.Image, _: float, __: int) -> Image.Image:
    """`ImageOps.equalize` bit for bit: each channel's levels are mapped to their rank among its pixels."""
    counts = np.array(image.histogram()).reshape(3, 256)
    below = counts.cumsum(axis=1) - counts
    step = np.where(counts > 0, below, 0).max(axis=1, keepdims=True) // 255
    # a channel with fewer than 255 pixels below its highest level stays as it is; Image.point clips at 255
    tables = np.where(step > 0, (below + step // 2) // np.maximum(step, 1), LEVELS)
    return image.point(tables.ravel().tolist())


OPERATIONS: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "identity": lambda image, _, __: image,
    "shear_x": lambda image, slope, fill: _affine(image, (1, slope, 0, 0, 1, 0), fill),
    "shear_y": lambda image, slope, fill: _affine(image, (1, 0, 0, slope, 1, 0), fill),
    "translate_x": lambda image, px, fill: _affine(image, (1, 0, px, 0, 1, 0), fill),
    "translate_y": lambda image, px, fill: _affine(image, (1, 0, 0, 0, 1, px), fill),
    "rotate": _rotate,
    "color": lambda image, magnitude, _: ImageEnhance.Color(image).enhance(1 + magnitude),
    "contrast": lambda image, magnitude, _: ImageEnhance.Contrast(image).enhance(1 + magnitude),
    "sharpness": lambda image, magnitude, _: ImageEnhance.Sharpness(image).enhance(1 + magnitude),
    "brightness": lambda image, magnitude, _: ImageEnhance.Brightness(image).enhance(1 + magnitude),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": lambda image, _, __: ImageChops.invert(image),
}


class PolicySettings(Protocol):
    """What a policy reads from a recipe's `[augment]`."""

    @property
    def num_policies(self) -> int: ...
    @property
    def fill(self) -> int: ...
    @property
    def rotate_signed(self) -> bool: ...


Policy = Callable[[Image.Image, np.random.Generator, PolicySettings], Image.Image]

POLICIES: dict[str, Policy] = {
    "autoaugment": lambda image, rng, settings: autoaugment(
        image,
        rng,
        num_policies=settings.num_policies,
        fill=settings.fill,
        rotate_signed=settings.rotate_signed,
    ),
    "trivialaugment": lambda image, rng, settings: trivialaugment(image, rng, fill=settings.fill),
    "none": lambda image, _, __: image,
}

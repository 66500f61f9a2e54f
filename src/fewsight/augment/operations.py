"""The operations of the policies on a batch of images, bit for bit those of PIL on each.

What maps each level of a channel to another (posterize, solarize, invert, brightness, contrast, autocontrast, equalize)
is gathered in a table of an image and applied once; a histogram of the levels is mapped through it too.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

Step = tuple[str, float]  # operation, signed magnitude

LEVELS = np.arange(256)
IDENTITY = np.tile(LEVELS.astype(np.uint8), (3, 1))
LUMA = (19595, 38470, 7471)  # of R, G, B in 65,536ths: ITU-R 601-2, as PIL converts


def apply_steps(images: np.ndarray, steps: Sequence[Sequence[Step]], fill: int = 128) -> None:
    """Apply to each image its steps, in place.

    Shear and rotate sample the nearest pixel. Shear keeps the corner (0, 0) of the image fixed, as PIL's affine
    transform and AutoAugment's code do; a shear of m reads output (x, y) at input (x + m y, y). Rotate turns
    counterclockwise about the centre of the image, as `Image.rotate` does.

    Args:
        images: uint8 [n, 3, H, W], contiguous.
        steps: of each image, (operation, magnitude) in their order: a key of `TABLES` or `OPERATIONS`, and a magnitude
            in the unit of the policies' ranges; the enhancements have factor 1 + magnitude.
        fill: grey level of what comes in from outside.
    """
    batch = _Batch(images)
    for position in range(max(map(len, steps), default=0)):
        groups: dict[str, list[int]] = {}
        for place, own in enumerate(steps):
            if position < len(own):
                groups.setdefault(own[position][0], []).append(place)
        for operation, places in groups.items():
            magnitudes = np.array([steps[place][position][1] for place in places])
            if operation in TABLES:
                batch.map(places, TABLES[operation](batch, places, magnitudes))
                continue
            for place, magnitude in zip(places, magnitudes.tolist(), strict=True):
                batch.settle(place)
                OPERATIONS[operation](images[place], magnitude, fill)
    for place in range(len(images)):
        batch.settle(place)


class _Batch:
    """Images and the tables that wait to be applied to them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.tables = np.tile(IDENTITY, (len(images), 1, 1))  # [n, 3, 256]
        self.waiting = np.zeros(len(images), bool)

    def map(self, places: list[int], tables: np.ndarray) -> None:
        """Let tables [m, 3, 256], or one [m, 1, 256] for all channels, follow those that wait."""
        tables = np.broadcast_to(tables.astype(np.uint8), (len(places), 3, 256))
        if self.waiting[places].any():
            tables = np.take_along_axis(tables, self.tables[places].astype(np.intp), 2)
        self.tables[places], self.waiting[places] = tables, True

    def settle(self, place: int) -> None:
        """Apply what waits for one image."""
        if not self.waiting[place]:
            return
        for plane, table in zip(self.images[place], self.tables[place], strict=True):
            mapped = plane.tobytes().translate(table.tobytes())  # five times as fast as an index in NumPy
            plane[...] = np.frombuffer(mapped, np.uint8).reshape(plane.shape)
        self.tables[place], self.waiting[place] = IDENTITY, False

    def histograms(self, places: list[int]) -> np.ndarray:
        """int64 [m, 3, 256]: how many pixels have each level, behind the tables that wait."""
        import torch  # here: the views of an image need none

        planes = torch.from_numpy(self.images[places]).flatten(2).flatten(0, 1)
        counts: np.ndarray = torch.stack([torch.bincount(plane, minlength=256) for plane in planes]).numpy()
        if not self.waiting[places].any():
            return counts.reshape(-1, 3, 256)
        starts = np.arange(len(planes))[:, None] * 256
        behind = self.tables[places].reshape(-1, 256) + starts
        total = np.bincount(behind.ravel(), counts.ravel(), starts.size * 256)  # in float64: exact
        histograms: np.ndarray = total.astype(np.int64).reshape(-1, 3, 256)
        return histograms


# --- tables: each gives [m, 3 or 1, 256] for the images at `places` -------------------------------------------

Table = Callable[[_Batch, list[int], np.ndarray], np.ndarray]


def _posterize(_: _Batch, __: list[int], bits: np.ndarray) -> np.ndarray:
    masks: np.ndarray = 256 - (1 << (8 - np.minimum(bits, 8).astype(int)))
    tables: np.ndarray = LEVELS & masks[:, None, None]
    return tables


def _solarize(_: _Batch, __: list[int], thresholds: np.ndarray) -> np.ndarray:
    return np.where(thresholds[:, None, None] > LEVELS, LEVELS, 255 - LEVELS)


def _invert(_: _Batch, places: list[int], __: np.ndarray) -> np.ndarray:
    return np.broadcast_to(255 - LEVELS, (len(places), 1, 256))


def _brightness(_: _Batch, __: list[int], magnitudes: np.ndarray) -> np.ndarray:
    return _blend(np.zeros((len(magnitudes), 1, 1), int), LEVELS, magnitudes)


def _contrast(batch: _Batch, places: list[int], magnitudes: np.ndarray) -> np.ndarray:
    """Away from the mean grey of the image, which no histogram of channels tells."""
    for place in places:
        batch.settle(place)
    means = [int(_grey(batch.images[place]).mean() + 0.5) for place in places]
    return _blend(np.array(means)[:, None, None], LEVELS, magnitudes)


def _autocontrast(batch: _Batch, places: list[int], _: np.ndarray) -> np.ndarray:
    """As `ImageOps.autocontrast`: each channel is stretched from its extremes to 0..255."""
    there = batch.histograms(places) > 0
    low, high = there.argmax(2), 255 - there[:, :, ::-1].argmax(2)
    wide = high > low
    scale = np.where(wide, 255.0 / np.maximum(high - low, 1), 1.0)
    offset = np.where(wide, -low * scale, 0.0)
    return np.clip(LEVELS * scale[:, :, None] + offset[:, :, None], 0, 255)


def _equalize(batch: _Batch, places: list[int], _: np.ndarray) -> np.ndarray:
    """As `ImageOps.equalize`: each channel's levels are mapped to their rank among its pixels."""
    counts = batch.histograms(places)
    below = counts.cumsum(2) - counts
    step = np.where(counts > 0, below, 0).max(2, keepdims=True) // 255
    # a channel with fewer than 255 pixels below its highest level stays as it is
    tables = np.where(step > 0, (below + step // 2) // np.maximum(step, 1), LEVELS)
    return np.minimum(tables, 255)


TABLES: dict[str, Table] = {
    "posterize": _posterize,
    "solarize": _solarize,
    "invert": _invert,
    "brightness": _brightness,
    "contrast": _contrast,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}

# --- operations: each changes one image, uint8 [3, H, W] ------------------------------------------------------

Operation = Callable[[np.ndarray, float, int], None]


def _affine(image: np.ndarray, matrix: tuple[float, ...], fill: int) -> None:
    _move(image, _sources(image.shape[1:], matrix, 0.0), fill)


def _rotate(image: np.ndarray, degrees: float, fill: int) -> None:
    _move(image, _sources(image.shape[1:], None, degrees), fill)


def _move(image: np.ndarray, sources: np.ndarray, fill: int) -> None:
    for plane in image:
        plane[...] = np.append(plane, np.uint8(fill)).take(sources, mode="clip")


@lru_cache(maxsize=64)
def _sources(sides: tuple[int, int], matrix: tuple[float, ...] | None, degrees: float) -> np.ndarray:
    """int64 [H, W]: which pixel PIL's transform, or its rotation, puts where; H * W for what comes from outside."""
    outside = sides[0] * sides[1]
    places = Image.fromarray(np.arange(outside, dtype=np.int32).reshape(sides))
    nearest = Image.Resampling.NEAREST
    if matrix is None:
        moved = places.rotate(degrees, nearest, fillcolor=outside)
    else:
        moved = places.transform(places.size, Image.Transform.AFFINE, matrix, nearest, fillcolor=outside)
    return np.asarray(moved).astype(np.intp)


def _color(image: np.ndarray, magnitude: float, _: int) -> None:
    image[...] = _blend(_grey(image), image, np.array([magnitude]))


def _sharpness(image: np.ndarray, magnitude: float, _: int) -> None:
    """Away from its blur, the mean with the eight neighbours in which a pixel weighs five; the rim has none."""
    wide = image.astype(np.int32)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * wide[:, 1:-1, 1:-1]
    blurred = wide.copy()
    blurred[:, 1:-1, 1:-1] = (2 * around + 13) // 26
    image[...] = _blend(blurred, image, np.array([magnitude]))


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, _, __: None,
    "shear_x": lambda image, slope, fill: _affine(image, (1, slope, 0, 0, 1, 0), fill),
    "shear_y": lambda image, slope, fill: _affine(image, (1, 0, 0, slope, 1, 0), fill),
    "translate_x": lambda image, px, fill: _affine(image, (1, 0, px, 0, 1, 0), fill),
    "translate_y": lambda image, px, fill: _affine(image, (1, 0, 0, 0, 1, px), fill),
    "rotate": _rotate,
    "color": _color,
    "sharpness": _sharpness,
}


def _grey(image: np.ndarray) -> np.ndarray:
    """int32 [H, W] of uint8 [3, H, W]."""
    grey: np.ndarray = np.multiply(image[0], LUMA[0], dtype=np.int32)
    grey += np.multiply(image[1], LUMA[1], dtype=np.int32)
    grey += np.multiply(image[2], LUMA[2], dtype=np.int32)
    grey += 0x8000
    grey >>= 16
    return grey


def _blend(origin: np.ndarray, levels: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    """origin + (1 + magnitude) * (levels - origin), cut to whole levels as `Image.blend` does it, in float32.

    Args:
        origin: of tables [m, 1, 1], with levels [256]; of an image [H, W] or [3, H, W], with levels [3, H, W].
        magnitudes: [m]; of an image one.
    """
    origin, factors = origin.astype(np.float32), (1 + magnitudes).astype(np.float32).reshape(-1, 1, 1)
    blended = (levels.astype(np.float32) - origin) * factors
    blended += origin
    cut: np.ndarray = np.clip(blended, 0, 255, out=blended).astype(np.uint8)
    return cut

"""The operations of augmentation policies on a batch of images, bit for bit as PIL computes them one by one.

Operations that map each level of a channel to another level (posterize, solarize, invert, brightness, contrast,
autocontrast, equalize) are lookup tables. An image's consecutive tables are composed and applied once; a histogram that
is needed in between is computed through the composed table.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

Step = tuple[str, float]  # operation, signed magnitude

LEVELS = np.arange(256)
IDENTITY = np.tile(LEVELS.astype(np.uint8), (3, 1))
LUMA = (19595, 38470, 7471)  # weights of R, G, B in 65,536ths: ITU-R 601-2, as PIL converts to grey


def apply_steps(images: np.ndarray, steps: Sequence[Sequence[Step]], fill: int = 128) -> None:
    """Apply to each image its steps, in place.

    Shear and rotate sample the nearest pixel. Shear keeps the corner (0, 0) of the image fixed, as PIL's affine
    transform and AutoAugment's code do; a shear of m reads output (x, y) at input (x + m y, y). Rotate turns
    counterclockwise about the centre of the image, as `Image.rotate` does.

    Args:
        images: uint8 [n, 3, H, W], contiguous.
        steps: for each image its (operation, magnitude) pairs in order. An operation is a key of `TABLES` or
            `OPERATIONS`; its magnitude has the unit of the policies' ranges, and the enhancements have factor
            1 + magnitude.
        fill: grey level of pixels that come from outside the image.
    """
    batch = _Batch(images)
    for position in range(max(map(len, steps), default=0)):
        groups: dict[str, list[int]] = {}
        for index, own in enumerate(steps):
            if position < len(own):
                groups.setdefault(own[position][0], []).append(index)
        for operation, indices in groups.items():
            magnitudes = np.array([steps[index][position][1] for index in indices])
            if operation in TABLES:
                batch.map(indices, TABLES[operation](batch, indices, magnitudes))
                continue
            for index, magnitude in zip(indices, magnitudes.tolist(), strict=True):
                batch.flush(index)
                OPERATIONS[operation](images[index], magnitude, fill)
    for index in range(len(images)):
        batch.flush(index)


class _Batch:
    """Images, and the lookup tables that are still to be applied to them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.tables = np.tile(IDENTITY, (len(images), 1, 1))  # [n, 3, 256]
        self.pending = np.zeros(len(images), bool)

    def map(self, indices: list[int], tables: np.ndarray) -> None:
        """Compose tables, [m, 3, 256] or [m, 1, 256] for all channels, with the pending ones of these images."""
        tables = np.broadcast_to(tables.astype(np.uint8), (len(indices), 3, 256))
        if self.pending[indices].any():
            tables = np.take_along_axis(tables, self.tables[indices].astype(np.intp), 2)
        self.tables[indices], self.pending[indices] = tables, True

    def flush(self, index: int) -> None:
        """Apply the pending table of an image."""
        if not self.pending[index]:
            return
        for plane, table in zip(self.images[index], self.tables[index], strict=True):
            mapped = plane.tobytes().translate(table.tobytes())  # five times as fast as NumPy indexing
            plane[...] = np.frombuffer(mapped, np.uint8).reshape(plane.shape)
        self.tables[index], self.pending[index] = IDENTITY, False

    def histograms(self, indices: list[int]) -> np.ndarray:
        """int64 [m, 3, 256]: how many pixels have each level once the pending tables are applied."""
        import torch  # imported here: test-time views do not need it

        planes = torch.from_numpy(self.images[indices]).flatten(2).flatten(0, 1)
        counts: np.ndarray = torch.stack([torch.bincount(plane, minlength=256) for plane in planes]).numpy()
        if not self.pending[indices].any():
            return counts.reshape(-1, 3, 256)
        starts = np.arange(len(planes))[:, None] * 256
        mapped = self.tables[indices].reshape(-1, 256) + starts
        total = np.bincount(mapped.ravel(), counts.ravel(), starts.size * 256)  # float64, so the counts are exact
        histograms: np.ndarray = total.astype(np.int64).reshape(-1, 3, 256)
        return histograms


# --- tables: each returns [m, 3 or 1, 256] for the images at `indices` -----------------------------------------

Table = Callable[[_Batch, list[int], np.ndarray], np.ndarray]


def _posterize(_: _Batch, __: list[int], bits: np.ndarray) -> np.ndarray:
    masks: np.ndarray = 256 - (1 << (8 - np.minimum(bits, 8).astype(int)))
    tables: np.ndarray = LEVELS & masks[:, None, None]
    return tables


def _solarize(_: _Batch, __: list[int], thresholds: np.ndarray) -> np.ndarray:
    return np.where(thresholds[:, None, None] > LEVELS, LEVELS, 255 - LEVELS)


def _invert(_: _Batch, indices: list[int], __: np.ndarray) -> np.ndarray:
    return np.broadcast_to(255 - LEVELS, (len(indices), 1, 256))


def _brightness(_: _Batch, __: list[int], magnitudes: np.ndarray) -> np.ndarray:
    return _blend(np.zeros((len(magnitudes), 1, 1), int), LEVELS, magnitudes)


def _contrast(batch: _Batch, indices: list[int], magnitudes: np.ndarray) -> np.ndarray:
    """Away from the image's mean grey, which needs its pixels: the channels' histograms do not determine it."""
    for index in indices:
        batch.flush(index)
    means = [int(_grey(batch.images[index]).mean() + 0.5) for index in indices]
    return _blend(np.array(means)[:, None, None], LEVELS, magnitudes)


def _autocontrast(batch: _Batch, indices: list[int], _: np.ndarray) -> np.ndarray:
    """As `ImageOps.autocontrast`: each channel is stretched from its extremes to 0..255."""
    present = batch.histograms(indices) > 0
    low, high = present.argmax(2), 255 - present[:, :, ::-1].argmax(2)
    wide = high > low
    scale = np.where(wide, 255.0 / np.maximum(high - low, 1), 1.0)
    offset = np.where(wide, -low * scale, 0.0)
    return np.clip(LEVELS * scale[:, :, None] + offset[:, :, None], 0, 255)


def _equalize(batch: _Batch, indices: list[int], _: np.ndarray) -> np.ndarray:
    """As `ImageOps.equalize`: each level of a channel is mapped to its rank among the channel's pixels."""
    counts = batch.histograms(indices)
    below = counts.cumsum(2) - counts
    step = np.where(counts > 0, below, 0).max(2, keepdims=True) // 255
    # a channel with fewer than 255 pixels below its highest level is left as it is
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
    """int64 [H, W]: the index of the pixel that PIL's transform, or its rotation, reads; H * W outside the image."""
    outside = sides[0] * sides[1]
    positions = Image.fromarray(np.arange(outside, dtype=np.int32).reshape(sides))
    nearest = Image.Resampling.NEAREST
    if matrix is None:
        moved = positions.rotate(degrees, nearest, fillcolor=outside)
    else:
        moved = positions.transform(positions.size, Image.Transform.AFFINE, matrix, nearest, fillcolor=outside)
    return np.asarray(moved).astype(np.intp)


def _color(image: np.ndarray, magnitude: float, _: int) -> None:
    image[...] = _blend(_grey(image), image, np.array([magnitude]))


def _sharpness(image: np.ndarray, magnitude: float, _: int) -> None:
    """Away from its blur: the mean of a pixel, with weight 5, and its eight neighbours; the border is not blurred."""
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
    """origin + (1 + magnitude) * (levels - origin) in float32, truncated to whole levels as in `Image.blend`.

    Args:
        origin: [m, 1, 1] for tables, [H, W] or [3, H, W] for an image.
        levels: [256] for tables, [3, H, W] for an image.
        magnitudes: [m] for tables, [1] for an image.
    """
    origin, factors = origin.astype(np.float32), (1 + magnitudes).astype(np.float32).reshape(-1, 1, 1)
    blended = (levels.astype(np.float32) - origin) * factors
    blended += origin
    truncated: np.ndarray = np.clip(blended, 0, 255, out=blended).astype(np.uint8)
    return truncated

"""Near duplicates among many images: random hyperplanes bring likely pairs together, correlation decides.

An image is its grey 16 x 16 thumbnail less its mean, at length 1: brightness and contrast do not count. Two are near
duplicates where the correlation of thumbnails, as they are or mirrored, and then of the images at 32 px is high, and no
part of both has another hue: copies that were encoded, resized, brightened, mirrored or made grey. A copy that was
cropped by more than a few percent is not found; images of one layout in the same colours are found, though no copies.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fewsight.data.decode import load_image
from fewsight.data.scanning import THUMBNAIL_PX
from fewsight.machine.rng import NEAR, stream

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, ITU-R BT.601

NUM_BANDS, NUM_BITS = 12, 14  # a pair at the least correlation is found in one band or more in 99 of 100 cases
LEAST_CORRELATION = 0.97  # of thumbnails; of 18 million pairs of Tiny ImageNet none reaches it by chance
LEAST_SPREAD = 6.0  # grey levels: flatter images look alike to any measure
BLOCK = 2048  # images of a bucket that are compared at once
COMPARED_PX = 32
LEAST_DETAIL = 0.93  # correlation of the images at 32 px
CELL_PX = 4  # of those, for hues: 8 x 8 cells
LEAST_CHROMA = 20.0  # grey levels between a cell's colour and its grey: less has no hue
LEAST_HUE = 0.5  # cosine of two hues: 60 degrees
OTHER_HUES = 0.05  # of all cells; more, and it is another image


def candidates(thumbnails: Sequence[bytes]) -> list[tuple[int, int, float]]:
    """Pairs (first, second, correlation) of images whose thumbnails nearly agree, each once, first < second.

    Time grows with the images and with the pairs that look alike, not with all pairs.
    """
    pixels = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, THUMBNAIL_PX**2).astype(np.float32)
    pixels -= pixels.mean(1, keepdims=True)
    spread = pixels.std(1)
    textured = np.flatnonzero(spread >= LEAST_SPREAD)
    if len(textured) < 2:
        return []
    unit = pixels[textured] / (spread[textured, None] * np.sqrt(pixels.shape[1]))  # [n, 256], length 1
    mirrored = unit.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)[:, :, ::-1].reshape(unit.shape)
    number, both = len(unit), np.concatenate([unit, mirrored])
    found: dict[tuple[int, int], float] = {}
    for band in range(NUM_BANDS):
        planes = stream(0, NEAR, band).standard_normal((unit.shape[1], NUM_BITS), np.float32)
        keys = (both @ planes > 0) @ (1 << np.arange(NUM_BITS))
        for bucket in _buckets(keys, number):
            for one, other, correlation in _alike(both, bucket, number):
                pair = int(textured[one]), int(textured[other % number])
                if pair[0] != pair[1]:
                    pair = min(pair), max(pair)
                    found[pair] = max(found.get(pair, 0.0), correlation)
    return [(*pair, correlation) for pair, correlation in sorted(found.items())]


def confirmed(
    pairs: Sequence[tuple[int, int, float]], load: Callable[[int], np.ndarray]
) -> Iterator[tuple[int, int, float]]:
    """Those pairs whose images agree in detail and in hue too: (first, second, correlation).

    Args:
        load: an image by its number, uint8 [32, 32, 3].
    """
    kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def looked_at(number: int) -> tuple[np.ndarray, np.ndarray]:
        if number not in kept:
            pixels = load(number).astype(np.float32)
            kept[number] = _detail(pixels), _chroma(pixels)
        return kept[number]

    for first, second, _ in pairs:
        (one, one_chroma), (other, other_chroma) = looked_at(first), looked_at(second)
        sides = (
            (float((side * other).sum()), _other_hues(chroma, other_chroma))
            for side, chroma in ((one, one_chroma), (one[:, ::-1], one_chroma[:, ::-1]))
        )
        correlation = max((found for found, hues in sides if hues <= OTHER_HUES), default=0.0)
        if correlation >= LEAST_DETAIL:
            yield first, second, correlation


def load_compared(path: Path) -> np.ndarray:
    """An image as `confirmed` compares it: uint8 [32, 32, 3].

    Raises:
        ImageError: it cannot be read.
    """
    return np.asarray(load_image(path).resize((COMPARED_PX, COMPARED_PX), Image.Resampling.BOX))


def _detail(pixels: np.ndarray) -> np.ndarray:
    """The grey image less its mean, at length 1: [32, 32]."""
    grey = pixels @ GREY
    grey -= grey.mean()
    return np.asarray(grey / max(1e-6, float(np.linalg.norm(grey))))


def _chroma(pixels: np.ndarray) -> np.ndarray:
    """The colours of cells less their grey: [8, 8, 3]."""
    cells = pixels.reshape(COMPARED_PX // CELL_PX, CELL_PX, -1, CELL_PX, 3).mean((1, 3))
    return np.asarray(cells - cells.mean(-1, keepdims=True))


def _other_hues(one: np.ndarray, other: np.ndarray) -> float:
    """Share of cells that are coloured in both, and have another hue."""
    lengths, others = np.linalg.norm(one, axis=-1), np.linalg.norm(other, axis=-1)
    coloured = np.minimum(lengths, others) >= LEAST_CHROMA
    return float((coloured & ((one * other).sum(-1) < LEAST_HUE * lengths * others)).mean())


def _buckets(keys: np.ndarray, number: int) -> Iterator[np.ndarray]:
    """Positions that share a key, where at least one of them is not mirrored and there are two or more."""
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    for bucket in np.split(order, edges):
        if len(bucket) > 1 and bucket[0] < number:
            yield bucket


def _alike(unit: np.ndarray, bucket: np.ndarray, number: int) -> Iterator[tuple[int, int, float]]:
    """(position of an image as it is, position of another, mirrored or not, correlation) above the least."""
    plain = bucket[bucket < number]
    for start in range(0, len(plain), BLOCK):
        ones = plain[start : start + BLOCK]
        for first in range(0, len(bucket), BLOCK):
            others = bucket[first : first + BLOCK]
            correlations = unit[ones] @ unit[others].T
            for row, column in np.argwhere(correlations >= LEAST_CORRELATION):
                one, other = int(ones[row]), int(others[column])
                if one < other:  # a mirrored one comes after all that are not
                    yield one, other, float(correlations[row, column])

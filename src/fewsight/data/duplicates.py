"""Near-duplicate search: locality-sensitive hashing by random hyperplanes proposes pairs, correlation decides.

An image is represented by its grey 16 x 16 thumbnail, centred and scaled to unit length, so that brightness and
contrast do not matter. Two images are near duplicates if the correlation of their thumbnails (as they are or one of
them mirrored) and then of the images at 32 px is high, and no part of both has another hue: copies that were
re-encoded, resized, brightened, mirrored or converted to grey. A copy that was cropped by more than a few percent is
missed; images of one layout in the same colours are reported although they are no copies.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fewsight.data.decode import load_image
from fewsight.data.scanning import THUMBNAIL_PX
from fewsight.machine.rng import NEAR, stream

GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, ITU-R BT.601

NUM_BANDS, NUM_BITS = 12, 14  # a pair at MIN_CORRELATION shares a bucket in some band in 99 of 100 cases
MIN_CORRELATION = 0.97  # of thumbnails; none of 18 million pairs of Tiny ImageNet reaches it by chance
MIN_SPREAD = 6.0  # grey levels, standard deviation: flatter images all look alike
BLOCK = 2048  # images of a bucket that are compared at once
COMPARED_PX = 32
MIN_DETAIL = 0.93  # correlation of the images at 32 px
CELL_PX = 4  # of those images, for comparing hues: 8 x 8 cells
MIN_CHROMA = 20.0  # grey levels between a cell's colour and its grey: less has no hue
MIN_HUE = 0.5  # cosine between two hues: 60 degrees
MAX_OTHER_HUES = 0.05  # fraction of the cells that may differ in hue


def candidates(thumbnails: Sequence[bytes]) -> list[tuple[int, int, float]]:
    """Find the pairs of images whose thumbnails nearly agree.

    Time grows with the number of images and of similar pairs, not with the number of all pairs.

    Args:
        thumbnails: grey images of 16 x 16 bytes.

    Returns:
        (first index, second index, correlation) of each pair once, first < second, in order.
    """
    pixels = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, THUMBNAIL_PX**2).astype(np.float32)
    pixels -= pixels.mean(1, keepdims=True)
    spread = pixels.std(1)
    textured = np.flatnonzero(spread >= MIN_SPREAD)
    if len(textured) < 2:
        return []
    unit = pixels[textured] / (spread[textured, None] * np.sqrt(pixels.shape[1]))  # [n, 256], length 1
    mirrored = unit.reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)[:, :, ::-1].reshape(unit.shape)
    num_images, both = len(unit), np.concatenate([unit, mirrored])
    pairs: dict[tuple[int, int], float] = {}
    for band in range(NUM_BANDS):
        planes = stream(0, NEAR, band).standard_normal((unit.shape[1], NUM_BITS), np.float32)
        keys = (both @ planes > 0) @ (1 << np.arange(NUM_BITS))
        for bucket in _buckets(keys, num_images):
            for first, second, correlation in _similar(both, bucket, num_images):
                pair = int(textured[first]), int(textured[second % num_images])
                if pair[0] != pair[1]:
                    pair = min(pair), max(pair)
                    pairs[pair] = max(pairs.get(pair, 0.0), correlation)
    return [(*pair, correlation) for pair, correlation in sorted(pairs.items())]


def confirmed(
    pairs: Sequence[tuple[int, int, float]], load: Callable[[int], np.ndarray]
) -> Iterator[tuple[int, int, float]]:
    """Keep the candidate pairs whose images agree in detail and in hue as well.

    Args:
        pairs: (first index, second index, correlation of thumbnails).
        load: index -> image, uint8 [32, 32, 3].

    Yields:
        (first index, second index, correlation of the images).
    """
    features: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def features_of(index: int) -> tuple[np.ndarray, np.ndarray]:
        if index not in features:
            pixels = load(index).astype(np.float32)
            features[index] = _detail(pixels), _chroma(pixels)
        return features[index]

    for first, second, _ in pairs:
        (first_detail, first_chroma), (second_detail, second_chroma) = features_of(first), features_of(second)
        orientations = (
            (float((detail * second_detail).sum()), _differing_hues(chroma, second_chroma))
            for detail, chroma in ((first_detail, first_chroma), (first_detail[:, ::-1], first_chroma[:, ::-1]))
        )
        correlation = max((value for value, hues in orientations if hues <= MAX_OTHER_HUES), default=0.0)
        if correlation >= MIN_DETAIL:
            yield first, second, correlation


def load_compared(path: Path) -> np.ndarray:
    """Load an image at the size that `confirmed` compares: uint8 [32, 32, 3].

    Raises:
        ImageError: it cannot be read or decoded.
    """
    return np.asarray(load_image(path).resize((COMPARED_PX, COMPARED_PX), Image.Resampling.BOX))


def _detail(pixels: np.ndarray) -> np.ndarray:
    """The grey image, centred and scaled to unit length: [32, 32]."""
    grey = pixels @ GREY
    grey -= grey.mean()
    return np.asarray(grey / max(1e-6, float(np.linalg.norm(grey))))


def _chroma(pixels: np.ndarray) -> np.ndarray:
    """The mean colour of each cell minus its grey: [8, 8, 3]."""
    cells = pixels.reshape(COMPARED_PX // CELL_PX, CELL_PX, -1, CELL_PX, 3).mean((1, 3))
    return np.asarray(cells - cells.mean(-1, keepdims=True))


def _differing_hues(first: np.ndarray, second: np.ndarray) -> float:
    """The fraction of cells that are coloured in both images, but in different hues."""
    first_length, second_length = np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)
    coloured = np.minimum(first_length, second_length) >= MIN_CHROMA
    return float((coloured & ((first * second).sum(-1) < MIN_HUE * first_length * second_length)).mean())


def _buckets(keys: np.ndarray, num_images: int) -> Iterator[np.ndarray]:
    """Indices of two or more vectors that share a key, at least one of which is not mirrored (below `num_images`)."""
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    for bucket in np.split(order, edges):
        if len(bucket) > 1 and bucket[0] < num_images:
            yield bucket


def _similar(unit: np.ndarray, bucket: np.ndarray, num_images: int) -> Iterator[tuple[int, int, float]]:
    """The pairs of a bucket that correlate by at least `MIN_CORRELATION`.

    Args:
        unit: float32 [2 n, 256]: the vectors of n images, then those of their mirror images, of length 1.
        bucket: indices into `unit`, in ascending order.
        num_images: n.

    Yields:
        (index of an image that is not mirrored, index of another that may be, correlation).
    """
    plain = bucket[bucket < num_images]
    for plain_start in range(0, len(plain), BLOCK):
        rows = plain[plain_start : plain_start + BLOCK]
        for start in range(0, len(bucket), BLOCK):
            columns = bucket[start : start + BLOCK]
            correlations = unit[rows] @ unit[columns].T
            for row, column in np.argwhere(correlations >= MIN_CORRELATION):
                first, second = int(rows[row]), int(columns[column])
                if first < second:  # mirrored images come after all others, so each pair is met once
                    yield first, second, float(correlations[row, column])

"""Fused probabilities of stored scores, and what follows from them, in one pass over the files."""

from collections.abc import Iterator, Sequence

import numpy as np

from fewsight.errors import RunError
from fewsight.scores.log_probs import finite_images, weighted_mean
from fewsight.scores.members import Result, Weights, check_same_images
from fewsight.scores.store import Store
from fewsight.wording import counted

MAX_SUM_ERROR = 0.02  # between 1 and the sum of an image's probabilities
SMALL_PROB = 1e-30  # float32 loses digits of probabilities from 1e-38 on
CHUNK_BYTES = 48 * 2**20  # of probabilities that a pass holds at a time


def fused_probs(fusions: Sequence[Weights]) -> Iterator[tuple[slice, np.ndarray]]:
    """Weighted means of probabilities, a chunk of the images at a time.

    Args:
        fusions: Q weightings of results.

    Yields:
        The images' positions, and float32 [Q, images, K]; NaN where an image could not be read.

    Raises:
        RunError: scores are damaged: an image's are not finite, or its probabilities do not sum to 1.
    """
    results = list(dict.fromkeys(result for weights in fusions for result in weights))
    store = results[0].store
    check_same_images(list(dict.fromkeys(result.store for result in results)))
    matrix = np.array([[weights.get(result, 0.0) for result in results] for weights in fusions], np.float32)
    num_images, num_classes, readable = store.about.count, len(store.about.classes), store.readable
    size = max(1, CHUNK_BYTES // (4 * num_classes * (len(results) + len(fusions))))
    for start in range(0, num_images, size):
        stop = min(start + size, num_images)
        probs = np.empty((len(results), (stop - start) * num_classes), np.float32)
        for index, result in enumerate(results):
            by_image = probs[index].reshape(stop - start, num_classes)
            read_checked(result, start, readable[start:stop], by_image)
            by_image[~readable[start:stop]] = np.nan
        yield slice(start, stop), (matrix @ probs).reshape(len(fusions), stop - start, num_classes)


def read_checked(result: Result, start: int, readable: np.ndarray, probs: np.ndarray | None = None) -> np.ndarray:
    """The log-probabilities of some images in one view, float32 [n, K], from its file.

    Args:
        result: the view.
        start: the first image's position.
        readable: bool [n], which images could be read; the scores of the others are not checked.
        probs: float32 [n, K], receives the probabilities.

    Raises:
        RunError: scores are damaged: an image's are not finite, or its probabilities do not sum to 1.
    """
    log_probs = result.store.results(result.view, start, start + len(readable))
    with np.errstate(invalid="ignore", over="ignore"):  # of damaged scores
        probs = np.exp(log_probs, out=probs)
    valid = finite_images(log_probs) & (np.abs(probs.sum(1) - 1) < MAX_SUM_ERROR)
    damaged = np.flatnonzero(readable & ~valid)
    if len(damaged):
        path = result.store.images[start + damaged[0]].path
        raise RunError(
            f"{result.store.path}: the scores of {path} in {result.view} are damaged (not finite, or their sum, "
            f"{probs[damaged[0]].sum():g}, is not 1); remove {result.store.path} and score again"
        )
    return log_probs


def fused_log_probs(weights: Weights) -> np.ndarray:
    """float32 [images, K]: the natural logarithm of one fusion, held in memory as a whole.

    It is finite for every class of a readable image, as a probability that is too small for float32 is averaged by its
    logarithms; NaN where an image could not be read.
    """
    chunks = []
    for images, fused in fused_probs([weights]):
        probs = fused[0]
        small = probs < SMALL_PROB
        log_probs = np.log(np.where(small, 1, probs))
        if small.any():
            logs = [result.store.results(result.view, images.start, images.stop)[small] for result in weights]
            log_probs[small] = weighted_mean(logs, list(weights.values()))
        chunks.append(log_probs)
    return np.concatenate(chunks)


def label_indices(store: Store) -> np.ndarray:
    """int [images]: the index of each image's label in the classes.

    Raises:
        RunError: the store's images have no labels, or none could be read.
    """
    if any(image.label is None for image in store.images):
        raise RunError(f"{store.path}: its images have no labels, so there is no accuracy; evaluate on labelled ones")
    if not store.readable.any():
        raise RunError(f"{store.path}: none of its {counted(len(store.images), 'image')} could be read")
    index_of = {name: index for index, name in enumerate(store.about.classes)}
    try:
        return np.array([index_of[str(image.label)] for image in store.images])
    except KeyError as error:
        raise RunError(f"{store.path}: an image has the label {error}, which is not one of its classes") from error


def correct_top1(fusions: Sequence[Weights]) -> np.ndarray:
    """bool [Q, readable images]: which images each fusion classifies correctly, in one pass over the files.

    Raises:
        RunError: no labels, or no image could be read.
    """
    store = next(iter(fusions[0])).store
    labels = label_indices(store)
    chunks = [probs.argmax(2) == labels[images] for images, probs in fused_probs(fusions)]
    return np.concatenate(chunks, axis=1)[:, store.readable]


def true_class_probs(fusions: Sequence[Weights]) -> np.ndarray:
    """float64 [Q, readable images]: the probability of each image's label in each fusion.

    Raises:
        RunError: as `correct_top1`.
    """
    store = next(iter(fusions[0])).store
    labels = label_indices(store)
    chunks = [probs[:, np.arange(probs.shape[1]), labels[images]] for images, probs in fused_probs(fusions)]
    return np.concatenate(chunks, axis=1)[:, store.readable].astype(np.float64)

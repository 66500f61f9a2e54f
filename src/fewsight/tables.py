"""Queries over score stores, as tables: rows by scale, all views together, two runs on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewsight.errors import RunError
from fewsight.metrics import Paired, Share, paired, wilson
from fewsight.scores import Store


@dataclass(frozen=True)
class Row:
    """The accuracy of some views' mean probabilities."""

    name: str  # "64 px", "all views", or a view's name
    views: tuple[str, ...]
    top1: Share


def scale_rows(store: Store) -> list[Row]:
    """One row for each test size, the mean over its crops, as in the report's tables; then all views together.

    Raises:
        RunError: the store's images have no labels.
    """
    sizes = sorted({int(view.split("-")[1]) for view in store.views})
    groups = [(f"{px} px", tuple(view for view in store.views if view.endswith(f"-{px}"))) for px in sizes]
    groups += [("all views", store.views)] if len(sizes) > 1 else []
    return [Row(name, views, _share(right(store, views))) for name, views in groups]


def right(store: Store, views: Sequence[str]) -> np.ndarray:
    """Whether the views' mean has each image right: bool [readable images].

    Raises:
        RunError: the store's images have no labels, or none could be read.
    """
    if any(image.label is None for image in store.images):
        raise RunError(f"{store.path}: its images have no labels, so there is no accuracy; evaluate on labelled ones")
    index = {name: number for number, name in enumerate(store.about.classes)}
    labels = np.array([index[str(image.label)] for image in store.images])
    readable = store.readable
    if not readable.any():
        raise RunError(f"{store.path}: none of its {len(readable):,} images could be read")
    found: np.ndarray = np.concatenate([probs.argmax(1) == labels[rows] for rows, probs in store.chunks(views)])
    kept: np.ndarray = found[readable]
    return kept


def compare(first: Store, second: Store) -> Paired:
    """All views of one store against all views of another, image by image.

    Raises:
        RunError: they hold other images, or could not read the same ones.
    """
    known, others = (
        [(image.digest, image.label, image.error is None) for image in store.images] for store in (first, second)
    )
    if known != others:
        raise RunError(f"{second.path} and {first.path} hold scores of other images, so they cannot be paired")
    return paired(right(first, first.views), right(second, second.views))


def _share(found: np.ndarray) -> Share:
    return wilson(int(found.sum()), len(found))

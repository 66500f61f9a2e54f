"""Synthetic score stores, written as an evaluation writes them, and their files read back with plain NumPy."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fewsight.data import digest_of_list
from fewsight.scores import store as score_store
from fewsight.scores.members import Result, Scored, scored_run
from fewsight.scores.store import ScoredImage, Store, StoreInfo

CLASSES = ("ant", "bee", "cat", "dog")


def random_labels(seed: int, count: int) -> np.ndarray:
    """int [count], indices into CLASSES."""
    return np.random.default_rng([seed, 99]).integers(0, len(CLASSES), count)


def random_scores(seed: int, labels: np.ndarray, lead: float = 1.0) -> np.ndarray:
    """float32 [n, K]: random log-probabilities; `lead` is added to the label's logit."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), len(CLASSES)))
    logits[np.arange(len(labels)), labels] += lead
    return log_softmax(logits)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32, over the last axis."""
    log_probs: np.ndarray = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_probs.astype(np.float32)


def write_store(
    path: Path,
    views: Mapping[str, np.ndarray],
    labels: Iterable[int | str] | None = None,
    *,
    unreadable: Collection[int] = (),
    trained_on: Collection[int] = (),
    classes: tuple[str, ...] = CLASSES,
    digests: Sequence[str] | None = None,
    weights_digest: str = "w",
) -> Store:
    """A complete store of log-probabilities [n, K] by view, with NaN for unreadable images."""
    count = len(next(iter(views.values())))
    names: list[str | None] = [None] * count
    if labels is not None:
        names = [label if isinstance(label, str) else classes[label] for label in labels]
    named = [(f"{path.name}/{number}.png", 100 + number, names[number]) for number in range(count)]
    about = StoreInfo(classes, count, digest_of_list(named), weights_digest, 0, 0.875, True, "float32")
    store = score_store.begin(path, about, list(views))
    results = np.stack([views[view] for view in store.views]).astype(np.float32)
    results[:, list(unreadable)] = np.nan
    images = [
        ScoredImage(
            *named[number],
            "broken" if number in unreadable else None,
            digests[number] if digests else f"{number:016x}",
            number in trained_on,
        )
        for number in range(count)
    ]
    for start in range(0, count, 5):
        score_store.append(store, start, results[:, start : start + 5], images[start : start + 5])
    return score_store.finish(store)


def write_run(path: Path, views: Mapping[str, np.ndarray], labels: Iterable[int] | None, **options: object) -> Scored:
    """The scores of a run, `path/scores/test`, opened."""
    store = write_store(path / "scores" / "test", views, labels, **options)  # type: ignore[arg-type]
    return scored_run(path, path.name, store)


def probs_of(store: Store, view: str) -> np.ndarray:
    """float64 [n, K]: the probabilities of one view, from its file."""
    values = np.fromfile(store.path / f"{view}.f32", "<f4").astype(np.float64)
    return np.exp(values.reshape(-1, len(store.about.classes)))


def mean_plainly(weights: Mapping[Result, float]) -> np.ndarray:
    """float64 [n, K]: the weighted mean of probabilities, image by image."""
    store = next(iter(weights)).store
    probs = {result: probs_of(result.store, result.view) for result in weights}
    mean = np.zeros((store.about.count, len(store.about.classes)))
    for image in range(store.about.count):
        for result, weight in weights.items():
            mean[image] += weight * probs[result][image]
    return mean

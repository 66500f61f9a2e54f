"""The algebra of scores: results -> runs at a test size -> members -> fusion.

A result is one view's scores of one run. A run at a test size averages its crops; the paper's tables call it a row. A
member is some runs at a test size, by default all test sizes of one run. A fusion is a weighted mean of members; the
paper's weights 28 runs at a test size equally. Each of them is a mapping from results to weights, so that one pass over
the files answers many questions (`fusion`), in memory that does not grow with the number of images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewsight.augment.views import NO_FLIP
from fewsight.errors import RunError
from fewsight.scores.entries import EnsembleEntry
from fewsight.scores.store import Store
from fewsight.wording import named


@dataclass(frozen=True)
class Result:
    """The scores of one view in one run's store."""

    store: Store
    view: str

    @property
    def crop(self) -> str:
        """`center` or `random`."""
        return self.view.split("-")[0]

    @property
    def px(self) -> int:
        """Side of the view in pixels."""
        return int(self.view.split("-")[1])

    @property
    def flips(self) -> bool:
        """Whether the mirrored view is averaged in."""
        return not self.view.endswith(NO_FLIP)

    @property
    def unmirrored(self) -> "Result":
        """The same view without its mirrored view; the store may lack it."""
        return Result(self.store, f"{self.view}{NO_FLIP}")


Weights = Mapping[Result, float]  # of a fusion; they sum to 1


@dataclass(frozen=True)
class SizedRun:
    """A run at one test size: the mean over its crops. The paper's tables call it a row."""

    run: str
    px: int
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Member:
    """Some runs at a test size under one name; the paper's ResNeSt101 + CE combines test sizes of two runs."""

    name: str
    sized_runs: tuple[SizedRun, ...]
    weights: Weights  # of the member alone


@dataclass(frozen=True)
class Scored:
    """The stored scores of a run or an ensemble on a set of images."""

    path: Path
    members: tuple[Member, ...]
    weights: Weights

    @property
    def sized_runs(self) -> tuple[SizedRun, ...]:
        """The runs at a test size of all members."""
        return tuple(sized_run for member in self.members for sized_run in member.sized_runs)

    @property
    def first_store(self) -> Store:
        """One of the stores; all are of the same images."""
        return self.sized_runs[0].results[0].store

    @property
    def trained_on(self) -> np.ndarray:
        """bool [images]: which images at least one member was trained on."""
        return np.any([[image.trained_on for image in store.images] for store in self._stores], axis=0)  # type: ignore[no-any-return]

    @property
    def chose_weights(self) -> np.ndarray:
        """bool [images]: on which images at least one member chose the epoch of its weights."""
        return np.any([[image.chose_weights for image in store.images] for store in self._stores], axis=0)  # type: ignore[no-any-return]

    @property
    def _stores(self) -> set[Store]:
        return {result.store for sized_run in self.sized_runs for result in sized_run.results}


def scored_run(path: Path, name: str, store: Store, views: Sequence[str] = ()) -> Scored:
    """A run's scores as its only member, all views weighted equally."""
    runs = sized_runs(name, store, views)
    if not runs:
        raise RunError(f"{store.path} has no view {', '.join(views)}; it has {', '.join(store.views)}")
    weights = _equal_weights([result for sized_run in runs for result in sized_run.results])
    return Scored(path, (Member(name, runs, weights),), weights)


def sized_runs(name: str, store: Store, views: Sequence[str] = ()) -> tuple[SizedRun, ...]:
    """A run at each of its test sizes, smallest first.

    Args:
        name: of the run.
        store: its scores.
        views: only these. None: all but the `-noflip` ones.
    """
    results = [Result(store, view) for view in store.views if (view in views if views else not view.endswith(NO_FLIP))]
    sizes = sorted({result.px for result in results})
    return tuple(SizedRun(name, px, tuple(result for result in results if result.px == px)) for px in sizes)


def scored_ensemble(
    path: Path,
    entries: Sequence[EnsembleEntry],
    stores: Mapping[str, Store],
    views: Sequence[str] = (),
    *,
    center_only: bool = False,
) -> Scored:
    """An ensemble's scores, from the stores of its runs.

    Args:
        path: the ensemble's, for messages.
        entries: of its ensemble.json.
        stores: by the runs' names.
        views: of each run, only these.
        center_only: of each run, only the centre crops.

    Raises:
        RunError: the stores are of different images or classes, or one lacks a test size.
    """
    members: dict[str, list[SizedRun]] = {}
    weighted = []
    for entry in entries:
        store = stores[entry.run]
        names = (f"center-{entry.px}",) if center_only else views
        sized_run = next((run for run in sized_runs(entry.run, store, names) if run.px == entry.px), None)
        if sized_run is None and not views:
            raise RunError(
                f"{store.path} has no scores at {entry.px} px; it has {', '.join(store.views)}: evaluate {path} again"
            )
        if sized_run is not None:
            members.setdefault(entry.member, []).append(sized_run)
            weighted.append((sized_run, entry.weight))
    if not weighted:
        raise RunError(f"{path}: no member has a view {', '.join(views)}")
    check_same_images(list(stores.values()))
    weights = _weights_of(weighted)
    parts = [
        Member(name, tuple(runs), restrict(weights, [result for sized_run in runs for result in sized_run.results]))
        for name, runs in members.items()
    ]
    return Scored(path, tuple(parts), weights)


def make_member(name: str, weighted: Sequence[tuple[SizedRun, float]]) -> Member:
    """A member of some runs at a test size, each with its weight."""
    return Member(name, tuple(sized_run for sized_run, _ in weighted), _weights_of(weighted))


def check_same_images(stores: Sequence[Store]) -> None:
    """Check that scores can be compared or fused: the same images in the same order, and the same classes.

    Raises:
        RunError: names two stores that differ.
    """
    first, *others = stores
    first_images = [(image.digest, image.label, image.error is None) for image in first.images]
    for store in others:
        if store.about.classes != first.about.classes:
            unshared = sorted(set(first.about.classes) ^ set(store.about.classes))
            raise RunError(
                f"{store.path} and {first.path} have different classes, so they cannot be compared or fused; "
                f"only one of them has {named(map(repr, unshared))}"
            )
        if first_images != [(image.digest, image.label, image.error is None) for image in store.images]:
            raise RunError(
                f"{store.path} and {first.path} hold scores of different images, so they cannot be compared or fused; "
                "evaluate both on the same split of the same data"
            )


def uniform(runs: Sequence[SizedRun]) -> Weights:
    """Equal weight for each run at a test size, and within it for each result: the paper's fusion."""
    return _weights_of([(sized_run, 1.0) for sized_run in runs])


def fuse_members(members: Sequence[Member], weights: Sequence[float]) -> Weights:
    """The members by their weights; a member of weight 0 is left out."""
    total, fused = sum(weights), dict[Result, float]()
    for member, weight in zip(members, weights, strict=True):
        for result, proportion in member.weights.items() if weight else ():
            fused[result] = fused.get(result, 0.0) + proportion * weight / total
    return fused


def restrict(weights: Weights, results: Sequence[Result]) -> Weights:
    """A fusion restricted to some results, renormalised; empty if it has none of them."""
    kept = {result: weights[result] for result in results if weights.get(result)}
    total = sum(kept.values())
    return {result: weight / total for result, weight in kept.items()}


def _weights_of(weighted: Sequence[tuple[SizedRun, float]]) -> Weights:
    """Runs at a test size by their weights; within each, all results equally."""
    total, weights = sum(weight for _, weight in weighted), dict[Result, float]()
    for sized_run, weight in weighted:
        for result in sized_run.results:
            weights[result] = weights.get(result, 0.0) + weight / total / len(sized_run.results)
    return weights


def _equal_weights(results: Sequence[Result]) -> Weights:
    return {result: 1 / len(results) for result in results}

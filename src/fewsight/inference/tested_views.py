"""The test sizes and views that the runs of a new ensemble use: those that scores of val show not to harm."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewsight.errors import RunError
from fewsight.runs import Run
from fewsight.scores.chosen_weights import check_not_trained_on
from fewsight.scores.entries import Views
from fewsight.scores.fusion import correct_top1
from fewsight.scores.members import Result, Scored, SizedRun, check_same_images, uniform
from fewsight.scores.metrics import paired, wilson
from fewsight.scores.opening import open_scored
from fewsight.wording import counted


@dataclass(frozen=True)
class TestedViews:
    """Test sizes of some runs, the views at these sizes, and why."""

    sizes: Mapping[Path, tuple[int, ...]]
    views: Views  # at all sizes
    reason: str | None  # None where they were given


def test_sizes(run: Run) -> tuple[int, ...]:
    """A run's test sizes, in the order of its recipe."""
    assert run.recipe.eval.test_px != "auto", "a resolved recipe has its test sizes"
    return tuple(run.recipe.eval.test_px)


def harmless_views(own: Mapping[Path, Run], split: str) -> TestedViews:
    """The sizes and views that stored scores of a split show not to harm.

    The centre views at the runs' first test sizes are those of the figures that a training reports. A further size of a
    run is used if it is not worse on the split than the run's first (McNemar, 5 %); all of these with both crops are
    used if their mean is not below the mean of the centre views at the first sizes. Without scores that can tell, the
    centre views at the first sizes are used.

    Args:
        own: the runs by their folders.
        split: of which scores are stored; no run may have been trained on it.
    """
    first = {path: test_sizes(run)[:1] for path, run in own.items()}
    try:
        scored = {path: open_scored(path, split) for path in own}
        check_same_images([run.first_store for run in scored.values()])
        for run in scored.values():
            check_not_trained_on(run, "test sizes")
        narrow = uniform([_first_center(scored[path], px) for path, (px,) in first.items()])
        sizes = {path: _harmless_sizes(scored[path], first[path][0], test_sizes(run)) for path, run in own.items()}
        wide = uniform([run for path in own for run in _with_both_crops(scored[path], sizes[path])])
        correct = correct_top1([narrow, wide])
    except RunError as error:
        return TestedViews(first, "center", f"the centre view at the first test size: {error}")
    below, above = (wilson(int(row.sum()), len(row)) for row in correct)
    figures = f"on {split} ({counted(below.total, 'image')}) every size that does no harm, both crops, has {above}, "
    figures += f"the centre view at the first test size {below}"
    num_chose = int(np.any([run.chose_weights for run in scored.values()], axis=0).sum())
    if num_chose:
        figures += f" ({num_chose:,} of the images chose the epoch of a run's weights, so both are optimistic)"
    if wide == narrow or above.count < below.count:
        return TestedViews(first, "center", figures)
    return TestedViews(sizes, "paper", figures)


def _first_center(scored: Scored, px: int) -> SizedRun:
    """A run's centre view at a size.

    Raises:
        RunError: it was not scored.
    """
    store = scored.first_store
    if f"center-{px}" not in store.views:
        raise RunError(f"{store.path} has no scores of center-{px}")
    return SizedRun(scored.path.name, px, (Result(store, f"center-{px}"),))


def _harmless_sizes(scored: Scored, first_px: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a run's sizes at which it is not worse than at the first."""
    by_size = {run.px: run for run in scored.sized_runs if run.px in sizes}
    base, *rows = correct_top1([uniform([by_size[first_px]]), *(uniform([run]) for run in by_size.values())])
    differences = {px: paired(base, row) for px, row in zip(by_size, rows, strict=True)}
    kept = {px for px, difference in differences.items() if difference.gain >= 0 or not difference.distinguishable}
    return tuple(px for px in sizes if px in kept)


def _with_both_crops(scored: Scored, sizes: tuple[int, ...]) -> list[SizedRun]:
    """A run at some sizes.

    Raises:
        RunError: a crop of the paper's was not scored.
    """
    missing = [f"{crop}-{px}" for px in sizes for crop in ("center", "random")]
    missing = [view for view in missing if view not in scored.first_store.views]
    if missing:
        raise RunError(f"{scored.first_store.path} has no scores of {missing[0]}")
    return [run for run in scored.sized_runs if run.px in sizes]

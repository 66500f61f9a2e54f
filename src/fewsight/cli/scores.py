"""`fewsight scores`: rows, compare, ablate, calibrate."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from fewsight.errors import FewsightError
from fewsight.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

scores_app = App(name="scores", help="Ask the kept scores of runs and ensembles; no model is needed.")


@scores_app.command(name="rows")
def scores_rows(
    runs: tuple[Path, ...],
    /,
    *,
    split: str | None = None,
    views: str | None = None,
    fuse: bool = False,
    weights: str | None = None,
    choose_on: str | None = None,
) -> int:
    """Top-1 by test size (the mean over its crops, as in the report's tables) and of all views together.

    Args:
        runs: run folders that were evaluated, ensembles, or score folders.
        split: whose scores (test, else val, else the only ones that all have).
        views: only these, for example center-64,random-64.
        fuse: also the runs as one ensemble, uniform over their rows.
        weights: also the runs as one ensemble, by a number for each run, with commas.
        choose_on: also the runs as one ensemble, by weights chosen greedily on the scores of this split, such as val.
    """
    from fewsight.cli.show import show_lines
    from fewsight.scores.fusion import open_each, read_views
    from fewsight.scores.queries import fusions, lines, row_lines
    from fewsight.terminal import make_console

    console = make_console()
    opened = open_each(runs, _asked_split(runs, split, console), read_views(views))
    for one in opened:
        show_lines(console, str(one.path), row_lines(one), int(one.trained_on.sum()))
    for text, fused in fusions(opened, views, rows_alike=fuse, weights=weights, choose_on=choose_on):
        show_lines(console, text, lines([("fusion", fused.weights)]), int(fused.trained_on.sum()))
    return 0


@scores_app.command(name="compare")
def scores_compare(runs: tuple[Path, ...], /, *, split: str | None = None, views: str | None = None) -> int:
    """Compare each run with the first on the same images: gain, bootstrap interval, exact McNemar test.

    Args:
        runs: two or more run folders or ensembles that were evaluated on the same images, or score folders.
        split: whose scores (test, else val, else the only ones that all have).
        views: only these, for example center-64,random-64 (all that there are).
    """
    from fewsight.scores.calibration import view_names
    from fewsight.scores.fusion import open_each, read_views
    from fewsight.scores.queries import averaged, compare
    from fewsight.terminal import make_console, printable, trained_on_note

    if len(runs) < 2:
        raise FewsightError(
            "scores compare needs at least two runs, for example: fewsight scores compare runs/a runs/b"
        )
    console = make_console()
    first, *others = open_each(runs, _asked_split(runs, split, console), read_views(views))
    for other in others:
        if number := int((first.trained_on | other.trained_on).sum()):
            console.print(trained_on_note(number, len(other.trained_on), "one of the two"))
        if view_names(first) != view_names(other):
            counts = [len(one.weights) for one in (first, other)]
            console.print(f"note: they have other views ({counts[0]} and {counts[1]}); --views compares the same ones")
        by = " against ".join(dict.fromkeys((averaged(other), averaged(first))))
        console.print(printable(f"{other.path} against {first.path}: {compare(first, other)}; by {by}"))
    return 0


@scores_app.command(name="ablate")
def scores_ablate(runs: tuple[Path, ...], /, *, split: str | None = None) -> int:
    """What each scale, each crop, the flips and each member give, every part compared with the whole image by image.

    Args:
        runs: one run, one ensemble, or several runs that are taken as one ensemble.
        split: whose scores (test, else val, else the only ones that all have).
    """
    from fewsight.cli.show import show_lines
    from fewsight.scores.fusion import open_each
    from fewsight.scores.queries import ablate
    from fewsight.scores.queries import fuse as fuse_runs
    from fewsight.terminal import make_console, trained_on_note

    console = make_console()
    opened = open_each(runs, _asked_split(runs, split, console))
    scored = opened[0] if len(opened) == 1 else fuse_runs(opened)
    found = ablate(scored)
    title = f"{len(runs)} runs, uniform over {counted(len(scored.rows), 'row')}"
    title = str(runs[0]) if len(runs) == 1 else title
    if number := int(scored.trained_on.sum()):
        console.print(trained_on_note(number, len(scored.trained_on)))
    show_lines(console, title, [found.whole])
    for group, parts in found.groups:
        show_lines(console, f"{group}, against all together", parts)
    return 0


@scores_app.command(name="calibrate")
def scores_calibrate(
    run: Path,
    /,
    *,
    split: str = "val",
    views: str | None = None,
    coverage: float | None = None,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
) -> int:
    """Fit the temperature that makes a run as sure as it is right, and keep it in the run, where predict takes it.

    It is the one that makes the labels most likely (least NLL). The calibration error that is shown beside it, over 15
    bins of probability, is mostly noise on fewer than 300 images.

    With --coverage also choose the probability below which an image is none of the run's classes; predict and serve
    then mark such images.

    Args:
        run: a run or an ensemble that was evaluated on the split.
        split: whose scores; never images that it was trained on (val).
        views: whose mean is calibrated, for example center-64 (all that were scored, and the default view alone).
        coverage: share of images of its classes that the threshold is to keep, for example 0.95; without it no
            threshold is kept.
        from_: take the temperatures and thresholds of this run of the same recipe, for example trained on train alone.
    """
    from fewsight.cli.show import show_calibrations
    from fewsight.terminal import make_console

    if from_ is not None:
        if views is not None:
            raise FewsightError("--from brings the temperatures of its own views; leave out --views")
        if coverage is not None:
            raise FewsightError("--from brings the thresholds that it has; leave out --coverage")
        from fewsight.inference.ensemble import carry_calibration

        found = carry_calibration(from_, run)
    else:
        from fewsight.scores.calibration import calibrate

        found = calibrate(run, split, views, coverage)
    console = make_console()
    if from_ is not None:
        console.print(f"carried over from {from_}, where it was fitted:")
    show_calibrations(console, run, found)
    return 0


def _asked_split(runs: Sequence[Path], split: str | None, console: "Console") -> str:
    """The split that was named, else the one that the runs have scores of; it is said where that is not test."""
    from fewsight.scores.fusion import split_of

    if split is not None:
        return split
    found = split_of(runs)
    if found != "test":
        lacking = "there are no scores of test" if len(runs) == 1 else "not all of these have scores of test"
        console.print(f"on {found}: {lacking} (--split names another)")
    return found

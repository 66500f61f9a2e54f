"""`fewsight scores`: rows, compare, ablate, calibrate."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from fewsight.errors import FewsightError
from fewsight.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

    from fewsight.scores.members import Scored

scores_app = App(name="scores", help="Analyse the stored scores of runs and ensembles; no model is loaded.")


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
    """Top-1 at each test size (the mean over its crops, as in the paper's tables) and of all views together.

    Args:
        runs: run folders that were evaluated, ensembles, or score folders.
        split: the split whose scores are used (test, else val, else the only one that all have).
        views: use only these views, for example center-64,random-64.
        fuse: also show the runs as one ensemble, uniform over their test sizes.
        weights: also show the runs as one ensemble with these weights, one number per run, separated by commas.
        choose_on: also show the runs as one ensemble with weights chosen greedily on the scores of this split, such as
            val.
    """
    from fewsight.cli.show import show_lines
    from fewsight.scores.queries import better_part, fusions, lines, lines_by_size
    from fewsight.terminal import make_console, printable

    console = make_console()
    opened = _opened(runs, split, views, console)
    for scored in opened:
        show_lines(console, str(scored.path), lines_by_size(scored), _notes(scored))
        if len(scored.members) > 1 and (better := better_part(scored)) is not None:
            console.print(printable(f"  note: {better}"))
    for text, fused in fusions(opened, views, equal_weights=fuse, weights=weights, choose_on=choose_on):
        show_lines(console, text, lines([("fusion", fused.weights)]), _notes(fused))
        if (better := better_part(fused)) is not None:
            console.print(printable(f"  note: {better}"))
    return 0


@scores_app.command(name="compare")
def scores_compare(runs: tuple[Path, ...], /, *, split: str | None = None, views: str | None = None) -> int:
    """Compare each run with the first one on the same images: gain, exact McNemar test and its interval.

    Args:
        runs: two or more run folders or ensembles that were evaluated on the same images, or score folders.
        split: the split whose scores are used (test, else val, else the only one that all have).
        views: use only these views, for example center-64,random-64 (all that are stored).
    """
    from fewsight.scores.calibration import view_names
    from fewsight.scores.queries import compare, describe_mean
    from fewsight.terminal import make_console, optimistic_notes, printable

    if len(runs) < 2:
        raise FewsightError(
            "scores compare needs at least two runs, for example: fewsight scores compare runs/a runs/b"
        )
    console = make_console()
    first, *others = _opened(runs, split, views, console)
    for other in others:
        for note in optimistic_notes(
            int((first.trained_on | other.trained_on).sum()),
            int((first.chose_weights | other.chose_weights).sum()),
            len(other.trained_on),
            " of one of the two runs",
        ):
            console.print(note)
        if view_names(first) != view_names(other):
            console.print(
                f"note: the two have different views ({len(first.weights)} and {len(other.weights)}); --views compares "
                "the same ones"
            )
        views_text = " against ".join(dict.fromkeys((describe_mean(other), describe_mean(first))))
        console.print(printable(f"{other.path} against {first.path}: {compare(first, other)}; by {views_text}"))
    return 0


@scores_app.command(name="ablate")
def scores_ablate(runs: tuple[Path, ...], /, *, split: str | None = None) -> int:
    """Ablation of test sizes, crops, mirrored views and members: each part compared with the whole, image by image.

    Args:
        runs: one run, one ensemble, or several runs, which are fused into one ensemble.
        split: the split whose scores are used (test, else val, else the only one that all have).
    """
    from fewsight.cli.show import show_lines
    from fewsight.scores.queries import ablate
    from fewsight.scores.queries import fuse as fuse_runs
    from fewsight.terminal import make_console

    console = make_console()
    opened = _opened(runs, split, None, console)
    scored = opened[0] if len(opened) == 1 else fuse_runs(opened)
    ablation = ablate(scored)
    title = f"{len(runs)} runs, uniform over {counted(len(scored.sized_runs), 'test size')}"
    title = str(runs[0]) if len(runs) == 1 else title
    show_lines(console, title, [ablation.whole], _notes(scored))
    for group, parts in ablation.groups:
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
    """Calibrate a run by temperature scaling: its confidence then matches its accuracy, in predict and serve too.

    The temperature minimises the NLL of the labels (with one more image, so that few right ones do not make it sure of
    all), and is stored in the run; it needs at least 30 images. The calibration error printed beside it, on 15
    groups of images by confidence, is largely chance with fewer than 300 images.

    With --coverage, also choose a confidence threshold: predict and serve then mark an image below it as none of the
    run's classes. Without it a threshold that the run has is chosen anew for the coverage that it was chosen for.

    Args:
        run: a run or an ensemble that was evaluated on the split.
        split: the split whose scores are used; images that the run was trained on are refused (val).
        views: calibrate the mean of these views, for example center-64 (the mean of all stored views, and each stored
            centre view alone; of an ensemble of several members, the mean of the centre views instead of each).
        coverage: fraction of images of its classes that the threshold should accept, for example 0.95; without it, no
            threshold is chosen.
        from_: take the temperatures and thresholds of this run of the same recipe, for example trained on train alone.
    """
    from fewsight.cli.show import show_calibrations
    from fewsight.terminal import make_console

    if from_ is not None:
        if views is not None:
            raise FewsightError("--from takes the temperatures of that run for its own views; leave out --views")
        if coverage is not None:
            raise FewsightError("--from takes the thresholds of that run; leave out --coverage")
        from fewsight.inference.ensemble import carry_calibration

        calibrations = carry_calibration(from_, run)
    else:
        from fewsight.scores.calibration import calibrate

        calibrations = calibrate(run, split, views, coverage)
    console = make_console()
    if from_ is not None:
        console.print(f"copied from {from_}, where it was fitted:")
    show_calibrations(console, run, calibrations)
    return 0


def _notes(scored: "Scored") -> list[str]:
    """Why figures on these images are optimistic, if they are."""
    from fewsight.terminal import optimistic_notes

    return optimistic_notes(int(scored.trained_on.sum()), int(scored.chose_weights.sum()), len(scored.trained_on))


def _opened(runs: Sequence[Path], split: str | None, views: str | None, console: "Console") -> "list[Scored]":
    """The scores of the given split, else of one that all runs have scores of; a line says so if that is not test."""
    from fewsight.scores.opening import default_split, open_each, parse_views

    chosen = default_split(runs) if split is None else split
    opened = open_each(runs, chosen, parse_views(views))
    if split is None and chosen != "test":
        reason = "there are no scores of test" if len(runs) == 1 else "not all of these have scores of test"
        console.print(f"on {chosen}: {reason} (--split chooses another)")
    return opened

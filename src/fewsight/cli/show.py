"""What several commands print: figures, tables of runs and members, the end of a training."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from fewsight.scores.metrics import read_val_figures
from fewsight.terminal import (
    MIN_NAME_CELLS,
    optimistic_notes,
    padded,
    plain_table,
    print_first,
    printable,
    shortened,
)
from fewsight.wording import counted, shell_command

if TYPE_CHECKING:
    from fewsight.apps.listing import ListedRun
    from fewsight.inference.evaluate import Evaluation
    from fewsight.runs import Run
    from fewsight.scores.calibration import Calibration
    from fewsight.scores.entries import EnsembleEntry
    from fewsight.scores.metrics import Figures
    from fewsight.scores.queries import Line

FIGURE_CELLS = 42  # width of the columns beside the class names


def show_run(run: "Run", console: Console) -> None:
    """Print the figures on val, whether the loss collapsed, and where the run is."""
    val = read_val_figures(run.path)
    if val is not None:
        num_read = f"{val.top1.total:,} of " if val.num_images != val.top1.total else ""
        console.print(f"val top-1 {val.top1} on {num_read}{counted(val.num_images, 'image')}")
        balanced, macro_f1 = 100 * val.balanced_accuracy, 100 * val.macro_f1
        console.print(f"balanced accuracy {balanced:.1f} %, macro-F1 {macro_f1:.1f} %")
        if run.recipe.run.select == "best":
            console.print("note: val chose the epoch of the weights (run.select = best): these figures are optimistic")
    if run.info.collapsed:
        console.print("note: the loss had collapsed when training ended; log.jsonl says since when, and what to change")
    if run.recipe.run.members > 1:
        _show_members_alone(run, console)
    console.print(f"the {'ensemble' if run.recipe.run.members > 1 else 'run'} is in {run.path}")


def _show_members_alone(run: "Run", console: Console) -> None:
    """Print each member's top-1 on val, and whether one is better than the ensemble."""
    from fewsight.scores.opening import open_scored
    from fewsight.scores.queries import better_part
    from fewsight.training.members.folder import member_paths

    figures = [read_val_figures(path) for path in member_paths(run)]
    alone = ", ".join(f"{100 * val.top1.value:.1f}" for val in figures if val is not None)
    if alone:
        console.print(f"{len(figures)} members, alone: {alone} %")
        if (better := better_part(open_scored(run.path, "val"))) is not None:
            console.print(printable(f"note: {better}"))


def show_next(run: "Run", console: Console) -> None:
    """Print the command to run next after training."""
    has_labels = run.data.test_splits or "val" in run.data.counts
    words = ["evaluate", str(run.path), run.data.source] if has_labels else ["predict", str(run.path), "IMAGES"]
    console.print(f"next: {shell_command(['fewsight', *words])}")


def show_seeds(runs: Sequence["Run"], console: Console) -> None:
    """Print the mean and standard deviation of top-1 over seeds."""
    figures = [read_val_figures(run.path) for run in runs]
    percentages = [100 * val.top1.value for val in figures if val is not None]
    if len(percentages) > 1:
        mean, sd = statistics.mean(percentages), statistics.stdev(percentages)
        console.print(f"val top-1 over {len(percentages)} seeds: {mean:.1f} ± {sd:.1f} % (mean ± standard deviation)")


def show_evaluation(console: Console, run: Any, evaluation: "Evaluation") -> None:
    """Print the figures of a run or an ensemble on a split, with what must be known to read them."""
    figures, num_views = evaluation.figures, len(evaluation.views)
    views = ", ".join(evaluation.views) if num_views <= 2 else counted(num_views, "view")
    if evaluation.num_left_out:
        total = evaluation.num_left_out + figures.num_images
        console.print(
            f"left out: {evaluation.num_left_out:,} of {counted(total, 'image')}, because they were in the training "
            "set; --split all tests them too"
        )
    for note in optimistic_notes(evaluation.num_trained_on, evaluation.num_chose_weights, figures.num_images):
        console.print(note)
    show_figures(console, figures, f"{run} on {evaluation.data} ({evaluation.split}, {views})")
    console.print(printable(evaluation.probabilities))
    if evaluation.better_part is not None:
        console.print(printable(f"note: {evaluation.better_part}"))
    print_first(console, "unreadable", evaluation.unreadable)
    for line in evaluation.kept:
        console.print(printable(line))


def show_figures(console: Console, figures: "Figures", title: str, *, max_classes: int = 10) -> None:
    """Print the overall figures with intervals, the classes of lowest recall and the worst confusions."""
    top1 = figures.top1
    num_unreadable = figures.num_images - top1.total
    count = counted(top1.total, "image")
    if num_unreadable:
        count = f"{top1.total:,} of {counted(figures.num_images, 'image')} ({num_unreadable:,} unreadable)"
    console.print(f"{printable(title)} · {count}", style="bold")
    console.print(f"  top-1              {top1}  (Wilson 95 % interval)")
    if len(figures.classes) > figures.top_k:  # else every image counts as correct
        console.print(f"  top-{figures.top_k}              {figures.top5}")
    console.print(f"  balanced accuracy  {100 * figures.balanced_accuracy:.1f} %")
    console.print(f"  macro-F1           {100 * figures.macro_f1:.1f} %")
    console.print(_class_table(console, figures, max_classes))
    if figures.confusions:
        console.print("worst confusions (true → predicted)")
        cells = max(MIN_NAME_CELLS, (console.width - 12) // 2)
        for true, predicted, count_of_pair in figures.confusions[:5]:
            console.print(f"  {shortened(true, cells)} → {shortened(predicted, cells)}  {count_of_pair:,}")


def show_lines(console: Console, title: str, lines: Sequence["Line"], notes: Sequence[str] = ()) -> None:
    """Print top-1 with its interval on each line, and the paired difference if the line has one."""
    console.print(printable(title), style="bold")
    for note in notes:
        console.print(f"  {note}")
    names = padded([line.name for line in lines])
    for name, line in zip(names, lines, strict=True):
        views = counted(line.num_results, "view")
        difference = "" if line.against is None else f", {line.against.brief()}"
        console.print(f"  {name}  {line.top1}  on {counted(line.top1.total, 'image')}, {views}{difference}")


def show_members(console: Console, entries: Sequence["EnsembleEntry"]) -> None:
    """Print an ensemble's members with their weights and test sizes."""
    names = list(dict.fromkeys(entry.member for entry in entries))
    for name, shown in zip(names, padded(names), strict=True):
        own = [entry for entry in entries if entry.member == name]
        sizes = ", ".join(f"{entry.px} px" for entry in own)
        console.print(f"  {shown}  weight {sum(entry.weight for entry in own):.3f}  at {sizes}")


def show_calibrations(console: Console, path: Any, calibrations: Sequence["Calibration"]) -> None:
    """Print temperatures and thresholds, with their effect on the images that they were chosen on."""
    for fit in calibrations:
        views = fit.views[0] if len(fit.views) == 1 else counted(len(fit.views), "view")
        console.print(
            f"{printable(str(path))}, {views}: temperature {fit.temperature:.3f}, fitted on "
            f"{counted(fit.num_images, 'image')} of {printable(fit.fitted_on)}; there NLL {fit.nll[0]:.3f} → "
            f"{fit.nll[1]:.3f}, calibration error {100 * fit.ece[0]:.1f} → {100 * fit.ece[1]:.1f} points"
        )
        for note in fit.notes:
            console.print(f"  note: {note}")
        if fit.threshold is not None:
            console.print(
                f"  below probability {fit.threshold.prob:.3f} an image is none of these classes: there "
                f"{fit.threshold.kept:,} of {fit.num_images:,} images are accepted (target "
                f"{100 * fit.threshold.coverage:g} %), with accuracy {fit.threshold.accuracy}"
            )
    if not any(fit.threshold for fit in calibrations):
        console.print(
            "  no threshold for none of these classes; --coverage 0.95 chooses the one that accepts 95 % of the images"
        )


def show_runs(
    console: Console, folder: Any, listed: Sequence["ListedRun"], seeds: Mapping[Any, tuple[float, float, int]]
) -> None:
    """Print a table of runs, and the mean and standard deviation over runs that differ only in their seeds."""
    table = plain_table()
    for name in ("run", "top-1 on val, centre view", "status", "model", "training", "started"):
        table.add_column(name, overflow="fold")
    for run in listed:
        name = printable(str(run.path.relative_to(folder)) if run.path != folder else run.path.name)
        val = "" if run.val is None else f"{run.val} of {run.val.total:,}"
        status = run.status if run.kind in ("run", "ensemble") else f"{run.status}: {run.kind}"
        table.add_row(name, val, printable(status), printable(run.model), printable(run.training), run.started)
    console.print(table)
    for path, (mean, sd, count) in seeds.items():
        figure = f"{100 * mean:.1f} ± {100 * sd:.1f} %"
        console.print(f"{printable(str(path))}: {figure} over {counted(count, 'seed')} (mean ± standard deviation)")


def _class_table(console: Console, figures: "Figures", max_classes: int) -> Table:
    """The classes that have images, lowest recall first."""
    ranked = sorted((row for row in figures.classes if row.recall is not None), key=lambda row: (row.recall, row.name))
    heading = "per class" if len(ranked) <= max_classes else f"{max_classes} weakest of {len(ranked):,} classes"
    table = plain_table()
    table.add_column(heading, no_wrap=True)
    for name in ("images", "recall", "precision", "F1"):
        table.add_column(name, justify="right", no_wrap=True)
    cells = max(MIN_NAME_CELLS, console.width - FIGURE_CELLS)
    for row in ranked[:max_classes]:
        values = ["-" if value is None else f"{100 * value:.1f} %" for value in (row.recall, row.precision, row.f1)]
        table.add_row(shortened(row.name, cells), f"{row.count:,}", *values)
    return table

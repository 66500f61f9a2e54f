"""What the commands print: figures, tables of runs and members, the end of a training."""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from fewsight.machine import files
from fewsight.scores.metrics import Proportion
from fewsight.terminal import MIN_NAME_CELLS, printable, shortened, trained_on_note
from fewsight.wording import counted

if TYPE_CHECKING:
    from fewsight.apps.listing import ListedRun
    from fewsight.runs import Run
    from fewsight.scores.calibration import Calibration
    from fewsight.scores.fusion import EnsembleEntry
    from fewsight.scores.metrics import Figures
    from fewsight.scores.queries import Line

FIGURE_CELLS = 42  # what the table of classes needs beside the names


def show_run(run: "Run", console: Console) -> None:
    """Where the run lies, its figure on val, and whether its loss had collapsed."""
    val = files.read_json(run.path / "metrics.json")["val"]
    if val is not None:
        top1 = Proportion(**val["top1"])
        unread = f"{top1.total:,} of " if val["num_images"] != top1.total else ""
        console.print(f"val top-1 {top1} on {unread}{counted(val['num_images'], 'image')}")
        balanced, macro_f1 = 100 * val["balanced_accuracy"], 100 * val["macro_f1"]
        console.print(f"balanced accuracy {balanced:.1f} %, macro-F1 {macro_f1:.1f} %")
    if run.info.get("collapsed"):
        console.print("note: the loss had collapsed when training ended; log.jsonl says since when and what to change")
    console.print(f"the run lies in {run.path}")


def show_next(run: "Run", console: Console) -> None:
    """The command that a user comes to after training."""
    tested = [split for split in run.data.counts if split != "train"]
    words = ["evaluate", str(run.path), run.data.source] if tested else ["predict", str(run.path), "IMAGES"]
    console.print(f"next: {shlex.join(['fewsight', *words])}")


def show_seeds(runs: Sequence["Run"], console: Console) -> None:
    """Mean and standard deviation over seeds."""
    found = [files.read_json(run.path / "metrics.json")["val"] for run in runs]
    shares = [100 * val["top1"]["value"] for val in found if val is not None]
    if len(shares) > 1:
        mean, spread = statistics.mean(shares), statistics.stdev(shares)
        console.print(f"val top-1 over {len(shares)} seeds: {mean:.1f} ± {spread:.1f} % (mean ± standard deviation)")


def show_figures(console: Console, figures: "Figures", title: str, *, most: int = 10) -> None:
    """The headline with its interval and count, the weakest classes, the worst confusions."""
    top1, top5 = figures.top1, figures.top5
    unread = figures.num_images - top1.total
    count = f"{top1.total:,} of {counted(figures.num_images, 'image')}" if unread else counted(top1.total, "image")
    unreadable = f" ({unread:,} unreadable)" if unread else ""
    console.print(f"{printable(title)} · {count}{unreadable}", style="bold")
    console.print(f"  top-1              {top1}  (Wilson 95 % interval)")
    console.print(f"  top-{figures.top_k}              {top5}")
    console.print(f"  balanced accuracy  {100 * figures.balanced_accuracy:.1f} %")
    console.print(f"  macro-F1           {100 * figures.macro_f1:.1f} %")
    console.print(_class_table(console, figures, most))
    if figures.confusions:
        console.print("worst confusions (true → taken for)")
        cells = max(MIN_NAME_CELLS, (console.width - 12) // 2)
        for true, taken, number in figures.confusions[:5]:
            console.print(f"  {shortened(true, cells)} → {shortened(taken, cells)}  {number:,}")


def show_lines(console: Console, title: str, lines: Sequence["Line"], num_trained_on: int = 0) -> None:
    """Top-1 with its interval, a line each, and the paired difference where there is one."""
    console.print(printable(title), style="bold")
    if num_trained_on:
        console.print(f"  {trained_on_note(num_trained_on, lines[0].top1.total)}")
    cells = max(cell_len(printable(line.name)) for line in lines)
    for line in lines:
        name = printable(line.name) + " " * (cells - cell_len(printable(line.name)))
        results = counted(line.num_results, "view")
        against = "" if line.against is None else f", {line.against.brief()}"
        console.print(f"  {name}  {line.top1}  on {counted(line.top1.total, 'image')}, {results}{against}")


def show_members(console: Console, specs: Sequence["EnsembleEntry"]) -> None:
    """An ensemble's members, their rows and weights."""
    names = list(dict.fromkeys(spec.member for spec in specs))
    cells = max(map(cell_len, map(printable, names)))
    for name in names:
        rows = [spec for spec in specs if spec.member == name]
        shown = printable(name) + " " * (cells - cell_len(printable(name)))
        sizes = ", ".join(f"{spec.px} px" for spec in rows)
        console.print(f"  {shown}  weight {sum(spec.weight for spec in rows):.3f}  rows {sizes}")


def show_calibrations(console: Console, path: Any, found: Sequence["Calibration"]) -> None:
    """Temperatures and thresholds, and what they did on the images that they were chosen on."""
    for one in found:
        views = one.views[0] if len(one.views) == 1 else counted(len(one.views), "view")
        console.print(
            f"{printable(str(path))}, {views}: temperature {one.temperature:.3f} on {counted(one.num_images, 'image')} "
            f"of {printable(one.fitted_on)}; there NLL {one.nll[0]:.3f} → {one.nll[1]:.3f}, calibration error "
            f"{100 * one.ece[0]:.1f} → {100 * one.ece[1]:.1f} points"
        )
        if one.note is not None:
            console.print(f"  note: {one.note}")
        if one.threshold is not None:
            console.print(
                f"  none of these below {one.threshold.prob:.3f}: there it keeps {one.threshold.kept:,} of "
                f"{one.num_images:,} (wanted {100 * one.threshold.coverage:g} %), and has {one.threshold.accuracy} of "
                "those right"
            )
    if not any(one.threshold for one in found):
        console.print("  no threshold for none of these; --coverage 0.95 chooses the one that keeps 95 %")


def show_runs(
    console: Console, folder: Any, found: Sequence["ListedRun"], seeds: Mapping[Any, tuple[float, float, int]]
) -> None:
    """Runs, one a line, and the mean of those that differ in their seeds."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("run", "top-1 on val, centre view", "status", "model", "training", "started"):
        table.add_column(name, overflow="fold")
    for one in found:
        name = printable(str(one.path.relative_to(folder)) if one.path != folder else one.path.name)
        val = "" if one.val is None else f"{one.val} of {one.val.total:,}"
        status = one.status if one.kind in ("run", "ensemble") else f"{one.status}: {one.kind}"
        table.add_row(name, val, printable(status), printable(one.model), printable(one.training), one.started)
    console.print(table)
    for path, (mean, spread, count) in seeds.items():
        figure = f"{100 * mean:.1f} ± {100 * spread:.1f} %"
        console.print(f"{printable(str(path))}: {figure} over {counted(count, 'seed')} (mean ± standard deviation)")


def _class_table(console: Console, figures: "Figures", most: int) -> Table:
    """The classes by recall, weakest first; without those that have no image here."""
    ranked = sorted((one for one in figures.classes if one.recall is not None), key=lambda one: (one.recall, one.name))
    heading = "per class" if len(ranked) <= most else f"{most} weakest of {len(ranked):,} classes"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(heading, no_wrap=True)
    for name in ("images", "recall", "precision", "F1"):
        table.add_column(name, justify="right", no_wrap=True)
    cells = max(MIN_NAME_CELLS, console.width - FIGURE_CELLS)
    for one in ranked[:most]:
        values = ["-" if value is None else f"{100 * value:.1f} %" for value in (one.recall, one.precision, one.f1)]
        table.add_row(shortened(one.name, cells), f"{one.count:,}", *values)
    return table

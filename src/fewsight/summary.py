"""What `train` says at its end."""

import shlex
import statistics
from collections.abc import Sequence

from rich.console import Console

from fewsight import files
from fewsight.metrics import Share
from fewsight.runs import Run
from fewsight.wording import counted


def show_run(run: Run, console: Console) -> None:
    """Where the run lies, its figure on val, and whether its loss had collapsed."""
    val = files.read_json(run.path / "metrics.json")["val"]
    if val is not None:
        top1 = Share(**val["top1"])
        unread = f"{top1.total:,} of " if val["num_images"] != top1.total else ""
        console.print(f"val top-1 {top1} on {unread}{counted(val['num_images'], 'image')}")
        balanced, macro_f1 = 100 * val["balanced_accuracy"], 100 * val["macro_f1"]
        console.print(f"balanced accuracy {balanced:.1f} %, macro-F1 {macro_f1:.1f} %")
    if run.info.get("collapsed"):
        console.print("note: the loss had collapsed when training ended; log.jsonl says since when and what to change")
    console.print(f"the run lies in {run.path}")


def show_next(run: Run, console: Console) -> None:
    """The command that a user comes to after training."""
    tested = [split for split in run.data.counts if split != "train"]
    words = ["evaluate", str(run.path), run.data.source] if tested else ["predict", str(run.path), "IMAGES"]
    console.print(f"next: {shlex.join(['fewsight', *words])}")


def show_seeds(runs: Sequence[Run], console: Console) -> None:
    """Mean and standard deviation over seeds."""
    found = [files.read_json(run.path / "metrics.json")["val"] for run in runs]
    shares = [100 * val["top1"]["value"] for val in found if val is not None]
    if len(shares) > 1:
        mean, spread = statistics.mean(shares), statistics.stdev(shares)
        console.print(f"val top-1 over {len(shares)} seeds: {mean:.1f} ± {spread:.1f} % (mean ± standard deviation)")

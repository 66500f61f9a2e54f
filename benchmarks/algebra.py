"""The algebra of scores at the challenge's size: 7 generated stores of 4 views, 50,000 images x 1,000 classes (5.6 GB).

`python -m benchmarks.algebra [--folder DIR] [--images N]` generates the stores, reads them once, then runs the
commands as a user would, from a warm page cache, and prints each one's median seconds and peak memory.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.machine import about, busy_processes, keep, listed, measured_command
from fewsight.data import digest_of_list
from fewsight.scores import store as score_store
from fewsight.scores.store import ScoredImage, StoreInfo

NUM_RUNS, NUM_CLASSES = 7, 1000
SIZES = (224, 320, 380, 448)
REPEATS = 3


def write_stores(folder: Path, num_images: int) -> None:
    """Scores whose top-1 is near 0.65, different in each run and view; the images lie in a split called test."""
    classes = tuple(f"n{number:08d}" for number in range(NUM_CLASSES))
    labels = np.random.default_rng(0).integers(0, NUM_CLASSES, num_images)
    views = tuple(f"center-{px}" for px in SIZES)
    for run in range(NUM_RUNS):
        path = folder / f"run{run}"
        named = [(f"{number}.JPEG", 100, classes[label]) for number, label in enumerate(labels)]
        about = StoreInfo(classes, num_images, digest_of_list(named), f"w{run}", 0, 0.875, True, "float32")
        store = score_store.begin(path / "scores" / "test", about, views)
        for first in range(0, num_images, 1000):
            part = labels[first : first + 1000]
            rng, shared = np.random.default_rng([1, run, first]), np.random.default_rng([2, first])
            logits = shared.standard_normal((len(part), NUM_CLASSES), np.float32)[None] + 0.7 * rng.standard_normal(
                (len(views), len(part), NUM_CLASSES), np.float32
            )
            logits[:, np.arange(len(part)), part] += 4.2
            logits -= np.log(np.exp(logits).sum(2, keepdims=True))
            lines = [
                ScoredImage(*named[number], None, f"{number:016x}", False) for number in range(first, first + len(part))
            ]
            score_store.append(store, first, logits, lines)
        score_store.finish(store)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the stores are generated, or lie (a temporary folder)")
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (runs := sorted(folder.glob("run?"))):
            write_stores(folder, options.images)
            runs = sorted(folder.glob("run?"))
        if busy := busy_processes():
            raise SystemExit(f"other processes would disturb the timing: {busy}")
        size = sum(file.stat().st_size for run in runs for file in run.rglob("*.f32"))
        for run in runs:  # warm
            for file in run.rglob("*.f32"):
                with file.open("rb") as handle:
                    while handle.read(2**24):
                        pass
        names = [str(run) for run in runs]
        commands = {
            "28 rows, the means of 7 models, the fusion": ["scores", "rows", *names, "--fuse"],
            "the same, and weights chosen greedily": ["scores", "rows", *names, "--choose-on", "test"],
            "ablation of the fusion: sizes, members": ["scores", "ablate", *names],
            "6 paired comparisons": ["scores", "compare", *names],
            "temperatures of one model": ["scores", "calibrate", names[0], "--split", "test"],
        }
        found = {what: [measured_command(command) for _ in range(REPEATS)] for what, command in commands.items()}
    setting = about(
        "algebra", [], scores=f"{options.images:,} x {NUM_CLASSES:,} x 28, {size / 1e9:.1f} GB, warm page cache"
    )
    lines = [*listed(setting), "| command | median s (least to most) | peak memory, MB |", "|---|---|---|"]
    for what, pairs in found.items():
        seconds = [one for one, _ in pairs]
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        lines.append(f"| {what} | {spread} | {max(memory for _, memory in pairs):,.0f} |")
    print("\n".join(lines))
    keep("algebra", "The algebra of scores at the challenge's size", lines, {"about": setting, "seconds_and_mb": found})


if __name__ == "__main__":
    main()

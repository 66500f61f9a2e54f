"""How cost grows with images and classes: listing a tree, a training step, memory.

    python -m benchmarks.scale [--files 1281167] [--classes 1000] [--steps 20]

The tree is made in a temporary folder of hard links to a few images, listed in a process of its own, a tenth of it
first. Steps are those of a small model on 32 px images, the same files under many numbers: 1,000 to 1,000,000 images
in 10 classes, then 10 to 10,000 classes of 100,000 images. Last, the same training by one process with all cores and
by two that share each batch (and the cores), in turns: seconds an epoch.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import about, busy_unless, device_name, keep, measured
from fewsight.augment.normalise import Normalise
from fewsight.data.training_set import TrainingSet
from fewsight.machine.allocator import keep_freed_memory
from fewsight.machine.cores import num_cores
from fewsight.machine.device import resolve_run
from fewsight.models.classifier import initial_model
from fewsight.recipes import load_recipe
from fewsight.training.feed import AugmentedImages, batches
from fewsight.training.learner import build_learner, read_values
from fewsight.training.mix import mix
from fewsight.training.plans import batch_plan

TURNS = 3
MAX_LINKS = 60_000  # to one file; ext4 takes 65,000
LIST = "import sys; from pathlib import Path; from fewsight.data import read_dataset; \
sys.exit(sum(len(one) for one in read_dataset(Path(sys.argv[1])).splits.values()) != int(sys.argv[2]))"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--force", action="store_true", help="start though another process uses a core")
    parser.add_argument("--train", nargs=3, metavar=("FOLDER", "IMAGES", "CLASSES"), help="one training, as JSON")
    args = parser.parse_args()
    if args.train:
        print(json.dumps(trained(Path(args.train[0]), int(args.train[1]), int(args.train[2]), args.steps)))
        return 0
    busy = busy_unless(args.force)
    setting = about("scale", busy, ("torch",), device=f"{device_name('cpu')}, {num_cores()} threads")
    lines = [f"- {key}: {value}" for key, value in setting.items()]
    values: dict[str, list[dict[str, Any]]] = {"listing": [], "training": []}
    lines += [
        "",
        "| Files in the tree | Classes | Listed in, s | s for 100,000 | Peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for count in (args.files // 10, args.files):
            make_tree(root / "tree", count, args.classes)
            seconds, peak = listed(root / "tree", count)
            values["listing"].append({"files": count, "seconds": seconds, "peak_mb": peak})
            lines.append(
                f"| {count:,} | {args.classes:,} | {seconds:.1f} | {seconds / count * 1e5:.2f} | {peak:,.0f} |"
            )
            print(lines[-1], flush=True)
        lines += ["", "| Images | Classes | Step, ms | Start-up, s | Peak memory, MB |", "|---|---|---|---|---|"]
        sizes = [(1_000, 10), (100_000, 10), (1_000_000, 10), (100_000, 100), (100_000, 1_000), (100_000, 10_000)]
        for images, classes in sizes:
            row = apart(root / "tree", images, classes, args.steps)
            values["training"].append(row)
            lines.append(
                f"| {images:,} | {classes:,} | {row['step_ms']:.1f} | {row['start_s']:.2f} | {row['peak_mb']:,.0f} |"
            )
            print(lines[-1], flush=True)
        lines += ["", "| Processes | Threads each | Epoch, s | Times as fast as one |", "|---|---|---|---|"]
        turns = [(epoch_seconds(root, 1), epoch_seconds(root, 2)) for _ in range(TURNS)]
        values["processes"] = [{"one_s": one, "two_s": two} for one, two in turns]
        for number in range(2):
            ratios = [turn[0] / turn[number] for turn in turns]
            seconds = statistics.median(turn[number] for turn in turns)
            lines.append(
                f"| {number + 1} | {max(1, num_cores() // (number + 1))} | {seconds:.2f} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
            )
            print(lines[-1], flush=True)
    keep("scale", "Cost as images and classes grow", lines, {**setting, **values})
    return 0


def make_tree(root: Path, count: int, classes: int) -> None:
    """Class folders under train/ with hard links to as few files as the file system takes; those there are kept."""
    source = root / "source.png"
    root.mkdir(exist_ok=True)
    done = sum(len(files) for _, _, files in os.walk(root / "train"))
    for number in range(done, count):
        if number % MAX_LINKS == 0 or number == done:
            source.unlink(missing_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(source)
        folder = root / "train" / f"c{number % classes:05d}"
        if number < classes:
            folder.mkdir(parents=True, exist_ok=True)
        os.link(source, folder / f"{number:07d}.png")
    source.unlink(missing_ok=True)


def listed(root: Path, count: int) -> tuple[float, float]:
    """Seconds and peak memory in MB of listing a tree, which must find all its files."""
    return measured(["-c", LIST, str(root), str(count)])


def apart(root: Path, images: int, classes: int, steps: int) -> dict[str, Any]:
    """`trained` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--steps", str(steps)]
    command += ["--train", str(root), str(images), str(classes)]
    row: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {"images": images, "classes": classes, **row}


def epoch_seconds(root: Path, processes: int) -> float:
    """The median of a short training's epochs but the first, by one process or by several that share the cores."""
    images, run = root / "few", root / "run"
    make_tree(images, 1000, 10)
    shutil.rmtree(run, ignore_errors=True)
    start = [sys.executable, "-m", "fewsight"]
    if processes > 1:
        start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", "fewsight"]
    values = ["model.width=0.5", "stages.0.epochs=5", "stages.0.batch_size=100", "data.leak=allow"]
    settings = [text for value in values for text in ("--set", value)]
    command = [*start, "train", str(images), "--out", str(run), "--recipe", "digits", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, num_cores() // processes))}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    seconds: float = statistics.median([line["seconds"] for line in log if line["kind"] == "epoch"][1:])
    return seconds


def trained(root: Path, images: int, classes: int, steps: int) -> dict[str, float]:
    """Milliseconds of a step, feeding included, seconds until the first, and peak memory."""
    torch.set_num_threads(num_cores())
    keep_freed_memory()
    folders = sorted((root / "train").iterdir())
    files = [str(path.relative_to(root)) for path in sorted(folders[0].iterdir())[:500]]
    data = TrainingSet(
        root,
        tuple(f"./{'./' * (number // len(files) % 2)}{files[number % len(files)]}" for number in range(images)),
        tuple(number % classes for number in range(images)),
        (),
        (),
    )
    began = time.perf_counter()
    recipe = load_recipe("digits")
    model = recipe.model.model_copy(update={"stem": "small", "width": 0.25})
    recipe = recipe.model_copy(
        update={"model": model, "run": resolve_run(recipe.run.model_copy(update={"device": "cpu"}))}
    )
    stage = recipe.stages[0]
    plan = batch_plan(recipe, stage, data)
    source = AugmentedImages(data.root, data.paths, recipe.augment, 0, cache=10**9)
    built = initial_model(recipe, classes).to(memory_format=torch.channels_last)
    learner = build_learner(built, recipe, stage, data, classes, torch.device("cpu"))
    normalise, labels = Normalise((0.5,) * 3, (0.25,) * 3), torch.tensor(data.labels)
    seconds: list[float] = []
    start = 0.0
    then = time.perf_counter()
    for epoch, step, batch, indices in batches(source, plan, first_epoch=0, first_step=0, num_epochs=50, workers=0):
        if not seconds:
            start = time.perf_counter() - began
        inputs, targets = mix(normalise.of_bytes(batch), labels, indices, recipe, stage, epoch, step)
        read_values([learner.step(inputs, targets, 0.01)])
        seconds.append(time.perf_counter() - then)
        then = time.perf_counter()
        if len(seconds) > steps:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"step_ms": statistics.median(seconds[1:]) * 1e3, "start_s": start, "peak_mb": peak}


if __name__ == "__main__":
    sys.exit(main())

"""What `auto` plans for 200 to 50,000 images at ten minutes and eight hours: `python -m benchmarks.plans`.

Nothing is trained or timed: the planner itself is asked, with steps whose time follows from the net's multiplications
and the rate of the device (a core at 50 GFLOP/s, a GPU at 15 TFLOP/s and 8 ms a step at least, as small batches have).
"""

import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import about, keep
from fewsight.data.prepare import Prepared
from fewsight.data.training_set import RunData, TrainingSet
from fewsight.models.classifier import build_without_memory
from fewsight.recipes import Recipe, RunSettings
from fewsight.training.members.recipes import variants_of
from fewsight.training.planning import candidates, costs, plan
from fewsight.training.planning.pilot import Steps
from fewsight.training.planning.probe import Pace
from fewsight.training.planning.reasons import listed_nets
from fewsight.training.plans import batch_plan

CORE, GPU = 5e10, 1.5e13  # floating-point operations a second
GPU_STEP = 8e-3  # seconds
CORES = 2
IMAGES, SIZES, HOURS = (200, 500, 5_000, 50_000), (32, 64, 200), (1 / 6, 8.0)
NUM_CLASSES = 10


def prepared(num_images: int, px: int) -> Prepared:
    """A data set of `num_images` images with a tenth as many in val."""
    labels = tuple(number % NUM_CLASSES for number in range(num_images))
    paths = tuple(f"{number}.jpg" for number in range(num_images))
    num_val = num_images // 10
    images = TrainingSet(Path(), paths, labels, paths[:num_val], labels[:num_val])
    facts = RunData("", "", "", {}, (0.5,) * 3, (0.2,) * 3, [], {})
    return Prepared(tuple(map(str, range(NUM_CLASSES))), images, facts, [], ((px, px),) * num_images)


@cache
def flops(backbone: str, stem: str, width: float, px: int) -> float:
    """Of a forward and a backward pass of one image."""
    model = build_without_memory(backbone, NUM_CLASSES, stem=stem, width=width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(2, 3, px, px, device="meta"))
    return 1.5 * float(counter.get_total_flops())


def pace(recipe: Recipe, device: str) -> Pace:
    """The time of a step on a device."""
    model, size = recipe.model, recipe.stages[0].batch_size
    operations = flops(model.backbone, model.stem, model.width, recipe.augment.train_px)
    seconds = size * operations / (CORE if device == "cpu" else GPU)
    step = seconds if device == "cpu" else max(GPU_STEP, seconds)
    return Pace(step, 1e-4 * size, 0.3 * step / size, 10**6)


@contextlib.contextmanager
def simulated(device: str) -> Iterator[None]:
    """The planner sees a device that is not there."""

    def probe(recipe: Recipe, *_: object) -> Pace:
        return pace(recipe, device)

    def pilot(recipes: Sequence[Recipe], *_: object) -> Steps:
        threads = recipes[0].run.threads if device == "cpu" and isinstance(recipes[0].run.threads, int) else 1
        paces = [pace(recipe, device) for recipe in recipes]
        steps = [one.step_seconds + one.load_seconds / (1 if device == "cpu" else 8) for one in paces]
        return Steps(tuple(seconds / threads**0.7 for seconds in steps), 1.0)

    def resolve_run(run: RunSettings) -> RunSettings:
        threads = CORES // min(run.members, CORES) if device == "cpu" else CORES
        return run.model_copy(update={"threads": threads, "workers": 0 if device == "cpu" else 8})

    def member_devices(run: RunSettings) -> list[None]:
        return [None] * (min(run.members, CORES) if device == "cpu" else 1)

    with (
        mock.patch.object(plan, "probe", probe),
        mock.patch.object(plan, "pilot", pilot),
        mock.patch.object(costs, "member_devices", member_devices),
        mock.patch.object(candidates, "resolve_run", resolve_run),
        mock.patch.object(plan, "parts_that_fit", return_value=1),
    ):
        yield


def cell(num_images: int, px: int, hours: float, device: str) -> str:
    """A plan in one line of a table."""
    data = prepared(num_images, px)
    settings = RunSettings(device=device, precision="float32")
    console = Console(file=io.StringIO())
    with simulated(device):
        recipe, _ = plan.plan_recipe(data, settings, hours, (), console, began=time.monotonic())
    recipes = variants_of(recipe)
    epochs, steps = [], []
    for each in recipes:
        epochs.append(each.stages[0].epochs)
        steps.append(epochs[-1] * batch_plan(each, each.stages[0], data.images).num_steps)
    counts = [" / ".join(f"{count:,}" for count in numbers) for numbers in (epochs, steps)]
    return f"{listed_nets(recipes)} | {counts[0]} | {counts[1]} of {recipe.stages[0].batch_size}"


def main() -> None:
    """Print the table and keep it."""
    lines = ["| images | side | device | hours | plan | epochs | steps |", "|---|---|---|---|---|---|---|"]
    row = partial("| {:,} | {} px | {} | {:.2g} | {} |".format)
    for count in IMAGES:
        for px in SIZES:
            for device in ("cpu", "cuda"):
                lines += [row(count, px, device, hours, cell(count, px, hours, device)) for hours in HOURS]
    print("\n".join(lines))
    keep("plans", "What `auto` plans", lines, about("plans", [], ("torch",)))


if __name__ == "__main__":
    main()

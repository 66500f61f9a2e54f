"""The eight recipes for a dataset at the paper's scale or a small one, and the time and memory that they will take."""

import functools
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fewsight.apps.reproduce.published import TRAININGS, Training
from fewsight.data.prepare import Prepared
from fewsight.errors import RecipeError
from fewsight.machine.device import resolve_device
from fewsight.models.classifier import build_without_memory
from fewsight.recipes import ModelSettings, Recipe, load_recipe
from fewsight.training.planning.probe import Pace, epoch_seconds, probe
from fewsight.training.resolve import TEST_RATIOS, resolve

SMALL = {"ResNeSt": "resnest14", "TResNet": "tresnet_s", "SE-ResNeXt": "seresnext26d"}
SMALL_WIDTH = 0.5
FULL = {"ResNeSt": "resnest101", "TResNet": "tresnet_xl", "SE-ResNeXt": "seresnext101"}
STEMS = ("large", "medium", "small")  # of total stride 4, 2, 1
MAX_EPOCHS = 250  # as in the paper
SMALL_BATCH = 48  # 12 classes x 4 images with a triplet loss
SMALL_PX = (16, 64)  # minimum and maximum train size
STAGE_RATIO = 200 / 250  # epochs of the second stage divided by those of the first, as in the paper
PROBE_IMAGES = 8  # batch size for timing at full size on a CPU, where a whole batch takes minutes
USABLE_TIME = 0.9  # fraction of the time that a plan fills: trainings that run in parallel slow each other down
FORWARD_FRACTION = 1 / 3  # of the time of a training step
START_SECONDS = 15.0  # per job: starting Python and torch, checking the images, saving the weights


@dataclass(frozen=True)
class Job:
    """A planned training, with estimates of its time, memory and disk space."""

    training: Training
    name: str  # of its run and recipe: resnest14_ce
    start: str | None  # the name of the job whose weights it starts from
    recipe: Recipe
    seconds: float  # of training and testing
    memory_bytes: int  # of the process
    disk_bytes: int  # of weights, state and scores


def job_name(training: Training, scale: str) -> str:
    """The name of a training's run: `resnest101_ce` at full scale, `resnest14_ce` at small scale."""
    if scale == "full":
        return training.recipe
    return training.recipe.replace(FULL[training.family], SMALL[training.family]).replace("_448", "_2x")


def mapped_px(recipe: Recipe, index: int) -> int:
    """The recipe's test size that stands for `TEST_SIZES[index]` of the paper; the 448 px training has only one."""
    assert recipe.eval.test_px != "auto", "the recipe is resolved"
    return recipe.eval.test_px[min(index, len(recipe.eval.test_px) - 1)]


def small_px(prepared: Prepared) -> int:
    """The train size at small scale: half the images' size, a multiple of 4 within `SMALL_PX`.

    Larger test sizes then show more detail, as in the paper.
    """
    native = median(min(size) for size in prepared.sizes)
    return min(max(4 * round(native / 8), SMALL_PX[0]), SMALL_PX[1])


def recipes_for(
    scale: str, prepared: Prepared, *, merge_val: bool, epochs: int | None, cores: int, device: str
) -> dict[str, Recipe]:
    """A resolved recipe for each training, by `Training.recipe`.

    Args:
        scale: "full" or "small".
        prepared: the training images.
        merge_val: whether val is trained on too.
        epochs: of the first stage at small scale; ignored at full scale.
        cores: that each training may use, for computing and for loading images.
        device: `run.device`.

    Raises:
        RecipeError: this machine does not have the device.
    """
    recipes = {}
    for training in TRAININGS:
        values = load_recipe(training.recipe).model_dump()
        values["data"] |= {"merge_val": merge_val, "splits": prepared.splits}
        values["run"] |= {"device": device, **divide_cores(cores, device)}
        if scale == "small":
            assert epochs is not None, "a small plan sets its epochs"
            _make_small(values, training, small_px(prepared), epochs)
        recipes[training.recipe] = resolve(Recipe.model_validate(values), prepared)
    return recipes


def divide_cores(cores: int, device: str) -> dict[str, int]:
    """`run.threads` and `run.workers` of a training that may use so many cores: a CPU computes with all of them."""
    workers = 0 if resolve_device(device).type == "cpu" else min(16, cores - 1)
    return {"threads": max(1, cores - workers), "workers": workers}


def _make_small(values: dict[str, Any], training: Training, px: int, epochs: int) -> None:
    """Change the paper's recipe to a small backbone, size, batch, number of epochs and optimiser, in place.

    Augmentation, losses and stages stay as they are.

    Source of the values: measured on tiny20's val (NOTES.md). With the paper's settings, training with either metric
    loss fails at this size, so the triplet loss normalises its features and ArcFace has a weight of 0.1.
    """
    train_px = 2 * px if training.large else px
    grid = 4 * max(1, round(px / 16))  # at other sizes the strides would crop the border unevenly
    test_px = [grid * round(ratio * px / grid) for ratio in TEST_RATIOS]
    # a stem of three convolutions loses little with a stride of 4, TResNet's single convolution loses more
    stem = STEMS[(px < 24) + (training.family == "TResNet")]
    values["model"] |= {"backbone": SMALL[training.family], "width": SMALL_WIDTH, "stem": stem}
    values["augment"]["train_px"] = train_px
    values["eval"]["test_px"] = [train_px] if training.large else test_px
    for index, stage in enumerate(values["stages"]):
        stage["epochs"] = max(1, round(epochs * (STAGE_RATIO if index else 1)))
        stage["batch_size"] = SMALL_BATCH
        stage["optim"] |= {"weight_decay": 5e-4, "warmup_epochs": min(3.0, epochs / 10)}
        stage["losses"]["triplet"]["normalise"] = True
        stage["losses"]["weights"] = {"arcface": 0.1}
    values["run"]["workers"] = 0


def plan_small(
    prepared: Prepared, hours: float, jobs: int, num_test: int, *, merge_val: bool, cores: int, device: str
) -> list[Job]:
    """The jobs at small scale, with the paper's number of epochs or as many as fit into the time.

    Args:
        prepared: the training images.
        hours: the time for all jobs.
        jobs: how many run in parallel.
        num_test: number of test images.
        merge_val: whether val is trained on too.
        cores: that each job may use.
        device: `run.device`.

    Raises:
        RecipeError: the time is not enough for one epoch of each training.
    """
    recipes = recipes_for("small", prepared, merge_val=merge_val, epochs=MAX_EPOCHS, cores=cores, device=device)
    paces = _paces(recipes, prepared)

    def planned(epochs: int) -> list[Job]:
        shorter = recipes_for("small", prepared, merge_val=merge_val, epochs=epochs, cores=cores, device=device)
        return _jobs("small", shorter, paces, prepared, num_test)

    def fits(epochs: int) -> bool:
        return makespan(planned(epochs), jobs) <= USABLE_TIME * 3600 * hours

    epochs = bisect_left(range(1, MAX_EPOCHS + 1), True, key=lambda epochs: not fits(epochs))
    if epochs == 0:
        raise RecipeError(f"--hours {hours:g} is not enough for one epoch of each of the eight trainings; increase it")
    return planned(epochs)


def plan_full(prepared: Prepared, num_test: int, *, merge_val: bool, cores: int, device: str) -> list[Job]:
    """The jobs at the paper's scale; the arguments are those of `plan_small`."""
    recipes = recipes_for("full", prepared, merge_val=merge_val, epochs=None, cores=cores, device=device)
    return _jobs("full", recipes, _paces(recipes, prepared), prepared, num_test)


def makespan(jobs: Sequence[Job], num_slots: int) -> float:
    """Seconds until all jobs are done, `num_slots` in parallel, each after the job that it starts from."""
    ends: dict[str, float] = {}
    free_from, waiting = [0.0] * num_slots, list(jobs)

    def start_time(job: Job, slot: int) -> float:
        return max(0.0 if job.start is None else ends.get(job.start, math.inf), free_from[slot])

    while waiting:
        slot = free_from.index(min(free_from))
        job = min(waiting, key=lambda job: start_time(job, slot))
        free_from[slot] = ends[job.name] = start_time(job, slot) + job.seconds
        waiting.remove(job)
    return max(ends.values(), default=0.0)


def _paces(recipes: dict[str, Recipe], prepared: Prepared) -> dict[str, tuple[Pace, int]]:
    """By recipe: the pace of each training that starts from random weights, and the batch size that was timed."""
    paces = {}
    for training in TRAININGS:
        if training.start is None:
            recipe = recipes[training.recipe]
            size = recipe.stages[0].batch_size
            if recipe.run.device == "cpu" and recipe.augment.train_px > SMALL_PX[1] * 2:
                size = PROBE_IMAGES
            stage = recipe.stages[0].model_copy(update={"batch_size": size})
            paces[training.recipe] = probe(recipe.model_copy(update={"stages": [stage]}), prepared), size
    return paces


def _jobs(
    scale: str,
    recipes: dict[str, Recipe],
    paces: dict[str, tuple[Pace, int]],
    prepared: Prepared,
    num_test: int,
) -> list[Job]:
    names = {training.recipe: job_name(training, scale) for training in TRAININGS}
    jobs = []
    for training in TRAININGS:
        recipe = recipes[training.recipe]
        pace, timed_size = paces[training.start or training.recipe]
        stage = recipe.stages[-1]
        seconds = stage.epochs * epoch_seconds(pace, recipe, prepared) * stage.batch_size / timed_size
        image_seconds = FORWARD_FRACTION * pace.step_seconds / timed_size
        assert recipe.eval.test_px != "auto", "the recipe is resolved"
        areas = sum((px / recipe.augment.train_px) ** 2 for px in recipe.eval.test_px)
        testing = num_test * 2 * 2 * areas * image_seconds  # two crops, each with its mirrored view
        weights = _weight_bytes(recipe.model, len(prepared.classes))
        views = 2 * 2 * len(recipe.eval.test_px)  # two crops, with and without flips
        memory = 500 * 2**20 + 4 * weights + pace.image_bytes * stage.batch_size
        disk = 3 * weights + num_test * views * len(prepared.classes) * 4
        start = names[training.start] if training.start else None
        jobs.append(
            Job(training, names[training.recipe], start, recipe, seconds + testing + START_SECONDS, memory, disk)
        )
    return jobs


@functools.cache  # the search for the number of epochs asks for the same models again
def _weight_bytes(settings: ModelSettings, num_classes: int) -> int:
    model = build_without_memory(settings.backbone, num_classes, stem=settings.stem, width=settings.width)
    return sum(weight.numel() * 4 for weight in model.parameters())

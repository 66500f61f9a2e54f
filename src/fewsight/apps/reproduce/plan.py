"""The eight recipes for some data, and what they will take: at the report's size, or mapped to small images."""

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
from fewsight.models.classifier import build_without_memory
from fewsight.recipes import ModelSettings, Recipe, load_recipe
from fewsight.training.planner import Pace, epoch_seconds, probe
from fewsight.training.resolve import TEST_RATIOS, resolve

SMALL = {"ResNeSt": "resnest14", "TResNet": "tresnet_s", "SE-ResNeXt": "seresnext26d"}
SMALL_WIDTH = 0.5
FULL = {"ResNeSt": "resnest101", "TResNet": "tresnet_xl", "SE-ResNeXt": "seresnext101"}
STEMS = ("large", "medium", "small")  # of total stride 4, 2, 1
MOST_EPOCHS = 250  # the report's
SMALL_BATCH = 48  # 12 classes x 4 images where the loss wants them
SMALL_PX = (16, 64)  # the least and the most to train at
STAGE_RATIO = 200 / 250  # epochs of the second stage over those of the first, the report's
PROBE_IMAGES = 8  # a batch to time at full size, where a whole one takes minutes on a CPU
SHARE_OF_TIME = 0.9  # that a plan fills: two trainings beside each other slow each other down
FORWARD_SHARE = 1 / 3  # of a training step
START_SECONDS = 15.0  # of a job: Python, torch, checking the images, saving the weights


@dataclass(frozen=True)
class Job:
    """One training as it is planned, and what it will take."""

    training: Training
    name: str  # of its run and recipe: resnest14_ce
    start: str | None  # the name of the job whose weights it starts from
    recipe: Recipe
    seconds: float  # training and testing, about
    memory_bytes: int  # the process, about
    disk_bytes: int  # weights, state and scores, about


def job_name(training: Training, scale: str) -> str:
    """`resnest101_ce` at full size; of its small member, `resnest14_ce`."""
    if scale == "full":
        return training.recipe
    return training.recipe.replace(FULL[training.family], SMALL[training.family]).replace("_448", "_2x")


def row_px(recipe: Recipe, place: int) -> int:
    """The test size here for the report's test size at a place in `SIZES`; the 448 px training has its own alone."""
    assert recipe.eval.test_px != "auto", "the recipe is resolved"
    return recipe.eval.test_px[min(place, len(recipe.eval.test_px) - 1)]


def small_px(prepared: Prepared) -> int:
    """Half the images' own size, a multiple of 4: the larger test sizes then hold real detail, as in the report."""
    native = median(min(size) for size in prepared.sizes)
    return min(max(4 * round(native / 8), SMALL_PX[0]), SMALL_PX[1])


def recipes_for(
    scale: str, prepared: Prepared, *, merge_val: bool, epochs: int | None, threads: int | str, device: str
) -> dict[str, Recipe]:
    """A resolved recipe for each training, by its name in `TRAININGS`.

    Args:
        epochs: of the first stage at small scale; the report's otherwise.

    Raises:
        RecipeError: the device is not there.
    """
    found = {}
    for training in TRAININGS:
        values = load_recipe(training.recipe).model_dump()
        values["data"]["merge_val"] = merge_val
        values["run"] |= {"threads": threads, "device": device}
        if scale == "small":
            assert epochs is not None, "a small plan has its epochs"
            _make_small(values, training, small_px(prepared), epochs)
        found[training.recipe] = resolve(Recipe.model_validate(values), prepared)
    return found


def _make_small(values: dict[str, Any], training: Training, px: int, epochs: int) -> None:
    """The report's recipe with another member, size, epochs and optimiser; augmentation, losses and stages stay.

    Source of the values: measured on tiny20's val (NOTES.md); at the report's defaults both metric losses break
    training at this size, so the triplet normalises its features and ArcFace weighs a tenth.
    """
    train_px = 2 * px if training.large else px
    grid = 4 * max(1, round(px / 16))  # at other sizes the strides cut the border off unevenly
    tested = [grid * round(ratio * px / grid) for ratio in TEST_RATIOS]
    # a stem of three convolutions loses little to a stride of 4; TResNet's has one
    stem = STEMS[(px < 24) + (training.family == "TResNet")]
    values["model"] |= {"backbone": SMALL[training.family], "width": SMALL_WIDTH, "stem": stem}
    values["augment"]["train_px"] = train_px
    values["eval"]["test_px"] = [train_px] if training.large else tested
    for number, stage in enumerate(values["stages"]):
        stage["epochs"] = max(1, round(epochs * (STAGE_RATIO if number else 1)))
        stage["batch_size"] = SMALL_BATCH
        stage["optim"] |= {"weight_decay": 5e-4, "warmup_epochs": min(3.0, epochs / 10)}
        stage["losses"]["triplet"]["normalise"] = True
        stage["losses"]["weights"] = {"arcface": 0.1}
    values["run"]["workers"] = 0


def plan_small(
    prepared: Prepared, hours: float, jobs: int, num_test: int, *, merge_val: bool, threads: int | str, device: str
) -> list[Job]:
    """The small plan: the report's epochs, fewer where the time is short.

    Raises:
        RecipeError: the time is not enough for one epoch of each.
    """
    recipes = recipes_for("small", prepared, merge_val=merge_val, epochs=MOST_EPOCHS, threads=threads, device=device)
    paces = _paces(recipes, prepared)

    def planned(epochs: int) -> list[Job]:
        own = recipes_for("small", prepared, merge_val=merge_val, epochs=epochs, threads=threads, device=device)
        return _jobs("small", own, paces, prepared, num_test)

    def fits(epochs: int) -> bool:
        return makespan(planned(epochs), jobs) <= SHARE_OF_TIME * 3600 * hours

    epochs = bisect_left(range(1, MOST_EPOCHS + 1), True, key=lambda epochs: not fits(epochs))
    if epochs == 0:
        raise RecipeError(f"--hours {hours:g} is not enough for one epoch of each of the eight trainings; give more")
    return planned(epochs)


def plan_full(prepared: Prepared, num_test: int, *, merge_val: bool, threads: int | str, device: str) -> list[Job]:
    """The report as written."""
    recipes = recipes_for("full", prepared, merge_val=merge_val, epochs=None, threads=threads, device=device)
    return _jobs("full", recipes, _paces(recipes, prepared), prepared, num_test)


def makespan(jobs: Sequence[Job], at_once: int) -> float:
    """Seconds until all jobs are done, so many beside each other, each after the one that it starts from."""
    ended: dict[str, float] = {}
    free, waiting = [0.0] * at_once, list(jobs)

    def begins(job: Job, slot: int) -> float:
        return max(0.0 if job.start is None else ended.get(job.start, math.inf), free[slot])

    while waiting:
        slot = free.index(min(free))
        job = min(waiting, key=lambda job: begins(job, slot))
        free[slot] = ended[job.name] = begins(job, slot) + job.seconds
        waiting.remove(job)
    return max(ended.values(), default=0.0)


def _paces(recipes: dict[str, Recipe], prepared: Prepared) -> dict[str, tuple[Pace, int]]:
    """The pace of each first training, and the images of the batch that was timed."""
    found = {}
    for training in TRAININGS:
        if training.start is None:
            recipe = recipes[training.recipe]
            size = recipe.stages[0].batch_size
            if recipe.run.device == "cpu" and recipe.augment.train_px > SMALL_PX[1] * 2:
                size = PROBE_IMAGES
            stage = recipe.stages[0].model_copy(update={"batch_size": size})
            found[training.recipe] = probe(recipe.model_copy(update={"stages": [stage]}), prepared), size
    return found


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
        pace, timed = paces[training.start or training.recipe]
        last = recipe.stages[-1].epochs
        seconds = last * epoch_seconds(pace, recipe, prepared) * recipe.stages[-1].batch_size / timed
        image_seconds = FORWARD_SHARE * pace.step_seconds / timed
        assert recipe.eval.test_px != "auto", "the recipe is resolved"
        areas = sum((px / recipe.augment.train_px) ** 2 for px in recipe.eval.test_px)
        testing = num_test * 2 * 2 * areas * image_seconds  # two crops, each with its twin
        weights = _weight_bytes(recipe.model, len(prepared.classes))
        views = 2 * 2 * len(recipe.eval.test_px)  # without flips too
        memory = 500 * 2**20 + 4 * weights + pace.image_bytes * recipe.stages[-1].batch_size
        disk = 3 * weights + num_test * views * len(prepared.classes) * 4
        start = names[training.start] if training.start else None
        jobs.append(
            Job(training, names[training.recipe], start, recipe, seconds + testing + START_SECONDS, memory, disk)
        )
    return jobs


@functools.cache  # the plans that are tried differ in their epochs alone
def _weight_bytes(model: ModelSettings, num_classes: int) -> int:
    built = build_without_memory(model.backbone, num_classes, stem=model.stem, width=model.width)
    return sum(weight.numel() * 4 for weight in built.parameters())

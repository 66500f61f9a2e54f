"""Data + device + hours -> a recipe, with reasons.

The planner tries candidates (backbone, stem, width, image size) in order of cost, times real training steps of each,
and chooses the largest that still sees every image often enough in the time. The number of epochs then fills the time.
Nothing reads the clock after that, so the recipe.toml of a planned run repeats the run.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console

from fewsight.augment.normalise import Normalise
from fewsight.data import cache
from fewsight.data.prepare import Prepared
from fewsight.errors import RecipeError
from fewsight.machine.device import compute_threads, keep_freed_memory
from fewsight.models.classifier import initial_model, with_stem
from fewsight.recipes import Recipe, RunSettings, parse_recipe
from fewsight.terminal import duration, progress_counter
from fewsight.training.feed import AugmentedImages, batches
from fewsight.training.learner import build_learner
from fewsight.training.mix import mix
from fewsight.training.plans import batch_plan
from fewsight.training.schedule import PX_STEP, mean_cost
from fewsight.wording import counted

TIME_TO_USE = 0.9  # proportion of the hours; the rest covers saving states and a machine that slows down
START_SECONDS = 4.0  # for a command to import Python and torch, before it can read the clock
PROBE_FRACTION = 0.06  # of the hours, for probing
MAX_PROBE_SECONDS = 60.0  # for probing all candidates, however long the training may take
MAX_EPOCHS = 300
MEMORY_FRACTION = 0.5  # of the free memory, for one step
TIMED_STEPS = 8
MAX_CANDIDATE_SECONDS = 10.0  # for probing one candidate: a slow device is timed over fewer steps
STEP_QUANTILE = 0.25  # of the timed steps: other programs can only make a step longer
WARN_BELOW = 0.5  # of the target epochs; a plan with fewer gets a warning
MIN_GROWING_EPOCHS = 10  # for images that grow: fewer epochs are too few for several sizes
MIN_GROWING_PX = 64  # for images that grow over a run; smaller images were not tried (NOTES.md)
MIN_POLICY_EPOCHS = 150  # for an augmentation policy: with fewer it lowers accuracy (NOTES.md)


@dataclass(frozen=True)
class Candidate:
    """A model and the size of its training images."""

    backbone: str
    stem: str
    width: float
    train_px: int


@dataclass(frozen=True)
class Pace:
    """Time and memory that a probe measured."""

    step_seconds: float  # a training step on a loaded batch
    load_seconds: float  # loading and augmenting a batch, on one core
    score_seconds: float  # loading and scoring one image
    image_bytes: int  # kept for the backward pass, per image


def ladder(native_px: int) -> list[Candidate]:
    """Candidates in order of cost, for images whose shorter side is about `native_px` pixels."""
    if native_px < 48:
        px = max(16, 4 * round(native_px / 4))
        models = [("resnest14", "medium", 0.5), ("resnest14", "small", 0.5), ("resnest14", "small", 1.0)]
        models += [("resnest26", "small", 1.0), ("resnest50", "small", 1.0)]
        return [Candidate(*model, px) for model in models]
    if native_px < 112:
        px = min(96, 16 * round(native_px / 16))
        models = [("resnest14", "large", 1.0), ("resnest26", "large", 1.0), ("resnest50", "large", 1.0)]
        models += [("resnest26", "medium", 1.0), ("resnest50", "medium", 1.0), ("resnest101", "medium", 1.0)]
        return [Candidate(*model, px) for model in models]
    sizes = [("resnest14", 0.5, 64), ("resnest14", 1.0, 64), ("resnest14", 1.0, 96), ("resnest14", 1.0, 128)]
    sizes += [("resnest26", 1.0, 128), ("resnest26", 1.0, 160), ("resnest50", 1.0, 160), ("resnest50", 1.0, 192)]
    sizes += [("resnest50", 1.0, 224), ("resnest101", 1.0, 224)]
    return [Candidate(name, "large", width, px) for name, width, px in sizes if px <= max(128, native_px)]


def target_epochs(num_images: int) -> int:
    """Epochs after which a larger model is worth more than more epochs; fewer images need more epochs."""
    return round(25 + 45 * math.sqrt(1000 / max(250, num_images)))


def starting_values() -> dict[str, Any]:
    """The recipe that the plan completes; the values are our choice, measured on the val split of tiny20 (NOTES.md)."""
    return {
        "model": {"backbone": "resnest14", "stem": "large"},
        "augment": {"train_px": 64, "crop_area": [0.25, 1.0], "policy": "none"},
        "stages": [
            {
                "epochs": 1,
                "batch_size": 50,
                "ema_half_life_epochs": 1.0,
                "optim": {"base_lr": 0.12, "nesterov": True, "weight_decay": 5e-4, "warmup_epochs": 3.0},
            }
        ],
        "eval": {"every_epochs": 0},
    }


@dataclass(frozen=True)
class Clock:
    """The time of a command, and what it spends outside of epochs."""

    hours: float
    began: float  # `time.monotonic()` when the command began
    num_val: int  # images to score at the end

    def passed(self) -> float:
        """Seconds since the command was started, including imports before it could read the clock."""
        return START_SECONDS + time.monotonic() - self.began

    def scoring(self, pace: Pace) -> float:
        """Seconds for scoring val."""
        return self.num_val * pace.score_seconds

    def epochs(self, pace: Pace, epoch_seconds: float) -> int:
        """How many epochs of `epoch_seconds` fit into the remaining time."""
        return int((TIME_TO_USE * self.hours * 3600 - self.passed() - self.scoring(pace)) / epoch_seconds)

    def hours_for(self, epochs: int, pace: Pace, epoch_seconds: float) -> float:
        """The --hours that `epochs` need, rounded up to hundredths."""
        return math.ceil((self.passed() + self.scoring(pace) + epochs * epoch_seconds) / TIME_TO_USE / 36) / 100


def plan_recipe(
    prepared: Prepared,
    settings: RunSettings,
    hours: float,
    overrides: Sequence[str],
    console: Console,
    *,
    began: float,
) -> tuple[Recipe, list[str]]:
    """Choose the recipe for this data, device and time.

    Args:
        settings: the resolved [run] section.
        hours: for the whole command, one seed.
        overrides: values that the user fixed, as `key.path=value`.
        began: `time.monotonic()` when the command began.

    Returns:
        The recipe, and the reasons for it, a line each; a warning comes last if there is time for few epochs only.

    Raises:
        RecipeError: there is not enough time for a single epoch.
    """
    if not 0 < hours < math.inf:
        raise RecipeError(f"--hours {hours:g}: expected a number above 0, for example 0.5")
    native = int(np.median([min(size) for size in prepared.sizes]))
    num_images, clock = len(prepared.images.paths), Clock(hours, began, len(prepared.images.val_paths))
    target = target_epochs(num_images)
    reasons = [
        f"{counted(num_images, 'training image')} of {counted(len(prepared.classes), 'class')}, median shorter side "
        f"{native} px; {settings.device}, {settings.precision}, {counted(int(settings.threads), 'thread')}, "
        f"{counted(int(settings.workers), 'loading process')}"
    ]
    candidates = _candidate_recipes(ladder(native), num_images, settings, overrides)
    recipe, pace = _choose(candidates, prepared, clock, target, reasons, console)
    seconds = epoch_seconds(pace, recipe, prepared)
    epochs = min(MAX_EPOCHS, clock.epochs(pace, seconds))
    if epochs < MIN_GROWING_EPOCHS:
        recipe = parse_recipe(_with_one_size(recipe), overrides, "auto")
        seconds = epoch_seconds(pace, recipe, prepared)
        epochs = clock.epochs(pace, seconds)
    if epochs < 1:
        raise RecipeError(_too_short(clock, pace, seconds, num_images, target, recipe))
    warning = _warning(clock, pace, seconds, epochs, target, recipe)
    recipe = _with_epochs(recipe, overrides, epochs, pace)
    reasons.append(
        f"chosen: {_described(recipe)}, {counted(recipe.stages[0].epochs, 'epoch')} (a larger model is only chosen "
        f"with time for about {target}), batch size {recipe.stages[0].batch_size}, policy {recipe.augment.policy}"
    )
    if warning and recipe.stages[0].epochs == epochs:  # else the user fixed them
        reasons.append(warning)
    return recipe, reasons


def _choose(
    candidates: Sequence[Recipe],
    prepared: Prepared,
    clock: Clock,
    target: int,
    reasons: list[str],
    console: Console,
) -> tuple[Recipe, Pace]:
    """The most expensive candidate with time for `target` epochs, else the cheapest; each adds a line to `reasons`."""
    limit, began = min(MAX_PROBE_SECONDS, PROBE_FRACTION * clock.hours * 3600), time.monotonic()
    console.print(
        f"timing training steps of up to {counted(len(candidates), 'model')}, for at most about {duration(limit)}"
    )
    chosen: tuple[Recipe, Pace] | None = None
    with progress_counter(console, "timing") as progress:
        for number, recipe in enumerate(candidates):
            progress(number, len(candidates))
            pace = probe(recipe, prepared, min(MAX_CANDIDATE_SECONDS, limit - (time.monotonic() - began)))
            epochs = clock.epochs(pace, epoch_seconds(pace, recipe, prepared))
            milliseconds = 1e3 * (pace.step_seconds + pace.load_seconds)
            reasons.append(
                f"{_described(recipe)}: {milliseconds:.0f} ms per step, time for {counted(max(0, epochs), 'epoch')}"
            )
            if chosen is None or epochs >= target:
                chosen = recipe, pace
            if epochs < 2 * target or time.monotonic() - began >= limit:
                break
    assert chosen is not None, "there is at least one candidate"
    return chosen


def _too_short(clock: Clock, pace: Pace, seconds: float, num_images: int, target: int, recipe: Recipe) -> str:
    """The error message when there is no time for an epoch of `seconds`: the reasons, and what to do."""
    return (
        f"--hours {clock.hours:g} is not enough for one epoch of {counted(num_images, 'image')} on this device: it "
        f"takes about {duration(seconds)}, scoring val {duration(clock.scoring(pace))}, starting, reading and timing "
        f"took {duration(clock.passed())}, and a tenth of the time is reserved. Give "
        f"--hours {clock.hours_for(1, pace, seconds):g} or more for one epoch, about "
        f"{clock.hours_for(target, pace, seconds):g} for the {target} that this data needs, or use a cheaper model: "
        f"{_cheaper(recipe)}. If another program uses "
        "this machine, stop it first: it made the timed steps slower"
    )


def _warning(clock: Clock, pace: Pace, seconds: float, epochs: int, target: int, recipe: Recipe) -> str | None:
    """The warning about a plan with far fewer epochs than the target; None if there are enough."""
    if epochs >= WARN_BELOW * target:
        return None
    return (
        f"warning: time for {counted(epochs, 'epoch')}, but this data needs about {target}: expect a low accuracy. "
        f"Give --hours {clock.hours_for(target, pace, seconds):g}, or use a cheaper model: {_cheaper(recipe)}"
    )


def _cheaper(recipe: Recipe) -> str:
    """Options that make a step of a recipe faster."""
    smaller = f" or --set augment.train_px={4 * round(recipe.augment.train_px / 8)}"
    return f"--set model.width={recipe.model.width / 2:g}" + smaller * (recipe.augment.train_px >= 48)


def probe(recipe: Recipe, prepared: Prepared, seconds: float = MAX_CANDIDATE_SECONDS) -> Pace:
    """Measure the time and memory of a few real training steps.

    Args:
        seconds: time after which no further step starts; at least one step is timed.
    """
    keep_freed_memory()
    device = torch.device(recipe.run.device)
    stage, images = recipe.stages[0], prepared.images
    plan = batch_plan(recipe, stage, images)
    source = AugmentedImages(images.root, images.paths, recipe.augment, recipe.run.seed, images.numbers)
    normalise = Normalise(prepared.facts.mean, prepared.facts.std).to(device)
    labels = torch.tensor(images.labels)
    steps, loads = [], []
    assert recipe.run.threads != "auto", "the settings are resolved"
    with compute_threads(recipe.run.threads):
        model = initial_model(recipe, len(prepared.classes)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        learner = build_learner(model, recipe, stage, images, len(prepared.classes), device)
        feed = batches(source, plan, first_epoch=0, first_step=0, num_epochs=1 + TIMED_STEPS, workers=0)
        previous = probe_start = time.perf_counter()
        for number, (epoch, step, batch, indices) in enumerate(feed):
            loaded = time.perf_counter()
            inputs, targets = mix(normalise.of_bytes(batch), labels, indices, recipe, stage, epoch, step)
            learner.step(inputs, targets, 1e-6)  # returns a float, so the device has finished
            now = time.perf_counter()
            loads.append(loaded - previous)
            steps.append(now - loaded)
            previous = now
            if number == TIMED_STEPS or now - probe_start > seconds:
                break
        image_bytes = _bytes_kept(learner.model, inputs[:2]) // 2
    computing, loading = _undisturbed(steps), _undisturbed(loads)
    return Pace(computing, loading, 0.8 * (computing + loading) / len(inputs), image_bytes)


def _undisturbed(seconds: Sequence[float]) -> float:
    """A step's time when no other program runs, without the first step, which also chooses kernels, if there are more.

    Args:
        seconds: of each step.
    """
    return float(np.quantile(seconds[1:] or seconds, STEP_QUANTILE))


def _bytes_kept(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of `images` in float32, without the weights."""
    storage_bytes: dict[int, int] = {}  # address -> bytes: each storage counts once

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storage_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(images)
    weight_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return max(0, sum(storage_bytes.values()) - weight_bytes)


def epoch_seconds(pace: Pace, recipe: Recipe, prepared: Prepared) -> float:
    """Seconds per epoch of the first stage; loading processes, if there are any, run in parallel with the steps."""
    workers, plan = recipe.run.workers, batch_plan(recipe, recipe.stages[0], prepared.images)
    assert workers != "auto", "the settings are resolved"
    parallel = workers > 0
    step = max(pace.step_seconds, pace.load_seconds / workers) if parallel else pace.step_seconds + pace.load_seconds
    return step * plan.num_steps * mean_cost(recipe, recipe.stages[0])


def _candidate_recipes(
    candidates: list[Candidate], num_images: int, settings: RunSettings, overrides: Sequence[str]
) -> list[Recipe]:
    """The different recipes of the candidates: a single one if the user fixed all that they differ in."""
    recipes = [_candidate_recipe(candidate, num_images, settings, overrides) for candidate in candidates]
    return [recipe for number, recipe in enumerate(recipes) if recipe not in recipes[:number]]


def _candidate_recipe(candidate: Candidate, num_images: int, settings: RunSettings, overrides: Sequence[str]) -> Recipe:
    """A candidate's recipe; its images grow from half their size, where that was measured to help."""
    values = _candidate_values(candidate, num_images, settings)
    recipe = parse_recipe(values, overrides, "auto")
    px = recipe.augment.train_px
    if px >= MIN_GROWING_PX:
        values["stages"][0]["first_px"] = PX_STEP * (px // PX_STEP // 2)
        recipe = parse_recipe(values, overrides, "auto")
    return with_stem(recipe)


def _with_one_size(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe with images that do not grow."""
    values = recipe.model_dump()
    values["stages"][0]["first_px"] = "train"
    return values


def _described(recipe: Recipe) -> str:
    model = recipe.model
    width = "" if model.width == 1 else f" at {model.width:g} of its width"
    return f"{model.backbone}{width}, {model.stem} stem, {recipe.augment.train_px} px"


def _candidate_values(candidate: Candidate, num_images: int, settings: RunSettings) -> dict[str, Any]:
    values = starting_values()
    values["model"] = {"backbone": candidate.backbone, "stem": candidate.stem, "width": candidate.width}
    values["augment"]["train_px"] = candidate.train_px
    values["stages"][0]["batch_size"] = max(16, min(128, round(num_images / 20)))
    values["run"] = settings.model_dump()
    return values


def _with_epochs(recipe: Recipe, overrides: Sequence[str], epochs: int, pace: Pace) -> Recipe:
    values = recipe.model_dump()
    stage = values["stages"][0]
    stage["epochs"] = epochs
    if epochs >= MIN_POLICY_EPOCHS:
        values["augment"]["policy"] = "trivialaugment"  # unlike AutoAugment, it was not searched on other labels
    stage["ema_half_life_epochs"] = round(epochs / 25, 2)
    stage["optim"]["warmup_epochs"] = min(3.0, round(epochs / 10, 1))
    needed = pace.image_bytes * stage["batch_size"]
    stage["accumulate"] = max(1, math.ceil(needed / max(1, MEMORY_FRACTION * free_memory(recipe.run.device))))
    return with_stem(parse_recipe(values, overrides, "auto"))


def free_memory(device: str) -> int:
    """Bytes that are free on the device; on a CPU what this process can still allocate."""
    kind = torch.device(device)
    if kind.type == "cuda":
        return torch.cuda.mem_get_info(kind)[0]
    if kind.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return cache.free_memory()

"""Data + device + hours -> a recipe, with reasons.

The planner climbs a ladder of (backbone, stem, width, size), probes the pace of each rung with real steps, and
takes the highest that still sees every image often enough in the time. Epochs then fill the time. Nothing after
the plan reads the clock, so the plan in recipe.toml repeats the run.
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

SHARE_TO_USE = 0.9  # of the time; the rest is for saving states and a machine that slows down
START_SECONDS = 4.0  # of a command before it can look at the clock: Python and torch
PROBE_SHARE = 0.06  # of the time, for probing
MOST_PROBE_SECONDS = 60.0  # for probing, however long the training may take
MOST_EPOCHS = 300
MEMORY_SHARE = 0.5  # of the memory that is free, for one step
TIMED_STEPS = 8
LONG_PROBE_SECONDS = 10.0  # of one rung: a slow device is timed over fewer steps
QUIET_QUANTILE = 0.25  # of timed steps: other programs only ever make one longer
FEW = 0.5  # of the epochs that are wanted; a plan of fewer is warned of
LEAST_GROWING_EPOCHS = 10  # fewer are too few for several sizes
LEAST_GROWN_PX = 64  # from here on images grow over a training; smaller ones were not tried (NOTES.md)
EPOCHS_FOR_A_POLICY = 150  # fewer leave a model that has not yet learnt the plain images (NOTES.md)


@dataclass(frozen=True)
class Candidate:
    """A model and the size of the images that it is trained on."""

    backbone: str
    stem: str
    width: float
    train_px: int


@dataclass(frozen=True)
class Pace:
    """What a probe found."""

    step_seconds: float  # of a training step on a batch that is loaded
    load_seconds: float  # of loading and augmenting a batch, on one core
    score_seconds: float  # of scoring one image, loading included
    image_bytes: int  # kept for the backward pass, one image


def ladder(native_px: int) -> list[Candidate]:
    """Rungs from cheap to dear, for images whose shorter side is about `native_px`."""
    if native_px < 48:
        px = max(16, 4 * round(native_px / 4))
        rungs = [("resnest14", "medium", 0.5), ("resnest14", "small", 0.5), ("resnest14", "small", 1.0)]
        rungs += [("resnest26", "small", 1.0), ("resnest50", "small", 1.0)]
        return [Candidate(*rung, px) for rung in rungs]
    if native_px < 112:
        px = min(96, 16 * round(native_px / 16))
        rungs = [("resnest14", "large", 1.0), ("resnest26", "large", 1.0), ("resnest50", "large", 1.0)]
        rungs += [("resnest26", "medium", 1.0), ("resnest50", "medium", 1.0), ("resnest101", "medium", 1.0)]
        return [Candidate(*rung, px) for rung in rungs]
    steps = [("resnest14", 0.5, 64), ("resnest14", 1.0, 64), ("resnest14", 1.0, 96), ("resnest14", 1.0, 128)]
    steps += [("resnest26", 1.0, 128), ("resnest26", 1.0, 160), ("resnest50", 1.0, 160), ("resnest50", 1.0, 192)]
    steps += [("resnest50", 1.0, 224), ("resnest101", 1.0, 224)]
    return [Candidate(name, "large", width, px) for name, width, px in steps if px <= max(128, native_px)]


def wanted_epochs(num_images: int) -> int:
    """How often every image should be seen before more model is worth its time: fewer images, more often."""
    return round(25 + 45 * math.sqrt(1000 / max(250, num_images)))


def starting_values() -> dict[str, Any]:
    """The recipe that the plan fills in; our choice of values, measured on tiny20's val (NOTES.md)."""
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
    """The time of a command, and what it goes on beside the epochs."""

    hours: float
    began: float  # `time.monotonic()` when the command began
    num_val: int  # images that are scored at the end

    def passed(self) -> float:
        """Seconds since the command was started, those too before it could look at the clock."""
        return START_SECONDS + time.monotonic() - self.began

    def scoring(self, pace: Pace) -> float:
        """Seconds for val."""
        return self.num_val * pace.score_seconds

    def epochs(self, pace: Pace, epoch: float) -> int:
        """How many epochs of so many seconds fit into what is left."""
        return int((SHARE_TO_USE * self.hours * 3600 - self.passed() - self.scoring(pace)) / epoch)

    def hours_for(self, epochs: int, pace: Pace, epoch: float) -> float:
        """The hours to ask for so that so many epochs fit, rounded up."""
        return math.ceil((self.passed() + self.scoring(pace) + epochs * epoch) / SHARE_TO_USE / 36) / 100


def plan_recipe(
    prepared: Prepared,
    settings: RunSettings,
    hours: float,
    overrides: Sequence[str],
    console: Console,
    *,
    began: float,
) -> tuple[Recipe, list[str]]:
    """The recipe for this data, device and time, and why; a warning comes last where the time is short.

    Args:
        settings: the resolved [run] section.
        hours: of the whole command, for one seed.
        overrides: values that the user fixed; the plan works around them.
        began: `time.monotonic()` when the command began.

    Raises:
        RecipeError: the time is not enough for a single epoch.
    """
    if not 0 < hours < math.inf:
        raise RecipeError(f"--hours {hours:g}: expected a number above 0, for example 0.5")
    native = int(np.median([min(size) for size in prepared.sizes]))
    num_images, clock = len(prepared.images.paths), Clock(hours, began, len(prepared.images.val_paths))
    wanted = wanted_epochs(num_images)
    reasons = [
        f"{counted(num_images, 'training image')} of {counted(len(prepared.classes), 'class')}, median shorter side "
        f"{native} px; {settings.device}, {settings.precision}, {counted(int(settings.threads), 'thread')}, "
        f"{counted(int(settings.workers), 'loading process')}"
    ]
    candidates = _candidates(ladder(native), num_images, settings, overrides)
    recipe, pace = _climb(candidates, prepared, clock, wanted, reasons, console)
    epoch = epoch_seconds(pace, recipe, prepared)
    epochs = min(MOST_EPOCHS, clock.epochs(pace, epoch))
    if epochs < LEAST_GROWING_EPOCHS:
        recipe = parse_recipe(_one_size(recipe), overrides, "auto")
        epoch = epoch_seconds(pace, recipe, prepared)
        epochs = clock.epochs(pace, epoch)
    if epochs < 1:
        raise RecipeError(_too_short(clock, pace, epoch, num_images, wanted, recipe))
    warning = _warning(clock, pace, epoch, epochs, wanted, recipe)
    recipe = _with_epochs(recipe, overrides, epochs, pace)
    reasons.append(
        f"chosen: {_described(recipe)}, {counted(recipe.stages[0].epochs, 'epoch')} (about {wanted} are wanted before "
        f"a larger model pays), batch {recipe.stages[0].batch_size}, policy {recipe.augment.policy}"
    )
    if warning and recipe.stages[0].epochs == epochs:  # else the user named them
        reasons.append(warning)
    return recipe, reasons


def _climb(
    candidates: Sequence[Recipe],
    prepared: Prepared,
    clock: Clock,
    wanted: int,
    reasons: list[str],
    console: Console,
) -> tuple[Recipe, Pace]:
    """The highest rung that sees every image often enough, else the lowest; what each gave is added to `reasons`."""
    limit, began = min(MOST_PROBE_SECONDS, PROBE_SHARE * clock.hours * 3600), time.monotonic()
    console.print(
        f"measuring training steps of up to {counted(len(candidates), 'model')}, for about {duration(limit)} at most"
    )
    chosen: tuple[Recipe, Pace] | None = None
    with progress_counter(console, "measuring") as progress:
        for number, recipe in enumerate(candidates):
            progress(number, len(candidates))
            pace = probe(recipe, prepared, min(LONG_PROBE_SECONDS, limit - (time.monotonic() - began)))
            epochs = clock.epochs(pace, epoch_seconds(pace, recipe, prepared))
            milliseconds = 1e3 * (pace.step_seconds + pace.load_seconds)
            reasons.append(
                f"{_described(recipe)}: {milliseconds:.0f} ms a step, {counted(max(0, epochs), 'epoch')} in the time"
            )
            if chosen is None or epochs >= wanted:
                chosen = recipe, pace
            if epochs < 2 * wanted or time.monotonic() - began >= limit:
                break
    assert chosen is not None, "a ladder has rungs"
    return chosen


def _too_short(clock: Clock, pace: Pace, epoch: float, num_images: int, wanted: int, recipe: Recipe) -> str:
    """Why no epoch fits, and what to ask for."""
    return (
        f"--hours {clock.hours:g} is not enough for one epoch of {counted(num_images, 'image')} on this device: one "
        f"takes about {duration(epoch)}, scoring val {duration(clock.scoring(pace))}, starting, reading and measuring "
        f"took {duration(clock.passed())}, and a tenth of the time is kept back. Give --hours "
        f"{clock.hours_for(1, pace, epoch):g} or more for one epoch, about {clock.hours_for(wanted, pace, epoch):g} "
        f"for the {wanted} that such data needs, or take a cheaper model: {_cheaper(recipe)}. If another program uses "
        "this machine, stop it first: the time of an epoch was measured beside it"
    )


def _warning(clock: Clock, pace: Pace, epoch: float, epochs: int, wanted: int, recipe: Recipe) -> str | None:
    """What a user should know of a plan with far fewer epochs than are wanted."""
    if epochs >= FEW * wanted:
        return None
    return (
        f"warning: {counted(epochs, 'epoch')} in the time, of about {wanted} that such data needs: the model will know "
        f"little. Give --hours {clock.hours_for(wanted, pace, epoch):g}, or take a cheaper model: {_cheaper(recipe)}"
    )


def _cheaper(recipe: Recipe) -> str:
    """What makes a step of a recipe take less."""
    smaller = f" or --set augment.train_px={4 * round(recipe.augment.train_px / 8)}"
    return f"--set model.width={recipe.model.width / 2:g}" + smaller * (recipe.augment.train_px >= 48)


def probe(recipe: Recipe, prepared: Prepared, seconds: float = LONG_PROBE_SECONDS) -> Pace:
    """The pace of a few real steps: seconds and bytes.

    Args:
        seconds: after so many no other step begins; a single step stands for itself.
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
        then = probing = time.perf_counter()
        for number, (epoch, step, batch, indices) in enumerate(feed):
            loaded = time.perf_counter()
            inputs, targets = mix(normalise.of_bytes(batch), labels, indices, recipe, stage, epoch, step)
            learner.step(inputs, targets, 1e-6)  # it gives a float, so the device has finished
            now = time.perf_counter()
            loads.append(loaded - then)
            steps.append(now - loaded)
            then = now
            if number == TIMED_STEPS or now - probing > seconds:
                break
        image_bytes = _bytes_kept(learner.model, inputs[:2]) // 2
    computing, loading = _quiet(steps), _quiet(loads)
    return Pace(computing, loading, 0.8 * (computing + loading) / len(inputs), image_bytes)


def _quiet(seconds: Sequence[float]) -> float:
    """What a step takes when nothing else runs; the first one also chooses kernels, so it counts only alone."""
    return float(np.quantile(seconds[1:] or seconds, QUIET_QUANTILE))


def _bytes_kept(model: torch.nn.Module, images: torch.Tensor) -> int:
    """What autograd keeps of a forward pass in float32, each storage once."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(images)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return max(0, sum(kept.values()) - weights)


def epoch_seconds(pace: Pace, recipe: Recipe, prepared: Prepared) -> float:
    """What an epoch of the first stage takes at a pace; loading runs beside it where there are processes for it."""
    workers, plan = recipe.run.workers, batch_plan(recipe, recipe.stages[0], prepared.images)
    assert workers != "auto", "the settings are resolved"
    beside = workers > 0
    step = max(pace.step_seconds, pace.load_seconds / workers) if beside else pace.step_seconds + pace.load_seconds
    return step * plan.num_steps * mean_cost(recipe, recipe.stages[0])


def _candidates(
    rungs: list[Candidate], num_images: int, settings: RunSettings, overrides: Sequence[str]
) -> list[Recipe]:
    """A recipe for each rung, one where the user fixed what the ladder varies."""
    recipes = [_candidate(rung, num_images, settings, overrides) for rung in rungs]
    return [recipe for number, recipe in enumerate(recipes) if recipe not in recipes[:number]]


def _candidate(rung: Candidate, num_images: int, settings: RunSettings, overrides: Sequence[str]) -> Recipe:
    """A rung's recipe; its images grow from half their size where that was measured to pay, if the user lets them."""
    values = _with_rung(rung, num_images, settings)
    recipe = parse_recipe(values, overrides, "auto")
    px = recipe.augment.train_px
    if px >= LEAST_GROWN_PX:
        values["stages"][0]["first_px"] = PX_STEP * (px // PX_STEP // 2)
        recipe = parse_recipe(values, overrides, "auto")
    return with_stem(recipe)


def _one_size(recipe: Recipe) -> dict[str, Any]:
    """Its values, for images that do not grow."""
    values = recipe.model_dump()
    values["stages"][0]["first_px"] = "train"
    return values


def _described(recipe: Recipe) -> str:
    model = recipe.model
    width = "" if model.width == 1 else f" at {model.width:g} of its width"
    return f"{model.backbone}{width}, {model.stem} stem, {recipe.augment.train_px} px"


def _with_rung(rung: Candidate, num_images: int, settings: RunSettings) -> dict[str, Any]:
    values = starting_values()
    values["model"] = {"backbone": rung.backbone, "stem": rung.stem, "width": rung.width}
    values["augment"]["train_px"] = rung.train_px
    values["stages"][0]["batch_size"] = max(16, min(128, round(num_images / 20)))
    values["run"] = settings.model_dump()
    return values


def _with_epochs(recipe: Recipe, overrides: Sequence[str], epochs: int, pace: Pace) -> Recipe:
    values = recipe.model_dump()
    stage = values["stages"][0]
    stage["epochs"] = epochs
    if epochs >= EPOCHS_FOR_A_POLICY:
        values["augment"]["policy"] = "trivialaugment"  # needs no search, so no labels but the user's
    stage["ema_half_life_epochs"] = round(epochs / 25, 2)
    stage["optim"]["warmup_epochs"] = min(3.0, round(epochs / 10, 1))
    needed = pace.image_bytes * stage["batch_size"]
    stage["accumulate"] = max(1, math.ceil(needed / max(1, MEMORY_SHARE * free_memory(recipe.run.device))))
    return with_stem(parse_recipe(values, overrides, "auto"))


def free_memory(device: str) -> int:
    """Bytes that are free on the device; for a CPU what this process can still take."""
    kind = torch.device(device)
    if kind.type == "cuda":
        return torch.cuda.mem_get_info(kind)[0]
    if kind.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return cache.free_memory()

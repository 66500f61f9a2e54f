"""Measures the time and the memory of a few real training steps."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fewsight.augment.normalise import Normalise
from fewsight.data import cache
from fewsight.data.prepare import Prepared
from fewsight.errors import RecipeError
from fewsight.losses import batch_kind
from fewsight.machine.device import compute_threads, is_out_of_memory, member_devices
from fewsight.models.classifier import Classifier, build_without_memory, initial_model
from fewsight.recipes import Recipe, RunSettings
from fewsight.training.feed import AugmentedImages, batches
from fewsight.training.learner import build_learner, read_values
from fewsight.training.mix import mix
from fewsight.training.plans import batch_plan
from fewsight.training.schedule import mean_cost

TIMED_STEPS = 8
MAX_CANDIDATE_SECONDS = 10.0  # for probing one candidate: a slow device is timed over fewer steps
STEP_QUANTILE = 0.25  # of the timed steps: other programs can only make a step longer
MEMORY_FRACTION = 0.5  # of the free memory, for the activations of one step
WEIGHT_COPIES = 4  # the weights, their gradients, the momentum, the moving average
SCORING = 0.8  # of a step's time: two forward passes, since an image is mirrored, and decoding
MANY_EPOCHS = 1_000_000  # more than any probe takes
HOPELESS = 2.0  # an epoch that takes this multiple of the time left ends the probe: it is not for another program


class TooLargeError(RecipeError):
    """A model that does not fit into the free memory; the message says what it needs."""


@dataclass(frozen=True)
class Pace:
    """Time and memory that a probe measured."""

    step_seconds: float  # a training step on a loaded batch
    load_seconds: float  # loading and augmenting a batch, on one core
    score_seconds: float  # loading and scoring one image
    image_bytes: int  # kept for the backward pass, per image
    parts: int = 1  # into which a batch was cut to fit into the memory


def probe(
    recipe: Recipe, prepared: Prepared, seconds: float = MAX_CANDIDATE_SECONDS, max_epoch_seconds: float = math.inf
) -> Pace:
    """Measure the time and memory of a few real training steps.

    Memory is measured on two images, before a whole batch is; a batch that is too large for the memory is then cut
    into parts, as the plan will do. On one thread of a CPU the time is the processor's, to which it does not matter
    what other programs do.

    Args:
        seconds: time after which no further step starts; at least one step is timed.
        max_epoch_seconds: the probe ends with the first timed step that is far too slow for an epoch of this length.

    Raises:
        TooLargeError: the model, or the smallest part of a batch, does not fit into the free memory.
    """
    device, num_steps = torch.device(recipe.run.device), batch_plan(recipe, recipe.stages[0], prepared.images).num_steps
    steps: list[float] = []
    loads: list[float] = []
    num_images = 1
    assert recipe.run.threads != "auto", "the settings are resolved"
    _check_weights_fit(recipe, len(prepared.classes))
    with compute_threads(recipe.run.threads), _memory_explained():
        model = initial_model(recipe, len(prepared.classes)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        image_bytes = _bytes_per_image(model, recipe, device)
        parts = parts_that_fit(image_bytes, recipe)
        began = time.perf_counter()
        for load_seconds, step_seconds, batch in training_steps(recipe, prepared, model, parts):
            loads.append(load_seconds)
            steps.append(step_seconds)
            num_images = batch
            hopeless = len(steps) > 1 and min(steps[1:]) * num_steps > HOPELESS * max_epoch_seconds
            if len(steps) > TIMED_STEPS or time.perf_counter() - began > seconds or hopeless:
                break
    computing, loading = _undisturbed(steps), _undisturbed(loads)
    return Pace(computing, loading, SCORING * (computing + loading) / num_images, image_bytes, parts)


def training_steps(
    recipe: Recipe, prepared: Prepared, model: Classifier | None = None, parts: int = 1
) -> Iterator[tuple[float, float, int]]:
    """Take training steps of the first stage, without end: the seconds of loading and of computing, and the images.

    Args:
        recipe: resolved.
        model: on the recipe's device; None: a new one.
        parts: into which a batch is cut at least.
    """
    device, stage, images = torch.device(recipe.run.device), recipe.stages[0], prepared.images
    plan, labels = batch_plan(recipe, stage, images), torch.tensor(images.labels)
    normalise = Normalise(prepared.facts.mean, prepared.facts.std).to(device)
    if model is None:
        model = initial_model(recipe, len(prepared.classes)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage = stage.model_copy(update={"accumulate": max(stage.accumulate, parts)})
    learner = build_learner(model, recipe, stage, images, len(prepared.classes), device)
    now = time.process_time if device.type == "cpu" and recipe.run.threads == 1 else time.perf_counter
    feed = batches(_images(recipe, prepared), plan, first_epoch=0, first_step=0, num_epochs=MANY_EPOCHS, workers=0)
    previous = now()
    for epoch, step, batch, indices in feed:
        loaded = now()
        inputs, targets = mix(normalise.of_bytes(batch), labels, indices, recipe, stage, epoch, step)
        read_values([learner.step(inputs, targets, 1e-6)])  # the device has finished
        stepped = now()
        yield loaded - previous, stepped - loaded, len(indices)
        previous = now()


def parts_that_fit(image_bytes: int, recipe: Recipe) -> int:
    """Into how many parts a batch of the first stage must be cut, so that one fits into the free memory.

    Args:
        image_bytes: kept for the backward pass, per image.
        recipe: whose members share the memory of a CPU.

    Raises:
        TooLargeError: the smallest part does not fit, or the loss needs the whole batch at once.
    """
    stage, at_once = recipe.stages[0], len(member_devices(recipe.run))
    free = free_memory(recipe.run.device) // (1 if torch.device(recipe.run.device).type == "cuda" else at_once)
    parts = max(1, math.ceil(image_bytes * stage.batch_size / max(1, MEMORY_FRACTION * free)))
    smallest = stage.batch_size if batch_kind(stage) == "pk" else 2
    if parts > stage.batch_size // smallest:
        raise TooLargeError(
            f"a step on {smallest} images keeps {image_bytes * smallest / 1e9:.2g} GB, and {free / 1e9:.2g} GB are free"
        )
    return parts


def step_seconds(pace: Pace, run: RunSettings, speedup: float = 1.0) -> float:
    """Seconds of a step with its loading, which processes do in parallel with the steps if there are any.

    Args:
        run: resolved.
        speedup: of the steps, by more threads than the pace was measured with.
    """
    assert run.workers != "auto", "the settings are resolved"
    if run.workers > 0:
        return max(pace.step_seconds / speedup, pace.load_seconds / run.workers)
    return (pace.step_seconds + pace.load_seconds) / speedup


def epoch_seconds(pace: Pace, recipe: Recipe, prepared: Prepared, speedup: float = 1.0) -> float:
    """Seconds per epoch of the first stage, with its part of the evaluations on val between the epochs.

    Args:
        speedup: as for `step_seconds`.
    """
    plan = batch_plan(recipe, recipe.stages[0], prepared.images)
    evaluation = len(prepared.images.val_paths) * pace.score_seconds
    between = evaluation / recipe.eval.every_epochs if recipe.eval.every_epochs else 0.0
    return step_seconds(pace, recipe.run, speedup) * plan.num_steps * mean_cost(recipe, recipe.stages[0]) + between


def free_memory(device: str) -> int:
    """Bytes that are free on the device; on a CPU what this process can still allocate."""
    kind = torch.device(device)
    if kind.type == "cuda":
        cached = torch.cuda.memory_reserved(kind) - torch.cuda.memory_allocated(kind)  # torch will use it again
        return torch.cuda.mem_get_info(kind)[0] + cached
    if kind.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return cache.free_memory()


def _images(recipe: Recipe, prepared: Prepared) -> AugmentedImages:
    """The training images, without a cache of decoded ones."""
    images = prepared.images
    return AugmentedImages(images.root, images.paths, recipe.augment, recipe.run.seed, images.numbers)


def _check_weights_fit(recipe: Recipe, num_classes: int) -> None:
    """Check that the weights and their copies fit into the free memory, without allocating them.

    Raises:
        TooLargeError: they do not.
    """
    model, free = recipe.model, free_memory(recipe.run.device)
    empty = build_without_memory(model.backbone, num_classes, stem=model.stem, width=model.width)
    needed = WEIGHT_COPIES * sum(weight.numel() * weight.element_size() for weight in empty.parameters())
    if needed > free:
        raise TooLargeError(
            f"its weights, gradients, momentum and moving average take {needed / 1e9:.2g} GB, and {free / 1e9:.2g} GB "
            "are free"
        )


@contextlib.contextmanager
def _memory_explained() -> Iterator[None]:
    """Turn a lack of memory on any device into a TooLargeError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TooLargeError("the free memory is too small for a step") from error


def _undisturbed(seconds: Sequence[float]) -> float:
    """A step's time when no other program runs, without the first step, which also chooses kernels, if there are more.

    Args:
        seconds: of each step.
    """
    return float(np.quantile(seconds[1:] or seconds, STEP_QUANTILE))


def _bytes_per_image(model: Classifier, recipe: Recipe, device: torch.device) -> int:
    """Bytes that autograd keeps for the backward pass of an image in float32, without the weights; of two images."""
    px = recipe.augment.train_px
    return _bytes_kept(model, torch.zeros(2, 3, px, px, device=device)) // 2


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

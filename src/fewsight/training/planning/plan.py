"""Chooses the candidate and the number of epochs, with reasons."""

import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from fewsight.data.prepare import Prepared
from fewsight.errors import RecipeError
from fewsight.models.classifier import with_stem
from fewsight.recipes import Recipe, RunSettings, parse_recipe
from fewsight.recipes.options import check_hours
from fewsight.terminal import duration, progress_counter
from fewsight.training.planning.candidates import (
    candidate_recipes,
    described,
    native_px,
    target_epochs,
    with_one_size,
)
from fewsight.training.planning.clock import Clock, already_over, too_short, warning
from fewsight.training.planning.probe import (
    MAX_CANDIDATE_SECONDS,
    Pace,
    TooLargeError,
    epoch_seconds,
    probe,
    time_loading,
)
from fewsight.wording import counted

PROBE_FRACTION = 0.06  # of the hours, for probing
MAX_PROBE_SECONDS = 60.0  # for probing all candidates, however long the training may take
MAX_EPOCHS = 300
MIN_GROWING_EPOCHS = 10  # for images that grow: fewer epochs are too few for several sizes
MIN_POLICY_EPOCHS = 150  # for an augmentation policy: with fewer it lowers accuracy (NOTES.md)
POLICY = "trivialaugment"  # unlike AutoAugment, it was not searched on other labels


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
        RecipeError: there is not enough time for a single epoch, or not enough memory for any candidate.
    """
    check_hours(hours)
    num_images, clock = len(prepared.images.paths), Clock(hours, began, len(prepared.images.val_paths))
    target = target_epochs(num_images)
    reasons = [
        f"{counted(num_images, 'training image')} of {counted(len(prepared.classes), 'class')}, median shorter side "
        f"{native_px(prepared)} px; {settings.device}, {settings.precision}, "
        f"{counted(int(settings.threads), 'thread')}, {counted(int(settings.workers), 'loading process')}"
    ]
    candidates = candidate_recipes(prepared, settings, overrides)
    recipe, pace = _choose(candidates, prepared, clock, target, reasons, console)
    recipe, pace = _with_policy(recipe, pace, prepared, clock, overrides)
    seconds = epoch_seconds(pace, recipe, prepared)
    epochs = min(MAX_EPOCHS, clock.epochs(pace, seconds))
    if epochs < MIN_GROWING_EPOCHS:
        recipe = with_one_size(recipe, overrides)
        seconds = epoch_seconds(pace, recipe, prepared)
        epochs = clock.epochs(pace, seconds)
    if epochs < 1:
        raise RecipeError(too_short(clock, pace, seconds, num_images, target, recipe))
    warned = warning(clock, pace, seconds, epochs, target, recipe)
    recipe = _with_epochs(recipe, overrides, epochs, pace)
    reasons.append(
        f"chosen: {described(recipe)}, {counted(recipe.stages[0].epochs, 'epoch')} (a larger model is only chosen "
        f"with time for about {target}), batch size {recipe.stages[0].batch_size}, policy {recipe.augment.policy}"
    )
    if warned and recipe.stages[0].epochs == epochs:  # else the user fixed them
        reasons.append(warned)
    return recipe, reasons


def _choose(
    candidates: Sequence[Recipe],
    prepared: Prepared,
    clock: Clock,
    target: int,
    reasons: list[str],
    console: Console,
) -> tuple[Recipe, Pace]:
    """The most expensive candidate with time for `target` epochs, else the cheapest; each adds a line to `reasons`.

    Raises:
        RecipeError: the time is over, or no candidate fits into the memory.
    """
    if clock.left() <= 0:
        raise RecipeError(already_over(clock))
    limit, began = min(MAX_PROBE_SECONDS, PROBE_FRACTION * clock.hours * 3600), time.monotonic()
    console.print(
        f"timing training steps of up to {counted(len(candidates), 'model')}, for at most about {duration(limit)}"
    )
    chosen: tuple[Recipe, Pace] | None = None
    with progress_counter(console, "timing") as progress:
        for number, recipe in enumerate(candidates):
            progress(number, len(candidates))
            seconds = min(MAX_CANDIDATE_SECONDS, limit - (time.monotonic() - began))
            try:
                pace = probe(recipe, prepared, seconds, clock.left())
            except TooLargeError as error:
                reasons.append(f"{described(recipe)}: skipped, {error}")
                continue
            epochs = clock.epochs(pace, epoch_seconds(pace, recipe, prepared))
            milliseconds = 1e3 * (pace.step_seconds + pace.load_seconds)
            reasons.append(
                f"{described(recipe)}: {milliseconds:.0f} ms per step, time for {counted(max(0, epochs), 'epoch')}"
            )
            if chosen is None or epochs >= target:
                chosen = recipe, pace
            if epochs < 2 * target or time.monotonic() - began >= limit:
                break
    if chosen is None:
        raise RecipeError(
            f"no model of the plan fits into the free memory: {reasons[-1]}. Close other programs, or train with "
            "smaller images (--set augment.train_px=32) or another recipe (--recipe)"
        )
    return chosen


def _with_policy(
    recipe: Recipe, pace: Pace, prepared: Prepared, clock: Clock, overrides: Sequence[str]
) -> tuple[Recipe, Pace]:
    """With an augmentation policy where enough epochs fit with it too; loading is then timed with it."""
    if clock.epochs(pace, epoch_seconds(pace, recipe, prepared)) < MIN_POLICY_EPOCHS:
        return recipe, pace
    values = recipe.model_dump()
    values["augment"]["policy"] = POLICY
    augmented = parse_recipe(values, overrides, "auto")  # the user's policy, if one is fixed
    if augmented == recipe:
        return recipe, pace
    slower = replace(pace, load_seconds=time_loading(augmented, prepared))
    if clock.epochs(slower, epoch_seconds(slower, augmented, prepared)) < MIN_POLICY_EPOCHS:
        return recipe, pace
    return augmented, slower


def _with_epochs(recipe: Recipe, overrides: Sequence[str], epochs: int, pace: Pace) -> Recipe:
    values = recipe.model_dump()
    stage = values["stages"][0]
    stage["epochs"] = epochs
    stage["ema_half_life_epochs"] = round(epochs / 25, 2)
    stage["optim"]["warmup_epochs"] = min(3.0, round(epochs / 10, 1))
    stage["accumulate"] = pace.parts
    return with_stem(parse_recipe(values, overrides, "auto"))

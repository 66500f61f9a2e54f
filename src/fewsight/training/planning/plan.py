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
    fixed_epochs,
    native_px,
    target_epochs,
    with_one_size,
)
from fewsight.training.planning.clock import Clock, already_over, cheaper, too_short, warning
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
    fixed = fixed_epochs(overrides)
    target = target_epochs(num_images)
    reasons = [
        f"{counted(num_images, 'training image')} of {counted(len(prepared.classes), 'class')}, median shorter side "
        f"{native_px(prepared)} px; {settings.device}, {settings.precision}, "
        f"{counted(int(settings.threads), 'thread')}, {counted(int(settings.workers), 'loading process')}"
    ]
    candidates = candidate_recipes(prepared, settings, overrides)
    recipe, pace = _choose(candidates, prepared, clock, target, fixed, reasons, console)
    recipe, pace = _with_policy(recipe, pace, prepared, clock, overrides, fixed)
    seconds = epoch_seconds(pace, recipe, prepared)
    epochs = min(MAX_EPOCHS, clock.epochs(pace, seconds))
    if (fixed or epochs) < MIN_GROWING_EPOCHS:
        recipe = with_one_size(recipe, overrides)
        seconds = epoch_seconds(pace, recipe, prepared)
        epochs = clock.epochs(pace, seconds)
    if epochs < 1:
        raise RecipeError(too_short(clock, pace, seconds, num_images, target, recipe))
    warned = warning(clock, pace, seconds, epochs, target, recipe)
    recipe = _with_epochs(recipe, overrides, fixed or epochs, pace)
    reasons.append(
        f"chosen: {described(recipe)}, {counted(recipe.stages[0].epochs, 'epoch')} (a larger model is only chosen "
        f"with time for about {target}), batch size {recipe.stages[0].batch_size}, policy {recipe.augment.policy}"
    )
    if fixed is None and warned:
        reasons.append(warned)
    elif fixed is not None and fixed > clock.epochs(pace, seconds):
        reasons.append(
            f"warning: the {counted(fixed, 'epoch')} that you fixed take about --hours "
            f"{clock.hours_for(fixed, pace, seconds):g}, and there is time for {counted(epochs, 'epoch')}"
        )
    return recipe, reasons


def _choose(
    candidates: Sequence[Recipe],
    prepared: Prepared,
    clock: Clock,
    target: int,
    fixed: int | None,
    reasons: list[str],
    console: Console,
) -> tuple[Recipe, Pace]:
    """The most expensive candidate with time for `target` epochs, else the cheapest; each adds a line to `reasons`.

    Where the user fixed the epochs, they must fit, and be as many as `target`.

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
    too_large: list[str] = []
    with progress_counter(console, "timing") as progress:
        for number, recipe in enumerate(candidates):
            progress(number, len(candidates))
            seconds = min(MAX_CANDIDATE_SECONDS, limit - (time.monotonic() - began))
            try:
                pace = probe(recipe, prepared, seconds, clock.left())
            except TooLargeError as error:
                reasons.append(f"{described(recipe)}: skipped, {error}")
                too_large.append(reasons[-1])
                continue
            epochs = clock.epochs(pace, epoch_seconds(pace, recipe, prepared))
            milliseconds = 1e3 * (pace.step_seconds + pace.load_seconds)
            reasons.append(
                f"{described(recipe)}: {milliseconds:.0f} ms per step, time for {counted(max(0, epochs), 'epoch')}"
            )
            if chosen is None or (epochs >= max(target, fixed or 0) and (fixed or target) >= target):
                chosen = recipe, pace
            if epochs < 2 * target or time.monotonic() - began >= limit:
                break
    if chosen is None:
        raise RecipeError(
            f"no model of the plan fits into the free memory: {too_large[0]}. Close other programs, or use "
            f"{cheaper(candidates[0])}"
        )
    return chosen


def _with_policy(
    recipe: Recipe, pace: Pace, prepared: Prepared, clock: Clock, overrides: Sequence[str], fixed: int | None
) -> tuple[Recipe, Pace]:
    """With an augmentation policy where enough epochs fit with it too; loading is then timed with it."""
    if (fixed or clock.epochs(pace, epoch_seconds(pace, recipe, prepared))) < MIN_POLICY_EPOCHS:
        return recipe, pace
    values = recipe.model_dump()
    values["augment"]["policy"] = POLICY
    augmented = parse_recipe(values, overrides, "auto")  # the user's policy, if one is fixed
    if augmented == recipe:
        return recipe, pace
    slower = replace(pace, load_seconds=time_loading(augmented, prepared))
    if (fixed or clock.epochs(slower, epoch_seconds(slower, augmented, prepared))) < MIN_POLICY_EPOCHS:
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

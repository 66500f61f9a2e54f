"""Chooses net, image size, members and length from the data, the device and the time, with reasons."""

import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from fewsight.data.prepare import Prepared
from fewsight.errors import RecipeError
from fewsight.machine.device import member_devices
from fewsight.recipes import Recipe, RunSettings
from fewsight.recipes.options import check_hours
from fewsight.terminal import duration, progress_counter
from fewsight.training.planning import reasons
from fewsight.training.planning.candidates import Candidate, candidates, described, fixed, with_epochs
from fewsight.training.planning.clock import Clock, already_over
from fewsight.training.planning.costs import Option
from fewsight.training.planning.levels import Level, chosen
from fewsight.training.planning.pilot import Steps, pilot
from fewsight.training.planning.probe import MAX_CANDIDATE_SECONDS, Pace, TooLargeError, parts_that_fit, probe
from fewsight.wording import counted

PROBE_FRACTION = 0.03  # of the hours, for timing all candidates
MAX_PROBE_SECONDS = 60.0  # for that, however long the training may take
PILOT_FRACTION = 0.015  # of the hours, for timing the chosen one in the way that it will train
MAX_PILOT_SECONDS = 20.0
PROBE_BATCH = 16  # images in a timed step on a CPU, where more take as much time each
SLOW = 1.3  # times the expected time of a step, from which on the choice is made once more


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
        settings: the [run] section, with what the user fixed.
        hours: for the whole command, one seed.
        overrides: values that the user fixed, as `key.path=value`.
        began: `time.monotonic()` when the command began.

    Returns:
        The recipe, and the reasons for it, a line each; a warning comes last if there is time for few epochs only.

    Raises:
        RecipeError: there is not enough time for a single epoch, or not enough memory for any candidate.
    """
    check_hours(hours)
    clock = Clock(hours, began)
    if clock.left() <= 0:
        raise RecipeError(already_over(clock))
    listed = candidates(prepared, settings, overrides)
    said = [reasons.data_line(prepared, listed[0].recipe.run)]
    epochs_fixed = fixed(lambda recipe: recipe.stages[0].epochs, overrides)
    options = _timed(listed, prepared, clock, said, console)
    levels = [candidate.level for candidate in listed]
    option = _choose(levels, options, prepared, clock, epochs_fixed)
    option, steps = _measured(option, prepared, hours, console)
    if option.slowdown > SLOW and len(options) > 1:
        slower = [replace(each, slowdown=option.slowdown) if each else None for each in options]
        again = _choose(levels, slower, prepared, clock, epochs_fixed)
        if again.recipe != option.recipe:
            option, steps = _measured(again, prepared, hours, console)
    epochs = int(option.epochs(clock, prepared))
    if epochs < 1:
        raise RecipeError(reasons.too_short(clock, option, prepared))
    recipe = with_epochs(option.recipe, overrides, epochs_fixed or epochs, option.pace.parts)
    said += reasons.chosen_lines(option, options, recipe, prepared, steps)
    warning = reasons.warning(clock, option, prepared, epochs, epochs_fixed)
    return recipe, [*said, warning] if warning else said


def _timed(
    listed: Sequence[Candidate], prepared: Prepared, clock: Clock, said: list[str], console: Console
) -> list[Option | None]:
    """The candidates with their costs, None for what does not fit into the memory; those too slow are left out.

    Raises:
        RecipeError: no candidate fits into the memory.
    """
    limit, began = min(MAX_PROBE_SECONDS, PROBE_FRACTION * clock.hours * 3600), time.monotonic()
    console.print(f"timing training steps of up to {counted(len(listed), 'plan')}, for about {duration(limit)} at most")
    options: list[Option | None] = []
    paces: list[tuple[Recipe, Pace]] = []  # of single members
    with progress_counter(console, "timing") as progress:
        for number, candidate in enumerate(listed):
            progress(number, len(listed))
            one = _single(candidate.recipe)
            pace = next((pace for recipe, pace in paces if recipe == one), None)
            try:
                if pace is None:
                    seconds = min(MAX_CANDIDATE_SECONDS, limit - (time.monotonic() - began))
                    pace = probe(one, prepared, seconds, clock.left())
                    paces.append((one, pace))
                pace = replace(pace, parts=parts_that_fit(pace.image_bytes, candidate.recipe))
            except TooLargeError as error:
                said.append(f"{described(candidate.recipe)}: left out, {error}")
                options.append(None)
                continue
            option = Option(candidate, pace)
            options.append(option)
            if option.epochs(clock, prepared) < 1 or time.monotonic() - began >= limit:
                break
    if not any(options):
        raise RecipeError(
            f"no model of the plan fits into the free memory: {said[-1]}. Close other programs, or use "
            f"{reasons.cheaper(listed[0].recipe)}"
        )
    return options


def _single(recipe: Recipe) -> Recipe:
    """One member of a recipe, on one thread of a CPU, with batches whose images cost what those of full batches do."""
    run, stage = recipe.run.model_copy(update={"members": 1}), recipe.stages[0]
    if run.device == "cpu":
        run = run.model_copy(update={"threads": 1})
        stage = stage.model_copy(update={"batch_size": min(stage.batch_size, PROBE_BATCH)})
    return recipe.model_copy(update={"run": run, "stages": [stage, *recipe.stages[1:]]})


def _choose(
    levels: Sequence[Level],
    options: Sequence[Option | None],
    prepared: Prepared,
    clock: Clock,
    epochs_fixed: int | None,
) -> Option:
    """The last level that is worth its time; where the user fixed the epochs, one at which they fit if there is one."""
    num_images = len(prepared.images.paths)
    epochs = [None if option is None else option.epochs(clock, prepared) for option in options]
    if epochs_fixed is not None:
        epochs = [None if each is None or each < epochs_fixed else epochs_fixed for each in epochs]
        if not any(epochs):
            return next(option for option in options if option is not None)
    seen = [None if each is None else each * num_images for each in epochs]
    option = options[chosen(levels, seen, num_images)]
    assert option is not None
    return option


def _measured(option: Option, prepared: Prepared, hours: float, console: Console) -> tuple[Option, Steps]:
    """The option with the time that its steps take in the training, beside each other and beside other programs."""
    at_once = len(member_devices(option.recipe.run))
    console.print(f"timing steps of {described(option.recipe)}" + " side by side" * (at_once > 1))
    member = option.recipe.model_copy(update={"run": option.recipe.run.model_copy(update={"members": 1})})
    steps = pilot(member, prepared, min(MAX_PILOT_SECONDS, PILOT_FRACTION * hours * 3600), at_once)
    expected = replace(option, slowdown=1.0).step_seconds()
    return replace(option, slowdown=steps.seconds / expected), steps

"""Chooses nets, image sizes and lengths from the data, the device and the time, with reasons."""

import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from fewsight.data.prepare import Prepared
from fewsight.errors import RecipeError
from fewsight.recipes import Recipe, RunSettings
from fewsight.recipes.options import check_hours
from fewsight.terminal import duration, progress_counter
from fewsight.training.members.recipes import together
from fewsight.training.planning import reasons
from fewsight.training.planning.candidates import Candidate, candidates, fixed, with_epochs
from fewsight.training.planning.clock import Clock, already_over
from fewsight.training.planning.costs import Option
from fewsight.training.planning.levels import Level, chosen
from fewsight.training.planning.pilot import Steps, pilot
from fewsight.training.planning.probe import MAX_CANDIDATE_SECONDS, Pace, TooLargeError, parts_that_fit, probe
from fewsight.wording import counted

PROBE_FRACTION = 0.03  # of the hours, for timing all nets
MAX_PROBE_SECONDS = 60.0  # for that, however long the training may take
PROBE_BATCH = 16  # images in a timed step on a CPU, where more take as much time each
PILOT_FRACTION = 0.015  # of the hours, for timing the chosen nets in the way that they will train
MAX_PILOT_SECONDS = 20.0
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
        RecipeError: there is not enough time for a single epoch, or not enough memory for any net; the user fixed how
            members differ.
    """
    check_hours(hours)
    if settings.variants:
        raise RecipeError("run.variants: a plan chooses how its members differ; set it for another recipe than auto")
    clock = Clock(hours, began)
    if clock.left() <= 0:
        raise RecipeError(already_over(clock))
    listed = candidates(prepared, settings, overrides)
    said = [reasons.data_line(prepared, listed[0].recipes[0].run)]
    epochs_fixed = fixed(lambda recipe: recipe.stages[0].epochs, overrides)
    options = _timed(listed, prepared, clock, said, console)
    levels = [candidate.level for candidate in listed]
    option = _choose(levels, options, prepared, clock, epochs_fixed)
    option, steps = _measured(option, prepared, hours, console)
    if option.slowdown > SLOW and len(options) > 1:
        slower = [replace(each, slowdown=option.slowdown) if each else None for each in options]
        again = _choose(levels, slower, prepared, clock, epochs_fixed)
        if again.recipes != option.recipes:
            option, steps = _measured(again, prepared, hours, console)
    epochs = [int(each) for each in option.epochs(clock, prepared)]
    if min(epochs) < 1:
        raise RecipeError(reasons.too_short(clock, option, prepared))
    recipes = [
        with_epochs(recipe, overrides, epochs_fixed or count, pace.parts)
        for recipe, count, pace in zip(option.recipes, epochs, option.paces, strict=True)
    ]
    said += reasons.chosen_lines(option, options, recipes, prepared, steps)
    warning = reasons.warning(clock, option, prepared, min(epochs), epochs_fixed)
    return together(recipes), [*said, warning] if warning else said


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
            try:
                for one in map(_single, candidate.recipes):
                    if all(timed != one for timed, _ in paces):
                        seconds = min(MAX_CANDIDATE_SECONDS, max(0.0, limit - (time.monotonic() - began)))
                        paces.append((one, probe(one, prepared, seconds, clock.left())))
                option = Option(candidate, tuple(_pace(recipe, paces) for recipe in candidate.recipes))
            except TooLargeError as error:
                said.append(f"{reasons.listed_nets(candidate.recipes)}: left out, {error}")
                options.append(None)
                continue
            options.append(option)
            if min(option.epochs(clock, prepared)) < 1 or time.monotonic() - began >= limit:
                break
    if not any(options):
        raise RecipeError(
            f"no model of the plan fits into the free memory: {said[-1]}. Close other programs, or use "
            f"{reasons.cheaper(listed[0].recipes[0])}"
        )
    return options


def _pace(recipe: Recipe, paces: Sequence[tuple[Recipe, Pace]]) -> Pace:
    """A member's pace, with the parts into which its batches are cut beside the other members.

    Raises:
        TooLargeError: the smallest part does not fit into the memory.
    """
    one = _single(recipe)
    pace = next(pace for timed, pace in paces if timed == one)
    return replace(pace, parts=parts_that_fit(pace.image_bytes, recipe))


def _single(recipe: Recipe) -> Recipe:
    """One member's recipe, on one thread of a CPU, with batches whose images cost what those of full batches do."""
    run, stage = recipe.run.model_copy(update={"members": 1}), recipe.stages[0]
    if run.device == "cpu":
        run = run.model_copy(update={"threads": 1, "workers": 0})
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
    epochs = [None if option is None else min(option.epochs(clock, prepared)) for option in options]
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
    recipes = option.recipes[: option.at_once]
    console.print(f"timing steps of {reasons.listed_nets(recipes)}" + " side by side" * (len(recipes) > 1))
    members = [recipe.model_copy(update={"run": recipe.run.model_copy(update={"members": 1})}) for recipe in recipes]
    steps = pilot(members, prepared, min(MAX_PILOT_SECONDS, PILOT_FRACTION * hours * 3600))
    alone = replace(option, slowdown=1.0)
    slower = [measured / alone.step_seconds(member) for member, measured in enumerate(steps.seconds)]
    return replace(option, slowdown=sum(slower) / len(slower)), steps

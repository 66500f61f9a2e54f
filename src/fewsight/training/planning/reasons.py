"""What a plan says of itself: what it chose and why, what more time would change, and when the time is short."""

from collections.abc import Sequence

from fewsight.data.prepare import Prepared
from fewsight.machine.cores import num_cores
from fewsight.recipes import Recipe, RunSettings
from fewsight.terminal import duration
from fewsight.training.planning.candidates import described, native_px
from fewsight.training.planning.clock import Clock
from fewsight.training.planning.costs import Option
from fewsight.training.planning.levels import enough_images
from fewsight.training.planning.pilot import Steps
from fewsight.training.plans import batch_plan
from fewsight.wording import counted

WARN_BELOW = 0.25  # of the images that a member should see; a plan with fewer gets a warning


def data_line(prepared: Prepared, settings: RunSettings) -> str:
    """What the plan is for."""
    cores = f", {counted(num_cores(), 'core')}" if settings.device == "cpu" else ""
    return (
        f"for {counted(len(prepared.images.paths), 'training image')} of {counted(len(prepared.classes), 'class')}, "
        f"median shorter side {native_px(prepared)} px; {settings.device}, {settings.precision}{cores}"
    )


def chosen_lines(
    option: Option, options: Sequence[Option | None], recipe: Recipe, prepared: Prepared, steps: Steps
) -> list[str]:
    """What was chosen and why, and what else there would be."""
    stage, members, num_images = recipe.stages[0], recipe.run.members, len(prepared.images.paths)
    num_steps = stage.epochs * batch_plan(recipe, stage, prepared.images).num_steps
    each = "each sees" if members > 1 else "it sees"
    lines = [
        f"chosen: {described(recipe)}; {each} every image {counted(stage.epochs, 'time')}, in "
        f"{counted(num_steps, 'step')} of {stage.batch_size} images"
    ]
    if members > 1:
        lines.append("their probabilities are averaged: with few images that beats one net that is as much larger")
    lines.append(f"augmentation: {_augmentation(recipe)}")
    own = next((number for number, other in enumerate(options) if other and other.recipe == option.recipe), 0)
    larger = next((other for other in options[own + 1 :] if other), None)
    if larger is not None:
        seconds = larger.seconds(larger.candidate.level.share * enough_images(num_images) / num_images, prepared)
        lines.append(f"with more time: {described(larger.recipe)}, from about {duration(seconds)} of training on")
    milliseconds = 1e3 * option.pace.score_seconds * members
    lines.append(f"a prediction takes about {milliseconds:.1f} ms an image on one core" if recipe.run.device == "cpu"
                 else f"a prediction takes about {milliseconds:.1f} ms an image here")  # fmt: skip
    if steps.busy:
        lines.append(
            f"note: other programs take {100 * (1 - steps.core_proportion):.0f} % of the cores that this training "
            "uses; the plan counts on that. On an idle machine the same time holds more"
        )
    return lines


def _augmentation(recipe: Recipe) -> str:
    """The augmentation in words."""
    augment = recipe.augment
    low, high = augment.crop_area
    parts = [f"crops of {100 * low:.0f} to {100 * high:.0f} % of the area"]
    parts += ["mirrored"] if augment.flip_prob else []
    parts += [augment.policy] if augment.policy != "none" else []
    parts += ["CutMix"] if recipe.stages[0].cutmix_prob != 0 and augment.cutmix_prob else []
    return ", ".join(parts)


def enough_epochs(num_images: int) -> int:
    """Epochs that a member should have."""
    return max(1, round(enough_images(num_images) / num_images))


def too_short(clock: Clock, option: Option, prepared: Prepared) -> str:
    """The error message when there is no time for an epoch: the reasons, and what to do."""
    num_images = len(prepared.images.paths)
    enough = enough_epochs(num_images)
    return (
        f"--hours {clock.hours:g} is not enough for one epoch of {counted(num_images, 'image')} on this device: it "
        f"takes about {duration(option.epoch_seconds(prepared))}, scoring val "
        f"{duration(option.scoring_seconds(prepared))}, starting, reading and timing took {duration(clock.passed())}, "
        f"and a twentieth of the time is reserved. Give --hours {clock.hours_for(option.seconds(1, prepared)):g} or "
        f"more for one epoch, about {clock.hours_for(option.seconds(enough, prepared)):g} for the {enough} that this "
        f"data needs, or use a cheaper model: {cheaper(option.recipe)}. If another program uses this machine, stop it "
        "first: it makes the steps slower"
    )


def warning(clock: Clock, option: Option, prepared: Prepared, epochs: int, epochs_fixed: int | None) -> str | None:
    """The warning about a plan with far fewer epochs than the data needs, or than the user fixed; else None."""
    enough = enough_epochs(len(prepared.images.paths))
    if epochs_fixed is not None:
        if epochs_fixed <= epochs:
            return None
        return (
            f"warning: the {counted(epochs_fixed, 'epoch')} that you fixed take about --hours "
            f"{clock.hours_for(option.seconds(epochs_fixed, prepared)):g}, and there is time for "
            f"{counted(epochs, 'epoch')}"
        )
    if epochs >= WARN_BELOW * enough:
        return None
    return (
        f"warning: time for {counted(epochs, 'epoch')}, but this data needs about {enough}: expect a low accuracy. "
        f"Give --hours {clock.hours_for(option.seconds(enough, prepared)):g}, or use a cheaper model: "
        f"{cheaper(option.recipe)}"
    )


def cheaper(recipe: Recipe) -> str:
    """Options that make a step of a recipe faster."""
    smaller = f" or --set augment.train_px={4 * round(recipe.augment.train_px / 8)}"
    return f"--set model.width={recipe.model.width / 2:g}" + smaller * (recipe.augment.train_px >= 48)

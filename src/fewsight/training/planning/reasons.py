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

WARN_BELOW = 0.1  # of the images that a member should see; a plan with fewer gets a warning


def data_line(prepared: Prepared, settings: RunSettings) -> str:
    """What the plan is for."""
    cores = f", {counted(num_cores(), 'core')}" if settings.device == "cpu" else ""
    return (
        f"for {counted(len(prepared.images.paths), 'training image')} of {counted(len(prepared.classes), 'class')}, "
        f"median shorter side {native_px(prepared)} px; {settings.device}, {settings.precision}{cores}"
    )


def listed_nets(recipes: Sequence[Recipe]) -> str:
    """The nets of members: `plain8, large stem, 64 px; 2 x plain8, large stem, 128 px`."""
    names = [described(recipe) for recipe in recipes]
    return "; ".join(
        f"{names.count(name)} x {name}" if names.count(name) > 1 else name for name in dict.fromkeys(names)
    )


def chosen_lines(
    option: Option, options: Sequence[Option | None], recipes: Sequence[Recipe], prepared: Prepared, steps: Steps
) -> list[str]:
    """What was chosen and why, and what else there would be."""
    num_images = len(prepared.images.paths)
    if len(recipes) > 1:
        lines = [
            f"chosen: {counted(len(recipes), 'net')}, {option.at_once} at a time, whose probabilities are averaged:"
        ]
        lines += [f"  {_length(recipe, prepared)}" for recipe in recipes]
        lines.append("why: with few images several unlike nets are better than a single one that is trained as long")
    else:
        lines = [f"chosen: {_length(recipes[0], prepared)}"]
    lines.append(f"augmentation: {_augmentation(recipes[0])}")
    own = next((number for number, other in enumerate(options) if other and other.recipes == option.recipes), 0)
    larger = next((other for other in options[own + 1 :] if other), None)
    if larger is not None:
        enough = larger.candidate.level.share * enough_images(num_images) / num_images
        seconds = duration(larger.seconds(enough, prepared))
        lines.append(f"with more time: {listed_nets(larger.recipes)}, from about {seconds} of training on")
    milliseconds = 1e3 * sum(pace.score_seconds for pace in option.paces)
    where = "on one core" if recipes[0].run.device == "cpu" else "here"
    lines.append(f"a prediction takes about {milliseconds:.1f} ms an image {where}")
    if steps.busy:
        lines.append(
            f"note: other programs take {100 * (1 - steps.core_proportion):.0f} % of the cores that this training "
            "uses; the plan counts on that. On an idle machine the same time holds more"
        )
    return lines


def _length(recipe: Recipe, prepared: Prepared) -> str:
    """A net and how long it trains."""
    stage = recipe.stages[0]
    num_steps = stage.epochs * batch_plan(recipe, stage, prepared.images).num_steps
    return (
        f"{described(recipe)}: every image {counted(stage.epochs, 'time')}, in {counted(num_steps, 'step')} of "
        f"{stage.batch_size} images"
    )


def _augmentation(recipe: Recipe) -> str:
    """The augmentation in words."""
    augment = recipe.augment
    low, high = augment.crop_area
    parts = [f"crops of {100 * low:.0f} to {100 * high:.0f} % of the area"]
    parts += ["mirrored"] if augment.flip_prob else []
    parts += ["CutMix"] if recipe.stages[0].cutmix_prob != 0 and augment.cutmix_prob else []
    return ", ".join(parts)


def enough_epochs(num_images: int) -> int:
    """Epochs that a member should have."""
    return max(1, round(enough_images(num_images) / num_images))


def too_short(clock: Clock, option: Option, prepared: Prepared) -> str:
    """The error message when there is no time for an epoch: the reasons, and what to do."""
    num_images = len(prepared.images.paths)
    enough, members = enough_epochs(num_images), range(len(option.recipes))
    slowest = max(members, key=lambda member: option.epoch_seconds(member, prepared))
    return (
        f"--hours {clock.hours:g} is not enough for one epoch of {counted(num_images, 'image')} on this device: it "
        f"takes about {duration(option.epoch_seconds(slowest, prepared))}, scoring val "
        f"{duration(option.scoring_seconds(slowest, prepared))}, starting, reading and timing took "
        f"{duration(clock.passed())}, and a twentieth of the time is reserved. Give --hours "
        f"{clock.hours_for(option.seconds(1, prepared)):g} or more for one epoch, about "
        f"{clock.hours_for(option.seconds(enough, prepared)):g} for the {enough} that this data needs, or use a "
        f"cheaper model: {cheaper(option.recipes[0])}. If another program uses this machine, stop it first: it makes "
        "the steps slower"
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
        f"{cheaper(option.recipes[0])}"
    )


def cheaper(recipe: Recipe) -> str:
    """Options that make a step of a recipe faster."""
    smaller = f" or --set augment.train_px={4 * round(recipe.augment.train_px / 8)}"
    return f"--set model.width={recipe.model.width / 2:g}" + smaller * (recipe.augment.train_px >= 48)

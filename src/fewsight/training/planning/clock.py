"""The time of a command, and what to say when it is short."""

import math
import time
from dataclasses import dataclass

from fewsight.recipes import Recipe
from fewsight.terminal import duration
from fewsight.training.planning.probe import Pace
from fewsight.wording import counted

TIME_TO_USE = 0.9  # proportion of the hours; the rest covers saving states and a machine that slows down
START_SECONDS = 4.0  # for a command to import Python and torch, before it can read the clock
WARN_BELOW = 0.5  # of the target epochs; a plan with fewer gets a warning


@dataclass(frozen=True)
class Clock:
    """The time of a command, and what it spends outside of epochs."""

    hours: float
    began: float  # `time.monotonic()` when the command began
    num_val: int  # images to score at the end

    def passed(self) -> float:
        """Seconds since the command was started, including imports before it could read the clock."""
        return START_SECONDS + time.monotonic() - self.began

    def left(self) -> float:
        """Seconds for training and scoring val; negative once they are over."""
        return TIME_TO_USE * self.hours * 3600 - self.passed()

    def scoring(self, pace: Pace) -> float:
        """Seconds for scoring val."""
        return self.num_val * pace.score_seconds

    def epochs(self, pace: Pace, epoch_seconds: float) -> int:
        """How many epochs of `epoch_seconds` fit into the remaining time."""
        return int((self.left() - self.scoring(pace)) / epoch_seconds)

    def hours_for(self, epochs: int, pace: Pace, epoch_seconds: float) -> float:
        """The --hours that `epochs` need, rounded up to hundredths."""
        return math.ceil((self.passed() + self.scoring(pace) + epochs * epoch_seconds) / TIME_TO_USE / 36) / 100


def already_over(clock: Clock) -> str:
    """The error message when starting and reading the images took all of the time."""
    return (
        f"--hours {clock.hours:g} is over before the training begins: starting and reading the images took "
        f"{duration(clock.passed())}, and a tenth of the time is reserved. Give at least "
        f"--hours {math.ceil(2 * clock.passed() / TIME_TO_USE / 36) / 100:g}, or name a recipe with --recipe"
    )


def too_short(clock: Clock, pace: Pace, epoch_seconds: float, num_images: int, target: int, recipe: Recipe) -> str:
    """The error message when there is no time for an epoch: the reasons, and what to do."""
    return (
        f"--hours {clock.hours:g} is not enough for one epoch of {counted(num_images, 'image')} on this device: it "
        f"takes about {duration(epoch_seconds)}, scoring val {duration(clock.scoring(pace))}, starting, reading and "
        f"timing took {duration(clock.passed())}, and a tenth of the time is reserved. Give "
        f"--hours {clock.hours_for(1, pace, epoch_seconds):g} or more for one epoch, about "
        f"{clock.hours_for(target, pace, epoch_seconds):g} for the {target} that this data needs, or use a cheaper "
        f"model: {cheaper(recipe)}. If another program uses "
        "this machine, stop it first: it made the timed steps slower"
    )


def warning(clock: Clock, pace: Pace, epoch_seconds: float, epochs: int, target: int, recipe: Recipe) -> str | None:
    """The warning about a plan with far fewer epochs than the target; None if there are enough."""
    if epochs >= WARN_BELOW * target:
        return None
    return (
        f"warning: time for {counted(epochs, 'epoch')}, but this data needs about {target}: expect a low accuracy. "
        f"Give --hours {clock.hours_for(target, pace, epoch_seconds):g}, or use a cheaper model: {cheaper(recipe)}"
    )


def cheaper(recipe: Recipe) -> str:
    """Options that make a step of a recipe faster."""
    smaller = f" or --set augment.train_px={4 * round(recipe.augment.train_px / 8)}"
    return f"--set model.width={recipe.model.width / 2:g}" + smaller * (recipe.augment.train_px >= 48)

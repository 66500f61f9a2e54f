"""The time of a command, and what to say when it is short."""

import math
import time
from dataclasses import dataclass

from fewsight.terminal import duration

TIME_TO_USE = 0.95  # proportion of the hours; the rest covers saving states and a machine that slows down
START_SECONDS = 4.0  # for a command to import Python and torch, before it can read the clock
MEMBER_SECONDS = 8.0  # for a member to start and to save its results


@dataclass(frozen=True)
class Clock:
    """The time of a command, and what of it has passed."""

    hours: float
    began: float  # `time.monotonic()` when the command began

    def passed(self) -> float:
        """Seconds since the command was started, including imports before it could read the clock."""
        return START_SECONDS + time.monotonic() - self.began

    def left(self) -> float:
        """Seconds for training and scoring val; negative once they are over."""
        return TIME_TO_USE * self.hours * 3600 - self.passed()

    def hours_for(self, seconds: float) -> float:
        """The --hours that hold `seconds` of training and scoring, rounded up to hundredths."""
        return math.ceil((self.passed() + seconds) / TIME_TO_USE / 36) / 100


def already_over(clock: Clock) -> str:
    """The error message when starting and reading the images took all of the time."""
    return (
        f"--hours {clock.hours:g} is over before the training begins: starting and reading the images took "
        f"{duration(clock.passed())}, and a twentieth of the time is reserved. Give at least "
        f"--hours {math.ceil(2 * clock.passed() / TIME_TO_USE / 36) / 100:g}, or name a recipe with --recipe"
    )

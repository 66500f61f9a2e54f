"""What a candidate costs in time: of a step, an epoch and all members."""

import math
from dataclasses import dataclass

from fewsight.data.prepare import Prepared
from fewsight.machine.device import member_devices
from fewsight.recipes import Recipe
from fewsight.training.planning.candidates import Candidate
from fewsight.training.planning.clock import MEMBER_SECONDS, Clock
from fewsight.training.planning.probe import Pace, epoch_seconds, step_seconds

SPEEDUP = 0.8  # of several threads in one process, by thread, until the pilot has measured it


@dataclass(frozen=True)
class Option:
    """A candidate with what its members cost."""

    candidate: Candidate
    paces: tuple[Pace, ...]
    slowdown: float = 1.0  # measured time of a step in the training over the one that the pace gives

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return self.candidate.recipes

    @property
    def at_once(self) -> int:
        """How many members train at the same time."""
        return len(member_devices(self.recipes[0].run))

    def step_seconds(self, member: int) -> float:
        """Seconds of a step of a member in the training, with loading."""
        return step_seconds(self.paces[member], self.recipes[member].run, self._speedup) * self.slowdown

    def epoch_seconds(self, member: int, prepared: Prepared) -> float:
        """Seconds of an epoch of a member, with its part of the evaluations between the epochs."""
        return epoch_seconds(self.paces[member], self.recipes[member], prepared, self._speedup) * self.slowdown

    @property
    def _speedup(self) -> float:
        """Of a member's steps by its threads: all members have the same number."""
        run = self.recipes[0].run
        assert run.threads != "auto", "the settings are resolved"
        return SPEEDUP * run.threads if run.device == "cpu" and run.threads > 1 else 1.0

    def scoring_seconds(self, member: int, prepared: Prepared) -> float:
        """Seconds for a member to score val."""
        return len(prepared.images.val_paths) * self.paces[member].score_seconds * self.slowdown

    def epochs(self, clock: Clock, prepared: Prepared) -> list[float]:
        """Epochs of each member, which have equal parts of the remaining time; negative where none fits."""
        members = len(self.recipes)
        of_each = clock.left() / math.ceil(members / self.at_once) - (MEMBER_SECONDS if members > 1 else 0.0)
        return [
            (of_each - self.scoring_seconds(member, prepared)) / self.epoch_seconds(member, prepared)
            for member in range(members)
        ]

    def seconds(self, epochs: float, prepared: Prepared) -> float:
        """Seconds for all members to train for so many epochs, and to score val."""
        start = MEMBER_SECONDS if len(self.recipes) > 1 else 0.0
        each = [
            start + self.scoring_seconds(member, prepared) + epochs * self.epoch_seconds(member, prepared)
            for member in range(len(self.recipes))
        ]
        return max(sum(each) / self.at_once, *each, 0.0)

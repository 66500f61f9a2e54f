"""What a candidate costs in time: of a step, an epoch and all members."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fewsight.data.prepare import Prepared
from fewsight.machine.device import member_devices
from fewsight.recipes import Recipe
from fewsight.training.planning.candidates import Candidate
from fewsight.training.planning.clock import MEMBER_SECONDS, Clock
from fewsight.training.planning.probe import Pace, step_seconds
from fewsight.training.plans import batch_plan
from fewsight.training.schedule import mean_cost

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
        run = self.recipes[member].run
        assert run.threads != "auto", "the settings are resolved"
        speedup = SPEEDUP * run.threads if run.device == "cpu" and run.threads > 1 else 1.0
        return step_seconds(self.paces[member], run, speedup) * self.slowdown

    def epoch_seconds(self, member: int, prepared: Prepared) -> float:
        """Seconds of an epoch of a member, with its part of the evaluations between the epochs."""
        recipe = self.recipes[member]
        stage, every = recipe.stages[0], recipe.eval.every_epochs
        steps = batch_plan(recipe, stage, prepared.images).num_steps
        between = self.scoring_seconds(member, prepared) / every if every else 0.0
        return self.step_seconds(member) * steps * mean_cost(recipe, stage) + between

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

    def seconds(self, epochs: Sequence[float] | float, prepared: Prepared) -> float:
        """Seconds for all members to train for their epochs, or all for the same number, and to score val."""
        members = len(self.recipes)
        of_each = [epochs] * members if isinstance(epochs, int | float) else epochs
        start = MEMBER_SECONDS if members > 1 else 0.0
        each = [
            start + self.scoring_seconds(member, prepared) + count * self.epoch_seconds(member, prepared)
            for member, count in enumerate(of_each)
        ]
        return max(sum(each) / self.at_once, *each, 0.0)

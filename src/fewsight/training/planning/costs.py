"""What a candidate costs in time: of a step, an epoch and all members."""

import math
from dataclasses import dataclass

from fewsight.data.prepare import Prepared
from fewsight.machine.device import member_devices
from fewsight.recipes import Recipe
from fewsight.training.planning.candidates import Candidate
from fewsight.training.planning.clock import MEMBER_SECONDS, Clock
from fewsight.training.planning.probe import Pace
from fewsight.training.plans import batch_plan
from fewsight.training.schedule import mean_cost

SPEEDUP = 0.8  # of several threads in one process, by thread, until the pilot has measured it


@dataclass(frozen=True)
class Option:
    """A candidate with what it costs."""

    candidate: Candidate
    pace: Pace
    slowdown: float = 1.0  # measured time of a step in the training over the one that the pace gives

    @property
    def recipe(self) -> Recipe:
        return self.candidate.recipe

    def step_seconds(self) -> float:
        """Seconds of a step in the training, with loading."""
        run = self.recipe.run
        assert run.threads != "auto", "the settings are resolved"
        assert run.workers != "auto", "the settings are resolved"
        if run.device != "cpu":
            loading = self.pace.load_seconds / max(1, run.workers)
            step = max(self.pace.step_seconds, loading) if run.workers else self.pace.step_seconds + loading
            return step * self.slowdown
        speedup = run.threads if run.threads == 1 else SPEEDUP * run.threads
        return (self.pace.step_seconds + self.pace.load_seconds) / speedup * self.slowdown

    def epoch_seconds(self, prepared: Prepared) -> float:
        """Seconds of an epoch of a member, with its part of the evaluations between the epochs."""
        stage, every = self.recipe.stages[0], self.recipe.eval.every_epochs
        steps = batch_plan(self.recipe, stage, prepared.images).num_steps
        between = self.scoring_seconds(prepared) / every if every else 0.0
        return self.step_seconds() * steps * mean_cost(self.recipe, stage) + between

    def scoring_seconds(self, prepared: Prepared) -> float:
        """Seconds for a member to score val."""
        return len(prepared.images.val_paths) * self.pace.score_seconds * self.slowdown

    def rounds(self) -> int:
        """How many members train one after the other."""
        return math.ceil(self.recipe.run.members / len(member_devices(self.recipe.run)))

    def seconds(self, epochs: float, prepared: Prepared) -> float:
        """Seconds for all members, with scoring val."""
        start = MEMBER_SECONDS if self.recipe.run.members > 1 else 0.0
        return self.rounds() * (epochs * self.epoch_seconds(prepared) + self.scoring_seconds(prepared) + start)

    def epochs(self, clock: Clock, prepared: Prepared) -> float:
        """Epochs of each member that fit into the remaining time; negative if none does."""
        return (clock.left() - self.seconds(0, prepared)) / (self.rounds() * self.epoch_seconds(prepared))

"""Who is told how far a training is: the terminal, TensorBoard, code of one's own."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Reporter(Protocol):
    """Who is told how far a run is.

    An exception in one of these methods ends the training there and leaves `train` as it was raised. What the run has
    saved stays: `fewsight.resume(RUN)` goes on from its last state.
    """

    def start(self, total_steps: int, done_steps: int) -> None:
        """The loop begins; `done_steps` of `total_steps` are behind it, over all stages."""

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        """A step is done.

        Args:
            line: `kind` ("step"); `stage` (from 0); `epoch` and `step` (from 1; the epochs count on from stage to
                stage, the steps are those of the epoch); `loss`; `lr` (the learning rate of this step); where the loss
                logs something, `terms` (name -> value).
            done_steps: of all stages, this one among them.
        """

    def epoch(self, line: Mapping[str, Any]) -> None:
        """An epoch is done.

        Args:
            line: `kind` ("epoch"); `stage` (from 0); `epoch` (from 1); `epochs` (of all stages); `train_loss` (the mean
                over the epoch's images); `seconds`; where there are such, `terms` (their means), `val_top1` (a share,
                centre view) and `val_nll` (nats) of an epoch that was tested, and `collapse` (why the loss counts as
                collapsed).
        """

    def say(self, text: str) -> None:
        """Something that the user should know now: the stage that begins, a loss that collapses.

        The terminal is a reporter too and has printed it already.
        """

    def close(self) -> None:
        """The loop has ended, well or not."""


class Reporters:
    """Several reporters as one: each is told everything, in their order. An error in one ends the training."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self.reporters = reporters

    def start(self, total_steps: int, done_steps: int) -> None:
        """The loop begins."""
        for one in self.reporters:
            one.start(total_steps, done_steps)

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        """A step is done."""
        for one in self.reporters:
            one.step(line, done_steps)

    def epoch(self, line: Mapping[str, Any]) -> None:
        """An epoch is done."""
        for one in self.reporters:
            one.epoch(line)

    def say(self, text: str) -> None:
        """Something that the user should know now."""
        for one in self.reporters:
            one.say(text)

    def close(self) -> None:
        """The loop has ended; an error in one keeps no other from closing."""
        with contextlib.ExitStack() as stack:
            for one in reversed(self.reporters):
                stack.callback(one.close)

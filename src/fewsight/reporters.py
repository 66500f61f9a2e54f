"""Who is told how far a training is: the terminal, TensorBoard, code of one's own."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Reporter(Protocol):
    """Who is told how far a run is."""

    def start(self, total_steps: int, done_steps: int) -> None:
        """The loop begins; `done_steps` of `total_steps` are behind it."""

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        """A step is done."""

    def epoch(self, line: Mapping[str, Any]) -> None:
        """An epoch is done; `line` is what the log says of it."""

    def say(self, text: str) -> None:
        """Something that the user should know now."""

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
        """The loop has ended."""
        for one in self.reporters:
            one.close()

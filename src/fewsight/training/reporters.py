"""Training progress callbacks: the protocol, and the terminal's own."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress, TaskID

from fewsight.data.training_set import TrainingSet
from fewsight.runs import Run
from fewsight.terminal import PLAIN_WIDTH, duration, progress_bar

PLAIN_SECONDS = 30.0  # between two plain lines, where they are not epochs
BAR_CELLS = 28  # what the bar and the time left need beside the text


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


class TrainingReporter:
    """Shows a training: a bar with time left in a terminal; a line an epoch, or every half minute, elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.done = 0
        self.times: deque[tuple[float, int]] = deque(maxlen=200)
        self.starting = True  # the first time is that of the start, not of a step
        self.spoke = time.monotonic()
        self.loss: float | None = None
        self.terms: dict[str, float] = {}  # the last of each that the loss logged
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def start(self, total_steps: int, done_steps: int) -> None:
        """Open the bar."""
        self.total, self.done = total_steps, done_steps
        self.times.append((time.monotonic(), done_steps))
        if done_steps:
            self.console.print(f"continuing after step {done_steps:,} of {total_steps:,}")
        if self.console.is_interactive:
            self.bar = progress_bar(self.console, "{task.description}", "{task.fields[left]}")
            self.task = self.bar.add_task("training", total=total_steps, completed=done_steps, left="")
            self.bar.start()

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        """Move the bar."""
        self.done = done_steps
        if self.starting and len(self.times) > 1:
            self.times.popleft()  # the step after a start also opens files and chooses kernels
            self.starting = False
        self.times.append((time.monotonic(), done_steps))
        self.loss = line["loss"] if self.loss is None else 0.95 * self.loss + 0.05 * line["loss"]
        self.terms |= line.get("terms", {})
        text = f"epoch {line['epoch']} · loss {self.loss:.3f} · rate {line['lr']:.2g}"
        if self.bar:
            text += format_terms(self.terms, self.console.width - len(text) - BAR_CELLS)
            self.bar.update(self.task, completed=done_steps, description=text, left=self.left())
        elif time.monotonic() - self.spoke > PLAIN_SECONDS:
            text += format_terms(self.terms)
            self._say(_joined(f"{text} · step {done_steps:,} of {self.total:,}", self.left()))

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Say what an epoch gave; in a terminal only where it was tested or its loss has more to say."""
        text = f"epoch {line['epoch']:>{len(str(line['epochs']))}} of {line['epochs']}"
        text += f" · train loss {line['train_loss']:.3f}" + format_terms(line.get("terms", {}))
        if "val_top1" in line:
            text += f" · val top-1 {100 * line['val_top1']:.1f} %"
        if self.bar is None or "val_top1" in line or "terms" in line:
            self._say(_joined(f"{text} · {duration(line['seconds'])}", self.left()))

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        self._say(text)

    def left(self) -> str:
        """The time left, from the pace of the last steps; nothing at the end, and while one step alone was taken."""
        (then, before), (last, done) = self.times[0], self.times[-1]
        if done >= self.total or done - before < 1 + self.starting:
            return ""
        return duration((last - then) / (done - before) * (self.total - done)) + " left"

    def close(self) -> None:
        """Take the bar away."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _say(self, text: str) -> None:
        self.spoke = time.monotonic()
        self.console.print(text)


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def format_terms(terms: Mapping[str, float], cells: int = PLAIN_WIDTH) -> str:
    """As many of a loss's terms as fit: ` · hardest positive 4.21 · active share 0.83`."""
    text = ""
    for name, value in terms.items():
        more = f" · {name.replace('_', ' ')} {value:.3g}"
        if len(text) + len(more) > cells:
            break
        text += more
    return text


ReporterFactory = Callable[[Run, TrainingSet], Reporter]  # called when a run begins or goes on

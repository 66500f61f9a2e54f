"""Training progress callbacks: the protocol, and the one that prints to the terminal."""

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

PLAIN_SECONDS = 30.0  # between two lines in a log file, within an epoch
BAR_CELLS = 28  # for the bar and the time left, beside the text


class Reporter(Protocol):
    """Callbacks that receive the progress of a run.

    An exception in one of these methods ends the training and propagates out of `train` unchanged. The saved state
    stays: `fewsight.resume(RUN)` continues from it.
    """

    def start(self, total_steps: int, done_steps: int) -> None:
        """The loop starts; `done_steps` of `total_steps` are done, over all stages."""

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        """A step is done.

        Args:
            line: `kind` ("step"); `stage` (from 0); `epoch` and `step` (from 1; epochs count on across stages, steps
                restart with each epoch); `loss`; `lr` (the learning rate of this step); `terms` (name -> value), if
                the loss logs any.
            done_steps: over all stages, including this step.
        """

    def epoch(self, line: Mapping[str, Any]) -> None:
        """An epoch is done.

        Args:
            line: `kind` ("epoch"); `stage` (from 0); `epoch` (from 1); `epochs` (of all stages); `train_loss` (the mean
                over the epoch's images); `seconds`; `terms` (means over the epoch), if the loss logs any; `val_top1`
                (a proportion, centre view) and `val_nll` (nats), if the epoch was evaluated; `norms` (of `gradient`,
                `weights` and `update`, in the epoch's last step); `collapse` (the reason), if the loss has collapsed.
        """

    def say(self, text: str) -> None:
        """A message for the user, such as the start of a stage or a collapsed loss.

        The terminal, which is a reporter too, has already printed it.
        """

    def close(self) -> None:
        """The loop has ended, with or without an error."""


class Reporters:
    """Several reporters as one, called in order. An error in one ends the training."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self.reporters = reporters

    def start(self, total_steps: int, done_steps: int) -> None:
        """The loop starts."""
        for reporter in self.reporters:
            reporter.start(total_steps, done_steps)

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        """A step is done."""
        for reporter in self.reporters:
            reporter.step(line, done_steps)

    def epoch(self, line: Mapping[str, Any]) -> None:
        """An epoch is done."""
        for reporter in self.reporters:
            reporter.epoch(line)

    def say(self, text: str) -> None:
        """A message for the user."""
        for reporter in self.reporters:
            reporter.say(text)

    def close(self) -> None:
        """The loop has ended. All reporters are closed even if one of them raises."""
        with contextlib.ExitStack() as stack:
            for reporter in reversed(self.reporters):
                stack.callback(reporter.close)


class TrainingReporter:
    """Prints progress: a bar with the time left in a terminal; elsewhere a line per epoch or half minute."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.done = 0
        self.times: deque[tuple[float, int]] = deque(maxlen=200)
        self.starting = True  # the first entry of `times` is from `start`, not from a step
        self.last_print = time.monotonic()
        self.loss: float | None = None
        self.terms: dict[str, float] = {}  # the latest value of each
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
            self.times.popleft()  # the first step also opens files and chooses kernels
            self.starting = False
        self.times.append((time.monotonic(), done_steps))
        self.loss = line["loss"] if self.loss is None else 0.95 * self.loss + 0.05 * line["loss"]
        self.terms |= line.get("terms", {})
        text = f"epoch {line['epoch']} · loss {self.loss:.3f} · lr {line['lr']:.2g}"
        if self.bar:
            text += format_terms(self.terms, self.console.width - len(text) - BAR_CELLS)
            self.bar.update(self.task, completed=done_steps, description=text, left=self.left())
        elif time.monotonic() - self.last_print > PLAIN_SECONDS:
            text += format_terms(self.terms)
            self._print(_join(f"{text} · step {done_steps:,} of {self.total:,}", self.left()))

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Print the epoch's line; in a terminal only if it has figures on val or logged terms."""
        text = f"epoch {line['epoch']:>{len(str(line['epochs']))}} of {line['epochs']}"
        text += f" · train loss {line['train_loss']:.3f}" + format_terms(line.get("terms", {}))
        if "val_top1" in line:
            text += f" · val top-1 {100 * line['val_top1']:.1f} %"
        if self.bar is None or "val_top1" in line or "terms" in line:
            self._print(_join(f"{text} · {duration(line['seconds'])}", self.left()))

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        self._print(text)

    def left(self) -> str:
        """The time left, estimated from the latest steps; empty at the end, and before the second step."""
        (first_time, first_step), (last_time, last_step) = self.times[0], self.times[-1]
        if last_step >= self.total or last_step - first_step < 1 + self.starting:
            return ""
        seconds_per_step = (last_time - first_time) / (last_step - first_step)
        return duration(seconds_per_step * (self.total - last_step)) + " left"

    def close(self) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _print(self, text: str) -> None:
        self.last_print = time.monotonic()
        self.console.print(text)


def _join(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def format_terms(terms: Mapping[str, float], cells: int = PLAIN_WIDTH) -> str:
    """As many of a loss's logged terms as fit: ` · hardest positive 4.21 · active share 0.83`."""
    text = ""
    for name, value in terms.items():
        term = f" · {name.replace('_', ' ')} {value:.3g}"
        if len(text) + len(term) > cells:
            break
        text += term
    return text


ReporterFactory = Callable[[Run, TrainingSet], Reporter]  # called when a run starts or resumes

"""How far the members are, read from their logs, in one line."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from fewsight import runs
from fewsight.terminal import duration, progress_bar, shortened
from fewsight.training.reporters import BAR_CELLS, PLAIN_SECONDS

LOOK_SECONDS = 1.0  # between two looks at the logs
TAIL_BYTES = 2**14  # of a log, enough for its last epoch
MAX_TIMES = 100  # looks with progress that the time left is estimated from


@dataclass(frozen=True)
class Place:
    """How far a member is."""

    epoch: int = 0  # in which it is, from 1; 0: before its first step
    steps: int = 0  # done
    train_loss: float | None = None  # of the last epoch


class MembersProgress:
    """Shows the progress of all members: a bar in a terminal, elsewhere a line every half minute.

    Args:
        console: where to print.
        members: their run folders.
        steps: of each epoch of each member, over all stages.
    """

    def __init__(self, console: Console, members: Sequence[Path], steps: Sequence[Sequence[int]]) -> None:
        self.console, self.members, self.steps = console, members, steps
        self.times: deque[tuple[float, int]] = deque(maxlen=MAX_TIMES)
        self.starting = True  # the first entry of `times` is from before the first step
        self.last_look = self.last_print = time.monotonic()
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def start(self) -> None:
        """Open the bar."""
        if self.console.is_interactive:
            self.bar = progress_bar(self.console, "{task.description}", "{task.fields[left]}")
            self.task = self.bar.add_task("members: starting", total=self._total, left="")
            self.bar.start()

    def look(self) -> None:
        """Read the logs and show the progress, if it is time."""
        now = time.monotonic()
        if now - self.last_look < LOOK_SECONDS:
            return
        self.last_look = now
        places = [place_of(path, steps) for path, steps in zip(self.members, self.steps, strict=True)]
        done = sum(place.steps for place in places)
        if not self.times or done > self.times[-1][1]:
            self.times.append((now, done))
        if self.starting and len(self.times) > 2:
            self.times.popleft()  # it is from before the processes had started
            self.starting = False
        text, left = self.described(places), self.left()
        if self.bar:
            shown = shortened(text, self.console.width - BAR_CELLS)
            self.bar.update(self.task, completed=done, description=shown, left=left)
        elif now - self.last_print > PLAIN_SECONDS:
            self.last_print = now
            self.console.print(" · ".join(filter(None, [text, left])))

    def described(self, places: Sequence[Place]) -> str:
        """`members: 1 done, 2 at epoch 12 of 80, 3 at 11 of 80 · train loss 1.21, 1.25`."""
        ends = [sum(steps) for steps in self.steps]
        done = [number for number, place in enumerate(places, 1) if place.steps == ends[number - 1]]
        busy = {number: place for number, place in enumerate(places, 1) if place.epoch and number not in done}
        parts = [f"{len(done)} of {len(places)} done"] if done else []
        parts += [
            f"{number} at {'' if index else 'epoch '}{place.epoch} of {len(self.steps[number - 1])}"
            for index, (number, place) in enumerate(busy.items())
        ]
        losses = [f"{place.train_loss:.3f}" for place in busy.values() if place.train_loss is not None]
        text = f"members: {', '.join(parts) or 'starting'}"
        return text + (f" · train loss {', '.join(losses)}" if losses else "")

    def left(self) -> str:
        """The time left, estimated from the latest looks; empty where nothing can be said."""
        (first_time, first), (last_time, last) = self.times[0], self.times[-1]
        if self.starting or last == self._total:
            return ""
        seconds = (last_time - first_time) / (last - first) * (self._total - last) - (self.last_look - last_time)
        return f"{duration(seconds)} left" if seconds > 0 else ""

    def close(self) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    @property
    def _total(self) -> int:
        return sum(map(sum, self.steps))


def place_of(path: Path, steps: Sequence[int]) -> Place:
    """How far a run's log says that it is.

    Args:
        path: the run folder.
        steps: of each epoch, over all stages.
    """
    lines = [line for line in runs.read_log(path, tail_bytes=TAIL_BYTES) if line.epoch is not None]
    if not lines:
        return Place()
    last, loss = lines[-1], next((line.train_loss for line in reversed(lines) if line.kind == "epoch"), None)
    assert last.epoch is not None, "the others are left out"
    before = sum(steps[: last.epoch - (last.kind != "epoch")])
    return Place(last.epoch, before + (last.step or 0), loss)

"""What a person sees: progress with time left in a terminal, plain lines elsewhere, and tables of figures."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from fewsight.metrics import Figures

PLAIN_SECONDS = 30.0  # between two plain lines, where they are not epochs


def make_console(file: Any = None) -> Console:
    """A console that never breaks a line of a log file."""
    console = Console(file=file or sys.stdout, highlight=False)
    return console if console.is_terminal else Console(file=file or sys.stdout, highlight=False, width=200)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class TrainingReporter:
    """Shows a training: a bar with time left in a terminal; a line an epoch, or every half minute, elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.done = self.first = 0
        self.times: deque[tuple[float, int]] = deque(maxlen=200)
        self.spoke = time.monotonic()
        self.loss: float | None = None
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def start(self, total_steps: int, done_steps: int) -> None:
        """Open the bar."""
        self.total, self.done, self.first = total_steps, done_steps, done_steps
        self.times.append((time.monotonic(), done_steps))
        if done_steps:
            self.console.print(f"continuing after step {done_steps:,} of {total_steps:,}")
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
            self.bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
            self.task = self.bar.add_task("training", total=total_steps, completed=done_steps, left="")
            self.bar.start()

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        """Move the bar."""
        self.done = done_steps
        self.times.append((time.monotonic(), done_steps))
        self.loss = line["loss"] if self.loss is None else 0.95 * self.loss + 0.05 * line["loss"]
        text = f"epoch {line['epoch']} · loss {self.loss:.3f} · rate {line['lr']:.2g}"
        if self.bar:
            self.bar.update(self.task, completed=done_steps, description=text, left=f"{self.left()} left")
        elif time.monotonic() - self.spoke > PLAIN_SECONDS:
            self._say(f"{text} · step {done_steps:,} of {self.total:,} · {self.left()} left")

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Say what an epoch gave; in a terminal only where it was tested."""
        text = f"epoch {line['epoch']:>3} of {line['epochs']} · train loss {line['train_loss']:.3f}"
        if "val_top1" in line:
            text += f" · val top-1 {100 * line['val_top1']:.1f} %"
        if self.bar is None or "val_top1" in line:
            self._say(f"{text} · {duration(line['seconds'])} · {self.left()} left")

    def left(self) -> str:
        """The time left, from the pace of the last steps."""
        (then, before), (last, done) = self.times[0], self.times[-1]
        return duration((last - then) / max(1, done - before) * (self.total - done))

    def close(self) -> None:
        """Take the bar away."""
        if self.bar:
            self.bar.stop()
            self.bar = None

    def _say(self, text: str) -> None:
        self.spoke = time.monotonic()
        self.console.print(text)


@contextlib.contextmanager
def counting(console: Console, what: str) -> Iterator[Any]:
    """Yield `update(done, total)`, which shows a count while it grows; nothing is left on the screen."""
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show_figures(console: Console, figures: Figures, title: str, *, most: int = 10) -> None:
    """The headline with its interval and count, the weakest classes, the worst confusions."""
    top1, top5 = figures.top1, figures.top5
    unread = figures.num_images - top1.total
    count = f"{top1.total:,} images" if not unread else f"{top1.total:,} of {figures.num_images:,} images"
    console.print(f"[bold]{escape(title)}[/bold] · {count}" + (f" ({unread:,} unreadable)" if unread else ""))
    console.print(f"  top-1              {top1}   (Wilson 95 % interval)")
    console.print(f"  top-{figures.top_k}              {top5}")
    console.print(f"  balanced accuracy  {100 * figures.balanced_accuracy:.1f} %")
    console.print(f"  macro-F1           {100 * figures.macro_f1:.1f} %")
    there = [one for one in figures.classes if one.recall is not None]
    ranked = sorted(there, key=lambda one: (one.recall, one.name))
    shown = ranked if len(ranked) <= most else ranked[:most]
    heading = "per class" if len(ranked) <= most else f"the {most} weakest of {len(ranked)} classes"
    table = Table(heading, "images", "recall", "precision", "F1", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    for one in shown:
        cells = [f"{100 * value:.1f} %" if value is not None else "-" for value in (one.recall, one.precision)]
        f1 = "-" if one.f1 is None else f"{100 * one.f1:.1f} %"
        table.add_row(escape(printable(one.name)), f"{one.count:,}", *cells, f1)
    console.print(table)
    if figures.confusions:
        console.print("worst confusions (true → taken for)")
        for true, taken, number in figures.confusions[:5]:
            console.print(f"  {escape(printable(true))} → {escape(printable(taken))}  {number:,}")


def printable(name: str) -> str:
    """A class or file name that cannot move the cursor or turn the line around."""
    return "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in name)

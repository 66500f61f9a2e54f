"""Terminal output: progress bars in a terminal, plain lines elsewhere, and names that cannot break either."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from fewsight.wording import counted, escaped, first_few

PLAIN_WIDTH = 10_000  # cells of a log file: its lines are never wrapped
PLAIN_SECONDS, MAX_PLAIN_SECONDS = 10.0, 300.0  # between two lines of a counter in a log file
MIN_NAME_CELLS = 16
MAX_NAMED = 20  # items of one kind


def make_console(file: Any = None) -> Console:
    """A console that prints text literally (no markup) and never wraps the lines of a log file."""
    console = Console(file=file or sys.stdout, highlight=False, markup=False, emoji=False)
    if console.is_interactive:
        return console
    return Console(
        file=file or sys.stdout,
        highlight=False,
        markup=False,
        emoji=False,
        force_terminal=False,
        width=PLAIN_WIDTH,
        soft_wrap=True,
    )


def duration(seconds: float) -> str:
    """Seconds as `45 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextlib.contextmanager
def progress_counter(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `update(done, total)`: a progress bar with counts that disappears at the end; elsewhere a line at times."""
    if not console.is_interactive:
        yield _lines_at_times(console, what)
        return
    with progress_bar(console, what, "{task.completed:,.0f} of {task.total:,.0f}") as bar:
        task = bar.add_task(what, total=1, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def _lines_at_times(console: Console, what: str) -> Callable[[int, int], None]:
    """`update(done, total)` that prints a line after `PLAIN_SECONDS`, then after twice as long, and so on."""
    due, wait = float("inf"), PLAIN_SECONDS

    def update(done: int, total: int) -> None:
        nonlocal due, wait
        now = time.monotonic()
        if now >= due and done < total:
            console.print(f"{what}: {done:,} of {total:,}")
            wait = min(2 * wait, MAX_PLAIN_SECONDS)
        if now >= due or due == float("inf"):
            due = now + wait

    return update


def print_first(console: Console, kind: str, items: Sequence[str], *, limit: int = MAX_NAMED, rest: str = "") -> None:
    """Print the first items of a kind, one per line, and the number of others; `rest` says where those are listed."""
    for line in first_few(items, limit, rest):
        console.print(f"{kind}: {printable(line)}")


def trained_on_note(number: int, total: int, whose: str = "") -> str:
    """The warning above figures on training images.

    Args:
        number: how many of the tested images the run was trained on.
        total: how many images were tested.
        whose: names the run if that is not clear, such as " of one of the two runs".
    """
    was = "was" if number == 1 else "were"
    return f"{number:,} of {counted(total, 'image')} {was} in the training set{whose}: these figures are optimistic"


def optimistic_notes(num_trained_on: int, num_chose_weights: int, total: int, whose: str = "") -> list[str]:
    """The warnings above figures on images that the run was trained on, or chose the epoch of its weights on.

    Args:
        num_trained_on, num_chose_weights, total: numbers of the tested images.
        whose: as for `trained_on_note`.
    """
    notes = [trained_on_note(num_trained_on, total, whose)] if num_trained_on else []
    if num_chose_weights:
        notes.append(
            f"{num_chose_weights:,} of {counted(total, 'image')} chose the epoch of the weights{whose} "
            "(run.select = best): these figures are optimistic"
        )
    return notes


def plain_table() -> Table:
    """A table without lines, whose columns are two cells apart."""
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def padded(names: Sequence[str]) -> list[str]:
    """Printable names, padded to the width of the widest."""
    shown = [printable(name) for name in names]
    cells = max(map(cell_len, shown))
    return [set_cell_size(name, cells) for name in shown]


def shortened(name: str, cells: int) -> str:
    """A printable name, cut to at most `cells` terminal cells."""
    text = Text(printable(name))
    text.truncate(cells, overflow="ellipsis")
    return text.plain


def printable(name: str) -> str:
    """Escape the characters that would break the line, move the cursor or change the reading direction."""
    return "".join(char if char.isprintable() else escaped(char) for char in name)


def progress_bar(console: Console, before: str, after: str) -> Progress:
    """A progress bar between two texts that fills the terminal's width, and disappears when it stops."""
    left, right = (TextColumn(text, markup=False) for text in (before, after))
    return Progress(left, BarColumn(bar_width=None), right, console=console, transient=True, expand=True)

"""What a person sees: progress with time left in a terminal, plain lines elsewhere, and tables of figures."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_WIDTH = 10_000  # of a log file: its lines are never broken
MIN_NAME_CELLS = 16
NAMED = 20  # things of a kind


def make_console(file: Any = None) -> Console:
    """A console that prints text as it is (no markup), and never breaks a line of a log file."""
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
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextlib.contextmanager
def progress_counter(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `update(done, total)`, which shows a count while it grows; nothing is left on the screen."""
    if not console.is_interactive:
        yield lambda done, total: None
        return
    with progress_bar(console, what, "{task.completed:,.0f} of {task.total:,.0f}") as bar:
        task = bar.add_task(what, total=1, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def print_first(console: Console, kind: str, told: Sequence[str], *, most: int = NAMED, rest: str = "") -> None:
    """Things of a kind, a line each, the first of many; `rest` says where the others stand."""
    for one in told[:most]:
        console.print(f"{kind}: {printable(one)}")
    if len(told) > most:
        console.print(f"{kind}: {len(told) - most:,} more{rest}")


def trained_on_note(number: int, total: int, who: str = "it") -> str:
    """The heading of figures on images that a run was trained on."""
    return f"images {who} was trained on: {number:,} of {total:,}; the figures flatter"


def shortened(name: str, cells: int) -> str:
    """A name as a terminal can show it, in at most so many cells."""
    name = printable(name)
    return name if cell_len(name) <= cells else set_cell_size(name, cells - 1) + "…"


def printable(name: str) -> str:
    """A name that cannot break the line, move the cursor or turn the reading direction: such signs are escaped."""
    return "".join(sign if sign.isprintable() else _escaped(sign) for sign in name)


def _escaped(sign: str) -> str:
    code = ord(sign)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte of a file name that is not UTF-8
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(sign, f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def progress_bar(console: Console, before: str, after: str) -> Progress:
    """A bar as wide as the terminal leaves, gone when it stops."""
    text, count = (TextColumn(part, markup=False) for part in (before, after))
    return Progress(text, BarColumn(bar_width=None), count, console=console, transient=True, expand=True)

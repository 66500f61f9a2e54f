"""What a person sees: progress with time left in a terminal, plain lines elsewhere, and tables of figures."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from fewsight.wording import counted

if TYPE_CHECKING:
    from fewsight.calibration import Calibration
    from fewsight.fusion import Spec
    from fewsight.listing import Listed
    from fewsight.metrics import Figures
    from fewsight.tables import Line

PLAIN_SECONDS = 30.0  # between two plain lines, where they are not epochs
PLAIN_WIDTH = 10_000  # of a log file: its lines are never broken
BAR_CELLS = 28  # what the bar and the time left need beside the text
FIGURE_CELLS = 42  # what the table of classes needs beside the names
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
            self.bar = _bar(self.console, "{task.description}", "{task.fields[left]}")
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
            text += fitting(self.terms, self.console.width - len(text) - BAR_CELLS)
            self.bar.update(self.task, completed=done_steps, description=text, left=self.left())
        elif time.monotonic() - self.spoke > PLAIN_SECONDS:
            text += fitting(self.terms)
            self._say(_joined(f"{text} · step {done_steps:,} of {self.total:,}", self.left()))

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Say what an epoch gave; in a terminal only where it was tested or its loss has more to say."""
        text = f"epoch {line['epoch']:>{len(str(line['epochs']))}} of {line['epochs']}"
        text += f" · train loss {line['train_loss']:.3f}" + fitting(line.get("terms", {}))
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


def fitting(terms: Mapping[str, float], cells: int = PLAIN_WIDTH) -> str:
    """As many of a loss's terms as fit: ` · hardest positive 4.21 · active share 0.83`."""
    text = ""
    for name, value in terms.items():
        more = f" · {name.replace('_', ' ')} {value:.3g}"
        if len(text) + len(more) > cells:
            break
        text += more
    return text


@contextlib.contextmanager
def counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `update(done, total)`, which shows a count while it grows; nothing is left on the screen."""
    if not console.is_interactive:
        yield lambda done, total: None
        return
    with _bar(console, what, "{task.completed:,.0f} of {task.total:,.0f}") as bar:
        task = bar.add_task(what, total=1, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def show_figures(console: Console, figures: "Figures", title: str, *, most: int = 10) -> None:
    """The headline with its interval and count, the weakest classes, the worst confusions."""
    top1, top5 = figures.top1, figures.top5
    unread = figures.num_images - top1.total
    count = f"{top1.total:,} of {counted(figures.num_images, 'image')}" if unread else counted(top1.total, "image")
    unreadable = f" ({unread:,} unreadable)" if unread else ""
    console.print(f"{printable(title)} · {count}{unreadable}", style="bold")
    console.print(f"  top-1              {top1}  (Wilson 95 % interval)")
    console.print(f"  top-{figures.top_k}              {top5}")
    console.print(f"  balanced accuracy  {100 * figures.balanced_accuracy:.1f} %")
    console.print(f"  macro-F1           {100 * figures.macro_f1:.1f} %")
    console.print(_class_table(console, figures, most))
    if figures.confusions:
        console.print("worst confusions (true → taken for)")
        cells = max(MIN_NAME_CELLS, (console.width - 12) // 2)
        for true, taken, number in figures.confusions[:5]:
            console.print(f"  {shortened(true, cells)} → {shortened(taken, cells)}  {number:,}")


def show_first(console: Console, kind: str, told: Sequence[str], *, most: int = NAMED, rest: str = "") -> None:
    """Things of a kind, a line each, the first of many; `rest` says where the others stand."""
    for one in told[:most]:
        console.print(f"{kind}: {printable(one)}")
    if len(told) > most:
        console.print(f"{kind}: {len(told) - most:,} more{rest}")


def trained_on(number: int, total: int, who: str = "it") -> str:
    """The heading of figures on images that a run was trained on."""
    return f"images {who} was trained on: {number:,} of {total:,}; the figures flatter"


def show_lines(console: Console, title: str, lines: Sequence["Line"], num_trained_on: int = 0) -> None:
    """Top-1 with its interval, a line each, and the paired difference where there is one."""
    console.print(printable(title), style="bold")
    if num_trained_on:
        console.print(f"  {trained_on(num_trained_on, lines[0].top1.total)}")
    cells = max(cell_len(printable(line.name)) for line in lines)
    for line in lines:
        name = printable(line.name) + " " * (cells - cell_len(printable(line.name)))
        results = counted(line.num_results, "view")
        against = "" if line.against is None else f", {line.against.brief()}"
        console.print(f"  {name}  {line.top1}  on {counted(line.top1.total, 'image')}, {results}{against}")


def show_members(console: Console, specs: Sequence["Spec"]) -> None:
    """An ensemble's members, their rows and weights."""
    names = list(dict.fromkeys(spec.member for spec in specs))
    cells = max(map(cell_len, map(printable, names)))
    for name in names:
        rows = [spec for spec in specs if spec.member == name]
        shown = printable(name) + " " * (cells - cell_len(printable(name)))
        sizes = ", ".join(f"{spec.px} px" for spec in rows)
        console.print(f"  {shown}  weight {sum(spec.weight for spec in rows):.3f}  rows {sizes}")


def show_calibrations(console: Console, path: Any, found: Sequence["Calibration"]) -> None:
    """Temperatures and thresholds, and what they did on the images that they were chosen on."""
    for one in found:
        views = one.views[0] if len(one.views) == 1 else counted(len(one.views), "view")
        console.print(
            f"{printable(str(path))}, {views}: temperature {one.temperature:.3f} on {counted(one.num_images, 'image')} "
            f"of {printable(one.fitted_on)}; there NLL {one.nll[0]:.3f} → {one.nll[1]:.3f}, calibration error "
            f"{100 * one.ece[0]:.1f} → {100 * one.ece[1]:.1f} points"
        )
        if one.note is not None:
            console.print(f"  note: {one.note}")
        if one.threshold is not None:
            console.print(
                f"  none of these below {one.threshold.prob:.3f}: there it keeps {one.threshold.kept:,} of "
                f"{one.num_images:,} (wanted {100 * one.threshold.coverage:g} %), and has {one.threshold.accuracy} of "
                "those right"
            )
    if not any(one.threshold for one in found):
        console.print("  no threshold for none of these; --coverage 0.95 chooses the one that keeps 95 %")


def show_runs(
    console: Console, folder: Any, found: Sequence["Listed"], seeds: Mapping[Any, tuple[float, float, int]]
) -> None:
    """Runs, one a line, and the mean of those that differ in their seeds."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("run", "top-1 on val, centre view", "status", "model", "training", "started"):
        table.add_column(name, overflow="fold")
    for one in found:
        name = printable(str(one.path.relative_to(folder)) if one.path != folder else one.path.name)
        val = "" if one.val is None else f"{one.val} of {one.val.total:,}"
        status = one.status if one.kind in ("run", "ensemble") else f"{one.status}: {one.kind}"
        table.add_row(name, val, printable(status), printable(one.model), printable(one.training), one.started)
    console.print(table)
    for path, (mean, spread, count) in seeds.items():
        figure = f"{100 * mean:.1f} ± {100 * spread:.1f} %"
        console.print(f"{printable(str(path))}: {figure} over {counted(count, 'seed')} (mean ± standard deviation)")


def _class_table(console: Console, figures: "Figures", most: int) -> Table:
    """The classes by recall, weakest first; without those that have no image here."""
    ranked = sorted((one for one in figures.classes if one.recall is not None), key=lambda one: (one.recall, one.name))
    heading = "per class" if len(ranked) <= most else f"{most} weakest of {len(ranked):,} classes"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(heading, no_wrap=True)
    for name in ("images", "recall", "precision", "F1"):
        table.add_column(name, justify="right", no_wrap=True)
    cells = max(MIN_NAME_CELLS, console.width - FIGURE_CELLS)
    for one in ranked[:most]:
        values = ["-" if value is None else f"{100 * value:.1f} %" for value in (one.recall, one.precision, one.f1)]
        table.add_row(shortened(one.name, cells), f"{one.count:,}", *values)
    return table


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


def _bar(console: Console, before: str, after: str) -> Progress:
    """A bar as wide as the terminal leaves, gone when it stops."""
    text, count = (TextColumn(part, markup=False) for part in (before, after))
    return Progress(text, BarColumn(bar_width=None), count, console=console, transient=True, expand=True)

"""Terminal output: plain lines in a file, a bar in a terminal, names that cannot break either."""

import io

import numpy as np
import pytest
from rich.console import Console

from fewsight.cli.show import show_figures
from fewsight.scores.metrics import evaluate_scores
from fewsight.terminal import duration, make_console, printable, progress_counter, shortened
from fewsight.training.reporters import TrainingReporter

STEP = {"loss": 1.25, "lr": 0.05, "epoch": 1}
EPOCH = {"epoch": 1, "epochs": 12, "train_loss": 1.25, "seconds": 75.0}


def terminal(width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=width, markup=False, highlight=False), file


def shown(classes: tuple[str, ...], width: int | None = None, num_images: int | None = None) -> list[str]:
    """The lines of an evaluation in which every image is predicted as the first class."""
    log_probs = np.log(np.full((2 * len(classes), len(classes)), 0.1))
    log_probs[:, 0] = np.log(0.9)
    figures = evaluate_scores(log_probs, np.arange(len(log_probs)) % len(classes), classes, num_images=num_images)
    file = io.StringIO()
    console = make_console(file) if width is None else Console(file=file, width=width, markup=False)
    show_figures(console, figures, "run on data (test)")
    return file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (-3, "0 s")],
)
def test_duration_reads_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Grüße 字", "Grüße 字"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b[31mred", r"\u001b[31mred"),
        ("a\u202eb", r"a\u202eb"),
        ("caf\udce9", r"caf\xe9"),
        ("\U000e0001", r"\U000e0001"),
        ("[red]", "[red]"),
    ],
)
def test_printable_escapes_what_moves_the_cursor(name: str, text: str) -> None:
    assert printable(name) == text


def test_shortened_counts_cells_not_characters() -> None:
    assert shortened("short", 10) == "short"
    assert shortened("a" * 300, 10) == "a" * 9 + "…"
    assert shortened("字" * 300, 10) == "字" * 4 + " …"


def test_log_file_has_plain_unbroken_lines() -> None:
    file = io.StringIO()
    make_console(file).print("[red] :cat: " + "x" * 500)
    assert file.getvalue() == "[red] :cat: " + "x" * 500 + "\n"


def test_plain_epochs_are_lines_with_time_left() -> None:
    file = io.StringIO()
    reporter = TrainingReporter(make_console(file))
    reporter.start(24, 0)
    reporter.step(STEP, 2)
    reporter.epoch({**EPOCH, "val_top1": 0.5})
    reporter.step(STEP, 24)
    reporter.epoch({**EPOCH, "epoch": 12})
    reporter.close()
    first, last = file.getvalue().splitlines()
    assert first.startswith("epoch  1 of 12 · train loss 1.250 · val top-1 50.0 % · 1 min 15 s · ")
    assert first.endswith(" left")
    assert last == "epoch 12 of 12 · train loss 1.250 · 1 min 15 s"


def test_continued_run_says_where() -> None:
    file = io.StringIO()
    TrainingReporter(make_console(file)).start(2000, 1200)
    assert file.getvalue() == "continuing after step 1,200 of 2,000\n"


def test_time_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("fewsight.training.reporters.time.monotonic", lambda: now)
    reporter = TrainingReporter(make_console(io.StringIO()))
    reporter.start(100, 20)
    now = 110.0
    reporter.step(STEP, 25)
    assert reporter.left() == "2 min 30 s left", "75 steps at 2 s each; the 20 before the restart do not count"


def test_time_left_does_not_count_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("fewsight.training.reporters.time.monotonic", lambda: now)
    file = io.StringIO()
    reporter = TrainingReporter(make_console(file))
    reporter.start(1000, 600)
    now = 120.0
    reporter.step(STEP, 601)
    assert reporter.left() == "", "the first step includes the start-up, so it says nothing about the pace"
    reporter.epoch(EPOCH)
    assert file.getvalue().splitlines()[-1].endswith("· 1 min 15 s")
    for done in range(602, 701):
        now += 0.5
        reporter.step(STEP, done)
    assert reporter.left() == "2 min 30 s left", "300 steps at half a second"


@pytest.mark.parametrize("width", [40, 80, 120])
def test_bar_stays_on_one_line(width: int) -> None:
    console, file = terminal(width)
    reporter = TrainingReporter(console)
    reporter.start(1000, 0)
    reporter.step(STEP, 500)
    assert reporter.bar is not None
    reporter.bar.refresh()
    lines = file.getvalue().split("\x1b[2K")
    reporter.close()
    assert any("epoch 1" in line and ("left" in line or width == 40) for line in lines)
    assert all(line.count("\n") == 0 for line in lines if "epoch 1" in line)


def test_terminal_shows_tested_epochs_only() -> None:
    console, file = terminal()
    reporter = TrainingReporter(console)
    reporter.start(24, 0)
    reporter.step(STEP, 2)
    reporter.epoch(EPOCH)
    reporter.epoch({**EPOCH, "val_top1": 0.5})
    reporter.close()
    assert file.getvalue().count("train loss") == 1


def test_counting_is_silent_in_a_file() -> None:
    file = io.StringIO()
    with progress_counter(make_console(file), "checking") as progress:
        progress(1, 2)
    assert file.getvalue() == ""


def test_counter_in_a_log_file_is_a_line_at_times(monkeypatch: pytest.MonkeyPatch) -> None:
    file, now = io.StringIO(), 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with progress_counter(make_console(file), "checking") as progress:
        for done in range(0, 2001, 10):
            progress(done, 2000)
            now += 0.5
    assert file.getvalue() == "checking: 200 of 2,000\nchecking: 600 of 2,000\nchecking: 1,400 of 2,000\n"


def test_counting_counts_in_a_terminal() -> None:
    console, file = terminal()
    with progress_counter(console, "checking") as progress:
        progress(1000, 2000)
    assert "1,000 of 2,000" in file.getvalue()


def test_figures_of_three_classes_have_no_top_k() -> None:
    lines = shown(("a", "b", "c"))
    assert lines[0] == "run on data (test) · 6 images"
    assert lines[1].startswith("  top-1              33.3 % [")
    assert lines[2].startswith("  balanced accuracy  ")
    assert [line.split()[:3] for line in lines[4:8]] == [
        ["per", "class", "images"], ["b", "2", "0.0"], ["c", "2", "0.0"], ["a", "2", "100.0"],
    ]  # fmt: skip
    assert lines[8:] == ["worst confusions (true → predicted)", "  b → a  2", "  c → a  2"]


def test_figures_have_top_5_from_six_classes_on() -> None:
    assert [shown(tuple("abcdef"[:number]))[2].split()[0] for number in (5, 6)] == ["balanced", "top-5"]


def test_figures_count_the_unreadable() -> None:
    assert shown(("a", "b"), num_images=7)[0] == "run on data (test) · 4 of 7 images (3 unreadable)"


def test_many_classes_show_the_weakest() -> None:
    lines = shown(tuple(f"class{number:02d}" for number in range(12)))
    assert lines[5].startswith("10 weakest of 12 classes")
    assert lines[6].startswith("class01")
    assert not any(line.startswith("class00") for line in lines)


def test_long_and_odd_names_keep_the_table_whole() -> None:
    names = ("[red]<b>", "new\nline", "x" * 300, "字" * 100)
    in_terminal = shown(names, width=80)
    assert len(in_terminal) == 4 + 1 + 4 + 1 + 3
    assert all(len(line) <= 80 for line in in_terminal)
    in_file = "\n".join(shown(names))
    assert "[red]<b> " in in_file
    assert r"new\nline " in in_file
    assert "x" * 300 in in_file

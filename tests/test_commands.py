"""A command that a message names can be typed as it stands, whatever the names of its folders."""

import io
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fewsight
from conftest import TINY, Command
from fewsight import runs
from fewsight.apps.reproduce import drive
from fewsight.cli import app
from fewsight.errors import FewsightError, Interrupted, WriteError
from fewsight.inference.ensemble import carry_calibration, combine
from fewsight.inference.evaluate import evaluate
from fewsight.inference.member_text import parse_member
from fewsight.machine import files
from fewsight.machine.locks import why_unfinished
from fewsight.runs import Run
from fewsight.scores.opening import open_scored
from fewsight.training import session
from fewsight.training.reporters import Reporter

NAME = "Ann's photos; old (2)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a name that a shell would take apart."""
    (tmp_path / NAME).mkdir()
    return tmp_path / NAME


def typed(text: str) -> list[list[str]]:
    """The words of a message's commands, as a shell splits them; the command line takes every one."""
    lexer = shlex.shlex(text[text.index("fewsight ") :].split("`")[0], posix=True, punctuation_chars=";")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word == ";":
            commands.append([])
        else:
            commands[-1].append(word)
    for command, *words in commands:
        assert command == "fewsight", text
        app.parse_args(words, exit_on_error=False, print_error=False)
    return [words for _, *words in commands]


def quiet() -> Console:
    return Console(file=io.StringIO())


class Stops(Reporter):
    """Sends the signal of Ctrl-C after an epoch."""

    def __init__(self, run: Run, images: object) -> None: ...

    def epoch(self, line: Mapping[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("starts", [False, True], ids=["random", "init-from"])
def test_interrupted_seeds_name_a_command_for_each(
    folder: Path, digit_images: Path, tiny_run: Path, starts: bool
) -> None:
    data, out = folder / "data", folder / "runs"
    data.symlink_to(digit_images)
    source = Path(shutil.copytree(tiny_run, folder / "source")) if starts else None
    values = [*TINY, "stages.0.epochs=30"]
    with pytest.raises(Interrupted) as stopped:
        fewsight.train(
            data, out, recipe="digits", overrides=values, seeds=[0, 1, 2], init_from=source, console=quiet(),
            reporters=[Stops],
        )  # fmt: skip
    message = str(stopped.value)
    assert "the state is saved. Continue with: fewsight train --resume '" in message
    recipe, start = str(out / "seed0" / "recipe.toml"), ["--init-from", str(source)] if starts else []
    others = [
        ["train", str(data), "--recipe", recipe, "--set", f"run.seed={seed}", "--out", str(out / f"seed{seed}"), *start]
        for seed in (1, 2)
    ]
    assert typed(message) == [["train", "--resume", str(out / "seed0")], *others]


def full_disk(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*_: object) -> None:
        raise WriteError("cannot write: No space left on device.")

    monkeypatch.setattr(session, "fit", fit)
    fewsight.train(data, run.parent / "new", recipe="digits", overrides=TINY, console=quiet())


def existing(run: Path, *_: object) -> None:
    runs.check_new(run)


def no_scores(run: Path, *_: object) -> None:
    open_scored(run, "test")


def no_scores_of_a_size(run: Path, data: Path, _: object) -> None:
    recipe = run / "recipe.toml"
    recipe.write_text(re.sub(r"test_px = \[[^]]*\]", "test_px = [32, 40]", recipe.read_text()))
    evaluate(run, data, split="val", views="center-32", console=quiet())
    members = [parse_member(f"{name}={run}:{px}") for name, px in (("a", 32), ("b", 40))]
    combine(members, run.parent / "new", weights="greedy", views="center")


def no_temperature(run: Path, *_: object) -> None:
    carry_calibration(run, run)


def no_data(run: Path, *_: object) -> None:
    values = files.read_json(run / "data.json", dict, "")
    files.write_json(run / "data.json", values | {"source": str(run / "gone")})
    evaluate(run, console=quiet())


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (full_disk, ["train", "--resume", "NEW"]),
        (existing, ["train", "--resume", "RUN"]),
        (no_scores, ["evaluate", "RUN", "DATA"]),
        (no_scores_of_a_size, ["evaluate", "RUN", "DATA", "--split", "val", "--views", "paper"]),
        (no_temperature, ["scores", "calibrate", "RUN"]),
        (no_data, ["evaluate", "RUN", "DATA"]),
    ],
)
def test_command_of_a_message_can_be_typed(
    folder: Path,
    tiny_run: Path,
    digit_images: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[Path, Path, pytest.MonkeyPatch], None],
    words: list[str],
) -> None:
    run = Path(shutil.copytree(tiny_run, folder / "run"))
    with pytest.raises(FewsightError) as caught:
        fail(run, digit_images, monkeypatch)
    names = {"RUN": str(run), "NEW": str(folder / "new")}
    assert typed(str(caught.value)) == [[names.get(word, word) for word in words]]


def test_command_that_finishes_a_run_can_be_typed(folder: Path) -> None:
    assert typed(why_unfinished(folder)) == [["train", "--resume", str(folder)]]


def test_command_after_a_reproduction_can_be_typed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_tested", "build_tables", "show_reproduction", "_write_ensemble"):
        monkeypatch.setattr(drive, name, lambda *_: [1])
    monkeypatch.setattr(drive, "write_reproduction", lambda *_: [])
    console = Console(file=io.StringIO(), width=1000)
    drive._write_results(folder, "tiny", [1], console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert typed(printed) == [["predict", str(folder / "ensemble"), "IMAGES", "--out", "predictions.csv"]]


def test_next_command_after_training_can_be_typed(folder: Path, tiny_run: Path, command: Command) -> None:
    run = Path(shutil.copytree(tiny_run, folder / "run"))
    answer = command("train", "--resume", run)
    assert "there is nothing to continue" in answer.out
    following = answer.out[answer.out.index("next: ") :]
    assert typed(following)[0][:2] == ["evaluate", str(run)]

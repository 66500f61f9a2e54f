"""Reporters beside the terminal: TensorBoard's files, also of a resumed run, and a user's own reporter."""

import importlib.util
import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fewsight
from conftest import TINY, Command
from fewsight.data.training_set import TrainingSet
from fewsight.runs import Run
from fewsight.training.reporters import Reporter, Reporters
from fewsight.training.tensorboard import EVERY_STEPS, TensorBoard

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

LONG = [
    *TINY,
    "stages.0.epochs=12",
    "stages.0.batch_size=6",
    "eval.every_epochs=1",
]  # three batches of six images an epoch


class Recorder:
    """A reporter as a user would write it, which records its calls."""

    calls: list[tuple[str, Any]]
    stop_at: int | None = None

    def __init__(self, run: Run, images: TrainingSet) -> None:
        self.calls = [("made", (run.path, len(images.paths)))]
        self.keys: dict[str, set[str]] = {"step": set(), "epoch": set()}
        type(self).last = self  # type: ignore[attr-defined]

    def start(self, total_steps: int, done_steps: int) -> None:
        self.calls.append(("start", (total_steps, done_steps)))

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        self.calls.append(("step", (done_steps, line["loss"])))
        self.keys["step"] |= set(line)
        if done_steps == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    def epoch(self, line: Mapping[str, Any]) -> None:
        self.calls.append(("epoch", line["epoch"]))
        self.keys["epoch"] |= set(line)

    def say(self, text: str) -> None:
        self.calls.append(("say", text))

    def close(self) -> None:
        self.calls.append(("close", None))


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def test_own_reporter_receives_every_call(digit_images: Path, tmp_path: Path) -> None:
    (run,) = fewsight.train(digit_images, tmp_path / "run", recipe="digits", overrides=LONG, reporters=[Recorder])
    calls = Recorder.last.calls  # type: ignore[attr-defined]
    kinds = [kind for kind, _ in calls]
    steps = kinds.count("step")
    assert calls[0] == ("made", (run.path, 18))
    assert calls[1] == ("start", (steps, 0))
    assert [value[0] for kind, value in calls if kind == "step"] == list(range(1, steps + 1))
    assert [value for kind, value in calls if kind == "epoch"] == list(range(1, 13))
    assert kinds[-1] == "close"
    assert any(kind == "say" and value.startswith("stage 1 of 1: ce, 12 epochs") for kind, value in calls)
    for method, keys in Recorder.last.keys.items():  # type: ignore[attr-defined]
        assert keys <= set(re.findall(r"`(\w+)`", str(getattr(Reporter, method).__doc__))), method


def test_every_reporter_is_closed_even_if_one_raises() -> None:
    closed = list[int]()

    class Ends(Recorder):
        def __init__(self, number: int) -> None:
            self.number = number

        def close(self) -> None:
            closed.append(self.number)
            if self.number == 0:
                raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        Reporters([Ends(number) for number in range(3)]).close()
    assert closed == [0, 1, 2]


def test_error_in_a_reporter_ends_the_training(digit_images: Path, tmp_path: Path) -> None:
    class Broken(Recorder):
        def epoch(self, line: Mapping[str, Any]) -> None:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fewsight.train(digit_images, tmp_path / "run", recipe="digits", overrides=LONG, reporters=[Broken])
    assert Broken.last.calls[-1] == ("close", None)  # type: ignore[attr-defined]
    fewsight.resume(tmp_path / "run")
    assert len(fewsight.load(tmp_path / "run").predict(sorted(digit_images.glob("test/*/*.png")))) == 15


def test_tensorboard_shows_the_log(digit_images: Path, tmp_path: Path, command: Command) -> None:
    sets = [word for value in LONG for word in ("--set", value)]
    answer = command("train", digit_images, "--out", tmp_path / "run", "--recipe", "digits", *sets, "--tensorboard")
    assert answer.code == 0, answer.err
    curves, log = events(tmp_path / "run"), (tmp_path / "run/log.jsonl").read_text().splitlines()
    epochs = [line for line in map(json.loads, log) if line["kind"] == "epoch"]
    losses = curves.Scalars("epoch/loss")
    assert [point.value for point in losses] == pytest.approx([line["train_loss"] for line in epochs], rel=1e-6)
    assert [point.value for point in curves.Scalars("val/top1")] == pytest.approx([line["val_top1"] for line in epochs])
    per_epoch = losses[0].step
    assert [point.step for point in losses] == [per_epoch * number for number in range(1, 13)]
    assert {point.step % EVERY_STEPS for point in curves.Scalars("train/rate")} == {0}
    assert [point.step for point in curves.Images("first batch")] == [0]
    (text,) = curves.Tensors("recipe/text_summary")
    assert 'backbone = "resnest14"' in text.tensor_proto.string_val[0].decode()


def test_resumed_curves_are_those_of_the_uninterrupted_run(digit_images: Path, tmp_path: Path) -> None:
    class Stops(Recorder):
        stop_at = 7

    fewsight.train(digit_images, tmp_path / "whole", recipe="digits", overrides=LONG, reporters=[TensorBoard])
    with pytest.raises(fewsight.Interrupted):
        fewsight.train(digit_images, tmp_path / "cut", recipe="digits", overrides=LONG, reporters=[TensorBoard, Stops])
    fewsight.resume(tmp_path / "cut", reporters=[TensorBoard])
    whole, cut = events(tmp_path / "whole"), events(tmp_path / "cut")
    for name in ("train/loss", "train/rate", "epoch/loss", "val/top1"):
        both = [[(point.step, point.value) for point in curves.Scalars(name)] for curves in (whole, cut)]
        assert both[0] == both[1], name


def test_missing_extra_is_named_before_anything_is_read(
    digit_images: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    answer = command("train", digit_images, "--out", tmp_path / "run", "--tensorboard")
    assert answer.code == 2
    assert answer.err == "fewsight: --tensorboard needs an extra: pip install 'fewsight[tensorboard]'\n"
    assert not (tmp_path / "run").exists()

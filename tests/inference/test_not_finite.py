"""A model whose weights or scores are not finite gives no probability: a refusal, or an error for the image."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import fewsight
from conftest import Command
from fewsight.errors import RunError
from fewsight.inference.ensemble import combine
from fewsight.inference.member_text import parse_member
from fewsight.runs import read_run, read_weights, save_weights

OVERFLOWS = "the model's scores of it are not finite numbers, so it has no probabilities"


def changed(source: Path, target: Path, change: Callable[[torch.Tensor], object]) -> Path:
    """A copy of a run whose classification weights were changed, with their digest."""
    run = read_run(Path(shutil.copytree(source, target)))
    tensors = read_weights(run)
    change(tensors["head.weight"])
    save_weights(run, tensors)
    return target


@pytest.fixture
def nan_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A run with NaN in one weight."""
    return changed(tiny_run, tmp_path / "nan", lambda weight: weight[0, :1].fill_(math.nan))


@pytest.fixture
def overflowing_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A run of finite weights whose logits are infinite."""
    return changed(tiny_run, tmp_path / "overflows", lambda weight: weight.fill_(3e38))


def test_weights_that_are_not_finite_are_refused(
    nan_run: Path, digit_images: Path, tmp_path: Path, command: Command
) -> None:
    expected = f"{nan_run}/weights.safetensors: head.weight holds numbers that are not finite"
    rows = tmp_path / "rows.csv"
    for arguments in (
        ["predict", nan_run, digit_images / "test", "--out", rows],
        ["evaluate", nan_run, digit_images],
        ["export", nan_run, "--out", tmp_path / "model.onnx"],
    ):
        answer = command(*arguments)
        assert (answer.code, answer.out) == (2, "")
        assert expected in answer.err
    with pytest.raises(RunError, match="not finite"):
        fewsight.load(nan_run).predict(sorted(digit_images.glob("test/*/*.png")))
    assert not rows.exists()
    assert not (tmp_path / "model.onnx").exists()


def test_image_without_finite_scores_has_an_error_and_no_class(
    overflowing_run: Path, tiny_run: Path, digit_images: Path, tmp_path: Path, command: Command
) -> None:
    combine([parse_member(str(run)) for run in (tiny_run, overflowing_run)], tmp_path / "e")
    files = sorted(digit_images.glob("test/*/*.png"))
    for number, path in enumerate([overflowing_run, tmp_path / "e"]):
        rows = tmp_path / f"{number}.jsonl"
        answer = command("predict", path, *files, "--out", rows)
        assert answer.code == 1, answer
        for row in map(json.loads, rows.read_text().splitlines()):
            assert row["error"].startswith(OVERFLOWS)
            assert {row[name] for name in row if name.startswith(("label", "prob"))} == {None}
        predictions = fewsight.load(path).predict(files)
        assert {str(error)[: len(OVERFLOWS)] for error in predictions.errors} == {OVERFLOWS}
        assert np.isnan(predictions.probs).all()
        assert set(predictions.labels) == {None}
        assert predictions.top() == [[]] * len(files)


def test_very_sharp_scores_give_finite_figures(
    tiny_run: Path, digit_images: Path, tmp_path: Path, command: Command
) -> None:
    """The probability of a true class is far below the smallest float32."""
    sharp = changed(tiny_run, tmp_path / "sharp", lambda weight: weight.mul_(1e4))
    for views in ("center", "paper"):
        answer = command("evaluate", sharp, digit_images, "--views", views, "--json", tmp_path / "figures.json")
        assert (answer.code, answer.err) == (0, "")
        nll = json.loads((tmp_path / "figures.json").read_text())["nll"]
        assert 104 < nll < math.inf
        scores = fewsight.load(sharp, views).predict(sorted(digit_images.glob("test/*/*.png")))
        assert scores.errors == (None,) * 15
        assert np.isfinite(scores.probs).all()


def test_scores_that_are_not_finite_are_not_stored(
    overflowing_run: Path, digit_images: Path, tmp_path: Path, command: Command
) -> None:
    files = sorted(digit_images.glob("test/*/*.png"))
    for arguments in (
        ["evaluate", overflowing_run, digit_images],
        ["predict", overflowing_run, *files, "--out", tmp_path / "rows.csv", "--scores", tmp_path / "scores"],
    ):
        answer = command(*arguments)
        assert (answer.code, answer.out) == (2, "")
        assert OVERFLOWS in answer.err
    assert not (tmp_path / "rows.csv").exists()
    assert command("scores", "rows", overflowing_run).code == 2

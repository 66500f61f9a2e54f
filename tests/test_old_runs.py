"""Runs written by commit d22e4e0 still evaluate, predict, serve and export with the same scores.

They are kept in `fixtures` as they were written (see its README.md) and are used through commands and public functions
only. The expected numbers are the scores that the old code stored; another processor changes their last digits.
"""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import fewsight
from conftest import Command
from fixtures import digits_data
from services import running, upload

FIXTURES = Path(digits_data.__file__).parent
CLOSE = 1e-4  # of log-probabilities and probabilities, on another processor
CLOSE_RESUMED = 1e-2  # of log-probabilities after the seven steps that were left
REPORT = ["center-16", "center-24", "random-16", "random-24"]  # what --views report is for these runs
PLAIN = "center-16-noflip"
VIEWS = sorted([*REPORT, PLAIN])  # that it kept
NUM_RIGHT = 15  # of 18, by the views of the report together

# What `train --resume` says of the interrupted run, a regular expression; None: it goes on and comes to its end.
# A change of the state's format sets it, for example to r"state format None.* this fewsight .* reads 2".
RESUME_REFUSED: str | None = r"has run format 1, .*d22e4e0.* resumes format 2 only"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The images that the runs were trained and tested on."""
    return digits_data.write_digits(tmp_path / "digits")


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A copy of the finished run; its data lay in /data/digits."""
    return Path(shutil.copytree(FIXTURES / "run_d22e4e0", tmp_path / "run"))


def val_files(data: Path) -> list[Path]:
    """In the order of the scores."""
    return sorted((data / "val").glob("*/*.bmp"))


def kept_scores(folder: Path) -> dict[str, np.ndarray]:
    """View -> float32 [18, 3], log-probabilities."""
    shape = (-1, len(digits_data.CLASSES))
    return {file.stem: np.fromfile(file, "<f4").reshape(shape) for file in sorted(folder.glob("*.f32"))}


def kept_probs(*views: str) -> np.ndarray:
    """float32 [18, 3]: the mean of some views' probabilities, as the old code scored them."""
    scores = kept_scores(FIXTURES / "run_d22e4e0" / "scores" / "val")
    mean: np.ndarray = np.mean([np.exp(scores[view]) for view in views], axis=0)
    return mean


def assert_alike(found: np.ndarray, expected: np.ndarray, close: float = CLOSE) -> None:
    assert found.shape == expected.shape
    assert np.array_equal(found.argmax(-1), expected.argmax(-1))
    assert np.abs(found - expected).max() < close


def test_scores_are_those_that_it_kept(old_run: Path, data: Path, tmp_path: Path, command: Command) -> None:
    asked = ["--split", "val", "--views", ",".join(VIEWS)]
    answer = command("evaluate", old_run, data, *asked, "--scores", tmp_path / "fresh")
    assert answer.code == 0, answer
    found, expected = kept_scores(tmp_path / "fresh"), kept_scores(old_run / "scores" / "val")
    assert sorted(found) == sorted(expected) == VIEWS
    for view in VIEWS:
        assert_alike(found[view], expected[view])
    kept, fresh = (
        [json.loads(line) for line in (folder / "images.jsonl").read_text(encoding="utf-8").splitlines()]
        for folder in (old_run / "scores" / "val", tmp_path / "fresh")
    )
    for key in ("path", "digest", "trained_on"):
        assert [one[key] for one in fresh] == [one[key] for one in kept]


def test_kept_scores_are_taken_up(old_run: Path, data: Path, command: Command) -> None:
    found = fewsight.evaluate(old_run, data, split="val", views="report")
    assert found.kept == (f"scores in {old_run / 'scores' / 'val'}",)
    assert (found.figures.top1.count, found.figures.top1.total, found.num_trained_on) == (NUM_RIGHT, 18, 0)
    for view, scores in kept_scores(old_run / "scores" / "val").items():
        assert np.array_equal(scores, kept_scores(FIXTURES / "run_d22e4e0" / "scores" / "val")[view])
    answer = command("scores", "rows", old_run)
    assert (answer.code, answer.err) == (0, "")
    assert "83.3" in answer.out


def test_images_that_it_was_trained_on_are_known(old_run: Path, data: Path) -> None:
    found = fewsight.evaluate(old_run, data, split="train")
    assert found.num_trained_on == found.figures.num_images == 36


def test_predicts_what_it_predicted(old_run: Path, data: Path, tmp_path: Path, command: Command) -> None:
    files, expected = val_files(data), kept_probs(*REPORT)
    answer = command("predict", old_run, *files, "--views", "report", "--out", tmp_path / "rows.csv")
    assert answer.code == 0, answer
    with (tmp_path / "rows.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["path"] for row in rows] == [str(file) for file in files]
    assert [row["label"] for row in rows] == [digits_data.CLASSES[place] for place in expected.argmax(1)]
    assert [float(row["prob"]) for row in rows] == pytest.approx(expected.max(1).tolist(), abs=CLOSE)
    model = fewsight.load(old_run, "report")
    assert model.classes == digits_data.CLASSES
    assert_alike(model.predict(files).probs, expected)
    assert_alike(fewsight.load(old_run).predict(files).probs, kept_probs("center-16"))


def test_is_served(old_run: Path, data: Path) -> None:
    file, expected = val_files(data)[-1], kept_probs("center-16")[-1]
    with running(old_run) as service:
        (result,) = service.predict(upload(file), top_k=3).json()["results"]
    assert result["label"] == digits_data.CLASSES[expected.argmax()]
    found = {one["label"]: one["prob"] for one in result["top"]}
    assert found == pytest.approx(dict(zip(digits_data.CLASSES, expected.tolist(), strict=True)), abs=CLOSE)


@pytest.mark.slow
def test_is_exported(old_run: Path, data: Path, tmp_path: Path, command: Command) -> None:
    """One view without its flip, cut here: every further one would take as long again to export."""
    answer = command("export", old_run, "--views", PLAIN, "--data", data, "--out", tmp_path / "digits.onnx")
    assert answer.code == 0, answer
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx", providers=["CPUExecutionProvider"])
    digits = [Image.open(file).convert("RGB") for file in val_files(data)]
    images = np.stack([np.array(one.resize((16, 16), Image.Resampling.BILINEAR)) for one in digits])
    (probs,) = session.run(None, {session.get_inputs()[0].name: images})
    assert_alike(probs, kept_probs(PLAIN))


def test_interrupted_run_goes_on_or_is_refused(data: Path, tmp_path: Path, command: Command) -> None:
    """It stopped in the last but two epochs of the training that the finished run came from."""
    run = Path(shutil.copytree(FIXTURES / "run_d22e4e0_interrupted", tmp_path / "interrupted"))
    facts = json.loads((run / "data.json").read_text(encoding="utf-8"))
    (run / "data.json").write_text(json.dumps(facts | {"source": str(data)}), encoding="utf-8")
    before = {file.name: file.read_bytes() for file in (run / "state").iterdir()}
    answer = command("train", "--resume", run)
    if RESUME_REFUSED is not None:
        assert (answer.code, answer.err.count("\n")) == (2, 1), answer
        assert re.search(RESUME_REFUSED, answer.err), answer
        assert {file.name: file.read_bytes() for file in (run / "state").iterdir()} == before
        return
    assert answer.code == 0, answer
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    probs = fewsight.load(run, "report").predict(val_files(data)).probs
    assert_alike(np.log(probs), np.log(kept_probs(*REPORT)), CLOSE_RESUMED)

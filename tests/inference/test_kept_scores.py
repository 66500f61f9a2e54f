"""Kept scores are given again for the same images only: by their contents, not by names, sizes and labels."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from conftest import TINY, Command
from fewsight.apps.listing import list_runs
from fewsight.data import memory
from fewsight.errors import RunError
from fewsight.inference.evaluate import Evaluation, evaluate
from fewsight.inference.model import load
from fewsight.runs import read_run
from fewsight.scores.store import read_store
from fewsight.terminal import make_console
from fewsight.training.session import train


def quiet() -> Console:
    return make_console(io.StringIO())


@pytest.fixture
def data(digit_images: Path, tmp_path: Path) -> Path:
    """The digits as BMP files, which all have the same size."""
    for file in digit_images.rglob("*.png"):
        target = tmp_path / "data" / file.relative_to(digit_images).with_suffix(".bmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.convert("RGB").save(target)
    return tmp_path / "data"


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def exchange(first: Path, second: Path, *, times: bool = True) -> None:
    """Exchange the contents of two files; with their times of modification too, as `cp -p` and `rsync -t` do."""
    contents = first.read_bytes(), second.read_bytes()
    stamps = [(status.st_atime_ns, status.st_mtime_ns) for status in (first.stat(), second.stat())]
    for file, content, stamp in zip((second, first), contents, stamps, strict=True):
        file.write_bytes(content)
        if times:
            os.utime(file, ns=stamp)


@pytest.mark.parametrize("times", [False, True])
def test_exchanged_images_are_scored_anew(times: bool, run: Path, data: Path, tmp_path: Path, command: Command) -> None:
    before = evaluate(run, data, console=quiet())
    files = [sorted((data / "test" / name).glob("*.bmp"))[0] for name in ("nought", "one")]
    kept = {file: file.read_bytes() for file in (run / "scores").rglob("*") if file.is_file()}
    exchange(*files, times=times)
    after = evaluate(run, data, console=quiet())
    fresh = evaluate(run, data, scores=tmp_path / "fresh", console=quiet())
    assert after.figures == fresh.figures
    assert after.figures.nll != before.figures.nll
    assert after.kept == (
        f"scores not kept: {run}/scores/test holds scores of other images: {files[0]} and 1 more have changed since; "
        "give --scores another folder, or remove this one",
    )
    assert {file: file.read_bytes() for file in kept} == kept
    refused = command("evaluate", run, data, "--scores", run / "scores" / "test")
    assert (refused.code, "has scores of other images" in refused.err or "holds scores of other" in refused.err) == (
        2,
        True,
    )


def test_interrupted_scores_are_not_continued_with_other_images(run: Path, data: Path, tmp_path: Path) -> None:
    evaluate(run, data, scores=tmp_path / "s", console=quiet())
    lines = (tmp_path / "s" / "images.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "s" / "images.jsonl").write_text("".join(lines[:9]))
    files = sorted(data.glob("test/*/*.bmp"))
    exchange(files[0], files[14])
    with pytest.raises(Exception, match=f"{files[0]} has changed since"):
        evaluate(run, data, scores=tmp_path / "s", console=quiet())


def test_second_look_reads_no_file_unless_asked(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(run, data, console=quiet())
    read: list[Path] = []
    contents = memory.read_bytes
    monkeypatch.setattr(memory, "read_bytes", lambda path: read.append(path) or contents(path))
    assert evaluate(run, data, console=quiet()).figures == first.figures
    assert read == []
    assert evaluate(run, data, reread=True, console=quiet()).figures == first.figures
    assert sorted(read) == sorted(data.glob("test/*/*.bmp"))


def test_data_of_the_run_are_the_default(run: Path, digit_images: Path, command: Command, tmp_path: Path) -> None:
    def figures(found: Evaluation) -> object:
        return found.data, found.split, found.figures

    assert figures(evaluate(run, console=quiet())) == figures(evaluate(run, digit_images, console=quiet()))
    answer = command("evaluate", run)
    assert (answer.code, answer.err) == (0, "")
    assert f"{run} on {digit_images} (test, center-32)" in answer.out
    text = (run / "data.json").read_text()
    (run / "data.json").write_text(text.replace(str(digit_images), str(tmp_path / "gone")))
    answer = command("evaluate", run)
    assert answer.code == 2
    assert (
        f"{tmp_path / 'gone'}, which {run} was trained on, does not exist; name the data: fewsight evaluate"
        in answer.err
    )


def test_images_that_chose_the_weights_are_named_with_every_figure(
    enough_val: Path, tmp_path: Path, command: Command
) -> None:
    """A copy of val is recognised too; the figures of other images have no note."""
    overrides = [*TINY, "run.select=best", "eval.every_epochs=1"]
    (run,) = train(enough_val, tmp_path / "best", recipe="digits", overrides=overrides, console=quiet())
    shutil.copytree(enough_val / "val", tmp_path / "copy")
    note = "36 of 36 images chose the epoch of the weights (run.select = best): these figures are optimistic"
    assert note in " ".join(command("evaluate", run.path, "--split", "val").out.split())
    assert note in " ".join(command("evaluate", run.path, tmp_path / "copy", "--scores", tmp_path / "s").out.split())
    assert "optimistic" not in command("evaluate", run.path).out
    assert sum(image.chose_weights for image in read_store(run.path / "scores" / "val").images) == 36
    for words in (["rows"], ["calibrate"]):
        answer = command("scores", *words, run.path, "--split", "val")
        assert answer.code == 0
        assert "36 of" in answer.out
        assert "chose the epoch of the weights" in " ".join(answer.out.split())
    assert "note" not in command("scores", "rows", run.path, "--split", "test").out
    assert "the epoch that was best on val" in " ".join(command("runs", tmp_path).out.split())
    other = Path(shutil.copytree(run.path, tmp_path / "other"))
    of_two = note.replace("weights (", "weights of one of the two runs (")
    assert of_two in " ".join(command("scores", "compare", run.path, other, "--split", "val").out.split())
    assert "optimistic" not in command("scores", "compare", run.path, other, "--split", "test").out
    assert command("ensemble", run.path, other, "--out", tmp_path / "e").code == 0
    (listed,) = list_runs(tmp_path / "e")
    assert (listed.training, listed.val is None) == ("best, other, the epochs that were best on val", False)
    page = tmp_path / "page.html"
    assert command("report", run.path, other, "--split", "val", "--no-check", "--out", page).code == 0
    assert page.read_text(encoding="utf-8").count(note) == 2
    assert np.isfinite(evaluate(run.path, console=quiet()).figures.nll)


def test_weights_of_an_unfinished_run_are_refused_by_every_command(
    run: Path, digit_images: Path, tmp_path: Path, command: Command
) -> None:
    """A run with `run.select = "best"` has weights from its first evaluation on."""
    assert command("evaluate", run).code == 0
    info = run / "run.json"
    info.write_text(info.read_text().replace('"status": "finished"', '"status": "training"'))
    for words in (
        ["evaluate", run],
        ["predict", run, digit_images / "test", "--out", tmp_path / "x.csv"],
        ["serve", run],
        ["export", run, "--out", tmp_path / "x.onnx"],
        ["ensemble", run, "--out", tmp_path / "e"],
        ["report", run, "--out", tmp_path / "x.html"],
        ["scores", "rows", run],
        ["scores", "calibrate", run, "--split", "test"],
        ["scores", "ablate", run],
    ):
        answer = command(*words)
        assert (answer.code, answer.out) == (2, ""), words
        assert f"its training did not finish; finish it with `fewsight train --resume {run}`" in answer.err, words
    with pytest.raises(RunError, match="best so far"):
        load(run)
    assert "interrupted" in command("runs", run).out


def test_scores_of_other_weights_are_refused(run: Path, command: Command) -> None:
    assert command("evaluate", run).code == 0
    store = run / "scores" / "test" / "store.json"
    digest = str(read_run(run).info.weights_digest)
    store.write_text(store.read_text().replace(digest, "0" * len(digest)))
    answer = command("scores", "rows", run)
    assert answer.code == 2
    assert f"{run}/scores/test holds scores of other weights than {run} has; remove it and evaluate" in answer.err

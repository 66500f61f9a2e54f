"""A run with enough val images has a temperature when its training ends; one without says that it has none."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import fewsight
from conftest import TINY, Command
from fewsight.runs import Run
from fewsight.scores.calibration import fit_temperature, read_calibrations
from fewsight.scores.opening import open_scored
from fewsight.terminal import make_console
from fewsight.training.session import train


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of two classes, train/ 8 and val/ 20 each. Do not change them."""
    folder = tmp_path_factory.mktemp("digits") / "data"
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for digit in (0, 1):
        for split, first, last in (("train", 0, 8), ("val", 8, 28)):
            target = folder / split / str(digit)
            target.mkdir(parents=True)
            for index in range(first, last):
                Image.fromarray(pixels[labels == digit][index]).save(target / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out, console = tmp_path_factory.mktemp("run") / "r", make_console(io.StringIO())
    (run,) = train(digits, out, recipe="digits", overrides=TINY, console=console)
    return run


def test_training_keeps_the_temperature_of_val(run: Run, digits: Path, tmp_path: Path, command: Command) -> None:
    (kept,) = read_calibrations(run.path)
    assert (kept.views, kept.num_images, kept.fitted_on) == (("center-32",), 40, "val, when its training ended")
    answer = command("evaluate", run.path, digits, "--split", "val")
    assert f"probabilities at the temperature {kept.temperature:.2f} of {run.path / 'calibration.json'}" in answer.out
    assert fit_temperature(open_scored(run.path, "val")).nll[0] == pytest.approx(kept.nll[0], rel=1e-4)
    files = sorted(digits.glob("val/*/*.png"))
    probs = fewsight.load(run.path).predict(files).probs
    shutil.copytree(run.path, tmp_path / "plain")
    (tmp_path / "plain" / "calibration.json").unlink()
    powers = fewsight.load(tmp_path / "plain").predict(files).probs ** (1 / kept.temperature)
    np.testing.assert_allclose(probs, powers / powers.sum(1, keepdims=True), rtol=1e-4)


def test_probabilities_without_a_temperature_say_so(
    run: Run, tiny_run: Path, digit_images: Path, tmp_path: Path, command: Command
) -> None:
    rows = tmp_path / "rows.csv"
    files = digit_images / "test" / "one"
    said = " ".join(command("predict", run.path, files, "--out", rows, "--views", "center-40").err.split())
    assert f"not calibrated: {run.path}/calibration.json has no temperature for these views, so none is applied" in said
    assert said.count(" --split val --views center-40, then fewsight scores calibrate ") == 1
    for answer in (command("predict", tiny_run, files, "--out", rows).err, command("evaluate", tiny_run).out):
        text = " ".join(answer.split())
        assert "note: the probabilities are not calibrated: val has 12 images, and a temperature needs at least" in text
        assert "scores calibrate" not in text, "it would be refused"
    shutil.copytree(run.path, tmp_path / "plain")
    (tmp_path / "plain" / "calibration.json").unlink()
    text = " ".join(command("evaluate", tmp_path / "plain", "--split", "val").out.split())
    assert "note: the probabilities are not calibrated: fit a temperature with: fewsight evaluate " in text
    assert text.count("--split val --views center-32, then fewsight scores calibrate") == 1


def test_ensemble_of_runs_that_are_right_on_val_is_not_sure_of_every_image(
    run: Run, digits: Path, tmp_path: Path, command: Command
) -> None:
    """The NLL of 40 right images alone would give 0.05."""
    shutil.copytree(run.path, tmp_path / "a")
    assert command("evaluate", tmp_path / "a", digits, "--split", "val").code == 0
    for file in (tmp_path / "a" / "scores" / "val").glob("*.f32"):
        probs = np.where(np.arange(2) == np.repeat([0, 1], 20)[:, None], 0.9, 0.1)
        file.write_bytes(np.log(probs).astype("<f4").tobytes())
    assert command("ensemble", tmp_path / "a", "--out", tmp_path / "e").code == 0
    (fitted,) = read_calibrations(tmp_path / "e")
    assert fitted.num_images == 40
    right = 0.9 ** (1 / fitted.temperature)
    assert right / (right + 0.1 ** (1 / fitted.temperature)) == pytest.approx(40 / 41, rel=1e-3)

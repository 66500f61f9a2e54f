"""fewsight as a library: the functions behind the commands give the same results, for images in memory too."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fewsight
from conftest import TINY, Command, calibrated_copy
from fewsight.inference.ensemble import combine
from fewsight.inference.member_text import parse_member


def test_public_names_are_exact_and_importable() -> None:
    assert sorted(fewsight.__all__) == fewsight.__all__
    for name in fewsight.__all__:
        assert getattr(fewsight, name).__name__ == name
    assert {name for names in fewsight._HOMES.values() for name in names} == set(fewsight.__all__)
    assert set(fewsight.__all__) <= set(dir(fewsight))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fewsight.nothing  # noqa: B018


@pytest.mark.parametrize(
    "module", ["fewsight", "fewsight.cli", "fewsight.scores.queries", "fewsight.scores.calibration"]
)
def test_import_takes_no_torch(module: str) -> None:
    """Commands on stored scores need none."""
    code = f"import sys, {module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_ten_lines_from_a_folder_to_a_confusion_matrix(digit_images: Path, tmp_path: Path) -> None:
    fewsight.train(str(digit_images), str(tmp_path / "run"), recipe="digits", overrides=TINY)
    figures = fewsight.evaluate(tmp_path / "run", digit_images).figures
    model = fewsight.load(tmp_path / "run")
    files = sorted(digit_images.glob("test/*/*.png"))
    predictions = model.predict(files)
    confusion = np.zeros((3, 3), int)
    for file, label in zip(files, predictions.labels, strict=True):
        assert label is not None
        confusion[model.classes.index(file.parent.name), model.classes.index(label)] += 1
    assert confusion.sum() == len(predictions) == 15
    assert confusion.trace() == figures.top1.count


@pytest.fixture
def both(tiny_run: Path, digit_images: Path, tmp_path: Path) -> Path:
    """An ensemble of two runs of unequal weights, with a temperature."""
    other = tmp_path / "other"
    fewsight.train(digit_images, other, recipe="digits", overrides=[*TINY, "run.seed=3", "eval.test_px=[16,24]"])
    combine([parse_member(str(run)) for run in (tiny_run, other)], tmp_path / "both", weights="1,3")
    return tmp_path / "both"


@pytest.mark.parametrize("views", [None, "report"])
@pytest.mark.parametrize("name", ["run", "calibrated", "ensemble"])
def test_probabilities_are_those_of_the_command(
    name: str,
    views: str | None,
    both: Path,
    tiny_run: Path,
    digit_images: Path,
    enough_val: Path,
    tmp_path: Path,
    command: Command,
) -> None:
    path = both if name == "ensemble" else tiny_run
    if name == "calibrated":
        path = calibrated_copy(tiny_run, tmp_path / "calibrated", enough_val, command)
    files: list[str | Path] = [str(file) for file in sorted(digit_images.glob("test/*/*.png"))]
    files.insert(4, tmp_path / "nothing.png")
    options = ["--views", views] if views else []
    answer = command("predict", path, *files, "--out", tmp_path / "rows.csv", "--top-k", 3, *options)
    assert answer.code == 1, "one of the files does not exist"
    predictions = fewsight.load(path, views).predict(files)
    with (tmp_path / "rows.csv").open(newline="") as handle:
        for index, row in enumerate(csv.DictReader(handle)):
            if index == 4:
                assert row["error"]
                assert predictions.errors[4]
                assert predictions.labels[4] is None
                assert predictions.top()[4] == []
                assert np.isnan(predictions.probs[4]).all()
                continue
            assert predictions.labels[index] == row["label"]
            for number, (label, prob) in enumerate(predictions.top(3)[index], start=1):
                column = "" if number == 1 else str(number)
                assert float(row[f"prob{column}"]) == pytest.approx(prob, abs=1e-5)
                assert label == row[f"label{column}"]


def test_none_of_these_is_what_the_command_says(
    tiny_run: Path, digit_images: Path, enough_val: Path, tmp_path: Path, command: Command
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    files = [*sorted(digit_images.glob("test/*/*.png")), tmp_path / "nothing.png"]
    assert command("evaluate", run, enough_val, "--split", "val").code == 0
    assert fewsight.load(run).predict(files).none_of_these == (None,) * 16, "no threshold is stored"
    calibrated = command("scores", "calibrate", run, "--coverage", 0.6)
    assert re.search(
        r"below probability 0\.\d{3} an image is none of these classes: there 23 of 36 images are accepted",
        calibrated.out,
    )
    answer = command("predict", run, *files, "--out", tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as handle:
        column = [row["none_of_these"] for row in csv.DictReader(handle)]
    assert 0 < column.count("true") < 15
    assert (
        f"{column.count('true')} of 15 are none of these classes: the most probable class has less than" in answer.err
    )
    model = fewsight.load(run)
    predictions = model.predict(files)
    assert [{True: "true", False: "false", None: ""}[value] for value in predictions.none_of_these] == column
    assert predictions.threshold == model.threshold
    assert all(predictions.labels[:15]), "the most probable class is still given"
    assert "none_of_these" not in command("predict", tiny_run, files[0]).out


def test_images_in_memory_are_seen_as_their_files(tiny_run: Path, digit_images: Path) -> None:
    file = next(digit_images.glob("test/two/*.png"))
    image = Image.open(file)
    grey = np.asarray(image)
    shapes = [file, image, image.convert("RGBA"), grey, np.stack([grey] * 3, 2), np.asfortranarray(grey)]
    predictions = fewsight.load(tiny_run).predict(shapes)
    assert predictions.errors == (None,) * 6
    assert np.abs(predictions.probs - predictions.probs[0]).max() < 1e-6


def test_turned_image_in_memory_is_made_upright(tiny_run: Path, digit_images: Path) -> None:
    upright = Image.open(next(digit_images.glob("test/two/*.png"))).convert("RGB")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[274] = 6
    predictions = fewsight.load(tiny_run).predict([upright, turned])
    assert np.abs(predictions.probs[0] - predictions.probs[1]).max() < 1e-6


@pytest.mark.parametrize(
    ("strange", "message"),
    [
        (np.zeros((4, 4, 3)), r"expected uint8 \[H, W, 3\] or \[H, W\], got float64 \[4, 4, 3\]"),
        (np.zeros((4, 4, 2), np.uint8), r"got uint8 \[4, 4, 2\]"),
        (np.zeros((0, 4), np.uint8), r"got uint8 \[0, 4\]"),
        (7, "expected a path, a Pillow image or an array, got int"),
        (Image.new("I", (4, 4)), "32-bit"),
    ],
)
def test_strange_image_in_memory_is_an_error_of_its_row(strange: object, message: str, tiny_run: Path) -> None:
    good = np.zeros((8, 8, 3), np.uint8)
    predictions = fewsight.load(tiny_run).predict([good, strange, good])  # type: ignore[list-item]
    assert predictions.errors[0] is predictions.errors[2] is None
    assert predictions.errors[1]
    assert re.search(message, predictions.errors[1])
    assert np.array_equal(predictions.probs[0], predictions.probs[2])


def test_one_image_instead_of_several_is_refused(tiny_run: Path) -> None:
    model = fewsight.load(tiny_run)
    image = Image.new("RGB", (9, 8))
    singles = ["image.png", Path("image.png"), b"bytes", image, np.asarray(image)]
    singles += [np.zeros(shape, np.uint8) for shape in ((9, 8), (9, 8, 4), (9, 8, 1), (3, 9, 8))]
    for single in singles:
        with pytest.raises(fewsight.DataError, match="put the one image in a list"):
            model.predict(single)  # type: ignore[arg-type]
    assert len(model.predict([])) == 0
    assert len(model.predict(np.zeros((2, 9, 8, 3), np.uint8))) == 2  # type: ignore[arg-type]
    assert len(model.predict(list(np.zeros((3, 9, 8), np.uint8)))) == 3

"""Leaks between splits: found by pixels and dropped from training; the other images keep their numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Command
from fewsight.data.prepare import prepare
from fewsight.errors import DataError
from fewsight.recipes import Data


@pytest.fixture
def leaky(class_images: Path) -> Path:
    """Images whose train/ant/1.png is in val too, in another format."""
    Image.open(class_images / "train/ant/1.png").save(class_images / "val/ant/copy.bmp")
    return class_images


def test_equal_image_is_dropped_and_the_others_keep_their_numbers(leaky: Path) -> None:
    before = prepare(leaky, Data(leak="allow"))
    after = prepare(leaky, Data())
    assert len(after.images.paths) == len(before.images.paths) - 1
    gone = before.images.paths.index("train/ant/1.png")
    assert after.images.numbers == tuple(number for number in before.images.numbers if number != gone)
    assert [before.images.paths[number] for number in after.images.numbers] == list(after.images.paths)
    assert after.facts.left_out == [
        {"path": "train/ant/1.png", "split": "train", "error": "train/ant/1.png: equal to val/ant/copy.bmp"}
    ]
    assert after.facts.leaks["equal"] == (("train/ant/1.png", "val/ant/copy.bmp"),)
    assert before.facts.left_out == []
    assert before.facts.leaks["policy"] == "allow"


def test_equal_image_of_another_label_says_so(class_images: Path) -> None:
    Image.open(class_images / "train/ant/1.png").save(class_images / "val/cat/copy.bmp")
    expected = "train/ant/1.png: equal to val/cat/copy.bmp, but their labels differ (ant and cat): one of them is wrong"
    assert [image["error"] for image in prepare(class_images, Data()).facts.left_out] == [expected]


def test_equal_image_stops_the_training_under_leak_stop(leaky: Path) -> None:
    with pytest.raises(DataError, match=r"1 training image is equal.*\n  train/ant/1\.png = val/ant/copy\.bmp"):
        prepare(leaky, Data(leak="stop"))


def test_merged_split_is_not_a_leak(leaky: Path) -> None:
    merged = prepare(leaky, Data(merge_val=True))
    assert merged.facts.leaks["equal"] == ()
    assert {"train/ant/1.png", "val/ant/copy.bmp"} <= set(merged.images.paths)


def test_unlabelled_test_counts_too(class_images: Path) -> None:
    folder = class_images / "test" / "imgs"
    folder.mkdir(parents=True)
    Image.open(class_images / "train/cat/2.png").save(folder / "img_0.png")
    assert prepare(class_images, Data()).facts.leaks["equal"] == (("train/cat/2.png", "test/imgs/img_0.png"),)


def test_near_duplicate_is_reported_and_kept(digit_images: Path, tmp_path: Path, command: Command) -> None:
    data = tmp_path / "data"
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in ("a", "b"):
            (data / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 200, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC).save(
                    data / split / label / f"{number}.png"
                )
    Image.open(data / "train/a/3.png").save(data / "val/a/again.jpg", quality=60)
    answer = command("train", data, "--recipe", "digits", "--preview", 1, "--out", tmp_path / "out")
    assert "nearly equal, in two splits: train/a/3.png and val/a/again.jpg" in answer.out
    assert len(prepare(data, Data()).images.paths) == 8


def test_train_reports_dropped_images_and_records_the_leaks(leaky: Path, tmp_path: Path, command: Command) -> None:
    sets = ["--set", "model.width=0.125", "--set", "stages.0.epochs=1", "--set", "stages.0.batch_size=4"]
    answer = command("train", leaky, "--recipe", "digits", "--out", tmp_path / "run", *sets)
    assert answer.code == 0
    assert "left out: train/ant/1.png: equal to val/ant/copy.bmp" in answer.out
    kept = json.loads((tmp_path / "run" / "data.json").read_text())["leaks"]
    assert kept == {"policy": "drop", "equal": [["train/ant/1.png", "val/ant/copy.bmp"]], "near": []}

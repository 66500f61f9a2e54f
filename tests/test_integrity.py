"""Every (path, label, prediction) is right, checked by the pixels of the images.

Each image has the colour of its class, so that a model which has learned the colours is right on every image, and any
row, label or prediction at a wrong index is detected.
"""

import csv
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import TINY, Command
from fewsight import runs
from fewsight.cli import main
from fewsight.data import load_image
from fewsight.data.prepare import prepare
from fewsight.errors import DataError
from fewsight.inference.evaluate import evaluate
from fewsight.machine.processes import ProcessGroup
from fewsight.scores.store import read_store
from fewsight.training.feed import AugmentedImages, batches
from fewsight.training.loop import fit
from fewsight.training.mix import rows_of
from fewsight.training.plans import ShuffledBatches
from fewsight.training.session import train
from trainings import Quiet, begin, shared

COLOURS = ["blue", "green", "red"]  # in sorted order, which is that of their class indices
BROKEN = ("red", 7), ("blue", 30), ("green", 31)


def colour_of(path: Path) -> str:
    """The class that an image's pixels have."""
    return COLOURS[2 - int(np.asarray(load_image(path)).mean((0, 1)).argmax())]


def paint(path: Path, colour: str, rng: random.Random) -> None:
    """Write a random image of a class."""
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 90, (16, 16, 3), np.uint8)
    pixels[:, :, 2 - COLOURS.index(colour)] += rng.randrange(120, 160)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/, val/ and test/ with 20, 10 and 60 images per class, with random file names."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("colours") / "data"
    for split, count in (("train", 20), ("val", 10), ("test", 60)):
        for colour in COLOURS:
            for number in range(count):
                paint(folder / split / colour / f"{rng.randrange(10**6):06d}-{number}.png", colour, rng)
    return folder


@pytest.fixture(scope="module")
def colour_run(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is right on every image."""
    out = tmp_path_factory.mktemp("runs") / "colours"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSIGHT_CACHE", str(out.parent))
        settings = {"augment": {"train_px": 16, "policy": "none", "cutmix_prob": 0.0}, "stages": STAGES}
        run, images = begin(colours, out, settings)
        fit(run, images, Quiet())
    assert json.loads((out / "metrics.json").read_text())["val"]["top1"]["value"] == 1
    return out


STAGES = [{"epochs": 16, "batch_size": 12, "optim": {"base_lr": 1.0}}]


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make commands see a number of cores, and load with as many processes or threads as it allows."""

    def set_cores(count: int) -> None:
        for module in ("fewsight.machine.device", "fewsight.machine.cores", "fewsight.data.prepare"):
            monkeypatch.setattr(f"{module}.num_cores", lambda: count, raising=False)

    return set_cores


def broken_among(colours: Path, folder: Path) -> list[Path]:
    """The test images in a random order under new names, with three broken ones among them."""
    rng = random.Random(1)
    images = sorted(colours.glob("test/*/*.png"))
    rng.shuffle(images)
    folder.mkdir()
    paths = []
    for number, source in enumerate(images):
        paths.append(folder / f"{rng.randrange(10**8)}.png")
        paths[-1].write_bytes(source.read_bytes())
        if number in (10, 70, 130):
            paths.append(folder / f"{number}-broken.png")
            paths[-1].write_bytes(source.read_bytes()[:60])
    return paths


@pytest.mark.parametrize("count", [1, 2, 16])
@pytest.mark.parametrize("kept", [False, True])
def test_predicted_rows_are_of_their_files(
    count: int,
    kept: bool,
    colours: Path,
    colour_run: Path,
    tmp_path: Path,
    command: Command,
    cores: Callable[[int], None],
) -> None:
    cores(count)
    paths = broken_among(colours, tmp_path / "new")
    scores = ["--scores", tmp_path / "scores", "--views", "center-16,random-16"] if kept else []
    answer = command("predict", colour_run, *paths, "--out", tmp_path / "rows.csv", *scores)
    assert answer.code == 1, answer
    with (tmp_path / "rows.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for row in rows:
        if "broken" in row["path"]:
            assert row["error"]
            assert row["label"] == row["prob"] == ""
        else:
            assert row["error"] == ""
            assert row["label"] == colour_of(Path(row["path"]))


def class_folders(colours: Path, folder: Path, *, classes: list[str], broken: bool) -> Path:
    """Class folders of some classes, written in a random order, with broken files in the middle."""
    rng = random.Random(2)
    images = [(colour, number) for colour in classes for number in range(60)]
    rng.shuffle(images)
    for colour, number in images:
        path = folder / colour / f"{rng.randrange(10**6):06d}-{number}.png"
        paint(path, colour, rng)
        if broken and (colour, number) in BROKEN:
            path.write_bytes(path.read_bytes()[:70])
    return folder


@pytest.mark.parametrize("classes", [["red", "green", "blue"], ["red", "blue"], ["green"], ["red"]])
def test_stored_rows_are_of_their_images_where_classes_are_missing(
    classes: list[str], colours: Path, colour_run: Path, tmp_path: Path
) -> None:
    data = class_folders(colours, tmp_path / "data", classes=classes, broken=True)
    evaluation = evaluate(colour_run, data, scores=tmp_path / "scores", views="center-16,random-16")
    num_broken = sum(colour in classes for colour, _ in BROKEN)
    assert (evaluation.figures.top1.count, evaluation.figures.top1.total) == (60 * len(classes) - num_broken,) * 2
    assert len(evaluation.unreadable) == num_broken
    store = read_store(tmp_path / "scores")
    assert len(store.images) == 60 * len(classes)
    for index, image in enumerate(store.images):
        file = data / image.path
        assert image.label == file.parent.name, "the folder's name"
        assert image.digest == hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
        for view in store.views:
            (row,) = store.results(view, index, index + 1)
            assert np.isnan(row).all() == (image.error is not None)
            if image.error is None:
                assert COLOURS[int(row.argmax())] == image.label == colour_of(file)


def test_renamed_class_is_refused_by_name(colours: Path, colour_run: Path, tmp_path: Path) -> None:
    data = class_folders(colours, tmp_path / "data", classes=COLOURS, broken=False)
    (data / "green").rename(data / "amber")  # now first in order
    with pytest.raises(DataError, match="amber"):
        evaluate(colour_run, data)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_images_in_training_are_those_of_their_labels(workers: int, colours: Path, tmp_path: Path) -> None:
    run, images = begin(colours, tmp_path / "run", {}, "augment.policy=none", 'data.leak="drop"')
    augment = run.recipe.augment
    source = AugmentedImages(images.root, images.paths, augment, 0, images.numbers)
    plan = ShuffledBatches(images.labels, 12, 0, sampling=False)
    num_images = 0
    for _, _, batch, indices in batches(source, plan, first_epoch=0, first_step=0, num_epochs=2, workers=workers):
        for pixels, index in zip(batch.numpy(), indices, strict=True):
            colour = COLOURS[2 - int(pixels.mean((1, 2)).argmax())]
            assert COLOURS[images.labels[index]] == colour == colour_of(images.root / images.paths[index])
            assert Path(images.paths[index]).parent.name == colour
            num_images += 1
    assert num_images >= 2 * 5 * 12 - 24


@pytest.mark.parametrize("count", [2, 3])
def test_rows_of_each_process_show_their_images(count: int, colours: Path, tmp_path: Path) -> None:
    run, images = begin(colours, tmp_path / "run", {}, "augment.policy=none", "augment.cutmix_prob=1.0")
    source = AugmentedImages(images.root, images.paths, run.recipe.augment, 0, images.numbers)
    plan = ShuffledBatches(images.labels, 12, 0, sampling=False)
    stage = run.recipe.stages[0]
    for rank in range(count):
        group = ProcessGroup(rank, count)

        def rows(epoch: int, step: int, total: int, group: ProcessGroup = group) -> np.ndarray:
            return rows_of(run.recipe, stage, epoch, step, total, group)

        for epoch, step, batch, indices in batches(
            source, plan, first_epoch=0, first_step=0, num_epochs=1, workers=0, rows=rows
        ):
            loaded = rows(epoch, step, len(indices))
            assert len(loaded) == len(batch)
            for pixels, row in zip(batch.numpy(), loaded, strict=True):
                assert COLOURS[images.labels[indices[row]]] == COLOURS[2 - int(pixels.mean((1, 2)).argmax())]


def test_images_that_are_left_out_move_no_label(colours: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    rng = random.Random(3)
    for colour in COLOURS:
        for number in range(12):
            paint(data / "train" / colour / f"{number:02d}.png", colour, rng)
            paint(data / "test" / colour / f"{number:02d}.png", colour, rng)
    (data / "train/blue/03.png").write_bytes(b"broken")
    (data / "train/green/05.png").write_bytes((data / "test/green/01.png").read_bytes())  # a leak
    run, images = begin(data, tmp_path / "run", {}, "data.max_bad=0.5")
    assert len(images.paths) == 34
    for path, label in zip(images.paths, images.labels, strict=True):
        assert COLOURS[label] == colour_of(data / path) == Path(path).parent.name
    for image in runs.read_images(run):
        assert image.label == colour_of(data / image.path)
    again = prepare(data, run.recipe.data)
    assert again.images == images


def test_several_processes_test_every_image_once_by_its_label(colours: Path, tmp_path: Path) -> None:
    sets = {"model.width": "0.125", "run.precision": "float32", "run.workers": "0", "stages.0.epochs": "6"}
    arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    line = ["train", colours, "--recipe", "digits", "--out", tmp_path / "run", *arguments]
    line += ["--set", "augment.policy=none", "--set", "augment.cutmix_prob=0.0"]
    shared(tmp_path / "printed.txt", 2, main, [str(word) for word in line])
    val = json.loads((tmp_path / "run" / "metrics.json").read_text())["val"]
    assert val["num_images"] == 30
    assert val["top1"]["value"] == 1


# the record of the training images in a run


def test_copy_of_the_training_images_is_recognised(tiny_run: Path, digit_images: Path, tmp_path: Path) -> None:
    """By its pixels, in any folder and file format."""
    for number, file in enumerate(sorted(digit_images.glob("train/*/*.png"))):
        target = tmp_path / "copy" / file.parent.name / f"{number}.bmp"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(target)
    shutil.copy(digit_images / "test/one/10.png", tmp_path / "copy/one/new.png")
    whole = evaluate(tiny_run, tmp_path / "copy", split="all")
    assert (whole.num_trained_on, whole.figures.num_images) == (18, 19)
    left = evaluate(tiny_run, tmp_path / "copy", scores=tmp_path / "scores")
    assert (left.num_trained_on, left.figures.num_images) == (0, 1), "by default they are left out"


@pytest.mark.parametrize("keep", [0, 9])
def test_truncated_list_of_training_images_is_refused(
    keep: int, tiny_run: Path, digit_images: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    file = tmp_path / "run" / "images.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:keep]))
    answer = command("evaluate", tmp_path / "run", digit_images)
    assert answer.code == 2
    assert "images.jsonl does not have the digest that data.json records" in answer.err


def test_changed_class_names_are_refused(tiny_run: Path, digit_images: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    for names in (["one", "nought", "two"], ["nought", "one", "three"]):
        (tmp_path / "run" / "classes.json").write_text(json.dumps(names))
        answer = command("predict", tmp_path / "run", digit_images / "test", "--out", tmp_path / "rows.csv")
        assert answer.code == 2
        assert "classes.json does not list the classes of the weights in their order" in answer.err
        assert not (tmp_path / "rows.csv").exists()
        assert command("predict", tmp_path / "run", digit_images / "test").out == "", "no header before a refusal"


@pytest.mark.parametrize("sign", ["\x85", "\u2028", "\x0b", "\x1c"])
def test_names_with_line_breaks_of_any_kind_are_evaluated(
    sign: str, digit_images: Path, tmp_path: Path, command: Command
) -> None:
    data = tmp_path / "data"
    shutil.copytree(digit_images, data)
    (data / "train/one/00.png").rename(data / f"train/one/a{sign}b.png")
    (data / "test/one/10.png").rename(data / f"test/one/a{sign}b.png")
    train(data, tmp_path / "run", recipe="digits", overrides=TINY)
    assert evaluate(tmp_path / "run", data).figures.num_images == 15
    assert command("report", tmp_path / "run", "--out", tmp_path / "page.html").code == 0

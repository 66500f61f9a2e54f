"""Fixtures: the folder of real images, small folders of digits, a separate cache, the command line."""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image
from sklearn.datasets import load_digits

from fewsight.cli import main

settings.register_profile("fewsight", deadline=None)  # a slow machine is not a failure
settings.load_profile("fewsight")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own cache of scanned images instead of the user's."""
    monkeypatch.setenv("FEWSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def fewsight_data() -> Path:
    """The folder of real images; a test that needs it is skipped if it is not set, but never under CI."""
    folder = os.environ.get("FEWSIGHT_DATA", "")
    if folder and Path(folder).is_dir():
        return Path(folder)
    if os.environ.get("CI"):
        pytest.fail(f"FEWSIGHT_DATA must name the folder of real images under CI, got {folder!r}")
    pytest.skip("set FEWSIGHT_DATA to the folder of real images to run this test")


@pytest.fixture
def class_images(tmp_path: Path) -> Path:
    """A folder with train/ and val/ of three small, unequal classes of random images, 20 x 18 px."""
    rng = np.random.default_rng(0)
    counts = {"train": {"ant": 6, "bee": 4, "cat": 3}, "val": {"ant": 2, "bee": 2, "cat": 1}}
    for split, classes in counts.items():
        for number, (name, count) in enumerate(classes.items()):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                pixels = rng.integers(0, 160, (18, 20, 3), np.uint8)
                pixels[:, :, number] += 80  # something to learn
                Image.fromarray(pixels).save(folder / f"{image}.png")
    return tmp_path / "images"


@pytest.fixture(scope="session")
def digit_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real digits of three classes: train/ 6 each, val/ 4 each, test/ 5 each, 8 x 8 px. Do not change it."""
    folder = tmp_path_factory.mktemp("digits") / "data"
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for digit, name in enumerate(["nought", "one", "two"]):
        of_class = pixels[labels == digit]
        for split, first, last in [("train", 0, 6), ("val", 6, 10), ("test", 10, 15)]:
            class_folder = folder / split / name
            class_folder.mkdir(parents=True)
            for index in range(first, last):
                Image.fromarray(of_class[index]).save(class_folder / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="session")
def enough_val(digit_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digit_images` with val/ 12 each, enough for a temperature. Do not change it."""
    folder = Path(shutil.copytree(digit_images, tmp_path_factory.mktemp("enough") / "data"))
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for digit, name in enumerate(["nought", "one", "two"]):
        for index in range(15, 23):
            Image.fromarray(pixels[labels == digit][index]).save(folder / "val" / name / f"{index:02d}.png")
    return folder


@pytest.fixture(autouse=True)
def tiny_run_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Remove the scores that `evaluate` keeps in `tiny_run` after each test."""
    run = request.getfixturevalue("tiny_run") if "tiny_run" in request.fixturenames else None
    yield
    if run is not None:
        shutil.rmtree(run / "scores", ignore_errors=True)


TINY = ["model.width=0.125", "stages.0.epochs=2", "run.precision=float32", "run.threads=1", "run.workers=0"]


@pytest.fixture(scope="session")
def tiny_run(digit_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `digit_images`: the recipe digits, two epochs, an eighth of the width. Do not change it."""
    from fewsight.terminal import make_console
    from fewsight.training.session import train

    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        train(digit_images, out, recipe="digits", overrides=TINY, console=make_console(io.StringIO()))
    return out


@dataclass(frozen=True)
class Answer:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `fewsight` with these arguments in this process."""

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, out, err)

    return run


@pytest.fixture
def refused(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command that must end with exit code 2 and one line on stderr, changing no file; returns the line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        answer = command(*arguments)
        assert answer.code == 2, answer
        assert answer.err.startswith("fewsight: ")
        assert answer.err.count("\n") == 1, answer.err
        assert sorted(tmp_path.rglob("*")) == before
        return answer.err

    return run


def calibrated_copy(run: Path, target: Path, data: Path, command: Command, *options: object) -> Path:
    """A copy of a run with temperatures from the val images of `data`; the options are those of `scores calibrate`."""
    shutil.copytree(run, target)
    assert command("evaluate", target, data, "--split", "val", "--views", "report").code == 0
    assert command("scores", "calibrate", target, *options).code == 0
    return target

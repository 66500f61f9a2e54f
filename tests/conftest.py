"""Fixtures: where the real data lies, small folders of real digits, a cache of our own."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own cache of scanned images."""
    monkeypatch.setenv("FEWSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def fewsight_data() -> Path:
    """The folder of real images; a test that needs it skips where it is not set, but never under CI."""
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

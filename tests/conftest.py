"""Fixtures: where the real data lies, small folders of real digits, a cache of our own."""

import os
from pathlib import Path

import pytest


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

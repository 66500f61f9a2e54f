"""What is remembered of image files belongs to their contents: a file that was exchanged is noticed."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewsight.data import Sample, changed_files, file_digest, memory, scan, scanning


def image(path: Path, grey: int) -> Path:
    """A file whose size does not depend on the grey value."""
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), grey, np.uint8)).save(path.with_suffix(".bmp"))
    return path.with_suffix(".bmp")


def mean_red(root: Path, *, reread: bool = False) -> list[int]:
    samples = [Sample(f"{name}.bmp", "a") for name in ("0", "1", "2")]
    return [round(255 * scanned.mean[0]) for scanned in scan(root, samples, workers=2, reread=reread)]


def exchange(first: Path, second: Path) -> None:
    """Both have equal sizes and modification times, and keep them."""
    third = first.with_name("third")
    first.rename(third)
    second.rename(first)
    third.rename(second)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in range(3):
        os.utime(image(tmp_path / f"data/{name}", 10 * name), ns=(10**18, 10**18))
    return tmp_path / "data"


def reads(monkeypatch: pytest.MonkeyPatch, where: object) -> list[str]:
    names: list[str] = []
    read = scanning.read_bytes

    def counting(path: Path) -> bytes:
        names.append(path.name)
        return read(path)  # type: ignore[no-any-return]

    monkeypatch.setattr(where, "read_bytes", counting)
    return names


def test_exchanged_files_of_equal_size_and_time_are_scanned_again(data: Path) -> None:
    assert mean_red(data) == [0, 10, 20]
    exchange(data / "0.bmp", data / "2.bmp")
    assert mean_red(data) == [20, 10, 0]


def test_touched_and_moved_files_are_read_but_not_decoded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mean_red(data)
    os.utime(data / "1.bmp")
    shutil.copytree(data, data.parent / "copy")
    read = reads(monkeypatch, scanning)
    monkeypatch.setattr(scanning, "decode_bytes", lambda data, name: pytest.fail(f"{name} was decoded again"))
    assert mean_red(data) == [0, 10, 20]
    assert read == ["1.bmp"]
    assert mean_red(data.parent / "copy") == [0, 10, 20]
    assert len(read) == 4


def test_reread_compares_contents_where_no_time_changed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that keeps no times of change."""
    monkeypatch.setattr(scanning, "stamp_of", lambda path: (os.fsencode(os.path.abspath(path)), 0, 0, 0))  # noqa: PTH100
    assert mean_red(data) == [0, 10, 20]
    exchange(data / "0.bmp", data / "2.bmp")
    assert mean_red(data) == [0, 10, 20]
    assert mean_red(data, reread=True) == [20, 10, 0]
    assert mean_red(data) == [20, 10, 0], "the new contents are remembered"


def test_changed_files_are_found_by_content(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [data / f"{name}.bmp" for name in range(3)]
    digests = [file_digest(file.read_bytes()) for file in files]
    assert changed_files(files, digests) == []
    read = reads(monkeypatch, memory)
    assert changed_files(files, digests) == []
    assert read == [], "a second look reads nothing"
    exchange(files[0], files[2])
    assert changed_files(files, digests) == [0, 2]
    assert changed_files(files, ["", *digests[1:]]) == [2], "the first could not be read before"
    exchange(files[0], files[2])
    os.utime(files[1])
    assert changed_files(files, digests) == []
    files[1].unlink()
    assert changed_files(files, digests) == [1]


def test_changed_files_are_found_without_a_memory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSIGHT_CACHE", str(data / "0.bmp/sub"))
    files = [data / f"{name}.bmp" for name in range(3)]
    digests = [file_digest(file.read_bytes()) for file in files]
    exchange(files[0], files[2])
    assert changed_files(files, digests) == [0, 2]


def test_unusable_memory_is_said_as_what_it_is(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.memory_notes() == ()
    monkeypatch.setenv("FEWSIGHT_CACHE", str(data / "0.bmp"))
    (note,) = memory.memory_notes()
    assert f"({data / '0.bmp'}: File exists)" in note
    (tmp_path / "images.sqlite").write_bytes(b"nonsense" * 1000)
    monkeypatch.setenv("FEWSIGHT_CACHE", str(tmp_path))
    (note,) = memory.memory_notes()
    assert f"({tmp_path / 'images.sqlite'}: file is not a database)" in note

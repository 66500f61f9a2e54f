"""Every command's output file may be a link, which stays; it is refused where it is a pipe or somebody's own file."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Command

OUTPUTS = {
    "check DATA --json OUT.json": "OUT.json",
    "check DATA --html OUT.html": "OUT.html",
    "evaluate RUN DATA --json OUT.json": "OUT.json",
    "export RUN --data DATA --out OUT.onnx": "OUT.onnx",
    "predict RUN DATA/val --out OUT.csv": "OUT.csv",
    "predict RUN DATA/val --out OUT.parquet": "OUT.parquet",
    "predict RUN DATA/val --out OUT.csv --features": "OUT.features.npy",
    "report SCORED --split val --out OUT.html": "OUT.html",
    "runs RUN --json OUT.json": "OUT.json",
    "vipriors submit RUN DATA --out OUT.csv": "OUT.csv",
}
WRITTEN = [line for line in OUTPUTS if not line.startswith(("export", "vipriors"))]  # quick, and from three classes


@pytest.fixture
def words(tiny_run: Path, digit_images: Path) -> Callable[[str], list[str]]:
    """The words of a command line with its folders."""

    def fill(line: str) -> list[str]:
        return (
            line.replace("SCORED", str(tiny_run))
            .replace("RUN", str(tiny_run))
            .replace("DATA", str(digit_images))
            .split()
        )

    return fill


@pytest.mark.parametrize("line", OUTPUTS)
def test_pipe_is_refused_and_left_alone(
    line: str, words: Callable[[str], list[str]], refused: Callable[..., str], tmp_path: Path
) -> None:
    pipe = tmp_path / OUTPUTS[line]
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)  # so that a command that opens it does not wait for ever
    try:
        os.write(held, b"other" * 2000)
        assert f"{pipe.name}: a device or a pipe; give the name of a file" in refused(*words(line))
    finally:
        os.close(held)
    assert pipe.is_fifo()


@pytest.mark.parametrize("line", WRITTEN)
def test_link_stays_and_its_file_is_replaced_with_its_permissions(
    line: str,
    words: Callable[[str], list[str]],
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digit_images: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "SCORED" in line:
        assert command(*words("evaluate RUN DATA --split val")).code == 0
    link, file = tmp_path / OUTPUTS[line], tmp_path / "elsewhere" / "file"
    file.parent.mkdir()
    file.touch(0o600)
    link.symlink_to(file)
    assert command(*words(line)).code in (0, 1)
    assert (link.is_symlink(), stat.S_IMODE(file.stat().st_mode)) == (True, 0o600)
    assert file.stat().st_size > 0
    assert [path.name for path in file.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("line", OUTPUTS)
def test_file_that_is_no_earlier_result_is_refused_and_left_alone(
    line: str, words: Callable[[str], list[str]], refused: Callable[..., str], tmp_path: Path
) -> None:
    own = tmp_path / OUTPUTS[line]
    own.write_bytes(b"path,label\nmine.jpg,rust\n")
    assert f"{own.name}: this file exists and is not a" in refused(*words(line))
    assert own.read_bytes() == b"path,label\nmine.jpg,rust\n"


@pytest.mark.parametrize("line", WRITTEN)
def test_earlier_result_is_replaced(
    line: str, words: Callable[[str], list[str]], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "SCORED" in line:
        assert command(*words("evaluate RUN DATA --split val")).code == 0
    written = tmp_path / OUTPUTS[line]
    for _ in range(2):
        assert command(*words(line)).code == 0
    assert written.stat().st_size > 0

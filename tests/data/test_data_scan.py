"""Scanning: every file is decoded once, bad files are results, results are cached outside the data folder."""

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from PIL import Image

from fewsight.apps.check import check
from fewsight.data import Sample, Scanned, channel_stats, memory, scan, scanning
from fewsight.data.memory import memory_notes
from fewsight.data.prepare import prepare
from fewsight.recipes import Data


def images(root: Path, count: int = 70) -> list[Sample]:
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (3, 4 + i % 3, 3)).astype(np.uint8)).save(root / f"{i:03}.png")
    return [Sample(f"{i:03}.png", "a") for i in range(count)]


def cache_file() -> Path:
    return Path(os.environ["FEWSIGHT_CACHE"]) / "images.sqlite"


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    decoded: list[Path] = []
    read = scanning.read_bytes

    def counting(path: Path) -> bytes:
        decoded.append(path)
        return read(path)  # type: ignore[no-any-return]

    monkeypatch.setattr(scanning, "read_bytes", counting)
    return decoded


def test_scan_measures_each_image_in_order(tmp_path: Path) -> None:
    samples = images(tmp_path / "data")
    scanned = scan(tmp_path / "data", samples, workers=3)
    for sample, result in zip(samples, scanned, strict=True):
        values = np.asarray(Image.open(tmp_path / "data" / sample.path)) / 255
        assert (result.height, result.width, result.error) == (*values.shape[:2], None)
        assert np.allclose(result.mean, values.mean((0, 1)))
        assert np.allclose(result.mean_square, (values**2).mean((0, 1)))


def test_scan_reports_bad_files_by_name(tmp_path: Path) -> None:
    samples = images(tmp_path / "data", 3)
    (tmp_path / "data/001.png").write_bytes(b"")
    (tmp_path / "data/002.png").unlink()
    scanned = scan(tmp_path / "data", samples, workers=2)
    assert scanned[0].error is None
    assert scanned[1] == Scanned(0, 0, "001.png: empty file (0 bytes)")
    assert scanned[2].error == "002.png: cannot be read (No such file or directory)"


def test_scan_caches_good_files_and_tries_bad_ones_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = images(tmp_path / "data")
    (tmp_path / "data/005.png").write_bytes(b"text")
    first = scan(tmp_path / "data", samples, workers=2)
    decoded = count_decodes(monkeypatch)
    assert scan(tmp_path / "data", samples, workers=2) == first
    assert [path.name for path in decoded] == ["005.png"]
    assert cache_file().exists()
    assert len(list((tmp_path / "data").iterdir())) == len(samples)


def test_scan_ignores_results_of_older_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = images(tmp_path / "data", 4)
    scan(tmp_path / "data", samples, workers=1)
    monkeypatch.setattr(memory, "RULES", "others")
    decoded = count_decodes(monkeypatch)
    scan(tmp_path / "data", samples, workers=1)
    assert len(decoded) == 4


def no_home(name: str) -> str:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("damage", ["corrupt", "cut", "other table", "folder", "unwritable", "no home"])
def test_scan_works_without_its_cache(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = images(tmp_path / "data", 40)
    first = scan(tmp_path / "data", samples, workers=2)
    file = cache_file()
    if damage == "corrupt":
        file.write_bytes(b"nonsense" * 1000)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "other table":
        file.unlink()
        connection = sqlite3.connect(file)
        connection.execute("CREATE TABLE files (path TEXT)")
        connection.close()
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "no home":
        monkeypatch.delenv("FEWSIGHT_CACHE")
        monkeypatch.setattr(platformdirs, "user_cache_dir", no_home)
    else:
        monkeypatch.setenv("FEWSIGHT_CACHE", str(tmp_path / "data/000.png/sub"))
    assert scan(tmp_path / "data", samples, workers=2) == first


def test_user_without_a_home_is_told_that_nothing_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs with a number as its user."""
    assert memory_notes() == ()
    monkeypatch.delenv("FEWSIGHT_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_dir", no_home)
    for label in ("a", "b"):
        images(tmp_path / "data" / label, 6)
    for notes in (prepare(tmp_path / "data", Data()).notes, check(tmp_path / "data").notes):
        assert notes[-1].endswith("set FEWSIGHT_CACHE to a folder that may be written")


def test_scan_reports_its_progress(tmp_path: Path) -> None:
    samples = images(tmp_path / "data")
    reports: list[tuple[int, int]] = []
    scan(tmp_path / "data", samples, workers=2, progress=lambda done, total: reports.append((done, total)))
    assert reports[0] == (0, 70)
    assert reports[-1] == (70, 70)
    assert reports == sorted(reports)
    reports.clear()
    scan(tmp_path / "data", samples, workers=2, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(70, 70)]


def test_two_scans_at_once_agree(tmp_path: Path) -> None:
    samples = images(tmp_path / "data", 200)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: scan(tmp_path / "data", samples, workers=2), range(4)))
    assert all(result == results[0] for result in results)


def test_scan_stops_early_when_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = images(tmp_path / "data", 5)
    decoded = count_decodes(monkeypatch)

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(tmp_path / "data", samples * 400, workers=1, progress=interrupt)
    assert len(decoded) < 1000


def test_scan_copes_with_names_that_are_not_unicode(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    except OSError:
        pytest.skip("this file system refuses such names")
    assert [scan(tmp_path, [Sample(name, "a")], workers=1)[0].width for _ in range(2)] == [2, 2]


def test_channel_stats_weight_images_not_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100), (255, 0, 51)).save(tmp_path / "0.png")
    Image.new("RGB", (1, 1), (0, 0, 51)).save(tmp_path / "1.png")
    scanned = scan(tmp_path, [Sample("0.png", "a"), Sample("1.png", "a")], workers=1)
    mean, std = channel_stats([*scanned, Scanned(0, 0, "bad")])
    assert np.allclose(mean, (0.5, 0, 0.2))
    assert np.allclose(std, (0.5, 1 / 255, 1 / 255))
    with pytest.raises(ValueError, match="no readable image"):
        channel_stats([Scanned(0, 0, "bad")])

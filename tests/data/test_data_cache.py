"""The pixel cache: the same pixels within the given memory, and never those of an older version of the file."""

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewsight.data import ImageError, PixelCache, cache_size
from fewsight.data import cache as cache_module
from fewsight.data.cache import AUTO_FRACTION, free_memory


def write(path: Path, seed: int, width: int = 9) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        write(path, number, 9 + number)
    return paths


def test_cached_pixels_equal_the_file_and_it_is_not_read_again(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PixelCache(4, 10_000)
    first = [cache.load(number, str(path)) for number, path in enumerate(files)]
    assert len(cache) == 4
    monkeypatch.setattr("fewsight.data.cache.read_bytes", lambda path: pytest.fail(f"read {path} again"))
    for number, path in enumerate(files):
        again = cache.load(number, str(path))
        assert np.array_equal(again, first[number])
        assert np.array_equal(again, np.asarray(Image.open(path)))


@pytest.mark.parametrize("width", [9, 12])
def test_changed_file_is_decoded_each_time(files: list[Path], width: int) -> None:
    cache = PixelCache(4, 10_000)
    cache.load(0, str(files[0]))
    before = files[0].stat()
    for seed in (10, 11):
        expected = write(files[0], seed, width)
        os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns + seed))
        assert np.array_equal(cache.load(0, str(files[0])), expected)
    assert len(cache) == 0


def test_change_back_to_an_older_time_is_noticed(files: list[Path]) -> None:
    cache = PixelCache(4, 10_000)
    cache.load(0, str(files[0]))
    expected = write(files[0], 20)
    os.utime(files[0], ns=(1, 1))
    assert np.array_equal(cache.load(0, str(files[0])), expected)


def test_missing_file_is_an_error_although_it_was_cached(files: list[Path]) -> None:
    cache = PixelCache(4, 10_000)
    cache.load(0, str(files[0]))
    files[0].unlink()
    with pytest.raises(ImageError, match=r"0\.png: cannot be read"):
        cache.load(0, str(files[0]))


@pytest.mark.parametrize(("size", "held"), [(0, 0), (5 * 9 * 3 - 1, 0), (5 * 9 * 3, 1), (5 * (9 + 10) * 3 + 1, 2)])
def test_no_more_is_cached_than_fits(files: list[Path], size: int, held: int) -> None:
    cache = PixelCache(4, size)
    for _ in range(2):
        for number, path in enumerate(files):
            assert np.array_equal(cache.load(number, str(path)), np.asarray(Image.open(path)))
    assert len(cache) == held


def fill(cache: PixelCache, paths: list[Path]) -> None:
    for number, path in enumerate(paths):
        cache.load(number, str(path))


def test_forked_processes_share_the_cache(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PixelCache(4, 10_000)
    workers = [multiprocessing.get_context("fork").Process(target=fill, args=(cache, files)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(cache) == 4
    monkeypatch.setattr("fewsight.data.cache.read_bytes", lambda path: pytest.fail(f"read {path} again"))
    fill(cache, files)


def test_spawned_process_gets_an_empty_cache_with_its_part_of_the_size(files: list[Path]) -> None:
    cache = PixelCache(4, 10_000)
    fill(cache, files)
    own = pickle.loads(pickle.dumps(cache))
    assert len(own) == 0
    assert 0 < own.size <= cache.size


def test_size_is_the_given_one_or_a_fraction_of_the_free_memory() -> None:
    assert cache_size(0.5) == 500_000_000
    assert cache_size(0.0) == 0
    assert cache_size(1e9) <= free_memory() * 1.5
    assert 0 < cache_size("auto") <= AUTO_FRACTION * 1.5 * free_memory()


@pytest.mark.parametrize("version", [0, 1])
def test_files_that_the_system_would_drop_are_free_in_a_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    folder, limit, used, droppable = cache_module.CGROUPS[version]
    monkeypatch.setattr(cache_module, "CGROUPS", [(str(tmp_path), limit, used, droppable)])
    (tmp_path / limit).write_text("50000000\n")
    (tmp_path / used).write_text("49000000\n")
    assert folder.startswith("/sys/fs/cgroup")
    assert free_memory() == 1_000_000
    (tmp_path / "memory.stat").write_text(f"anon 20000000\nin{droppable} 7\n{droppable} 28000000\nactive_file 5\n")
    assert free_memory() == 29_000_000, "of the group's use, 28 MB are read files"
    (tmp_path / limit).write_text("max\n")
    assert free_memory() > 50_000_000


def test_cache_is_disabled_if_its_memory_cannot_be_allocated(files: list[Path]) -> None:
    cache = PixelCache(4, 2**62)
    fill(cache, files)
    assert (cache.size, len(cache)) == (0, 0)

"""Decode every image in full before the first step; results are cached from run to run.

An unreadable image is a result here, not an exception. Decoding runs in threads: simplejpeg and Pillow release
the global interpreter lock while they decode. Only results of readable images are cached, so that a repaired disk
or a newly installed decoder takes effect at once.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from PIL import Image

from fewsight.data.decode import UNKNOWN, Header, ImageError, decode_bytes, pixel_digest, read_bytes, read_header
from fewsight.data.samples import Sample

MIN_STD = 1 / 255  # one grey level: the standard deviation where all images have one colour
_CHUNK = 32  # files that a thread decodes at once; the cache is written after each chunk
_RULES = 2  # raised when a change of decode.py changes pixels, so that cached results are measured again
THUMBNAIL_PX = 16

_Triple = tuple[float, float, float]
_Key = tuple[bytes, int, int]  # absolute path, size, modification time in nanoseconds


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a full decode of one image measured. Colours are RGB in [0, 1], averaged over its pixels."""

    width: int  # of the upright image
    height: int
    error: str | None = None  # "path: reason" of an unreadable image, the path as in the sample; the rest is 0 then
    mean: _Triple = (0.0, 0.0, 0.0)
    mean_square: _Triple = (0.0, 0.0, 0.0)
    pixels: str = ""  # BLAKE2b over size and upright RGB pixels, 128 bits in hexadecimal
    thumbnail: bytes = b""  # grey, 16 x 16, the whole image squeezed: for the near-duplicate search
    header: Header = UNKNOWN


def scan(
    root: Path, samples: Sequence[Sample], *, workers: int, progress: Callable[[int, int], None] | None = None
) -> list[Scanned]:
    """Scan images; a file whose path, size and modification time are in the cache is not decoded again.

    Args:
        root: the dataset's root.
        samples: the images.
        workers: the number of threads; the number of cores is a good choice.
        progress: called with (images done, images in all), from this thread.

    Returns:
        The result of each image, in the order of `samples`.
    """
    folder = os.path.abspath(root)  # noqa: PTH100 fast for 50,000 files
    results: list[Scanned | None] = [None] * len(samples)
    keys: list[_Key | None] = []
    with _open_cache() as cache:
        for index, sample in enumerate(samples):
            keys.append(_key(os.path.join(folder, sample.path)))  # noqa: PTH118 as above
            results[index] = cache.lookup(keys[index])
        todo = [index for index, result in enumerate(results) if result is None]
        done = len(samples) - len(todo)
        if progress is not None:
            progress(done, len(samples))
        chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
        scanned_chunks = _scan_chunks(root, [[samples[index].path for index in chunk] for chunk in chunks], workers)
        for chunk, scanned_chunk in zip(chunks, scanned_chunks, strict=True):
            for index, scanned in zip(chunk, scanned_chunk, strict=True):
                results[index] = scanned
                cache.add(keys[index], scanned)
            cache.save()
            done += len(chunk)
            if progress is not None:
                progress(done, len(samples))
    return [result for result in results if result is not None]


def channel_stats(scanned: Sequence[Scanned]) -> tuple[_Triple, _Triple]:
    """Mean and standard deviation of each channel over the readable images, all images weighted equally.

    std = sqrt(mean over images of the mean square - mean**2), at least `MIN_STD`.

    Returns:
        Mean and standard deviation of red, green and blue, for values in [0, 1].

    Raises:
        ValueError: no image is readable.
    """
    readable = [image for image in scanned if image.error is None]
    if not readable:
        raise ValueError("no readable image to compute the mean and standard deviation of")
    mean = np.array([image.mean for image in readable]).mean(axis=0)
    mean_square = np.array([image.mean_square for image in readable]).mean(axis=0)
    std = np.maximum(np.sqrt(np.maximum(mean_square - mean**2, 0)), MIN_STD)
    return _triple(mean), _triple(std)


def scan_image(path: Path, name: str) -> Scanned:
    """Decode the file at `path` in full and measure it; `name` is its name in the error."""
    try:
        data = read_bytes(path)
        image = decode_bytes(data, str(path))
    except ImageError as error:
        return Scanned(0, 0, f"{name}: {error.reason}")
    counts = np.array(image.histogram(), dtype=np.float64).reshape(3, 256)  # [channel, value]
    values = np.arange(256) / 255
    num_pixels = image.width * image.height
    return Scanned(
        image.width,
        image.height,
        mean=_triple(counts @ values / num_pixels),
        mean_square=_triple(counts @ values**2 / num_pixels),
        pixels=pixel_digest(image),
        thumbnail=image.convert("L").resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX).tobytes(),
        header=read_header(data),
    )


def _triple(values: np.ndarray) -> _Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _scan_chunks(root: Path, chunks: list[list[str]], workers: int) -> Iterator[list[Scanned]]:
    def scan_chunk(paths: list[str]) -> list[Scanned]:
        return [scan_image(root / path, path) for path in paths]

    pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="scan")
    try:
        yield from pool.map(scan_chunk, chunks)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the whole dataset


def _key(path: str) -> _Key | None:
    try:
        status = os.stat(path)  # noqa: PTH116 as above
    except (OSError, ValueError):
        return None  # decoding it gives the reason
    return os.fsencode(path), status.st_size, status.st_mtime_ns


class _Cache:
    """Results of earlier scans in one SQLite file. A failure of the cache only turns it off."""

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self._connection = connection
        self._unsaved: list[tuple[object, ...]] = []

    def lookup(self, key: _Key | None) -> Scanned | None:
        if self._connection is None or key is None:
            return None
        try:
            query = "SELECT * FROM scanned WHERE path = ? AND size = ? AND mtime_ns = ? AND rules = ?"
            row = self._connection.execute(query, (*key, _RULES)).fetchone()
            if row is None:
                return None
            width, height, *colours = row[4:12]
            pixels, thumbnail, kind, animated, orientation = row[12:]
            return Scanned(
                int(width),
                int(height),
                None,
                _triple(np.array(colours[:3])),
                _triple(np.array(colours[3:])),
                str(pixels),
                bytes(thumbnail),
                Header(str(kind), bool(animated), int(orientation)),
            )
        except (sqlite3.Error, ValueError, TypeError):
            self.turn_off()
            return None

    def add(self, key: _Key | None, scanned: Scanned) -> None:
        if self._connection is not None and key is not None and scanned.error is None:
            header = scanned.header
            numbers = (scanned.width, scanned.height, *scanned.mean, *scanned.mean_square)
            contents = (scanned.pixels, scanned.thumbnail, header.kind, header.animated, header.orientation)
            self._unsaved.append((*key, _RULES, *numbers, *contents))

    def save(self) -> None:
        if self._connection is None or not self._unsaved:
            return
        try:
            with self._connection:
                marks = ",".join("?" * len(self._unsaved[0]))
                self._connection.executemany(f"INSERT OR REPLACE INTO scanned VALUES ({marks})", self._unsaved)
        except sqlite3.Error:
            self.turn_off()
        self._unsaved = []

    def turn_off(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


@contextmanager
def _open_cache() -> Iterator[_Cache]:
    cache = _Cache(_connect())
    try:
        yield cache
    finally:
        cache.turn_off()


def _connect() -> sqlite3.Connection | None:
    folder = Path(os.environ.get("FEWSIGHT_CACHE") or platformdirs.user_cache_dir("fewsight"))
    connection = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / "images.sqlite", timeout=10)
        connection.execute("PRAGMA synchronous = OFF")  # a lost cache costs time only
        connection.execute("DROP TABLE IF EXISTS images")  # of fewsight before the near-duplicate search
        connection.execute(
            "CREATE TABLE IF NOT EXISTS scanned (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, "
            "rules INTEGER, width INTEGER, height INTEGER, "
            "r REAL, g REAL, b REAL, rr REAL, gg REAL, bb REAL, pixels TEXT, thumbnail BLOB, kind TEXT, "
            "animated INTEGER, orientation INTEGER) WITHOUT ROWID"
        )
        connection.execute("SELECT rules, orientation FROM scanned LIMIT 1").fetchone()
    except (OSError, sqlite3.Error):
        if connection is not None:
            connection.close()
        return None
    return connection

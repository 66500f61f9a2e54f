"""What was measured of image files, kept by their contents from command to command in one SQLite file.

A file whose size, modification time and time of change (ctime) are those of the last look is not read again. The time
of change cannot be set back by a program, so exchanged files are noticed although their modification times came along;
a file system that does not keep it needs `fewsight check --reread`, which reads every file.
"""

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import platformdirs
import simplejpeg

from fewsight.data.decode import UNKNOWN, Header, ImageError, read_bytes
from fewsight.machine.cores import num_cores

# raised when a change of decode.py changes pixels; results of other rules or decoders are measured again
RULES = f"4, Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}"

UNUSABLE = (OSError, RuntimeError, KeyError, sqlite3.Error)  # RuntimeError, KeyError: a user without a home

Triple = tuple[float, float, float]
State = tuple[int, int, int]  # size in bytes, mtime and ctime in nanoseconds
Stamp = tuple[bytes, int, int, int]  # absolute path, then as `State`


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a full decode of one image measured. Colours are RGB in [0, 1], averaged over its pixels."""

    width: int  # of the upright image
    height: int
    error: str | None = None  # "path: reason" of an unreadable image, the path as in the sample; the rest is 0 then
    mean: Triple = (0.0, 0.0, 0.0)
    mean_square: Triple = (0.0, 0.0, 0.0)
    pixels: str = ""  # BLAKE2b over size and upright RGB pixels, 128 bits in hexadecimal
    thumbnail: bytes = b""  # grey, 16 x 16, the whole image squeezed: for the near-duplicate search
    header: Header = UNKNOWN
    digest: str = ""  # `file_digest` of the file


def file_digest(data: bytes) -> str:
    """64 bits of the BLAKE2b of a file's contents, in hexadecimal; its random crops depend on it."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def changed_files(files: Sequence[Path], digests: Sequence[str], *, reread: bool = False) -> list[int]:
    """The indices of files whose contents are no longer those that had the digests.

    Quick where the files are as they were at the last look of any command; else they are read, in threads. A file that
    can no longer be read has changed.

    Args:
        files: to look at.
        digests: the `file_digest` that each file had; a file with "" (it could not be read) is passed over.
        reread: read every file.
    """

    def is_changed(index: int) -> bool:
        stamp = stamp_of(str(files[index]))
        digest = None if reread else memory.digest(stamp)
        if digest is None:
            try:
                digest = file_digest(read_bytes(files[index]))
            except ImageError:
                return True
            memory.add_digest(stamp, digest)
        return digest != digests[index]

    known = [index for index, digest in enumerate(digests) if digest]
    pool = ThreadPoolExecutor(num_cores(), thread_name_prefix="digest")
    with open_memory() as memory:
        try:
            return [index for index, changed in zip(known, pool.map(is_changed, known), strict=True) if changed]
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the whole dataset


def state_of(path: str) -> State | None:
    """What tells, without reading it, that a file has not changed; None if there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116  (a Path takes four times as long)
    except (OSError, ValueError):
        return None  # reading it gives the reason
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def stamp_of(path: str) -> Stamp | None:
    """The state of a file with its absolute path; None if there is no such file."""
    state = state_of(path)
    return None if state is None else (os.fsencode(os.path.abspath(path)), *state)  # noqa: PTH100 fast


class Memory:
    """The SQLite file, for any thread. A failure only turns it off: then every file is read."""

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._unsaved: dict[str, list[tuple[object, ...]]] = {}

    def digest(self, stamp: Stamp | None) -> str | None:
        """The digest of a file's contents, if the file has not changed since it was remembered."""
        if stamp is None:
            return None
        query = "SELECT digest FROM files WHERE path = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ?"
        row = self._row(query, stamp)
        return None if row is None else str(row[0])

    def measured(self, digest: str) -> Scanned | None:
        """What was measured of a file with these contents."""
        row = self._row("SELECT * FROM measured WHERE digest = ? AND rules = ?", (digest, RULES))
        if row is None:
            return None
        try:
            width, height, *colours = row[2:10]
            pixels, thumbnail, kind, animated, orientation = row[10:]
            r, g, b, rr, gg, bb = map(float, colours)
            header = Header(str(kind), bool(animated), int(orientation))
            image = str(pixels), bytes(thumbnail), header, digest
            return Scanned(int(width), int(height), None, (r, g, b), (rr, gg, bb), *image)
        except (ValueError, TypeError):
            self.turn_off()
            return None

    def add_digest(self, stamp: Stamp | None, digest: str) -> None:
        """Remember the digest of a file; the stamp is from before it was read."""
        if stamp is not None:
            self._add("files", (*stamp, digest))

    def add(self, scanned: Scanned) -> None:
        """Remember what was measured of a readable image."""
        header = scanned.header
        numbers = (scanned.width, scanned.height, *scanned.mean, *scanned.mean_square)
        contents = (scanned.pixels, scanned.thumbnail, header.kind, header.animated, header.orientation)
        self._add("measured", (scanned.digest, RULES, *numbers, *contents))

    def save(self) -> None:
        """Write what was added."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
            if self._connection is None or not unsaved:
                return
            with suppress(sqlite3.Error), self._connection:
                for table, rows in unsaved.items():
                    marks = ",".join("?" * len(rows[0]))
                    self._connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)
                return
        self.turn_off()

    def turn_off(self) -> None:
        """Close the file; from now on nothing is remembered."""
        with self._lock:
            if self._connection is not None:
                with suppress(sqlite3.Error):
                    self._connection.close()
            self._connection = None

    def _row(self, query: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        with self._lock:
            if self._connection is None:
                return None
            with suppress(sqlite3.Error):
                row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
                return row
        self.turn_off()
        return None

    def _add(self, table: str, row: tuple[object, ...]) -> None:
        with self._lock:
            if self._connection is not None:
                self._unsaved.setdefault(table, []).append(row)


@contextmanager
def open_memory() -> Iterator[Memory]:
    """The memory, saved and closed at the end."""
    try:
        memory = Memory(_connect())
    except UNUSABLE:
        memory = Memory(None)
    try:
        yield memory
    finally:
        memory.save()
        memory.turn_off()


def memory_notes() -> tuple[str, ...]:
    """A line for the user where nothing can be remembered."""
    try:
        _connect().close()
    except UNUSABLE as error:
        file = getattr(error, "filename", None)
        reason = f"{file}: {error.strerror}" if isinstance(error, OSError) and file else str(error)
        return (
            "what is read of the images is not remembered, so the next command reads them all again "
            f"({reason}); set FEWSIGHT_CACHE to a folder that may be written",
        )
    return ()


def _connect() -> sqlite3.Connection:
    """Open the file, or create it.

    Raises:
        UNUSABLE: there is no folder for it, it cannot be written, or it is damaged.
    """
    folder = Path(os.environ.get("FEWSIGHT_CACHE") or platformdirs.user_cache_dir("fewsight"))
    folder.mkdir(parents=True, exist_ok=True)
    # one thread uses it at a time
    connection = sqlite3.connect(folder / "images.sqlite", timeout=10, check_same_thread=False)
    try:
        connection.execute("PRAGMA synchronous = OFF")  # a lost cache costs time only
        for earlier in ("images", "scanned"):  # tables of earlier versions
            connection.execute(f"DROP TABLE IF EXISTS {earlier}")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, "
            "ctime_ns INTEGER, digest TEXT) WITHOUT ROWID"
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS measured (digest TEXT PRIMARY KEY, rules TEXT, width INTEGER, height INTEGER, "
            "r REAL, g REAL, b REAL, rr REAL, gg REAL, bb REAL, pixels TEXT, thumbnail BLOB, kind TEXT, "
            "animated INTEGER, orientation INTEGER) WITHOUT ROWID"
        )
    except sqlite3.Error as error:
        connection.close()
        raise sqlite3.Error(f"{folder / 'images.sqlite'}: {error}") from error
    return connection

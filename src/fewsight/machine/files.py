"""Atomic, checked files: the only code that replaces one.

A file appears whole under its name or not at all: it is written beside its place, flushed to the disk and
renamed. Readers check what they read and name the file when it is not what it should be.
"""

import contextlib
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from fewsight.errors import RunError

T = TypeVar("T")
LOCK = ".lock"  # in a folder that a process is working in
MOST_JSON_BYTES = 2**28  # far more than a run of 100,000 classes writes


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically.

    Raises:
        RunError: the folder cannot be written or the disk is full; what stood there before still stands.
    """
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, atomically. Floats keep every bit; NaN is refused."""
    write_text(path, json_text(value, indent=1) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON. Names stay readable; those with bytes that are not UTF-8 are escaped, so that they come back."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, allow_nan=False)
    return text


def check_target(path: Path, option: str) -> None:
    """Refuse a file that could not be written later, before the work that it is for.

    Args:
        option: what the user wrote, for the message.

    Raises:
        RunError: `path` is a folder, or its folder is not there or may not be written.
    """
    if path.is_dir():
        raise RunError(f"{option} {path}: this is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise RunError(f"{option} {path}: the folder {path.parent} is not there; create it first")
    if not os.access(path.parent, os.W_OK):
        raise RunError(f"{option} {path}: the folder {path.parent} may not be written; choose another place")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new name beside `path` to write to; when the block ends well, it becomes `path` in one step."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        with part.open("r+b") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise_write_error(path, error)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Inside the block no other process may do so too; the lock ends with the process, even a killed one.

    Args:
        doing: what the other one is doing, for the message: "training".

    Raises:
        RunError: another process has it, or the folder cannot be written.
    """
    make_folder(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunError(
            f"{folder}: another process is {doing} there; wait until it has ended, or end it, then try again"
        ) from error
    except NotImplementedError:  # a file system without locks
        yield
        return
    except OSError as error:
        raise_write_error(folder, error)
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool | None:
    """Whether a process holds the lock of a folder; None where that cannot be known. Nothing is written."""
    if not (folder / LOCK).is_file():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # a folder that may not be written, or without locks
        return None
    lock.release()
    return False


def why_unfinished(run: Path) -> str:
    """Why a run that is not finished has no weights or scores yet, and what to do; its lock says who is at it."""
    if is_locked(run):
        return "a process is training it now; wait for its end (`fewsight runs` shows how far it is)"
    return f"its training did not end; finish it with `fewsight train --resume {run}`"


def check_inside(file: Path, folder: Path, *, most: int | None = None) -> None:
    """Refuse a file of a folder from elsewhere that is none, or lies outside: a link, a device, a pipe.

    Args:
        most: bytes that such a file can have.

    Raises:
        RunError: so it is, or it is larger.
    """
    try:
        if not os.path.lexists(file):
            raise RunError(f"cannot read {file}: it is not there")
        if not file.is_file():
            raise RunError(f"{file} is not a file (a device, a pipe or a broken link); it cannot belong to {folder}")
        if not file.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{file} is a link to {file.resolve()}, outside {folder}; put the file itself there")
        if most is not None and (size := file.stat().st_size) > most:
            raise RunError(f"{file} has {size / 2**20:,.0f} MiB, which is no file that fewsight wrote")
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}") from error


def remove_parts(folder: Path, name: str = "") -> None:
    """Delete what killed processes left beside files of `folder`, or beside its file `name`.

    No process may be writing there.
    """
    for part in folder.glob(f".{glob.escape(name)}.*.part" if name else ".*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system can (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(path: Path) -> None:
    """Create `path` and its parents.

    Raises:
        RunError: the system refuses, with its reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise_write_error(path, error)


def raise_write_error(path: Path, error: OSError) -> NoReturn:
    """Turn an operating system's error on writing `path` into one line that says what to do."""
    reason = error.strerror or str(error)
    raise RunError(
        f"cannot write {path}: {reason}. What was saved before is intact; choose a folder that can be written, or "
        "free the space, then try again (a training that has begun goes on with fewsight train --resume RUN)."
    ) from error


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        RunError: the file is missing, cannot be read or is not JSON.
    """
    data = _read_own(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {error}. Restore the file from a copy of the run.") from error


def read_json_as(path: Path, kind: type[T], wrote: str) -> T:
    """The value of a JSON file as a `kind`: a dataclass, `list[str]` and the like; every value has its type.

    Args:
        wrote: the command that writes such a file, for the message.

    Raises:
        RunError: the file is missing, cannot be read, or is something else.
    """
    data = _read_own(path)
    try:
        return TypeAdapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        raise RunError(f"{path} is not what {wrote} wrote: {first_problem(error)}; restore it from a copy") from error


def first_problem(error: ValidationError) -> str:
    """What is wrong, and where, of the first of some wrong values."""
    found = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in found["loc"])
    return f"{where}: {found['msg']}" if where else found["msg"]


def _read_own(path: Path) -> bytes:
    """What a file of a run holds."""
    if not path.exists():
        raise RunError(f"{path} is missing: {path.parent} is not a whole run folder.")
    check_inside(path, path.parent, most=MOST_JSON_BYTES)
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error}. Restore the file from a copy of the run.") from error


def digest_of(data: bytes) -> str:
    """BLAKE2b of `data`, 128 bits in hexadecimal: what state and run files are checked against."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()

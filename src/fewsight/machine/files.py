"""Atomic, checked files. No other code replaces a file.

A file appears whole under its name or not at all: it is written under another name beside it, flushed to the disk
and renamed. Readers check the contents and raise an error that names the file and the fault.
"""

import contextlib
import errno
import functools
import glob
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaValidator

import fewsight
from fewsight.errors import RunError, WriteError

T = TypeVar("T")
MAX_JSON_BYTES = 2**28  # far more than a run of 100,000 classes writes
FROM_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # of an open file: such an error names none
ADVICE = {
    errno.ENOSPC: "free some space, then try again",
    errno.EDQUOT: "free some of your quota, then try again",
    errno.EFBIG: "its file system takes no file of that size; choose another one",
    errno.EACCES: "allow this user to write there, or choose another folder",
    errno.EPERM: "allow this user to write there, or choose another folder",
    errno.EROFS: "choose a folder on another file system",
    errno.ENOTDIR: "a part of its path is a file; choose another folder",
    errno.EEXIST: "a file has the name of its folder; choose another folder",
    errno.EISDIR: "a folder has its name; choose another one",
    errno.ENOENT: "its folder is gone; create it, then try again",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "close other files, or raise the limit of open files (ulimit -n)",
}


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the contents of `path` by `data`, atomically.

    Raises:
        WriteError: the folder cannot be written or the disk is full; the previous file is intact.
    """
    with replacing(path) as part:
        try:
            part.write_bytes(data)
        except OSError as error:
            raise_write_error(path, error)


def write_text(path: Path, text: str) -> None:
    """Replace the contents of `path` by `text` in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace the contents of `path` by `value` as JSON, atomically. Floats keep every bit; NaN is refused."""
    write_text(path, json_text(value, indent=1) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON. Text stays readable; if some of it is not valid Unicode, all non-ASCII text is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, allow_nan=False)
    return text


def check_target(path: Path, option: str) -> None:
    """Check before the work begins that its output file can be written.

    Args:
        path: the output file.
        option: the command-line option that named it, for the message.

    Raises:
        RunError: `path` is a folder, a device, a pipe or a link to one, or its folder does not exist or may not be
            written.
    """
    if path.is_dir():
        raise RunError(f"{option} {path}: this is a folder; give the name of a file in it")
    if path.exists() and not path.is_file():
        raise RunError(f"{option} {path}: a device or a pipe; give the name of a file")
    file = link_target(path)
    if file.is_symlink():
        raise RunError(f"{option} {path}: a link that leads back to itself; remove it, or give another name")
    if not file.parent.is_dir():
        raise RunError(f"{option} {path}: the folder {file.parent} does not exist; create it first")
    if not os.access(file.parent, os.W_OK):
        raise RunError(f"{option} {path}: the folder {file.parent} may not be written; choose another one")


def link_target(path: Path) -> Path:
    """The file to replace where a user named `path`: of a link, the file that it leads to, so that the link stays.

    Files of runs are replaced without it: a link in a folder from elsewhere must not lead a write out of the folder.
    """
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; when the block succeeds, it is renamed to `path`.

    The new file has the permissions of the previous one. A link is replaced itself (see `link_target`).

    Raises:
        WriteError: it cannot be written, or is a device or a pipe; what was there is intact.
        OSError: the block's own, about another file: it is raised as it is.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    mode = _permissions(path)
    try:
        try:
            if mode is not None:
                part.touch(mode | 0o600)  # nobody else reads it while it is written
            yield part
        except OSError as error:
            if error.filename is None and error.errno not in FROM_WRITING:
                raise  # a closed pipe, an image: nothing that is known to be about this file
            raise_write_error(path, error)
        try:
            with part.open("r+b") as handle:
                os.fsync(handle.fileno())
            if mode is not None and stat.S_IMODE(part.stat().st_mode) != mode:
                part.chmod(mode)
            part.replace(path)
        except OSError as error:
            raise_write_error(path, error)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _permissions(path: Path) -> int | None:
    """The permissions of the file to replace; None if there is none.

    Raises:
        WriteError: it is a device or a pipe.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None  # what is wrong with the path is said when it is written
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise WriteError(f"cannot write {path}: a device or a pipe, not a file; choose another name")
    return stat.S_IMODE(mode) & 0o777 if stat.S_ISREG(mode) else None


def check_inside(file: Path, folder: Path, *, max_bytes: int | None = None) -> None:
    """Refuse a path in an untrusted folder that is not a regular file inside it: a link out of it, a device, a pipe.

    Args:
        file: the path to check.
        folder: the folder that it must be in.
        max_bytes: the largest size that such a file can have.

    Raises:
        RunError: `file` is missing, not a regular file, outside the folder, or larger.
    """
    try:
        if not os.path.lexists(file):
            raise RunError(f"cannot read {file}: it does not exist")
        if not file.is_file():
            raise RunError(f"{file} is not a file (a device, a pipe or a broken link); it cannot belong to {folder}")
        if not file.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{file} is a link to {file.resolve()}, outside {folder}; replace it by the file itself")
        if max_bytes is not None and (size := file.stat().st_size) > max_bytes:
            raise RunError(f"{file} has {size / 2**20:,.0f} MiB, so it is not a file that fewsight wrote")
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror or error}") from error


def copy(source: Path, target: Path) -> None:
    """Copy a file's contents to a new file, whose folder is not complete until all are copied.

    Raises:
        WriteError: `target` cannot be written.
        OSError: `source` cannot be read.
    """
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise_write_error(target, error)


def remove_parts(folder: Path, name: str = "") -> None:
    """Delete the temporary files that killed processes left in `folder`, or only those of its file `name`.

    No process may be writing there at the same time.
    """
    for part in folder.glob(f".{glob.escape(name)}.*.part" if name else ".*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system supports it (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(path: Path) -> None:
    """Create `path` and its parents.

    Raises:
        WriteError: the system refuses; the message has its reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise_write_error(path, error)


def raise_write_error(path: Path, error: OSError) -> NoReturn:
    """Turn an operating system's error on writing `path`, or a file in it, into one line that says what to do.

    Raises:
        WriteError: the file that failed is `path`, its temporary file, or a folder above or a file below it.
        OSError: `error` itself, which names another file, such as the one that was copied.
    """
    names = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    own = next((name for name in names if _belongs(name, path)), None)
    if names and own is None:
        raise error
    file = path if own is None or own.name.endswith(".part") else own
    reason, advice = error.strerror or str(error), ADVICE.get(error.errno or 0, "then try again")
    raise WriteError(f"cannot write {file}: {reason}. Files that were saved before are intact; {advice}.") from error


def _belongs(name: Path, path: Path) -> bool:
    """Whether an error about `name` comes from writing `path`: the file, its temporary one, above or below it."""
    is_part = name.parent == path.parent and name.name.startswith(f".{path.name}.") and name.suffix == ".part"
    return is_part or name == path or name in path.parents or path in name.parents


def read_json(path: Path, kind: type[T], writer: str, *, newest_format: int | None = None) -> T:
    """Read a JSON file of a run as a `kind`: every value has its declared type, and unknown keys are ignored.

    Args:
        path: the file.
        kind: a dataclass, `list[str]` and the like.
        writer: the command that writes such a file, for the message.
        newest_format: of a file with the key "format": the newest version that this fewsight reads.

    Raises:
        RunError: the file is missing, cannot be read, has other contents, or is of a newer format; the message names
            the file and the fault.
    """
    data = read_inside(path, MAX_JSON_BYTES)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {error}. Restore the file from a copy of the run.") from error
    if newest_format is not None:
        _check_format(path, value, newest_format, writer)
    try:
        return _checked(value, kind)
    except ValueError as error:
        raise RunError(f"{path} is not what {writer} wrote: {error}; restore it from a copy") from error


def parse_json_lines(lines: Iterable[str | bytes], kind: type[T]) -> list[T]:
    """Parse the lines of a JSON Lines file, each as a `kind`, as strictly as `read_json`.

    Raises:
        ValueError: a line is not JSON or has other contents; the message has its number and the fault.
    """
    values = []
    for number, line in enumerate(lines, 1):
        try:
            values.append(_checked(json.loads(line), kind))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from error
    return values


def read_inside(path: Path, max_bytes: int) -> bytes:
    """The contents of a file of a run, after a check that it is a regular file in its folder.

    Raises:
        RunError: it is missing, not such a file, larger than `max_bytes`, or cannot be read.
    """
    if not path.exists():
        raise RunError(f"{path} is missing; restore it from a copy")
    check_inside(path, path.parent, max_bytes=max_bytes)
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error}. Restore the file from a copy of the run.") from error


def _check_format(path: Path, value: Any, newest: int, writer: str) -> None:
    version = value.get("format") if isinstance(value, dict) else None
    if not isinstance(version, int) or version < 1:
        raise RunError(f"{path} is not what {writer} wrote: it has the format {version!r}; restore it from a copy")
    if version > newest:
        raise RunError(
            f"{path.parent}: {path.stem} format {version}, but this fewsight {fewsight.__version__} reads up to "
            f"{newest}; upgrade fewsight"
        )


def _checked(value: Any, kind: type[T]) -> T:
    """A parsed JSON value as a `kind`.

    Raises:
        ValueError: it has other contents; the message has the place and the fault of the first wrong value.
    """
    try:
        result: T = _validator(kind).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        location = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"{location}: {problem['msg']}" if location else problem["msg"]) from error
    return result


@functools.cache
def _validator(kind: Any) -> SchemaValidator:
    """Pydantic's validator of a type, for values that `json.loads` returned.

    It is strict about bool, float, int and str alone. Pydantic's strict mode would also refuse a list for a tuple and a
    dict for a dataclass, except in JSON text, and its parser of JSON text refuses file names that are not UTF-8.
    """
    return SchemaValidator(_with_strict_scalars(TypeAdapter(kind).core_schema))


def _with_strict_scalars(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_strict_scalars(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {"strict": True} if schema.get("type") in ("bool", "float", "int", "str") else {}
    return {key: _with_strict_scalars(part) for key, part in schema.items()} | strict


def digest_of(data: bytes) -> str:
    """BLAKE2b of `data`, 128 bits in hexadecimal: the digest of states and weights."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()

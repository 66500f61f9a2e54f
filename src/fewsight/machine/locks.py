"""The lock of a folder that one process at a time works in."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.machine.marks import is_marked, marked
from fewsight.wording import shell_command

LOCK = ".lock"  # the lock file of a folder that a process is working in
LOOKING_SECONDS = 0 if sys.platform == "linux" else 1  # elsewhere `is_locked` takes the lock for a moment


@contextlib.contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold the lock of a folder inside the block; the system releases it even if the process is killed.

    Args:
        folder: created if it does not exist.
        doing: what the processes that take this lock do, for the message: "training".

    Raises:
        RunError: another process holds the lock, or the folder cannot be written.
    """
    files.make_folder(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOOKING_SECONDS)
    except Timeout as error:
        raise RunError(
            f"{folder}: another process is {doing} there; wait until it ends, or stop it, then try again"
        ) from error
    except NotImplementedError:  # a file system without locks
        with marked(folder / LOCK):
            yield
        return
    except OSError as error:
        files.raise_write_error(folder, error)
    try:
        with marked(folder / LOCK):
            yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool | None:
    """Whether a process holds the lock of a folder; None if that cannot be determined.

    Nothing is written; nothing is locked on Linux.
    """
    return is_marked(folder / LOCK) if (folder / LOCK).is_file() else False


def why_unfinished(run: Path) -> str:
    """Why an unfinished run has no weights or scores yet, and what to do: is it being trained, or was it stopped?"""
    if is_locked(run):
        return "a process is training it now; wait until it ends (`fewsight runs` shows its progress)"
    command = shell_command(["fewsight", "train", "--resume", str(run)])
    return f"its training did not finish; finish it with `{command}`"

"""A mark on the lock file of a folder in use, which others see without taking a lock themselves.

On Linux it is an open-file-description lock: the kernel says whether a process could get it, and removes it when the
process that holds it has ended, with the child processes that inherited it.
"""

import contextlib
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "linux":
    import fcntl

    _FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, process
    _WHOLE = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)

    @contextlib.contextmanager
    def marked(file: Path) -> Iterator[None]:
        """Mark a file inside the block, where its file system can."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                fcntl.fcntl(stack.enter_context(file.open("ab")), fcntl.F_OFD_SETLK, _WHOLE)
            yield

    def is_marked(file: Path) -> bool | None:
        """Whether some process has marked a file; None if that cannot be determined."""
        try:
            with file.open("rb") as handle:
                answer = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, _WHOLE)
        except OSError:
            return None
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)

else:
    from filelock import FileLock, Timeout

    def marked(file: Path) -> contextlib.nullcontext[None]:
        """No mark: here the lock itself shows that the file is in use."""
        return contextlib.nullcontext()

    def is_marked(file: Path) -> bool | None:
        """Whether some process holds the lock, by taking it for a moment; None if that cannot be determined."""
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except (OSError, NotImplementedError):  # the folder may not be written, or its file system has no locks
            return None
        lock.release()
        return False

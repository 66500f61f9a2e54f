"""The C library's memory allocator; only the command line's own process changes its settings, which cannot be read."""

import contextlib
import ctypes
import functools
import sys


@functools.cache
def keep_freed_memory() -> None:
    """Keep freed memory in the process (glibc only), so that a step reuses pages instead of faulting them in again."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD

"""Decoded images in memory that all loading processes share: an image is decoded once, not once an epoch."""

import contextlib
import math
import mmap
import multiprocessing
import os
from functools import partial
from pathlib import Path

import numpy as np

from fewsight.data.decode import decode_pixels, read_bytes
from fewsight.machine.cores import num_cores

AUTO_SHARE = 0.25  # of the memory that is free when training begins
UNKNOWN_FREE = 4 * 2**30  # bytes, where the system does not say what is free
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
EMPTY, CHANGED = -1, -2  # instead of an offset: not kept yet; the file has changed since


class PixelCache:
    """Pixels of images by number, as many as fit; the others are decoded each time.

    What fits stays: where images come in random order, to replace one by another would gain nothing. A file of another
    size or time of change than when it was kept is decoded each time. Where processes are forked they share the memory;
    where they are spawned each has a cache of its own, of its share of the size.

    Args:
        num_images: numbers are below it.
        size: bytes for pixels; the system hands them out as they are filled.
        px, share: how small large images may be decoded, see `decode_pixels`.
    """

    def __init__(self, num_images: int, size: int, *, px: int = 0, share: float = 1.0) -> None:
        self.num_images, self.size, self.px, self.share = num_images, size, px, share
        head = 8 * (1 + 5 * num_images)
        try:
            self._memory = mmap.mmap(-1, head + max(size, 1))  # shared with forked processes
        except OSError:  # the system promises no more than it has
            self.size = 0
            self._memory = mmap.mmap(-1, head + 1)
        words = np.frombuffer(self._memory, np.int64, 1 + 5 * num_images)
        self._used = words[:1]
        self._offsets, self._sides, self._stamps = np.split(
            words[1:], [num_images, 3 * num_images]
        )  # [n], [2n]: height and width, [2n]: time of change and bytes of the file
        self._offsets[:] = EMPTY
        self._pixels = np.frombuffer(self._memory, np.uint8, offset=head)
        self._lock = multiprocessing.get_context().Lock()

    def __reduce__(self) -> tuple["partial[PixelCache]", tuple[int, int]]:
        return partial(PixelCache, px=self.px, share=self.share), (self.num_images, self.size // num_cores())

    def load(self, number: int, path: str) -> np.ndarray:
        """The pixels of an image file, uint8 [H, W, 3]; not to be written to.

        Raises:
            ImageError: it cannot be read or decoded.
        """
        stamp = None
        with contextlib.suppress(OSError, ValueError):  # reading it will say why
            status = os.stat(path)  # noqa: PTH116  (a Path takes four times as long)
            stamp = status.st_mtime_ns, status.st_size
            kept = self._kept(number, stamp)
            if kept is not None:
                return kept
        pixels = decode_pixels(read_bytes(Path(path)), path, px=self.px, share=self.share)
        if stamp is not None:
            self._keep(number, stamp, pixels)
        return pixels

    def __len__(self) -> int:
        """How many images it holds."""
        return int((self._offsets >= 0).sum())

    def _kept(self, number: int, stamp: tuple[int, int]) -> np.ndarray | None:
        own = slice(2 * number, 2 * number + 2)
        with self._lock:
            offset = int(self._offsets[number])
            if offset < 0:
                return None
            if self._stamps[own].tolist() != [*stamp]:
                self._offsets[number] = CHANGED  # its place is not filled anew: another process may be reading there
                return None
            height, width = self._sides[own].tolist()
        return self._pixels[offset : offset + 3 * height * width].reshape(height, width, 3)

    def _keep(self, number: int, stamp: tuple[int, int], pixels: np.ndarray) -> None:
        own = slice(2 * number, 2 * number + 2)
        with self._lock:
            offset = int(self._used[0])
            if self._offsets[number] != EMPTY or offset + pixels.size > self.size:
                return
            self._used[0] += pixels.size
            self._pixels[offset : offset + pixels.size] = pixels.reshape(-1)
            self._sides[own], self._stamps[own], self._offsets[number] = pixels.shape[:2], stamp, offset


def cache_size(gigabytes: float | str) -> int:
    """Bytes of a cache: what is asked for, at most what is free now; "auto": a quarter of that."""
    free = free_memory()
    return int(AUTO_SHARE * free) if isinstance(gigabytes, str) else min(int(gigabytes * 1e9), free)


def free_memory() -> int:
    """Bytes that this process can still take, by the system and by its control group."""
    free = float(UNKNOWN_FREE)
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024.0 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    for limit, used in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit: "max"
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, math.floor(free))

"""A cache of decoded images, shared by all loading processes: an image is decoded once, not once per epoch."""

import contextlib
import math
import mmap
from functools import partial
from pathlib import Path

import numpy as np

from fewsight.data.decode import decode_pixels, read_bytes
from fewsight.data.memory import State, state_of
from fewsight.machine.cores import num_cores
from fewsight.machine.loading import loading_context

AUTO_FRACTION = 0.25  # of the memory that is free when training begins
UNKNOWN_FREE = 4 * 2**30  # bytes assumed free where the system does not report it
CGROUPS = (  # folder, and in it the limit, the use, and the name in memory.stat of files that can be dropped
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
EMPTY, CHANGED = -1, -2  # in place of an offset: not cached yet; the file has changed since it was cached


class PixelCache:
    """The pixels of as many images as fit, by image index; the other images are decoded each time.

    Nothing is evicted: images are visited in random order, so replacing an entry would gain nothing. A file that
    is not as it was when it was cached, by its size and times, is decoded each time. Forked processes share the memory;
    a spawned process has a cache of its own, with its part of the size.

    Args:
        num_images: image indices are below it.
        size: bytes for pixels; the system allocates them as they are filled.
        px, area_fraction: how far large images may be reduced while decoding, see `decode_pixels`.
    """

    def __init__(self, num_images: int, size: int, *, px: int = 0, area_fraction: float = 1.0) -> None:
        self.num_images, self.size, self.px, self.area_fraction = num_images, size, px, area_fraction
        head = 8 * (1 + 6 * num_images)
        try:
            self._memory = mmap.mmap(-1, head + max(size, 1))  # shared with forked processes
        except OSError:  # the system does not allow so much
            self.size = 0
            self._memory = mmap.mmap(-1, head + 1)
        words = np.frombuffer(self._memory, np.int64, 1 + 6 * num_images)
        self._used = words[:1]
        self._offsets, self._sides, self._states = np.split(
            words[1:], [num_images, 3 * num_images]
        )  # [n], [2n]: height and width, [3n]: the file's `State`
        self._offsets[:] = EMPTY
        self._pixels = np.frombuffer(self._memory, np.uint8, offset=head)
        self._lock = loading_context().Lock()

    def __reduce__(self) -> tuple["partial[PixelCache]", tuple[int, int]]:
        rebuild = partial(PixelCache, px=self.px, area_fraction=self.area_fraction)
        return rebuild, (self.num_images, self.size // num_cores())

    def load(self, index: int, path: str) -> np.ndarray:
        """The pixels of an image file.

        Args:
            index: the image's index, below `num_images`.
            path: its file.

        Returns:
            uint8 [H, W, 3], not to be written to.

        Raises:
            ImageError: the file cannot be read or decoded.
        """
        state = state_of(path)
        if state is not None and (cached := self._lookup(index, state)) is not None:
            return cached
        pixels = decode_pixels(read_bytes(Path(path)), path, px=self.px, area_fraction=self.area_fraction)
        if state is not None:
            self._store(index, state, pixels)
        return pixels

    def __len__(self) -> int:
        """The number of cached images."""
        return int((self._offsets >= 0).sum())

    def _lookup(self, index: int, state: State) -> np.ndarray | None:
        sides, states = slice(2 * index, 2 * index + 2), slice(3 * index, 3 * index + 3)
        with self._lock:
            offset = int(self._offsets[index])
            if offset < 0:
                return None
            if self._states[states].tolist() != [*state]:
                self._offsets[index] = CHANGED  # its bytes are not reused: another process may be reading them
                return None
            height, width = self._sides[sides].tolist()
        return self._pixels[offset : offset + 3 * height * width].reshape(height, width, 3)

    def _store(self, index: int, state: State, pixels: np.ndarray) -> None:
        sides, states = slice(2 * index, 2 * index + 2), slice(3 * index, 3 * index + 3)
        with self._lock:
            offset = int(self._used[0])
            if self._offsets[index] != EMPTY or offset + pixels.size > self.size:
                return
            self._used[0] += pixels.size
            self._pixels[offset : offset + pixels.size] = pixels.reshape(-1)
            self._sides[sides], self._states[states], self._offsets[index] = pixels.shape[:2], state, offset


def cache_size(gigabytes: float | str) -> int:
    """The cache's size in bytes: the given one, limited to the free memory; "auto": a quarter of the free memory."""
    free = free_memory()
    return int(AUTO_FRACTION * free) if isinstance(gigabytes, str) else min(int(gigabytes * 1e9), free)


def free_memory() -> int:
    """Bytes that this process can still allocate, limited by the system and by its control group.

    Files that were read stay in memory and count as used by the group until the kernel needs the room: those that it
    would drop first are free, as MemAvailable counts them for the whole system.
    """
    free = float(UNKNOWN_FREE)
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024.0 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    for folder, limit, used, droppable in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit: "max"
            group = Path(folder)
            unused = int((group / limit).read_text()) - int((group / used).read_text())
            free = min(free, unused + _statistic(group / "memory.stat", droppable))
    return max(0, math.floor(free))


def _statistic(path: Path, name: str) -> int:
    """A number of a control group's statistics; 0 where it is not given."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = path.read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.split()[:1] == [name]))
    return 0

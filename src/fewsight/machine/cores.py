"""The number of usable processor cores and compute threads, without importing torch."""

import contextlib
import os

PROCESSES_HERE = "LOCAL_WORLD_SIZE"
QUOTAS = (  # files that hold a control group's quota and its period, in version 2 and in version 1
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


def num_cores() -> int:
    """Processor cores that this process may use, by its affinity and its control group's quota; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in QUOTAS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or no quota: "max"
            quota, period = (int(word) for word in " ".join(map(_read, files)).split())
            if quota > 0:  # -1: none
                count = min(count, max(1, round(quota / period)))
    return count


def _read(path: str) -> str:
    with open(path, encoding="ascii") as handle:  # noqa: PTH123
        return handle.read()


def processes_here() -> int:
    """The processes that share this machine's cores with this one, itself included: LOCAL_WORLD_SIZE.

    `torchrun` sets it for the processes of a training, and `fewsight reproduce` for the commands that it starts.
    """
    text = os.environ.get(PROCESSES_HERE, "")
    return int(text) if text.isdecimal() and int(text) > 0 else 1


def openmp_threads(cores: int) -> int:
    """The number of threads that OMP_NUM_THREADS sets, as for any program that uses OpenMP; `cores` by default."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) > 0 else cores

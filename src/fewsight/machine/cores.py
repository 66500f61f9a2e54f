"""The number of usable processor cores and compute threads, without importing torch."""

import contextlib
import os

PROCESSES_HERE = "LOCAL_WORLD_SIZE"


def num_cores() -> int:
    """Processor cores that this process may use, by its affinity and its control group's quota; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as handle:  # noqa: PTH123
            quota, period = handle.read().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    return count


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

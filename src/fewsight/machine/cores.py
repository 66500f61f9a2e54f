"""How many processor cores there are to use; no torch is needed to know."""

import contextlib
import os


def num_cores() -> int:
    """Processor cores that this process may use: its affinity and its control group's quota, at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as handle:  # noqa: PTH123
            quota, period = handle.read().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    return count


def wanted_threads(cores: int) -> int:
    """What OMP_NUM_THREADS allows, as for any program that computes with OpenMP."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) > 0 else cores

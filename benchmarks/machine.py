"""What every benchmark says of its machine, and the refusal to start while something else runs."""

import os
import platform
import subprocess
import time
from pathlib import Path

import torch

BUSY_SHARE = 0.3  # of one core, taken by another process


def busy_processes(seconds: float = 1.0) -> list[str]:
    """Other processes that use more than `BUSY_SHARE` of a core, from /proc; empty where there is none."""
    before = cpu_ticks()
    time.sleep(seconds)
    ticks_a_second = os.sysconf("SC_CLK_TCK") if before else 1
    shares = {
        process: (ticks - before.get(process, ticks)) / ticks_a_second / seconds
        for process, ticks in cpu_ticks().items()
    }
    return [f"pid {pid} {name}: {share:.0%}" for (pid, name), share in shares.items() if share > BUSY_SHARE]


def cpu_ticks() -> dict[tuple[int, str], int]:
    """(pid, name) -> clock ticks used so far, for every process but this one."""
    ticks = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = stat.read_text().rpartition(")")
        except OSError:
            continue  # it has ended
        pid, _, name = head.partition(" (")
        fields = tail.split()
        if int(pid) != os.getpid():
            ticks[int(pid), name] = int(fields[11]) + int(fields[12])  # user and system time
    return ticks


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def commit() -> str:
    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=False
        ).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "none") + (" with changes" if git("status", "-s") else "")

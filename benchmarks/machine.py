"""What benchmarks share: the machine in words, the refusal to start beside others, a command's cost, the results."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
# by a process without torch: a command's peak memory counts that of the process which starts it
WAIT = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - began, usage.ru_maxrss]))
"""
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


def busy_unless(force: bool) -> list[str]:
    """Other processes that use a core, where that is forced; else the end of this one beside them."""
    busy = busy_processes()
    if busy and not force:
        print(f"not started: another process uses a core ({'; '.join(busy)}). Wait, or pass --force")
        raise SystemExit(2)
    return busy


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


def about(
    name: str, busy: Sequence[str], packages: Sequence[str] = ("torch",), device: str = "", **more: str
) -> dict[str, str]:
    """What every result says of itself: command, commit, date, device, versions, what else ran; then `more`."""
    versions = [f"Python {platform.python_version()}", *(f"{package} {version(package)}" for package in packages)]
    return {
        "command": f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device or device_name("cpu"),
        "versions": ", ".join(versions),
        "other load": "; ".join(busy) or "none",
        **more,
    }


def listed(setting: Mapping[str, str]) -> list[str]:
    """The setting as lines of Markdown, with an empty one after them."""
    return [*(f"- {name}: {value}" for name, value in setting.items()), ""]


def measured(arguments: list[str], fine: tuple[int, ...] = (0,)) -> tuple[float, float]:
    """Seconds and peak memory in MB of Python with these arguments; `fine`: what it may exit with."""
    command = [sys.executable, "-c", WAIT, sys.executable, *arguments]
    code, seconds, kilobytes = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if code not in fine:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return seconds, kilobytes / 1e3


def measured_command(arguments: list[str], fine: tuple[int, ...] = (0,)) -> tuple[float, float]:
    """The same of a `fewsight` command."""
    return measured(["-m", "fewsight", *arguments], fine)


def choose(parts: Mapping[str, Callable[[], int | None]], doc: str | None) -> int:
    """Run the part that the first argument names; it reads the rest."""
    if len(sys.argv) < 2 or sys.argv[1] not in parts:
        print(doc)
        return 0 if sys.argv[1:] in (["--help"], ["-h"]) else 2
    return parts[sys.argv.pop(1)]() or 0


def keep(name: str, title: str, lines: Sequence[str], values: Any, folder: Path = RESULTS) -> None:
    """Write FOLDER/NAME.md, the title and the lines, and FOLDER/NAME.json, the values."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n".join([f"# {title}", "", *lines]) + "\n", encoding="utf-8")
    (folder / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

"""Run one side on one set and write one result file; what is there already is not run again."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.rows import Scored, read_rows
from benchmarks.accuracy.sides import PROBS, Job, Side
from benchmarks.machine import commit, device_name


def run_job(side: Side, job: Job, target: Path) -> dict[str, Any]:
    """Train, score, write; the first command's user and system time is what the side took."""
    if target.exists():
        kept: dict[str, Any] = json.loads(target.read_text())
        return kept
    job.folder.mkdir(parents=True, exist_ok=True)
    environment = environment_of(side, job.cores)
    train, *score = side.commands(job)
    began = time.perf_counter()
    core_seconds = run_command(train, environment, job.folder / "train.log")
    wall = time.perf_counter() - began
    for command in score:
        run_command(command, environment, job.folder / "score.log")
    scored = read_rows(job.folder / PROBS)
    result = {
        "set": job.data_set.name,
        "side": side.name,
        "seed": job.seed,
        "budget": job.budget,
        "split": job.split,
        "core_seconds": core_seconds,
        "wall_seconds": wall,
        "device": device_name("cpu"),
        "commit": commit(),
        **figures(scored),
        "names": scored.names,
        "correct": scored.correct.astype(int).tolist(),
        "nlls": scored.nll.round(5).tolist(),
    }
    part = target.with_suffix(".part")
    part.write_text(json.dumps(result) + "\n")
    part.replace(target)
    return result


def environment_of(side: Side, cores: int) -> dict[str, str]:
    """A thread for each core, waiting threads asleep."""
    return {**os.environ, "OMP_NUM_THREADS": str(cores), "OMP_WAIT_POLICY": "PASSIVE", **side.environment}


def make_plan(side: Side, job: Job, target: Path) -> None:
    """Start the side's training, keep the recipe that it plans, and stop it there.

    Raises:
        SystemExit: the training ends before its run folder is complete, whose last file is run.json.
    """
    log = job.folder / "plan.log"
    job.folder.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as handle:
        process = subprocess.Popen(
            side.commands(job)[0], env=environment_of(side, job.cores), stdout=handle, stderr=handle
        )
        run = job.folder / "run"
        while not (run / "run.json").exists():
            if process.poll() is not None:
                print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
                raise SystemExit(f"{side.name} on {job.data_set.name} ended before it had a plan; see {log}")
            time.sleep(0.1)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / "recipe.toml", target)
        process.terminate()
        process.wait(timeout=120)
    shutil.rmtree(job.folder)


def run_command(command: list[str], environment: dict[str, str], log: Path) -> float:
    """Run to the end; returns the core-seconds of the process and of the children that it waited for."""
    with log.open("ab") as handle:
        process = subprocess.Popen(command, env=environment, stdout=handle, stderr=handle, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        print(log.read_text(errors="replace")[-2000:], file=sys.stderr)
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}; see {log}")
    return usage.ru_utime + usage.ru_stime


def figures(scored: Scored) -> dict[str, Any]:
    """Counts, balanced accuracy and NLL of a side."""
    recalls = [scored.correct[scored.labels == label].mean() for label in np.unique(scored.labels)]
    return {
        "n": len(scored.correct),
        "count": int(scored.correct.sum()),
        "balanced_accuracy": float(np.mean(recalls)),
        "nll": float(scored.nll.mean()),
    }

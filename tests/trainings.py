"""Small trainings with every kind of setting, in this process or others, and bitwise comparisons of runs."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fewsight import runs
from fewsight.cli import main
from fewsight.data.prepare import prepare
from fewsight.data.training_set import TrainingSet
from fewsight.recipes import Recipe, parse_recipe
from fewsight.runs import Run
from fewsight.training.resolve import resolve

STAGE = {"epochs": 2, "batch_size": 4, "optim": {"base_lr": 2.0, "warmup_epochs": 0.5}}
VALUES = {
    "model": {"backbone": "resnest14", "stem": "small", "width": 0.125},
    "augment": {"train_px": 16},
    "stages": [STAGE],
    "eval": {"test_px": [16]},
    "run": {"device": "cpu", "threads": 1, "workers": 0, "precision": "float32"},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average, best, accumulated": {
        "run": {**VALUES["run"], "select": "best"},  # type: ignore[dict-item]
        "stages": [{**STAGE, "ema_half_life_epochs": 0.5, "accumulate": 2}],
    },
    "worker, sampling, growing": {
        "run": {**VALUES["run"], "workers": 1},
        "data": {"balance": "sampling"},  # type: ignore[dict-item]
        "stages": [{**STAGE, "first_px": 8}],
    },
    "two stages, averages, weights": {
        "data": {"balance": "weights"},
        "stages": [{**STAGE, "ema_half_life_epochs": 1.0}, {**STAGE, "epochs": 1, "ema_half_life_epochs": 0.3}],
    },
    "ce, then all losses on classes": {
        "stages": [{**STAGE, "epochs": 1}, {**STAGE, "loss": "ce+triplet+arcface", "images_per_class": 2}],
    },
    "bf16, nesterov, no val between": {
        "run": {**VALUES["run"], "precision": "bf16"},  # type: ignore[dict-item]
        "stages": [{**STAGE, "optim": {"base_lr": 1.0, "nesterov": True}}],
        "eval": {"test_px": [24], "every_epochs": 0},
    },
    "whitened, decay by e-folds": {
        "model": {"backbone": "plain8", "stem": "small", "width": 0.125},
        "stages": [{**STAGE, "optim": {"base_lr": 0.5, "decay_efolds": 2.0}}],
    },
}


class Quiet:
    """A reporter that does nothing."""

    def start(self, total_steps: int, done_steps: int) -> None:
        self.total_steps, self.done_steps = total_steps, done_steps

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        pass

    def epoch(self, line: Mapping[str, Any]) -> None:
        pass

    def say(self, text: str) -> None:
        pass


class Death(BaseException):
    """Simulates a kill: no handler catches it."""


class DieAfter(Quiet):
    """Simulates a kill in step `step` of the run."""

    def __init__(self, step: int) -> None:
        self.last = step

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        if done_steps == self.last:
            raise Death


def begin(
    images: Path, out: Path, settings: Mapping[str, Any] | None = None, *overrides: str
) -> tuple[Run, TrainingSet]:
    """A new run folder for a folder of images, and the images."""
    recipe = parse_recipe({**VALUES, **(settings or {})}, overrides)
    prepared = prepare(images, recipe.data)
    resolved = resolve(with_workers(recipe, 0), prepared)
    workers = recipe.run.workers  # as given, even on a machine with few cores
    assert workers != "auto"
    facts = prepared.classes, prepared.facts, prepared.listed
    return runs.create_run(out, with_workers(resolved, workers), *facts), prepared.images


def with_workers(recipe: Recipe, workers: int) -> Recipe:
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"workers": workers})})


def log_lines(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("time", "seconds")} for line in lines]


def outcome(path: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """What must be equal: weights, metrics, and the log without its times."""
    return (path / "weights.safetensors").read_bytes(), (path / "metrics.json").read_bytes(), log_lines(path)


def assert_finished_alike(path: Path, expected: Path) -> None:
    run = runs.read_run(path)
    assert run.finished
    assert log_lines(path) == log_lines(expected)
    assert outcome(path) == outcome(expected)
    assert runs.read_weights(run)
    assert not list(path.rglob("*.part"))
    assert not (path / "state").exists()


# Processes are forked from one that has imported what the commands import: the imports take seconds.
IMPORTS = [
    "fewsight.cli",
    "fewsight.training.session",
    "fewsight.inference.evaluate",
    "fewsight.inference.predict",
    "fewsight.cli.show",
    "torch._dynamo",  # which torch's optimisers import at their first use
]
FORKED = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
FORKED.set_forkserver_preload(IMPORTS)


def start(text: Path, function: Callable[..., object], *arguments: object, **environment: str) -> BaseProcess:
    """Call a function of a module in a process, and process group, of its own; what it prints goes to `text`."""
    environment = {**os.environ, **environment}
    process = FORKED.Process(target=_call, args=(text, environment, function, arguments))
    process.start()
    return process


def _call(
    text: Path, environment: dict[str, str], function: Callable[..., object], arguments: Sequence[object]
) -> None:
    os.setsid()
    os.environ.update(environment)
    with text.open("a") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    function(*arguments)


def command(text: Path, *arguments: object) -> BaseProcess:
    """Start `fewsight` with these arguments."""
    return start(text, main, [str(argument) for argument in arguments])


def finished(text: Path, process: BaseProcess, code: int = 0) -> str:
    """Wait for a process, which must end with this exit code; returns what it printed."""
    process.join()
    assert process.exitcode == code, f"exit code {process.exitcode}: {text.read_text()}"
    return text.read_text()


def wait_for_log(process: BaseProcess, log: Path) -> None:
    """Wait until the process has written its log (or another of its files), so that it is training."""

    def stamp() -> int:
        return log.stat().st_mtime_ns if log.exists() else 0

    before = stamp()
    while process.is_alive() and stamp() == before:
        time.sleep(0.005)


def killed(text: Path, process: BaseProcess, log: Path, seconds: float) -> bool:
    """Kill a process `seconds` after it has started to train; False if it had ended before."""
    wait_for_log(process, log)
    time.sleep(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), text.read_text()
    return process.exitcode != 0


def shared(text: Path, count: int, function: Callable[..., object], *arguments: object) -> str:
    """Call a function in `count` processes with the variables that torchrun gives them; returns what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    processes = [
        start(text, function, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **variables) for rank in range(count)
    ]
    return [finished(text, process) for process in processes][-1]


def torchrun(count: int, *arguments: object) -> subprocess.Popen[str]:
    """Start a command or script as `count` processes that share each batch."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([*sys.path])}
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def output(process: subprocess.Popen[str], timeout: float = 240) -> str:
    """What a process prints until it ends."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise

"""Commands beside each other, each after the one that it builds on; a failed one stops only those that need it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

POLL_SECONDS = 0.2
GRACE_SECONDS = 120.0  # that a training has to save its state when all is interrupted
PARENT_DEATH_SIGNAL = 1  # Linux: PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Task:
    """Commands that run one after the other, and the task that must have ended well before them."""

    name: str
    commands: Mapping[str, Sequence[str]]  # what it does ("training") -> the command; none: it was done before
    log: Path
    after: str | None = None
    check: Callable[[], bool] = lambda: False  # whether it has done its work although it ended with exit code 1


@dataclass
class _Running:
    task: Task
    device: str | None
    began: float
    waiting: list[str]  # of its commands
    doing: str
    process: subprocess.Popen[bytes]


@dataclass
class Outcome:
    """What became of the tasks."""

    seconds: dict[str, float] = field(default_factory=dict)  # of those that ended well
    failed: dict[str, int] = field(default_factory=dict)  # name -> exit code
    blocked: dict[str, str] = field(default_factory=dict)  # name -> the task that it needed


def run_tasks(
    tasks: Sequence[Task],
    slots: Sequence[str | None],
    *,
    threads: int | None = None,
    say: Callable[[str], None],
    watch: Callable[[Sequence[tuple[Task, str]]], None] = lambda running: None,
) -> Outcome:
    """Run tasks in their order, as many beside each other as there are slots.

    Args:
        slots: the device of each, None where the commands choose.
        threads: that each command may compute with; None: it chooses.
        watch: is called a few times a second with what runs, and what each is doing.

    Raises:
        KeyboardInterrupt: after the running commands were told to stop, and have.
    """
    outcome, waiting, free = Outcome(), list(tasks), list(slots)
    running: list[_Running] = []
    try:
        while waiting or running:
            for task in list(waiting):
                if task.after in outcome.failed or task.after in outcome.blocked:
                    outcome.blocked[task.name] = str(task.after)
                elif task.after is not None and task.after not in outcome.seconds:
                    continue
                elif not task.commands:
                    outcome.seconds[task.name] = 0.0
                    say(f"{task.name}: was done before")
                elif free:
                    running.append(_begin(task, free.pop(0), threads))
                    say(f"{task.name}: begun")
                else:
                    continue
                waiting.remove(task)
            watch([(one.task, one.doing) for one in running])
            for one in list(running):
                code = one.process.poll()
                if code == 0 and one.waiting:
                    one.doing = one.waiting.pop(0)
                    one.process = _start(one.task, one.doing, one.device, threads)
                elif code is not None:
                    running.remove(one)
                    free.append(one.device)
                    _note(one, code, outcome, say)
            time.sleep(POLL_SECONDS)
    except BaseException:  # Ctrl-C, but also a full disk here: nothing goes on without somebody who waits for it
        say("stopping; the trainings save their states")
        _stop(running)
        raise
    return outcome


def _begin(task: Task, device: str | None, threads: int | None) -> _Running:
    doing, *waiting = task.commands
    return _Running(task, device, time.monotonic(), waiting, doing, _start(task, doing, device, threads))


def last_line(log: Path) -> str:
    """The last line that a command has written."""
    with contextlib.suppress(OSError), log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - 2000))
        lines = handle.read().decode("utf-8", "replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")
    return ""


def _start(task: Task, doing: str, device: str | None, threads: int | None) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    if device is not None and device.startswith("cuda:"):
        environment["CUDA_VISIBLE_DEVICES"] = device.removeprefix("cuda:")  # it is the only one, so it is chosen
    with task.log.open("ab") as log:
        return subprocess.Popen(
            task.commands[doing],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then tells them
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _die_with_parent() -> None:
    """A killed parent leaves no training behind: it is told to stop, and saves its state."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _note(one: _Running, code: int, outcome: Outcome, say: Callable[[str], None]) -> None:
    seconds = time.monotonic() - one.began
    if code == 0 or (code == 1 and not one.waiting and one.task.check()):
        outcome.seconds[one.task.name] = seconds
        say(f"{one.task.name}: done in {seconds / 60:.1f} min")
    else:
        outcome.failed[one.task.name] = code
        reason = last_line(one.task.log) or f"exit {code}"
        say(f"{one.task.name}: failed in {one.doing} ({reason}); all of it in {one.task.log}")


def _stop(running: Sequence[_Running]) -> None:
    for one in running:
        one.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for one in running:
        try:
            one.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()

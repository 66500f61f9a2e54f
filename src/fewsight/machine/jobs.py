"""Run commands in parallel, in order of dependence; a failure stops the tasks that depend on it, or all of them."""

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

from fewsight.machine.cores import PROCESSES_HERE

POLL_SECONDS = 0.2
GRACE_SECONDS = 120.0  # for trainings to save their state after an interrupt
WAITING = "OMP_WAIT_POLICY"  # commands share the cores, so a thread that waits must not take one from the others
PARENT_DEATH_SIGNAL = 1  # Linux: PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Task:
    """Commands that run in sequence, after the task that they depend on has succeeded."""

    name: str
    commands: Mapping[str, Sequence[str]]  # activity ("training") -> the command; empty if all was done before
    log: Path
    after: str | None = None  # the task that it depends on
    check: Callable[[], bool] = lambda: False  # whether it has done its work although it ended with exit code 1


@dataclass
class _Running:
    task: Task
    device: str | None
    start: float
    waiting: list[str]  # activities that are still to come
    activity: str
    process: subprocess.Popen[bytes]


@dataclass
class Outcome:
    """How the tasks ended, by their names."""

    seconds: dict[str, float] = field(default_factory=dict)  # of the tasks that succeeded
    failed: dict[str, int] = field(default_factory=dict)  # exit code
    blocked: dict[str, str] = field(default_factory=dict)  # the task that it depended on


def run_tasks(
    tasks: Sequence[Task],
    slots: Sequence[str | None],
    *,
    threads: int | None = None,
    together: bool = False,
    say: Callable[[str], None],
    watch: Callable[[Sequence[tuple[Task, str]]], None] = lambda running: None,
) -> Outcome:
    """Run tasks in their order, as many in parallel as there are slots.

    Args:
        tasks: in the order in which to start them, as far as their dependences allow.
        slots: the device of each slot; None lets the commands choose.
        threads: number of threads of each command; None lets it choose.
        together: a failure stops all tasks.
        say: is called with a line about each task that starts or ends.
        watch: is called a few times a second with the running tasks and their activities.

    Raises:
        KeyboardInterrupt: after the running commands were told to stop, and have ended.
    """
    environment = {PROCESSES_HERE: str(len(slots)), WAITING: os.environ.get(WAITING, "PASSIVE")}
    environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    outcome, waiting, free, running = Outcome(), list(tasks), list(slots), list[_Running]()
    try:
        while waiting or running:
            for task in list(waiting):
                if task.after in outcome.failed or task.after in outcome.blocked:
                    outcome.blocked[task.name] = str(task.after)
                elif task.after is not None and task.after not in outcome.seconds:
                    continue
                elif not task.commands:
                    outcome.seconds[task.name] = 0.0
                    say(f"{task.name}: already done")
                elif free:
                    running.append(_begin(task, free.pop(0), environment))
                    say(f"{task.name}: started")
                else:
                    continue
                waiting.remove(task)
            watch([(job.task, job.activity) for job in running])
            for job in list(running):
                code = job.process.poll()
                if code == 0 and job.waiting:
                    job.activity = job.waiting.pop(0)
                    job.process = _start(job.task, job.activity, job.device, environment)
                elif code is not None:
                    running.remove(job)
                    free.append(job.device)
                    _record(job, code, outcome, say)
            if together and outcome.failed:
                _stop(running)
                break
            time.sleep(POLL_SECONDS)
    except BaseException:  # Ctrl-C, or an error here such as a full disk: no command may outlive this one
        say("stopping; the trainings are saving their states")
        _stop(running)
        raise
    return outcome


def _begin(task: Task, device: str | None, environment: Mapping[str, str]) -> _Running:
    activity, *waiting = task.commands
    return _Running(task, device, time.monotonic(), waiting, activity, _start(task, activity, device, environment))


def last_line(log: Path) -> str:
    """The last line with text in a log, empty if there is none."""
    with contextlib.suppress(OSError), log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - 2000))
        lines = handle.read().decode("utf-8", "replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")
    return ""


def visible_device(number: int) -> str:
    """How another process names this one's device cuda:`number`: this one may see only some of the machine's."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return str(number) if visible is None else visible.split(",")[number].strip()


def _start(task: Task, activity: str, device: str | None, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **environment}
    if device is not None and device.startswith("cuda:"):  # the only visible one, so it is chosen
        environment["CUDA_VISIBLE_DEVICES"] = visible_device(int(device.removeprefix("cuda:")))
    with task.log.open("ab") as log:
        return subprocess.Popen(
            task.commands[activity],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only this process, which then stops the commands
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _die_with_parent() -> None:
    """Have the kernel send SIGTERM to the command when this process dies, so that trainings save and stop."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _record(job: _Running, code: int, outcome: Outcome, say: Callable[[str], None]) -> None:
    seconds, task = time.monotonic() - job.start, job.task
    if code == 0 or (code == 1 and not job.waiting and task.check()):
        outcome.seconds[task.name] = seconds
        say(f"{task.name}: done in {seconds / 60:.1f} min")
    else:
        outcome.failed[task.name] = code
        reason = last_line(task.log) or f"exit {code}"
        say(f"{task.name}: failed in {job.activity} ({reason}); its output is in {task.log}")


def _stop(running: Sequence[_Running]) -> None:
    for job in running:
        job.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for job in running:
        try:
            job.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()

"""Commands in parallel: their order, what they wait for, what a failure stops, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fewsight.machine import jobs
from fewsight.machine.jobs import Outcome, Task, last_line, run_tasks


@pytest.fixture(autouse=True)
def polls_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)


def python(code: str, *arguments: object) -> list[str]:
    """A command; the code sees its arguments as sys.argv[1:]."""
    return [sys.executable, "-c", f"import os, sys, time\n{code}", *map(str, arguments)]


def noted(folder: Path, name: str, code: str = "", ending: int = 0) -> list[str]:
    """A command that writes its name to the file `order`, and exits."""
    return python(f"open(sys.argv[1], 'a').write(sys.argv[2] + '\\n')\n{code}\nsys.exit({ending})",
                  folder / "order", name)  # fmt: skip


def order(folder: Path) -> list[str]:
    """The names that commands wrote."""
    file = folder / "order"
    return file.read_text().split() if file.exists() else []


def run(tasks: Sequence[Task], count: int = 1) -> tuple[Outcome, list[str]]:
    """The outcome and the lines that were printed."""
    said: list[str] = []
    return run_tasks(tasks, [None] * count, say=said.append), said


def simple_task(folder: Path, name: str, after: str | None = None, *, code: str = "", ending: int = 0) -> Task:
    """A task with one command, which writes its name."""
    return Task(name, {"training": noted(folder, name, code, ending)}, folder / f"{name}.log", after)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


# Order


def test_tasks_run_in_their_order(tmp_path: Path) -> None:
    outcome, said = run([simple_task(tmp_path, name) for name in "abc"])
    assert order(tmp_path) == ["a", "b", "c"]
    assert list(outcome.seconds) == ["a", "b", "c"]
    assert (outcome.failed, outcome.blocked) == ({}, {})
    assert [line.split(" in ")[0] for line in said] == [
        "a: started", "a: done", "b: started", "b: done", "c: started", "c: done"]  # fmt: skip


def test_task_waits_for_the_one_that_it_depends_on(tmp_path: Path) -> None:
    """Also if a slot is free, and if it comes first in the list."""
    slow = simple_task(
        tmp_path, "slow", code="time.sleep(0.3)\nopen('ended', 'w')".replace("ended", str(tmp_path / "ended"))
    )
    needs = simple_task(tmp_path, "needs", "slow", code=f"assert os.path.exists({str(tmp_path / 'ended')!r})")
    outcome, _ = run([needs, slow], 3)
    assert order(tmp_path) == ["slow", "needs"]
    assert outcome.failed == {}
    assert set(outcome.seconds) == {"slow", "needs"}


def test_ready_task_does_not_wait_for_one_that_is_not(tmp_path: Path) -> None:
    until_b = (
        "until = time.monotonic() + 30\n"
        "while 'b' not in open(sys.argv[1]).read().split(): assert time.monotonic() < until; time.sleep(0.01)"
    )
    outcome, _ = run(
        [simple_task(tmp_path, "a", code=until_b), simple_task(tmp_path, "a2", "a"), simple_task(tmp_path, "b")], 2
    )
    assert outcome.failed == {}
    assert sorted(order(tmp_path)[:2]) == ["a", "b"]
    assert order(tmp_path)[2:] == ["a2"]


def meeting(folder: Path, name: str, seconds: float) -> Task:
    """A task that waits for another one to run at the same time, and exits with 7 if there is one."""
    code = (
        "folder, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])\n"
        "open(f'{folder}/{name}.here', 'w').close()\n"
        "met, until = False, time.monotonic() + seconds\n"
        "while not met and time.monotonic() < until:\n"
        "    met = any(file.endswith('.here') and file != f'{name}.here' for file in os.listdir(folder))\n"
        "    time.sleep(0.01)\n"
        "if met: sys.exit(7)\n"  # without removing the file, which the other task must still see
        "os.remove(f'{folder}/{name}.here')"
    )
    return Task(name, {"testing": python(code, folder, name, seconds)}, folder / f"{name}.log")


def test_two_tasks_run_in_parallel(tmp_path: Path) -> None:
    outcome, _ = run([meeting(tmp_path, "a", 30), meeting(tmp_path, "b", 30)], 2)
    assert outcome.failed == {"a": 7, "b": 7}, "7: it met the other task"


def test_a_single_slot_runs_one_task_at_a_time(tmp_path: Path) -> None:
    outcome, _ = run([meeting(tmp_path, name, 0.2) for name in "abc"], 1)
    assert outcome.failed == {}
    assert list(outcome.seconds) == ["a", "b", "c"]


def test_no_more_run_than_there_are_slots(tmp_path: Path) -> None:
    seen_running: list[list[str]] = []
    tasks = [simple_task(tmp_path, str(number), code="time.sleep(0.1)") for number in range(6)]
    run_tasks(
        tasks,
        [None, None],
        say=lambda text: None,
        watch=lambda running: seen_running.append([task.name for task, _ in running]),
    )
    assert max(map(len, seen_running)) == 2
    assert sorted(order(tmp_path)) == [str(number) for number in range(6)]


def test_commands_of_a_task_run_one_after_the_other(tmp_path: Path) -> None:
    """A second task does not come between them."""
    both = {"training": noted(tmp_path, "a-train", "time.sleep(0.1)"), "testing": noted(tmp_path, "a-test")}
    activities: list[str] = []
    outcome = run_tasks(
        [Task("a", both, tmp_path / "a.log"), simple_task(tmp_path, "b")],
        [None],
        say=lambda text: None,
        watch=lambda running: activities.extend(f"{task.name} {activity}" for task, activity in running),
    )
    assert order(tmp_path) == ["a-train", "a-test", "b"]
    assert list(dict.fromkeys(activities)) == ["a training", "a testing", "b training"]
    assert outcome.seconds["a"] >= 0.1


def test_tasks_without_commands_are_already_done(tmp_path: Path) -> None:
    outcome, said = run([Task("a", {}, tmp_path / "a.log"), simple_task(tmp_path, "b", "a")])
    assert said[0] == "a: already done"
    assert outcome.seconds["a"] == 0
    assert order(tmp_path) == ["b"]
    assert not (tmp_path / "a.log").exists()


def test_no_tasks_give_an_empty_outcome(tmp_path: Path) -> None:
    assert run([]) == (Outcome(), [])


# Failures


def test_failed_task_is_named_and_stops_only_what_depends_on_it(tmp_path: Path) -> None:
    tasks = [
        simple_task(tmp_path, "a", code="print('out of luck'); print('  ')", ending=2),
        simple_task(tmp_path, "b"),
        simple_task(tmp_path, "a2", "a"),
        simple_task(tmp_path, "a3", "a2"),
        simple_task(tmp_path, "b2", "b"),
    ]
    outcome, said = run(tasks)
    assert order(tmp_path) == ["a", "b", "b2"]
    assert outcome.failed == {"a": 2}
    assert outcome.blocked == {"a2": "a", "a3": "a2"}
    assert list(outcome.seconds) == ["b", "b2"]
    assert f"a: failed in training (out of luck); its output is in {tmp_path / 'a.log'}" in said


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_failure_stops_all_tasks_that_belong_together(tmp_path: Path) -> None:
    waits = f"while not os.path.exists({str(tmp_path / 'a.ready')!r}): time.sleep(0.01)"
    tasks = [
        Task("a", {"training": python(TRAPS, tmp_path / "a")}, tmp_path / "a.log"),
        simple_task(tmp_path, "b", code=waits, ending=2),
        simple_task(tmp_path, "c"),
    ]
    outcome = run_tasks(tasks, [None, None], together=True, say=lambda text: None)
    assert (outcome.failed, outcome.seconds) == ({"b": 2}, {})
    assert (tmp_path / "a.saved").exists(), "it was told to stop, and waited for"
    assert order(tmp_path) == ["b"], "no other task is started"


def test_failure_ends_a_task_before_its_next_command(tmp_path: Path) -> None:
    commands = {"training": noted(tmp_path, "train", ending=1), "testing": noted(tmp_path, "test")}
    outcome, said = run([Task("a", commands, tmp_path / "a.log", check=lambda: True)])
    assert order(tmp_path) == ["train"]
    assert outcome.failed == {"a": 1}, "only the last command may end with findings"
    assert any(line.startswith("a: failed in training (exit 1)") for line in said)


@pytest.mark.parametrize(
    ("ending", "check", "failed"), [(1, True, False), (1, False, True), (2, True, True), (130, True, True)]
)
def test_exit_code_1_counts_as_success_if_the_work_is_done(
    ending: int, check: bool, failed: bool, tmp_path: Path
) -> None:
    task = Task("a", {"testing": noted(tmp_path, "a", ending=ending)}, tmp_path / "a.log", check=lambda: check)
    outcome, _ = run([task, simple_task(tmp_path, "b", "a")])
    assert outcome.failed == ({"a": ending} if failed else {})
    assert order(tmp_path) == (["a"] if failed else ["a", "b"])


def test_killed_command_has_failed(tmp_path: Path) -> None:
    outcome, said = run([simple_task(tmp_path, "a", code=f"os.kill(os.getpid(), {int(signal.SIGKILL)})")])
    assert outcome.failed == {"a": -signal.SIGKILL}
    assert any(line.startswith("a: failed in training (exit -9)") for line in said)


# The environment of a command


def environment_of(folder: Path, slots: Sequence[str | None], threads: int | None, count: int) -> list[str]:
    """OMP_NUM_THREADS and CUDA_VISIBLE_DEVICES as seen by commands that run at the same time."""
    code = (
        f"waited = sys.argv[1]; open(waited + str(os.getpid()) + '.here', 'w')\n"
        f"while sum(f.endswith('.here') for f in os.listdir(os.path.dirname(waited))) < {count}: time.sleep(0.01)\n"
        "print(os.environ.get('OMP_NUM_THREADS'), os.environ.get('CUDA_VISIBLE_DEVICES'))"
    )
    tasks = [
        Task(f"{number}", {"training": python(code, folder / "x")}, folder / f"{number}.log") for number in range(count)
    ]
    assert run_tasks(tasks, slots, threads=threads, say=lambda text: None).failed == {}
    return [task.log.read_text().strip() for task in tasks]


def test_device_and_threads_reach_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environments = environment_of(tmp_path, ["cuda:0", "cuda:13"], 3, 2)
    assert environments == ["3 0", "3 13"]
    assert os.environ["OMP_NUM_THREADS"] == "9"


@pytest.mark.parametrize(("visible", "expected"), [("2,3", ["2", "3"]), ("GPU-a1, GPU-b2 ,7", ["GPU-a1", "GPU-b2"])])
def test_devices_are_those_that_this_process_was_given(
    visible: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler that gave this process GPUs 2 and 3 has given the others to someone else."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environments = environment_of(tmp_path, ["cuda:0", "cuda:1"], 1, 2)
    assert environments == [f"1 {name}" for name in expected]


@pytest.mark.parametrize("device", [None, "cpu", "mps"])
def test_device_and_threads_that_are_not_set_are_left_to_the_command(
    device: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment_of(tmp_path, [device], None, 1) == ["9 None"]


@pytest.mark.parametrize(("own", "seen"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_leave_the_cores_to_the_other_commands(
    own: str | None, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    task = Task("a", {"training": python("print(os.environ['OMP_WAIT_POLICY'])")}, tmp_path / "a.log")
    run_tasks([task], [None], say=lambda text: None)
    assert task.log.read_text() == f"{seen}\n"


def test_device_is_passed_to_the_next_task(tmp_path: Path) -> None:
    code = "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['LOCAL_WORLD_SIZE'])"
    tasks = [Task(str(number), {"training": python(code)}, tmp_path / f"{number}.log") for number in range(3)]
    run_tasks(tasks, ["cuda:4"], say=lambda text: None)
    assert [task.log.read_text() for task in tasks] == ["4 1\n"] * 3


def test_log_keeps_the_output_of_earlier_tries(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("the first time\n")
    code = "print(sys.stdin.read() + 'out', flush=True); print('err', file=sys.stderr)"
    run([Task("a", {"training": python(code)}, log)])
    assert log.read_text() == "the first time\nout\nerr\n"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"one\ntwo\n\n", "two"),
        (b"one\ntwo", "two"),
        (b"x\n" * 5000 + b"end\n", "end"),
        (b"caf\xc3\xa9 \xff\n", "café �"),
    ],
)
def test_last_line_is_the_last_with_text(data: bytes, line: str, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(data)
    assert last_line(tmp_path / "a.log") == line
    assert last_line(tmp_path / "none.log") == ""


# Ctrl-C


TRAPS = (  # like a training: it saves its state, then exits
    "import signal\n"
    "def stop(number, frame):\n"
    "    time.sleep(0.2)\n"
    "    open(sys.argv[1] + '.saved', 'w').close()\n"
    "    sys.exit(143)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "open(sys.argv[1] + '.ready', 'w').close()\n"
    "time.sleep(60)"
)
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


def interrupt_when(condition: Callable[[], bool]) -> Callable[[Sequence[tuple[Task, str]]], None]:
    def watch(running: Sequence[tuple[Task, str]]) -> None:
        if condition():
            raise KeyboardInterrupt(signal.SIGINT)

    return watch


@posix
def test_interrupt_waits_until_all_have_saved(tmp_path: Path) -> None:
    tasks = [Task(name, {"training": python(TRAPS, tmp_path / name)}, tmp_path / f"{name}.log") for name in "abc"]
    said: list[str] = []
    ready = interrupt_when(lambda: len(list(tmp_path.glob("*.ready"))) == 2)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as raised:
        run_tasks(tasks, [None, None], say=said.append, watch=ready)
    assert raised.value.args == (signal.SIGINT,)
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["a.saved", "b.saved"]
    assert not (tmp_path / "c.log").exists(), "no other task is started"
    assert said[-1] == "stopping; the trainings are saving their states"
    assert time.monotonic() - began < 30


@posix
def test_command_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "GRACE_SECONDS", 0.2)
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    pid = tmp_path / "pid"
    task = Task("a", {"training": python(code, pid)}, tmp_path / "a.log")
    with pytest.raises(KeyboardInterrupt):
        run_tasks(
            [task],
            [None],
            say=lambda text: None,
            watch=interrupt_when(lambda: pid.exists() and bool(pid.read_text())),
        )
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a child when its parent dies")
def test_killed_parent_leaves_no_command_behind(tmp_path: Path) -> None:
    child = python(TRAPS, tmp_path / "a")
    code = (
        "from pathlib import Path; from runpy import run_path\n"
        f"Task, run_tasks = (run_path({jobs.__file__!r})[name] for name in ('Task', 'run_tasks'))\n"  # without torch
        "run_tasks([Task('a', {'training': sys.argv[2:]}, Path(sys.argv[1]))], [None], say=lambda text: None)"
    )
    with subprocess.Popen(python(code, tmp_path / "a.log", *child)) as parent:
        wait_for(lambda: (tmp_path / "a.ready").exists())
        parent.kill()
    wait_for(lambda: (tmp_path / "a.saved").exists())

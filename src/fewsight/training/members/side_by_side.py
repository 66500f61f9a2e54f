"""Train an ensemble's members, each in a process of its own, and write the ensemble."""

import signal
import sys
import time
from collections.abc import Sequence

from rich.console import Console

from fewsight import runs
from fewsight.data.training_set import TrainingSet
from fewsight.errors import Interrupted, RecipeError, RunError
from fewsight.machine import files, locks
from fewsight.machine.device import member_devices
from fewsight.machine.jobs import GRACE_SECONDS, POLL_SECONDS, Task, last_line, run_tasks
from fewsight.machine.signals import signals_that_stop
from fewsight.recipes import Recipe
from fewsight.runs import Run
from fewsight.training.members.folder import create_members, member_paths
from fewsight.training.members.progress import MembersProgress
from fewsight.training.members.scores import finish_ensemble
from fewsight.training.plans import batch_plan
from fewsight.training.reporters import ReporterFactory
from fewsight.training.tensorboard import TensorBoard
from fewsight.wording import counted, shell_command


def may_have_members(processes: int, reporters: Sequence[ReporterFactory]) -> bool:
    """Whether a training can have members, which train in processes of their own; see `check_members`."""
    return processes == 1 and all(make is TensorBoard for make in reporters)


def check_members(recipe: Recipe, processes: int, reporters: Sequence[ReporterFactory]) -> None:
    """Refuse what members, which train in processes of their own, cannot have.

    Args:
        recipe: of the training.
        processes: that share each batch.
        reporters: beside the terminal's.

    Raises:
        RecipeError: it has members, and several processes or reporters other than TensorBoard.
    """
    if recipe.run.members == 1 or may_have_members(processes, reporters):
        return
    own = f"run.members = {recipe.run.members}: members train in processes of their own"
    if processes > 1:
        raise RecipeError(f"{own}; start the command without torchrun, or set run.members = 1")
    raise RecipeError(
        f"{own}, which reporters of this process do not see; leave them out (the members' log.jsonl have every epoch), "
        "or set run.members = 1"
    )


def train_members(run: Run, images: TrainingSet, console: Console, options: Sequence[str] = ()) -> Run:
    """Train those members of an ensemble that are not finished, and write the ensemble.

    Args:
        run: its folder; another process must not be training it.
        images: its training images.
        console: prints progress.
        options: for the command that trains each member.

    Returns:
        The finished ensemble.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the members have saved their states.
        RunError: a member failed; the others have saved their states.
    """
    runs.update_info(run, kind="ensemble", members={path.name: str(path.resolve()) for path in member_paths(run)})
    members = create_members(run)
    if unfinished := [member for member in members if not member.finished]:
        _train(run, members, unfinished, images, console, options)
    return finish_ensemble(run)


def _train(
    run: Run,
    members: Sequence[Run],
    unfinished: Sequence[Run],
    images: TrainingSet,
    console: Console,
    options: Sequence[str],
) -> None:
    logs, recipe = run.path / "logs", run.recipe
    files.make_folder(logs)
    slots, threads = member_devices(recipe.run)[: len(unfinished)], recipe.run.threads
    assert threads != "auto", "the recipe is resolved"
    some = "" if len(unfinished) == len(members) else f"{len(unfinished)} of "
    console.print(
        f"{some}{counted(len(members), 'member')} to train, {len(slots)} at a time with {counted(threads, 'thread')} "
        f"each; what they print is in {logs}"
    )
    tasks = [
        Task(member.path.name, {"training": _command(run, member, options)}, logs / f"{member.path.name}.log")
        for member in unfinished
    ]
    steps = [
        [
            batch_plan(member.recipe, stage, images).num_steps
            for stage in member.recipe.stages
            for _ in range(stage.epochs)
        ]
        for member in members
    ]
    progress = MembersProgress(console, [member.path for member in members], steps)
    again = shell_command(["fewsight", "train", "--resume", str(run.path)])
    with signals_that_stop() as stop:

        def watch(_running: Sequence[tuple[Task, str]]) -> None:
            if stop.signal_number:
                raise KeyboardInterrupt(stop.signal_number)
            progress.look()

        try:
            progress.start()
            _wait_for_others(unfinished)
            outcome = run_tasks(tasks, slots, threads=threads, together=True, say=lambda text: None, watch=watch)
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"interrupted; the states of the members are saved. Continue with: {again}",
                error.args[0] if error.args else signal.SIGINT,
            ) from error
        finally:
            progress.close()
    for task in tasks:
        if task.name in outcome.failed:
            code = outcome.failed[task.name]
            reason = f"killed by signal {-code}" if code < 0 else last_line(task.log).removeprefix("fewsight: ")
            raise RunError(
                f"{run.path}: {task.name} failed ({reason}); its output is in {task.log}. The others have saved their "
                f"states. To go on: {again}"
            )


def _command(run: Run, member: Run, options: Sequence[str]) -> list[str]:
    """The command that trains a member to its end; it finds the data where the ensemble's are."""
    data = [run.data.source] if member.data.source != run.data.source else []
    return [sys.executable, "-m", "fewsight", "train", *data, "--resume", str(member.path), *options]


def _wait_for_others(members: Sequence[Run]) -> None:
    """Wait until the members of a training whose process was killed have saved their states."""
    deadline = time.monotonic() + GRACE_SECONDS
    while any(locks.is_locked(member.path) for member in members) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)

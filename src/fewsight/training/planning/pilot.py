"""A few real training steps in the way that the training will run: all members side by side, beside other programs.

The members are processes of their own, as in the training. Their steps show the time that a step really takes, and what
part of its cores each gets.
"""

import contextlib
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fewsight.data.prepare import Prepared
from fewsight.errors import RecipeError
from fewsight.machine.device import compute_threads
from fewsight.recipes import Recipe
from fewsight.training.planning.probe import training_steps

MIN_STEPS = 3
BUSY = 0.75  # of a core's time; a thread that gets less shares the core with other programs
READY, GO = b"ready\n", b"go\n"


@dataclass(frozen=True)
class Steps:
    """Steps that were timed."""

    seconds: tuple[float, ...]  # of each member's step with its loading, in wall time
    core_proportion: float  # of the time of its threads that a member had for itself; 1 where it cannot be told

    @property
    def busy(self) -> bool:
        """Whether other programs take a part of the cores."""
        return self.core_proportion < BUSY


def pilot(recipes: Sequence[Recipe], prepared: Prepared, seconds: float) -> Steps:
    """Time steps of members side by side.

    Args:
        recipes: resolved, of each member.
        seconds: time after which no further step starts; each member takes `MIN_STEPS` at least.

    Raises:
        RecipeError: a member could not take its steps.
    """
    one = len(recipes) == 1
    timed = [_timed(recipes[0], prepared, seconds)] if one else _side_by_side(recipes, prepared, seconds)
    return Steps(tuple(each for each, _ in timed), min(proportion for _, proportion in timed))


def _timed(
    recipe: Recipe, prepared: Prepared, seconds: float, started: Iterator[None] | None = None
) -> tuple[float, float]:
    """Seconds of this process's steps, and the proportion of a core that it had.

    `started` is passed between the first step, which chooses kernels, and the others.
    """
    assert recipe.run.threads != "auto", "the settings are resolved"
    with compute_threads(recipe.run.threads):
        steps = training_steps(recipe, prepared)
        next(steps)
        if started is not None:
            next(started, None)
        began, cores_began, count = time.perf_counter(), time.process_time(), 0
        for count, _ in enumerate(steps, 1):
            if count >= MIN_STEPS and time.perf_counter() - began > seconds:
                break
        wall, core = time.perf_counter() - began, time.process_time() - cores_began
    on_one_core = recipe.run.device == "cpu" and recipe.run.threads == 1  # else waiting looks like sharing
    return wall / max(1, count), min(1.0, core / wall) if on_one_core else 1.0


def _side_by_side(recipes: Sequence[Recipe], prepared: Prepared, seconds: float) -> list[tuple[float, float]]:
    """Each member in a process of its own; all begin to count when the last has taken its first step."""
    command = [sys.executable, "-c", f"from {__name__} import main; main()"]
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in recipes:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            stack.callback(process.kill)
            stack.enter_context(process)
            processes.append(process)
        try:
            for process, recipe in zip(processes, recipes, strict=True):
                assert process.stdin is not None
                process.stdin.write(pickle.dumps((recipe, prepared, seconds)))
                process.stdin.flush()
            ready = [process.stdout is not None and process.stdout.readline() == READY for process in processes]
            if not all(ready):
                raise RecipeError("a process that should time training steps could not start; its error stands above")
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(GO)
                process.stdin.flush()
            return [_answer(process) for process in processes]
        except (BrokenPipeError, EOFError) as error:
            raise RecipeError("a process that timed training steps has ended; its error stands above") from error


def _answer(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    assert process.stdout is not None
    seconds, proportion = pickle.load(process.stdout)
    return float(seconds), float(proportion)


def main() -> None:
    """A member of the pilot: its task comes on standard input, its steps go to standard output."""
    answer = sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may be written there
    recipe, prepared, seconds = pickle.load(sys.stdin.buffer)

    def wait() -> Iterator[None]:
        answer.write(READY)
        answer.flush()
        sys.stdin.buffer.readline()
        yield

    answer.write(pickle.dumps(_timed(recipe, prepared, seconds, wait())))
    answer.flush()

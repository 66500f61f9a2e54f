"""What is compared: each side is a command that trains on a set within a budget and writes probabilities.

A side's command is run with its budget in core-seconds, one thread for each core it may use and passive waiting. It
ends with `probs.csv` in its folder: a row an image, `path,label,prob,label2,prob2,...`, as `fewsight predict` writes
it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.accuracy.sets import DataSet

PROBS = "probs.csv"
MANY = "1000000"  # classes in a row: all of them


@dataclass(frozen=True)
class Job:
    """One training: a set, a seed, a budget, and the split that is scored afterwards."""

    data_set: DataSet
    data: Path
    seed: int
    budget: float  # core-seconds
    cores: int
    split: str
    folder: Path  # of this side's run; kept

    @property
    def hours(self) -> float:
        """The budget as wall time on `cores` cores that are otherwise idle."""
        return self.budget / self.cores / 3600

    @property
    def train(self) -> Path:
        """The folder with train/ and val/."""
        return self.data / self.data_set.folder

    @property
    def images(self) -> Path:
        """The folder of class folders that is scored."""
        return self.data_set.images(self.data, self.split)


@dataclass(frozen=True)
class Side:
    """Commands, one after the other; only the first counts towards the budget, the others score."""

    name: str
    commands: Callable[[Job], list[list[str]]]
    environment: dict[str, str] = field(default_factory=dict)


def fewsight(
    name: str, python: str = sys.executable, source: str = "", plan: str = "", sets: tuple[str, ...] = ()
) -> Side:
    """`fewsight train` by its default recipe, of this checkout or of another.

    Args:
        python: the interpreter, of an environment that has the other checkout's dependencies.
        source: the other checkout's `src`.
        plan: a folder with SET.toml, recipes that are repeated instead of planning anew.
        sets: KEY=VALUE on top.
    """

    def commands(job: Job) -> list[list[str]]:
        run = str(job.folder / "run")
        how = ["--recipe", f"{plan}/{job.data_set.name}.toml"] if plan else ["--hours", f"{job.hours:.5f}"]
        values = [word for value in (f"run.seed={job.seed}", *sets) for word in ("--set", value)]
        train = [python, "-m", "fewsight", "train", str(job.train), "--out", run, *how, *values]
        score = [python, "-m", "fewsight", "predict", run, str(job.images), "--out", str(job.folder / PROBS)]
        return [train, [*score, "--top-k", MANY]]

    return Side(name, commands, {"PYTHONPATH": source} if source else {})


def script(name: str, module: str, *more: str) -> Side:
    """A peer of this folder: a script that trains, scores and writes the rows itself."""

    def commands(job: Job) -> list[list[str]]:
        command = [sys.executable, "-m", f"benchmarks.accuracy.{module}", str(job.train), "--test", str(job.images)]
        command += ["--px", str(job.data_set.px), "--seed", str(job.seed), "--budget", str(job.budget)]
        return [[*command, "--threads", str(job.cores), "--out", str(job.folder / PROBS), *more]]

    return Side(name, commands)


SIDES = {
    side.name: side
    for side in (
        fewsight("fewsight"),
        script("resnet18", "peer_resnet18", "--px", "64"),
        script("timm-resnet18", "peer_timm", "--model", "resnet18"),
        script("timm-resnest14d", "peer_timm", "--model", "resnest14d", "--ema", "0.99"),
        script("ridge", "peer_ridge"),
    )
}

"""What is compared: each side is a command that trains on a set within a budget and writes probabilities.

A side's command is run with its budget in core-seconds, one thread for each core it may use and passive waiting. It
ends with `probs.csv` in its folder: a row an image, `path,label,prob,label2,prob2,...`, as `fewsight predict` writes
it. A peer is two sides, PEER/SETTING: the two settings that a sensible person would try.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.accuracy.sets import DataSet

PROBS = "probs.csv"
MANY = "1000000"  # classes in a row: all of them
FLOAT32 = ("run.precision=float32",)  # as the peers


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

    @property
    def merges_val(self) -> bool:
        """Whether val is trained on too."""
        return self.data_set.merge_val and self.split == "devtest"

    @property
    def plan(self) -> str:
        """Where a folder of plans has the one for this set and budget."""
        return f"{self.budget:g}s/{self.data_set.name}{'-merged' if self.merges_val else ''}.toml"


@dataclass(frozen=True)
class Side:
    """Commands, one after the other; only the first counts towards the budget, the others score."""

    name: str
    commands: Callable[[Job], list[list[str]]]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def peer(self) -> str:
        """The peer whose setting this is; the side itself where it has one setting only."""
        return self.name.partition("/")[0]


def fewsight(
    name: str, python: str = sys.executable, source: str = "", plans: str = "", sets: tuple[str, ...] = ()
) -> Side:
    """`fewsight train` by its default recipe, of this checkout or of another.

    Args:
        python: the interpreter, of an environment that has the other checkout's dependencies.
        source: the other checkout's `src`.
        plans: a folder that `python -m benchmarks.accuracy plan` wrote: they are repeated instead of planning anew.
        sets: KEY=VALUE on top.
    """

    def commands(job: Job) -> list[list[str]]:
        run = str(job.folder / "run")
        how = ["--recipe", f"{plans}/{job.plan}"] if plans else ["--hours", f"{job.hours:.6f}"]
        how += ["--merge-val"] if job.merges_val else []
        values = [word for value in (f"run.seed={job.seed}", *FLOAT32, *sets) for word in ("--set", value)]
        train = [python, "-m", "fewsight", "train", str(job.train), "--out", run, *how, *values]
        score = [python, "-m", "fewsight", "predict", run, str(job.images), "--out", str(job.folder / PROBS)]
        return [train, [*score, "--top-k", MANY]]

    return Side(name, commands, {"PYTHONPATH": source} if source else {})


def script(name: str, module: str, *more: str, python: str = sys.executable) -> Side:
    """A peer of this folder: a script that trains, scores and writes the rows itself."""

    def commands(job: Job) -> list[list[str]]:
        data = joined(job) if job.merges_val else job.train
        command = [python, "-m", f"benchmarks.accuracy.{module}", str(data), "--test", str(job.images)]
        command += ["--px", str(job.data_set.px), "--seed", str(job.seed), "--budget", str(job.budget)]
        return [[*command, "--threads", str(job.cores), "--out", str(job.folder / PROBS), *more]]

    return Side(name, commands)


def joined(job: Job) -> Path:
    """A folder whose train/ links to the images of the set's train/ and val/."""
    target = job.folder / "train-and-val"
    for part in ("train", "val"):
        for path in (job.train / part).glob("*/*"):
            link = target / "train" / path.parent.name / f"{part}-{path.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path.resolve())
    return target


def all_sides(fastai: str = sys.executable) -> dict[str, Side]:
    """By name; `fastai`: the interpreter of the environment that has it."""
    resnest = ("--model", "resnest14d", "--ema", "0.99")
    sides = (
        fewsight("fewsight"),
        script("resnet18/lr2e-3", "peer_resnet18", "--px", "64", "--lr", "2e-3"),
        script("resnet18/lr1e-3", "peer_resnet18", "--px", "64", "--lr", "1e-3"),
        script("timm-resnet18/strong", "peer_timm", "--model", "resnet18"),
        script("timm-resnet18/light", "peer_timm", "--model", "resnet18", "--light"),
        script("timm-resnest14d/strong", "peer_timm", *resnest),
        script("timm-resnest14d/light", "peer_timm", *resnest, "--light"),
        script("fastai/xse_resnext50", "peer_fastai", "--arch", "xse_resnext50", python=fastai),
        script("fastai/xresnet18", "peer_fastai", "--arch", "xresnet18", python=fastai),
        script("ridge/grid", "peer_ridge", "--features", "grid"),
        script("ridge/whole", "peer_ridge", "--features", "whole"),
    )
    return {side.name: side for side in sides}

"""The runs below a folder with their status and accuracy."""

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewsight import runs
from fewsight.errors import FewsightError, RunError
from fewsight.machine import locks
from fewsight.recipes import Recipe
from fewsight.runs import Run, RunInfo
from fewsight.scores.entries import is_ensemble
from fewsight.scores.fusion import correct_top1
from fewsight.scores.metrics import Proportion, read_val_figures, wilson
from fewsight.scores.opening import open_scored
from fewsight.training.members.folder import member_paths
from fewsight.training.members.recipes import variants_of
from fewsight.wording import counted

MAX_DEPTH = 4  # levels of folders to search
TAIL_BYTES = 2**16  # of a log, enough for its last lines
MOST_SCORE_BYTES = 2**28  # of an ensemble's scores that are read for its figure; a list is to be quick
SEED = re.compile(r"seed\d+")  # the names of the runs of `train --seeds`


@dataclass(frozen=True)
class ListedRun:
    """One run or ensemble, its status and its accuracy on val."""

    path: Path
    kind: str  # "run", "ensemble", or why it could not be read
    status: str  # finished; training, epoch 3 of 20; interrupted at epoch 3 of 20
    model: str  # resnest14 at 0.5 width, 32 px; ensemble of 2 runs
    training: str  # the stages: 40 epochs of ce; of an ensemble, its runs
    started: str
    val: Proportion | None


def list_runs(folder: Path) -> list[ListedRun]:
    """The runs and ensembles below a folder, sorted by path; the members of an ensemble are not listed.

    Raises:
        RunError: the folder does not exist, or has no run in it.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; give a folder of runs, such as runs/")
    listed = [_listed(path) for path in _run_folders(folder, MAX_DEPTH)]
    if not listed:
        raise RunError(f"{folder} holds no run (a folder with a run.json) within {MAX_DEPTH} levels of folders")
    return listed


def seed_groups(listed: Sequence[ListedRun]) -> dict[Path, tuple[float, float, int]]:
    """Mean and standard deviation of top-1 on val, and the number of runs, for each folder of `train --seeds`."""
    top1: dict[Path, list[float]] = {}
    for run in listed:
        if SEED.fullmatch(run.path.name) and run.val is not None:
            top1.setdefault(run.path.parent, []).append(run.val.value)
    return {
        path: (statistics.mean(values), statistics.stdev(values), len(values))
        for path, values in top1.items()
        if len(values) > 1
    }


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "run.json").is_file():
        yield folder
        return
    if depth:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
                yield from _run_folders(path, depth - 1)


def _listed(path: Path) -> ListedRun:
    try:
        if is_ensemble(path) and not (path / "recipe.toml").is_file():  # else its members are trainings of a recipe
            info = runs.read_info(path)
            model, (val, chosen) = f"ensemble of {counted(len(info.members), 'run')}", _val_of(path)
            names = ", ".join(info.members) + ", the epochs that were best on val" * chosen
            return ListedRun(path, "ensemble", "finished", model, names, _started(info), val)
        return _run(runs.read_run(path))
    except FewsightError as error:
        return ListedRun(path, str(error).removeprefix(f"{path}"), "cannot be read", "", "", "", None)


def _run(run: Run) -> ListedRun:
    variants = variants_of(run.recipe)
    members = f", {counted(run.recipe.run.members, 'member')}" if run.recipe.run.members > 1 else ""
    val = read_val_figures(run.path) if (run.path / "metrics.json").is_file() else None
    return ListedRun(
        run.path,
        "ensemble" if members else "run",
        "finished" if run.finished else _unfinished(run),
        " + ".join(dict.fromkeys(map(_model, variants))) + members,
        "; ".join(dict.fromkeys(map(_stages, variants))),
        _started(run.info),
        None if val is None else val.top1,
    )


def _model(recipe: Recipe) -> str:
    """`resnest14 at 0.5 width, 64 px`."""
    model = recipe.model
    width = "" if model.width == 1 else f" at {model.width:g} width"
    return f"{model.backbone}{width}, {recipe.augment.train_px} px"


def _stages(recipe: Recipe) -> str:
    """`40 epochs of ce, then 10 epochs of ce+triplet`."""
    stages = ", then ".join(f"{counted(stage.epochs, 'epoch')} of {stage.loss}" for stage in recipe.stages)
    return stages + (", the epoch that was best on val" if recipe.run.select == "best" else "")


def _unfinished(run: Run) -> str:
    """How far a run is, and whether a process is training it (only the lock tells: run.json outlives it)."""
    epochs = [_epoch(path) for path in (member_paths(run) if run.recipe.run.members > 1 else [run.path])]
    epoch = None if epochs == [None] * len(epochs) else ", ".join(str(epoch or 0) for epoch in epochs)
    totals = dict.fromkeys(sum(stage.epochs for stage in recipe.stages) for recipe in variants_of(run.recipe))
    total = ", ".join(map(str, totals))
    at = "before its first step" if epoch is None else f"at epoch {epoch} of {total}"
    if locks.is_locked(run.path) is False:
        return f"interrupted {at}"
    return "training" if epoch is None else f"training, epoch {epoch} of {total}"


def _epoch(path: Path) -> int | None:
    """The epoch in which a run is; None before its first step."""
    lines = runs.read_log(path, tail_bytes=TAIL_BYTES)
    return next((line.epoch for line in reversed(lines) if line.epoch is not None), None)


def _val_of(path: Path) -> tuple[Proportion | None, bool]:
    """An ensemble's top-1 by the kept scores of val, and whether the epoch of a run's weights was chosen on it.

    The former is None without scores, or on images that were trained on.
    """
    try:
        scored = open_scored(path, "val")
        size = sum(result.store.about.count * result.store.about.image_bytes for result in scored.weights)
        if size > MOST_SCORE_BYTES or scored.trained_on.any():
            return None, False
        (found,) = correct_top1([scored.weights])
    except RunError:
        return None, False
    return wilson(int(found.sum()), len(found)), bool(scored.chose_weights.any())


def _started(info: RunInfo) -> str:
    return info.started[:16].replace("T", " ")

"""Ensembles as run folders: combined from runs, opened like a run.

E/runs/ holds complete copies of the runs (large files as hard links where the file system allows it), so that an
ensemble can be moved and sent; ensemble.json lists its runs at a test size with their weights.
"""

import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import fewsight
from fewsight import runs
from fewsight.errors import RunError, WriteError
from fewsight.inference.opening import check_classes, open_runs
from fewsight.inference.tested_views import TestedViews, harmless_views, test_sizes
from fewsight.machine import files
from fewsight.recipes import recipe_differences
from fewsight.runs import Run
from fewsight.scores.calibration import MIN_IMAGES, Calibration, calibrate, read_calibrations, write_calibrations
from fewsight.scores.chosen_weights import check_not_trained_on, greedy_weights, parse_weights
from fewsight.scores.entries import EnsembleEntry, Views, is_ensemble, read_entries, read_views, write_entries
from fewsight.scores.members import check_same_images, make_member
from fewsight.scores.opening import open_scored
from fewsight.scores.store import SUFFIX, read_store
from fewsight.wording import first_few, shell_command

MAY_DIFFER = (
    "data.merge_val",
    "data.mean",
    "data.std",
    "run.",
    "eval.every_epochs",
)  # between recipes that count as the same when weights or temperatures are carried over


Parts = Sequence[tuple[Path, Sequence[int]]]  # of a member: run folders, each with test sizes (empty: all)


@dataclass(frozen=True)
class NewEnsemble:
    """An ensemble that was written."""

    entries: tuple[EnsembleEntry, ...]
    views: Views
    reason: str | None  # for its sizes and views, where they were not given
    calibrations: tuple[Calibration, ...]  # fitted on stored scores, if there are enough


def combine(
    members: Sequence[tuple[str, Parts]],
    out: Path,
    *,
    weights: str = "uniform",
    split: str = "val",
    carried_from: Path | None = None,
    views: Literal["auto"] | Views = "auto",
) -> NewEnsemble:
    """Write an ensemble of runs; it has a temperature from the start if its runs have enough scores of `split`.

    Args:
        members: names and parts, see `parse_member`.
        out: the ensemble's folder, which must not exist.
        weights: "uniform" over the runs at a test size; numbers separated by commas, one for each member; or "greedy":
            chosen on the scores that `evaluate` stored of `split`.
        split: whose scores choose views and weights, and fit the temperature.
        carried_from: another ensemble of the same recipes, whose weights and views are used.
        views: that the ensemble uses by default, of runs without given sizes: center: the centre view at the first test
            size; paper: all test sizes, both crops; auto: those that do no harm on `split`, see `harmless_views`.

    Raises:
        RunError: a member is not a run, lacks its weights or has different classes; the weights would be chosen on
            images that were trained on; `out` exists or cannot be written.
    """
    runs.check_new(out, resumable=False)
    chosen = _chosen_views(members, split, views, carried_from)
    parts = [
        part
        for name, paths in members
        for path, sizes in paths
        for part in _expand(name, path, sizes or chosen.sizes.get(path, ()))
    ]
    paths = list(dict.fromkeys(part.path for part in parts))
    runs_by_path = {path: _finished_run(path) for path in paths}
    _check_names([name for name, _ in members])
    for run in runs_by_path.values():
        check_classes(runs_by_path[paths[0]], run)
    _check_sizes(parts, runs_by_path)
    if carried_from is not None:
        part_weights = _carried_weights(carried_from, parts, runs_by_path)
    elif weights == "uniform":
        part_weights = [part.weight for part in parts]
    else:
        greedy = weights == "greedy"
        given = _chosen_weights(members, parts, split, chosen.views) if greedy else parse_weights(weights, len(members))
        totals = {name: sum(part.weight for part in parts if part.member == name) for name, _ in members}
        factors = {name: weight / totals[name] for (name, _), weight in zip(members, given, strict=True)}
        part_weights = [part.weight * factors[part.member] for part in parts]
    names = dict(zip(paths, _folder_names(paths, parts), strict=True))
    entries = tuple(
        EnsembleEntry(part.member, names[part.path], part.px, weight / sum(part_weights))
        for part, weight in zip(parts, part_weights, strict=True)
        if weight
    )
    _write(out, {names[path]: run for path, run in runs_by_path.items()}, entries, chosen.views)
    return NewEnsemble(entries, chosen.views, chosen.reason, _first_temperatures(out, split))


def _first_temperatures(out: Path, split: str) -> tuple[Calibration, ...]:
    """Fit temperatures on stored scores; none without scores that may calibrate.

    Raises:
        WriteError: they cannot be written; the ensemble is removed.
    """
    try:
        return tuple(calibrate(out, split, None))
    except WriteError:
        shutil.rmtree(out, ignore_errors=True)
        raise
    except RunError:
        return ()


def _chosen_views(
    members: Sequence[tuple[str, Parts]], split: str, views: Literal["auto"] | Views, carried_from: Path | None
) -> TestedViews:
    """The sizes of the runs without given sizes, and the views at all sizes."""
    every = [(path, sizes) for _, paths in members for path, sizes in paths]
    own = {path: _finished_run(path) for path, sizes in every if not sizes and not is_ensemble(path)}
    if carried_from is not None and is_ensemble(carried_from):  # anything else is refused with the weights
        return TestedViews({}, read_views(carried_from), None)
    if views == "auto" and own:
        return harmless_views(own, split)
    if views == "center":
        return TestedViews({path: test_sizes(run)[:1] for path, run in own.items()}, "center", None)
    nested = [path for path, _ in every if is_ensemble(path)]
    only_center = views == "auto" and len(nested) == len(every) and all(read_views(path) == "center" for path in nested)
    return TestedViews({}, "center" if only_center else "paper", None)


@dataclass(frozen=True)
class _Part:
    """A run at a test size that is to become part of a member."""

    member: str
    path: Path  # of the run
    px: int
    weight: float  # within its member, not normalised; 1 unless it comes from an ensemble


def _expand(member: str, path: Path, sizes: Sequence[int]) -> list[_Part]:
    """A run at some test sizes (empty: all of them), or all parts of an ensemble with its weights."""
    if not is_ensemble(path):
        return [_Part(member, path, px, 1.0) for px in sizes or test_sizes(_finished_run(path))]
    if sizes:
        raise RunError(f"{path} is an ensemble and is used as a whole; leave out :{','.join(map(str, sizes))}")
    entries = read_entries(path)
    return [_Part(member, path / "runs" / entry.run, entry.px, entry.weight * len(entries)) for entry in entries]


def _finished_run(path: Path) -> Run:
    run = runs.read_run(path)
    runs.require_weights(run)
    return run


def _check_names(names: Sequence[str]) -> None:
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise RunError(f"two members are called {duplicates[0]!r}; name them, for example {duplicates[0]}-2=RUN")


def _folder_names(paths: Sequence[Path], parts: Sequence[_Part]) -> list[str]:
    """A folder name for each run: its member's if it is the member's only run, else its own; numbered if taken."""
    names: list[str] = []
    for path in paths:
        members = {part.member for part in parts if part.path == path}
        only_run = len(members) == 1 and {part.path for part in parts if part.member in members} == {path}
        preferred = Path(members.pop()).name if only_run else ""
        preferred = path.resolve().name if preferred in ("", "..") else preferred
        candidates = itertools.chain([preferred], (f"{preferred}-{number}" for number in itertools.count(2)))
        taken = {name.casefold() for name in names}  # some file systems do not distinguish x and X
        names.append(next(name for name in candidates if name.casefold() not in taken))
    return names


def _check_sizes(parts: Sequence[_Part], runs_by_path: Mapping[Path, Run]) -> None:
    """Check that each run has the test sizes that are used, and that none is used twice.

    Raises:
        RunError: names the run and the size.
    """
    for part in parts:
        if part.px not in (sizes := test_sizes(runs_by_path[part.path])):
            raise RunError(
                f"{part.path} is not tested at {part.px} px; its test sizes are {', '.join(map(str, sizes))}"
            )
    keys = [(part.path.resolve(), part.px) for part in parts]
    duplicate = next((key for key in keys if keys.count(key) > 1), None)
    if duplicate is not None:
        raise RunError(
            f"{duplicate[0]} at {duplicate[1]} px is given twice; give it once, and set the members' weights with "
            "--weights"
        )


def _chosen_weights(
    members: Sequence[tuple[str, object]], parts: Sequence[_Part], split: str, views: Views
) -> tuple[float, ...]:
    """Greedy weights of the members, on the stored scores of a split."""
    names = {
        path: [f"center-{part.px}" for part in parts if part.path == path and views == "center"]
        for path in dict.fromkeys(part.path for part in parts)
    }
    scored = {path: open_scored(path, split, of_path) for path, of_path in names.items()}
    check_same_images([run.first_store for run in scored.values()])
    for run in scored.values():
        check_not_trained_on(run, "weights")
    sized_runs = {(path, sized_run.px): sized_run for path, run in scored.items() for sized_run in run.sized_runs}
    missing = next((part for part in parts if (part.path, part.px) not in sized_runs), None)
    if missing is not None:
        words = ["fewsight", "evaluate", str(missing.path), "DATA", "--split", split, "--views", "paper"]
        raise RunError(
            f"{missing.path} has no scores at {missing.px} px on {split!r}; make them with: {shell_command(words)}"
        )
    weighted = {
        name: [(sized_runs[part.path, part.px], part.weight) for part in parts if part.member == name]
        for name, _ in members
    }
    return greedy_weights([make_member(name, member_parts) for name, member_parts in weighted.items()])


def _carried_weights(source: Path, parts: Sequence[_Part], runs_by_path: Mapping[Path, Run]) -> list[float]:
    """The weights of another ensemble, for runs of the same recipes; parts that it lacks get 0."""
    if not is_ensemble(source):
        raise RunError(f"--from {source}: expected an ensemble, whose weights are carried over")
    entries = read_entries(source)
    theirs = dict(zip(_numbered([(entry.member, entry.px) for entry in entries]), entries, strict=True))
    ours = dict(zip(_numbered([(part.member, part.px) for part in parts]), parts, strict=True))
    unknown = next((f"{name} at {px} px" for name, px, number in theirs if (name, px, number) not in ours), None)
    if unknown is not None:
        raise RunError(
            f"--from {source}: it has {unknown}, which is missing here; give the members its names (NAME=RUN)"
        )
    for key, entry in theirs.items():
        check_same_recipe(runs.read_run(source / "runs" / entry.run), runs_by_path[ours[key].path])
    return [theirs[key].weight if key in theirs else 0.0 for key in ours]


def _numbered(keys: Sequence[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """(member, size) with a number among equal pairs: a member may have the same size of several runs."""
    return [(*key, keys[:index].count(key)) for index, key in enumerate(keys)]


def check_same_recipe(source: Run, run: Run) -> None:
    """Check that what was chosen for one run may be carried over to another.

    Raises:
        RunError: their recipes differ in more than train + val and the machine.
    """
    differences = [line for line in recipe_differences(source.recipe, run.recipe) if not line.startswith(MAY_DIFFER)]
    if differences:
        raise RunError(
            f"{run.path} and {source.path} have different recipes, so nothing can be carried over: "
            f"{'; '.join(first_few(differences))}"
        )


def _write(out: Path, members: Mapping[str, Run], entries: Sequence[EnsembleEntry], views: Views) -> None:
    used = {entry.run for entry in entries}
    files.make_folder(out / "runs")
    try:
        for name, run in members.items():
            if name in used:
                _copy_run(run.path, out / "runs" / name)
        files.write_json(out / "classes.json", list(next(iter(members.values())).classes))
        write_entries(out, entries, views)
        info = {
            "format": runs.FORMAT,
            "kind": "ensemble",
            "status": "finished",
            "fewsight": fewsight.__version__,
            "command": runs.command_line(),
            "started": runs.now(),
            "members": {name: str(run.path.resolve()) for name, run in members.items() if name in used},
        }
        files.write_json(out / "run.json", info)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _copy_run(source: Path, target: Path) -> None:
    """Copy a run with its complete scores into the ensemble; large files, never changed in place, are linked."""
    files.make_folder(target)
    for name in runs.TEXT_FILES:
        if (source / name).is_file():
            files.copy(source / name, target / name)
    _link(source / runs.WEIGHTS, target / runs.WEIGHTS)
    for info_file in source.glob("scores/*/store.json"):
        try:
            store = read_store(info_file.parent)
        except RunError:
            continue  # scores that cannot be read are made again when they are needed
        folder = target / "scores" / store.path.name
        files.make_folder(folder)
        for view in store.views:
            _link(store.path / f"{view}{SUFFIX}", folder / f"{view}{SUFFIX}")
        for name in ("images.jsonl", "store.json"):
            files.copy(store.path / name, folder / name)


def _link(source: Path, target: Path) -> None:
    """Make a hard link to the file itself, or a copy where that is not possible."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        files.copy(source, target)


def carry_calibration(source: Path, target: Path) -> list[Calibration]:
    """Copy the calibrations of a run or ensemble of the same recipes, for example of one trained on train alone.

    Raises:
        RunError: the recipes differ, or it has no calibrations, or one that cannot be trusted.
    """
    theirs, ours = (open_runs(path, None) for path in (source, target))
    if theirs.entries != ours.entries:
        raise RunError(f"--from {source}: expected an ensemble of the same members and weights as {target}")
    for name, run in theirs.runs.items():
        check_same_recipe(run, ours.runs[name] if ours.entries else ours.first_run)
    calibrations = read_calibrations(source)
    if not calibrations:
        command = shell_command(["fewsight", "scores", "calibrate", str(source)])
        raise RunError(f"{source} has no temperature; fit one with: {command}")
    for calibration in calibrations:
        if calibration.num_images < MIN_IMAGES:
            views = ",".join(calibration.views)
            raise RunError(
                f"the temperature of {source} for {views} is not carried over: {calibration.doubt}; fit it again on "
                "more images, or remove its calibration.json"
            )
    write_calibrations(target, calibrations)
    return calibrations

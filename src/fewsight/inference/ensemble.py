"""Ensembles as run folders: made of runs, opened like a run.

E/runs/ holds the runs whole (large files as hard links where the disk can), so that an ensemble can be moved and
mailed; ensemble.json lists its rows with their weights.
"""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fewsight
from fewsight import runs
from fewsight.augment import View
from fewsight.errors import RecipeError, RunError
from fewsight.inference.score_run import LabelledFile, ScoringResult, score_into, testing_recipe
from fewsight.machine import files
from fewsight.machine.device import compute_threads
from fewsight.recipes import recipe_differences
from fewsight.runs import Run
from fewsight.scores.calibration import Calibration, read_calibrations, write_calibrations
from fewsight.scores.fusion import (
    ENSEMBLE,
    EnsembleEntry,
    Scored,
    check_not_trained_on,
    check_same_images,
    greedy_weights,
    make_member,
    open_scored,
    read_entries,
    read_weights,
    scored_ensemble,
    scored_run,
    write_entries,
)
from fewsight.scores.scoring import SharedLoads, views_of
from fewsight.scores.store import read_store

MERGED = (
    "data.merge_val",
    "data.mean",
    "data.std",
    "run.",
    "eval.every_epochs",
)  # may differ where choices are carried over


@dataclass(frozen=True)
class RunsAndViews:
    """A run or an ensemble, and how each of its runs is to look at images."""

    path: Path
    runs: Mapping[str, Run]  # by their names in the ensemble; a run by itself has its folder's
    views: Mapping[str, tuple[View, ...]]
    entries: tuple[EnsembleEntry, ...]  # of an ensemble; none for a run

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, the same for each run."""
        return self.first_run.classes

    @property
    def first_run(self) -> Run:
        """One of the runs."""
        return next(iter(self.runs.values()))

    @property
    def view_names(self) -> tuple[str, ...]:
        """The views, without repeats."""
        return tuple(dict.fromkeys(view.name for views in self.views.values() for view in views))

    def view_weights(self, name: str, member: str | None = None) -> np.ndarray:
        """float64 [V]: what each of a run's views weighs in the whole, or in one member's part of it."""
        views = self.views[name]
        entries = [entry for entry in self.entries if entry.run == name and member in (None, entry.member)]
        if not self.entries:
            return np.full(len(views), 1 / len(views))
        alike = [sum(view.px == other.px for other in views) for view in views]
        rows = [sum(entry.weight for entry in entries if entry.px == view.px) for view in views]
        found: np.ndarray = np.array(rows) / np.array(alike)
        return found

    def scored(self, stored: Mapping[str, ScoringResult]) -> Scored:
        """What the runs' stores hold of these views, and how it is weighed."""
        stores = {name: one.store for name, one in stored.items()}
        if not self.entries:
            ((name, store),) = stores.items()
            return scored_run(self.path, name, store, self.view_names)
        return scored_ensemble(self.path, self.entries, stores, self.view_names)


def is_ensemble(path: Path) -> bool:
    """Whether `path` is an ensemble's folder."""
    return (path / ENSEMBLE).is_file()


def open_runs(path: Path, views: str | None) -> RunsAndViews:
    """A run with the views that are asked for (center unless said), or an ensemble with those of its rows.

    Raises:
        RunError: not a run or ensemble, or a run without weights.
        RecipeError: no such view; for an ensemble: other than center or report.
    """
    if not is_ensemble(path):
        run = runs.read_run(path)
        runs.require_weights(run)
        return RunsAndViews(path, {path.name: run}, {path.name: views_of(run.recipe, views or "center")}, ())
    if views not in (None, "center", "report"):
        raise RecipeError(f"--views {views}: an ensemble looks at the sizes of its rows; give center or report")
    entries = read_entries(path)
    members = {name: runs.read_run(path / "runs" / name) for name in dict.fromkeys(entry.run for entry in entries)}
    for run in members.values():
        runs.require_weights(run)
        _check_classes(next(iter(members.values())), run)
    sizes = {name: {entry.px for entry in entries if entry.run == name} for name in members}
    looked = {
        name: tuple(
            view
            for view in views_of(run.recipe, "report")
            if view.px in sizes[name] and (views != "center" or view.crop == "center")
        )
        for name, run in members.items()
    }
    return RunsAndViews(path, members, looked, entries)


def score_folders(asked: RunsAndViews, place: Path | None, split: str) -> Callable[[str, Run], Path]:
    """Where each run's scores are kept: in the runs, or in `place`, which then is a folder of scores.

    Raises:
        RunError: `place` cannot be written, or holds scores of another ensemble.
    """
    if place is None:
        return lambda name, run: run.path / "scores" / split
    if is_ensemble(place) and not (asked.entries and read_entries(place) == asked.entries):
        raise RunError(f"{place} holds scores of another ensemble; give --scores another folder, or remove this one")
    if not asked.entries:
        return lambda name, run: place
    if (place / "store.json").is_file():
        raise RunError(f"{place} holds scores of a run; give --scores another folder, or remove this one")
    files.make_folder(place)
    write_entries(place, asked.entries)
    return lambda name, run: place / name


def score_runs(
    asked: RunsAndViews,
    images: Sequence[LabelledFile],
    folder_of: Callable[[str, Run], Path],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    dtype: str = "float32",
) -> dict[str, ScoringResult]:
    """Score images with each run into its own store; runs take turns, batch by batch, and share what they load.

    Args:
        folder_of: the folder of a run's store, by name and run.

    Raises:
        RunError: a folder holds other scores or cannot be written.
    """
    loads, stored = SharedLoads(), dict[str, ScoringResult]()
    done = dict.fromkeys(asked.runs, 0)
    threads = testing_recipe(asked.first_run).run.threads
    assert threads != "auto", "a resolved recipe has its threads"
    with compute_threads(threads), contextlib.ExitStack() as stack:
        going = {
            name: score_into(folder_of(name, run), run, images, asked.views[name], dtype=dtype, loads=loads)
            for name, run in asked.runs.items()
        }
        for scoring in going.values():
            stack.callback(scoring.close)  # its folder is free again, whatever happens to another
        while len(stored) < len(going):
            for name in [name for name in going if name not in stored]:
                try:
                    done[name] = next(going[name])
                except StopIteration as end:
                    stored[name], done[name] = end.value, len(images)
                progress(sum(done.values()), len(going) * len(images))
    return {name: stored[name] for name in asked.runs}


Parts = Sequence[tuple[Path, Sequence[int]]]  # of a member: run folders, each with test sizes (none: all)


def make_ensemble(texts: Sequence[str], out: Path, *, weights: str = "uniform", split: str = "val",
                  carried_from: Path | None = None) -> tuple[EnsembleEntry, ...]:  # fmt: skip
    """`combine` with members as the command line writes them, see `parse_member`."""
    members = [parse_member(text) for text in texts]
    return combine(members, out, weights=weights, split=split, carried_from=carried_from)


def combine(
    members: Sequence[tuple[str, Parts]],
    out: Path,
    *,
    weights: str = "uniform",
    split: str = "val",
    carried_from: Path | None = None,
) -> tuple[EnsembleEntry, ...]:
    """Write an ensemble of runs.

    Args:
        members: names and parts.
        weights: "uniform" over the rows; numbers, one a member, with commas; "greedy": chosen on the scores that
            `evaluate` kept of `split`.
        carried_from: another ensemble of the same recipes, whose weights are taken.

    Returns:
        Its rows.

    Raises:
        RunError: a run is not one, lacks its weights or has other classes; the weights would be chosen on images that
            were trained on; `out` is taken or cannot be written.
    """
    runs.check_new(out, resumable=False)
    rows = [row for name, parts in members for path, sizes in parts for row in _rows(name, path, sizes)]
    paths = list(dict.fromkeys(row.path for row in rows))
    read = {path: _whole_run(path) for path in paths}
    _check_names([name for name, _ in members])
    for run in read.values():
        _check_classes(read[paths[0]], run)
    _check_rows(rows, read)
    if carried_from is not None:
        shares = _carried(carried_from, rows, read)
    elif weights == "uniform":
        shares = [row.share for row in rows]
    else:
        given = _chosen(members, rows, split) if weights == "greedy" else read_weights(weights, len(members))
        whole = {name: sum(row.share for row in rows if row.member == name) for name, _ in members}
        each = {name: one / whole[name] for (name, _), one in zip(members, given, strict=True)}
        shares = [row.share * each[row.member] for row in rows]
    names = dict(zip(paths, _names(paths, rows), strict=True))
    entries = tuple(
        EnsembleEntry(row.member, names[row.path], row.px, share / sum(shares))
        for row, share in zip(rows, shares, strict=True)
        if share
    )
    _write(out, read[paths[0]], {names[path]: run for path, run in read.items()}, entries)
    return entries


@dataclass(frozen=True)
class _Asked:
    """A row that an ensemble is to have."""

    member: str
    path: Path  # of the run
    px: int
    share: float  # among the rows of its member; 1 but for the rows of an ensemble


def _rows(member: str, path: Path, sizes: Sequence[int]) -> list[_Asked]:
    """The rows of a run at some sizes (none: all), or of a whole ensemble, as it weighs them."""
    if not is_ensemble(path):
        return [_Asked(member, path, px, 1.0) for px in sizes or _sizes(_whole_run(path))]
    if sizes:
        raise RunError(f"{path} is an ensemble, so its rows come whole; leave out :{','.join(map(str, sizes))}")
    entries = read_entries(path)
    return [_Asked(member, path / "runs" / entry.run, entry.px, entry.weight * len(entries)) for entry in entries]


def parse_member(text: str) -> tuple[str, list[tuple[Path, tuple[int, ...]]]]:
    """A member as it is written: `[NAME=]RUN[:SIZES][+RUN[:SIZES]...]`.

    `runs/a` is all rows of a run; `runs/ce:224,320,380+runs/ce448:448` the rows of two runs at these test sizes.

    Returns:
        Its name, and (run folder, test sizes; none: all) of each part.
    """
    if Path(text).exists():
        return Path(text).resolve().name, [(Path(text), ())]
    name, sign, rest = text.partition("=")
    parts = []
    for part in (rest if sign else text).split("+"):
        path, colon, sizes = part.rpartition(":")
        if not colon or not sizes.replace(",", "").isdecimal() or not sizes.isascii():
            path, sizes = part, ""
        parts.append((Path(path), tuple(int(px) for px in sizes.split(",") if px)))
    return (name if sign else parts[0][0].resolve().name), parts


def _whole_run(path: Path) -> Run:
    run = runs.read_run(path)
    runs.require_weights(run)
    return run


def _check_classes(first: Run, other: Run) -> None:
    """Labels meet by name: the same names are needed.

    Raises:
        RunError: some are missing on one side.
    """
    if first.classes == other.classes:
        return
    lacking = {one.path: sorted(set(two.classes) - set(one.classes)) for one, two in ((first, other), (other, first))}
    told = "; ".join(f"{path} lacks {', '.join(map(repr, names[:5]))}" for path, names in lacking.items() if names)
    raise RunError(f"{other.path} and {first.path} know other classes ({told}); an ensemble needs the same ones")


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RunError(f"two members are called {twice[0]!r}; name them, for example {twice[0]}-2=RUN")


def _names(paths: Sequence[Path], rows: Sequence[_Asked]) -> list[str]:
    """A folder name for each run: its member's, where it is its only run, else its own; numbered if alike."""
    found: list[str] = []
    for path in paths:
        members = {row.member for row in rows if row.path == path}
        alone = len(members) == 1 and {row.path for row in rows if row.member in members} == {path}
        wanted = Path(members.pop()).name if alone else ""
        wanted = path.resolve().name if wanted in ("", "..") else wanted
        numbered = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
        taken = {name.casefold() for name in found}  # some disks take x and X for one
        found.append(next(name for name in numbered if name.casefold() not in taken))
    return found


def _sizes(run: Run) -> tuple[int, ...]:
    assert run.recipe.eval.test_px != "auto", "a resolved recipe has its test sizes"
    return tuple(run.recipe.eval.test_px)


def _check_rows(rows: Sequence[_Asked], read: Mapping[Path, Run]) -> None:
    for row in rows:
        if row.px not in (sizes := _sizes(read[row.path])):
            raise RunError(f"{row.path} is not tested at {row.px} px; its rows are {', '.join(map(str, sizes))}")
    places = [(row.path.resolve(), row.px) for row in rows]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise RunError(
            f"{twice[0]} at {twice[1]} px stands there twice; give each row once, and --weights for its share"
        )


def _chosen(members: Sequence[tuple[str, object]], rows: Sequence[_Asked], split: str) -> tuple[float, ...]:
    """Weights of members, greedily, on the scores that were kept of a split."""
    scored = {path: open_scored(path, split) for path in dict.fromkeys(row.path for row in rows)}
    check_same_images([one.first_store for one in scored.values()])
    for one in scored.values():
        check_not_trained_on(one, "weights")
    found = {(path, row.px): row for path, one in scored.items() for row in one.sized_runs}
    lacking = next((row for row in rows if (row.path, row.px) not in found), None)
    if lacking is not None:
        raise RunError(
            f"{lacking.path} has no scores at {lacking.px} px on {split!r}; make them with: "
            f"fewsight evaluate {lacking.path} DATA --split {split} --views report"
        )
    weighed = {
        name: [(found[row.path, row.px], row.share) for row in rows if row.member == name] for name, _ in members
    }
    return greedy_weights([make_member(name, parts) for name, parts in weighed.items()])


def _carried(source: Path, rows: Sequence[_Asked], read: Mapping[Path, Run]) -> list[float]:
    """The weights of another ensemble's rows, for runs of the same recipes."""
    if not is_ensemble(source):
        raise RunError(f"--from {source}: expected an ensemble, whose weights are carried over")
    entries = read_entries(source)
    given = dict(zip(_places([(entry.member, entry.px) for entry in entries]), entries, strict=True))
    here = dict(zip(_places([(row.member, row.px) for row in rows]), rows, strict=True))
    unknown = next((f"{name} at {px} px" for name, px, nth in given if (name, px, nth) not in here), None)
    if unknown is not None:
        raise RunError(
            f"--from {source}: it has the row {unknown}, which is not here; give the members its names (NAME=RUN)"
        )
    for place, entry in given.items():
        check_same_recipe(runs.read_run(source / "runs" / entry.run), read[here[place].path])
    return [given[place].weight if place in given else 0.0 for place in here]


def _places(rows: Sequence[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Members and sizes, each with its number among the same ones: a member may have a size of several runs."""
    return [(*row, rows[:number].count(row)) for number, row in enumerate(rows)]


def check_same_recipe(source: Run, run: Run) -> None:
    """Refuse to carry what was chosen for one run over to another that was trained otherwise.

    Raises:
        RunError: their recipes differ in more than train + val and the machine.
    """
    told = [one for one in recipe_differences(source.recipe, run.recipe) if not one.startswith(MERGED)]
    if told:
        raise RunError(
            f"{run.path} is not the recipe of {source.path}, so nothing can be carried over: {'; '.join(told[:5])}"
        )


def _write(out: Path, first: Run, members: Mapping[str, Run], entries: Sequence[EnsembleEntry]) -> None:
    used = {entry.run for entry in entries}
    files.make_folder(out / "runs")
    try:
        for name, run in members.items():
            if name in used:
                _take(run.path, out / "runs" / name)
        files.write_json(out / "classes.json", list(first.classes))
        write_entries(out, entries)
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


def _take(source: Path, target: Path) -> None:
    """A run into the ensemble, with its whole scores; large files, which are never changed in place, are shared."""
    files.make_folder(target)
    for name in runs.TEXT_FILES:
        if (source / name).is_file():
            _copy(source / name, target / name)
    _share(source / runs.WEIGHTS, target / runs.WEIGHTS)
    for store in source.glob("scores/*/store.json"):
        try:
            whole = read_store(store.parent)
        except RunError:
            continue  # scores that are not whole are made anew
        place = target / "scores" / store.parent.name
        files.make_folder(place)
        for view in whole.views:
            _share(store.parent / f"{view}{whole.about.suffix}", place / f"{view}{whole.about.suffix}")
        for name in ("images.jsonl", "store.json"):
            _copy(store.parent / name, place / name)


def _share(source: Path, target: Path) -> None:
    """A hard link to the file itself, else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        files.raise_write_error(target, error)


def carry_calibration(source: Path, target: Path) -> list[Calibration]:
    """Take over what a run or ensemble of the same recipes was calibrated to, such as one trained on train alone.

    Raises:
        RunError: the recipes differ, or it has none.
    """
    theirs, ours = (open_runs(path, None) for path in (source, target))
    if theirs.entries != ours.entries:
        raise RunError(f"--from {source}: expected an ensemble of the same rows and weights as {target}")
    for name, run in theirs.runs.items():
        check_same_recipe(run, ours.runs[name] if ours.entries else ours.first_run)
    found = read_calibrations(source)
    if not found:
        raise RunError(f"{source} keeps no temperature; fit one with: fewsight scores calibrate {source}")
    write_calibrations(target, found)
    return found

"""Open a run or an ensemble with its views, and score images with all of its runs."""

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fewsight import runs
from fewsight.augment import View
from fewsight.augment.views import PAPER, is_view_name
from fewsight.errors import RecipeError, RunError
from fewsight.inference.score_run import LabelledFile, ScoringResult, num_threads, score_into, testing_recipe
from fewsight.machine import files
from fewsight.machine.device import compute_threads
from fewsight.runs import Run
from fewsight.scores.calibration import FILE as CALIBRATION
from fewsight.scores.calibration import MIN_IMAGES, WHAT_IS_NEEDED, calibration_for, read_calibrations
from fewsight.scores.entries import EnsembleEntry, is_ensemble, read_entries, read_views, write_entries
from fewsight.scores.log_probs import mean_probs, weighted_mean
from fewsight.scores.members import Scored, scored_ensemble, scored_run
from fewsight.scores.scoring import SharedLoads, views_of
from fewsight.wording import counted, named, shell_command

ROUNDING = 1e-9  # that the sum of an ensemble's weights may have


@dataclass(frozen=True)
class RunsAndViews:
    """A run or an ensemble, opened, with the views that each of its runs uses."""

    path: Path
    runs: Mapping[str, Run]  # those with views, by name in the ensemble; a single run is named after its folder
    views: Mapping[str, tuple[View, ...]]  # of all runs; empty where named views are none of the run's
    entries: tuple[EnsembleEntry, ...]  # of an ensemble; empty for a run

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, which all runs share."""
        return self.first_run.classes

    @property
    def first_run(self) -> Run:
        """One of the runs."""
        return next(iter(self.runs.values()))

    @property
    def view_names(self) -> tuple[str, ...]:
        """The views of all runs, without duplicates."""
        return tuple(dict.fromkeys(view.name for views in self.views.values() for view in views))

    def view_weights(self, name: str, member: str | None = None) -> np.ndarray:
        """float64 [V]: the weight of each of a run's views in the ensemble, or in one member's part of it."""
        views = self.views[name]
        entries = [entry for entry in self.entries if entry.run == name and member in (None, entry.member)]
        if not self.entries:
            return np.full(len(views), 1 / len(views))
        num_same_size = [sum(view.px == other.px for other in views) for view in views]
        size_weights = [sum(entry.weight for entry in entries if entry.px == view.px) for view in views]
        weights: np.ndarray = np.array(size_weights) / np.array(num_same_size) / self._proportion_used
        return weights

    @property
    def _proportion_used(self) -> float:
        """The weight of those of an ensemble's entries that have a view; 1 unless views were named."""
        used = [any(view.px == entry.px for view in self.views[entry.run]) for entry in self.entries]
        total = sum(itertools.compress((entry.weight for entry in self.entries), used))
        return 1.0 if abs(total - 1) < ROUNDING else total

    def fused(self, results: Mapping[str, np.ndarray]) -> np.ndarray:
        """The log of the weighted mean of probabilities, float32 [n, K], from each run's views, float32 [V, n, K]."""
        if not self.entries:
            return mean_probs(results[self.path.name])
        views = [view for name in self.runs for view in results[name]]
        weights = np.concatenate([self.view_weights(name) for name in self.runs])
        return weighted_mean(views, weights).astype(np.float32)

    def scored(self, stored: Mapping[str, ScoringResult]) -> Scored:
        """The runs' stored scores in these views, with their weights."""
        stores = {name: result.store for name, result in stored.items()}
        if not self.entries:
            ((name, store),) = stores.items()
            return scored_run(self.path, name, store, self.view_names)
        entries = [entry for entry in self.entries if entry.run in stores]
        return scored_ensemble(self.path, entries, stores, self.view_names)


def open_runs(path: Path, views: str | None) -> RunsAndViews:
    """Open a run or an ensemble.

    Args:
        path: its folder.
        views: the value of `--views`. For a run, default center; for an ensemble, center, paper or names, which stand
            for views at its own test sizes; default what its ensemble.json names.

    Raises:
        RunError: not a run or ensemble, or a run without weights.
        RecipeError: there is no such view; or a member of an ensemble has none of the views.
    """
    if not is_ensemble(path):
        run = runs.read_run(path)
        runs.require_weights(run)
        return RunsAndViews(path, {path.name: run}, {path.name: views_of(run.recipe, views or "center")}, ())
    entries, views = read_entries(path), views or read_views(path)
    members = {name: runs.read_run(path / "runs" / name) for name in dict.fromkeys(entry.run for entry in entries)}
    for run in members.values():
        runs.require_weights(run)
        check_classes(next(iter(members.values())), run)
    views_by_run = {name: _views_in_ensemble(name, run, entries, views) for name, run in members.items()}
    opened = RunsAndViews(path, members, views_by_run, entries)
    if views != "center" and views not in PAPER:
        _check_named(opened, views)
    return replace(opened, runs={name: run for name, run in members.items() if views_by_run[name]})


def _views_in_ensemble(name: str, run: Run, entries: Sequence[EnsembleEntry], text: str) -> tuple[View, ...]:
    """The views of one of an ensemble's runs: those of `text`, a value of `--views`, at the run's sizes there."""
    sizes = {entry.px for entry in entries if entry.run == name}
    at_sizes = tuple(view for view in views_of(run.recipe, "paper") if view.px in sizes)
    if text in PAPER:
        return at_sizes
    if text == "center":
        return tuple(view for view in at_sizes if view.crop == "center")
    asked = [view.strip() for view in text.split(",")]
    own = ",".join(view for view in asked if is_view_name(view) and int(view.split("-")[1]) in sizes)
    return views_of(run.recipe, own) if own else ()


def _check_named(opened: RunsAndViews, text: str) -> None:
    """Check that named views of an ensemble are views of its runs, and that every member has one.

    Raises:
        RecipeError: names the view or the member.
    """
    possible = ", ".join(open_runs(opened.path, "paper").view_names)
    unknown = [name for name in map(str.strip, text.split(",")) if name not in opened.view_names]
    if unknown:
        raise RecipeError(f"--views {unknown[0]}: no member of {opened.path} has this view; they have {possible}")
    used = {entry.member for entry in opened.entries if any(v.px == entry.px for v in opened.views[entry.run])}
    lacking = [entry.member for entry in opened.entries if entry.member not in used]
    if lacking:
        sizes = ", ".join(f"center-{entry.px}" for entry in opened.entries if entry.member == lacking[0])
        raise RecipeError(f"--views {text}: the member {lacking[0]} has none of these views; add one of {sizes}")


def describe_probabilities(opened: RunsAndViews) -> str:
    """Which temperature the probabilities of these views have; if none, that they are not calibrated, and what to do.

    Raises:
        RunError: the calibration file is damaged.
    """
    path, views = opened.path, opened.view_names
    if (calibration := calibration_for(path, views)) is not None:
        doubt = "" if calibration.doubt is None else f"; note: {calibration.doubt}"
        return f"probabilities at the temperature {calibration.temperature:.2f} of {path / CALIBRATION}{doubt}"
    other = f"{path / CALIBRATION} has no temperature for these views, so none is applied"
    num_val = min(sum(run.data.counts.get("val", {}).values()) for run in opened.runs.values())
    if num_val < MIN_IMAGES:
        there = f"val has {counted(num_val, 'image')}" if num_val else "there is no val"
        reason = f"{other}; {there}" if read_calibrations(path) else there
        return f"note: the probabilities are not calibrated: {reason}, and {WHAT_IS_NEEDED}"
    scoring = shell_command(["fewsight", "evaluate", str(path), "--split", "val", "--views", ",".join(views)])
    fitting = f"{scoring}, then {shell_command(['fewsight', 'scores', 'calibrate', str(path)])}"
    reason = f"{other}; to fit one: {fitting}" if read_calibrations(path) else f"fit a temperature with: {fitting}"
    return f"note: the probabilities are not calibrated: {reason}"


def check_classes(first: Run, other: Run) -> None:
    """Check that two runs have the same classes by name.

    Raises:
        RunError: names the classes that one of them lacks.
    """
    if first.classes == other.classes:
        return
    missing = {run.path: sorted(set(peer.classes) - set(run.classes)) for run, peer in ((first, other), (other, first))}
    reasons = "; ".join(f"{path} lacks {named(map(repr, names))}" for path, names in missing.items() if names)
    raise RunError(
        f"{other.path} and {first.path} have different classes ({reasons}); the members of an ensemble need the same "
        "classes"
    )


def score_folders(opened: RunsAndViews, folder: Path | None, split: str) -> Callable[[str, Run], Path]:
    """A function from a run's name and the run to the folder of its scores: in the run, or in `folder` if given.

    Raises:
        RunError: `folder` cannot be written, or holds scores of another run or ensemble.
    """
    if folder is None:
        return lambda name, run: run.path / "scores" / split
    if is_ensemble(folder) and not (opened.entries and read_entries(folder) == opened.entries):
        raise RunError(f"{folder} holds scores of another ensemble; give --scores another folder, or remove this one")
    if not opened.entries:
        return lambda name, run: folder
    if (folder / "store.json").is_file():
        raise RunError(f"{folder} holds scores of a run; give --scores another folder, or remove this one")
    files.make_folder(folder)
    write_entries(folder, opened.entries, read_views(opened.path))
    return lambda name, run: folder / name


def score_runs(
    opened: RunsAndViews,
    images: Sequence[LabelledFile],
    folder_of: Callable[[str, Run], Path],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    reread: bool = False,
) -> dict[str, ScoringResult]:
    """Score images with each run into its own store; the runs take turns, batch by batch, and share decoded images.

    Args:
        opened: the runs and their views.
        images: to score.
        folder_of: the folder of a run's store, by name and run.
        progress: called with the number of images done and in total, over all runs.
        reread: as for `score_into`.

    Raises:
        RunError: a folder holds other scores or cannot be written.
    """
    loads, stored = SharedLoads(), dict[str, ScoringResult]()
    done = dict.fromkeys(opened.runs, 0)
    with compute_threads(num_threads(testing_recipe(opened.first_run))), contextlib.ExitStack() as stack:
        scorings = {
            name: score_into(folder_of(name, run), run, images, opened.views[name], loads=loads, reread=reread)
            for name, run in opened.runs.items()
        }
        for scoring in scorings.values():
            stack.callback(scoring.close)  # releases the lock of its folder even if another run's scoring fails
        while len(stored) < len(scorings):
            for name in [name for name in scorings if name not in stored]:
                try:
                    done[name] = next(scorings[name])
                except StopIteration as end:
                    stored[name], done[name] = end.value, len(images)
                progress(sum(done.values()), len(scorings) * len(images))
    return {name: stored[name] for name in opened.runs}

"""Predict images with a run or an ensemble, and write a row for each."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from fewsight.data import Ignored
from fewsight.errors import DataError
from fewsight.inference import prediction_files
from fewsight.inference.fused import fused_batches
from fewsight.inference.opening import RunsAndViews, describe_probabilities, open_runs, score_folders, score_runs
from fewsight.inference.score_run import LabelledFile, load_scorer, testing_recipe
from fewsight.machine.outputs import check_output
from fewsight.scores.calibration import apply_temperature, calibration_for
from fewsight.scores.fusion import read_checked
from fewsight.scores.members import Result
from fewsight.scores.scoring import BATCH
from fewsight.terminal import print_first, printable, progress_counter
from fewsight.wording import counted


def predict_files(
    path: Path,
    inputs: Sequence[str],
    target: Path | None,
    *,
    top_k: int,
    console: Console,
    views: str | None = None,
    features: bool = False,
    scores: Path | None = None,
) -> tuple[int, int]:
    """Predict files, folders and patterns, and write a row for each, batch by batch.

    Args:
        path: the run folder, or an ensemble's.
        inputs: files, folders and glob patterns.
        target: a .csv, .jsonl or .parquet file; None: CSV to standard output.
        top_k: classes in a row, at most the number of classes.
        console: for progress and remarks.
        views: center (a run's default), paper or names, which are averaged; an ensemble has its own default.
        features: also write the pooled features, to `prediction_files.features_file(target)`.
        scores: also store every view's scores in this folder; an interrupted prediction continues from them.

    Returns:
        The number of rows with an error, and of all rows.

    Raises:
        DataError, RecipeError, RunError: before anything is predicted; or the disk is full, and no file is left behind.
    """
    features_target = _checked_targets(target, top_k, features, scores)
    opened = open_runs(path, views)
    if features and opened.entries:
        raise DataError("--features: an ensemble has no features of its own; predict with one of its runs")
    names, top_k = _named_files(inputs, console), min(top_k, len(opened.classes))
    calibration = calibration_for(path, opened.view_names)
    threshold = None if calibration is None or calibration.threshold is None else calibration.threshold.prob
    done = num_rejected = 0
    failed: list[str] = []
    with (
        prediction_files.row_writer(target, top_k, has_threshold=threshold is not None) as write,
        prediction_files.features_writer(features_target, len(names)) as write_features,
        progress_counter(console, "predicting") as progress,
    ):
        if target is None and sys.stdout.isatty():
            progress = _silent  # the rows that appear are progress enough
        for log_probs, errors, pooled in _batches(opened, names, features, scores, progress):
            batch, done = names[done : done + len(errors)], done + len(errors)
            log_probs = log_probs if calibration is None else apply_temperature(log_probs, calibration.temperature)
            rows = list(prediction_files.prediction_rows(batch, log_probs, errors, opened.classes, top_k, threshold))
            write(rows)
            num_rejected += sum(bool(row.get(prediction_files.NONE_OF_THESE)) for row in rows)
            if pooled is not None:
                write_features(pooled)
            failed += [f"{row['path']}: {row['error']}" for row in rows if row["error"] is not None]
    if target is not None:
        _print_remarks(opened, target, console)
        print_first(console, "unreadable", failed)
        _print_rejected(num_rejected, done - len(failed), threshold, console)
    return len(failed), done


def _checked_targets(target: Path | None, top_k: int, features: bool, scores: Path | None) -> Path | None:
    """Check the options and that their files can be written; returns the file for the features, if requested."""
    if top_k < 1:
        raise DataError(f"--top-k {top_k}: expected at least 1")
    if features and target is None:
        raise DataError("--features writes a file beside the predictions, so it needs --out, for example --out new.csv")
    if features and scores is not None:
        raise DataError("--features and --scores: stored scores have no features; give only one of the two")
    prediction_files.check_target(target)
    features_target = prediction_files.features_file(target) if features and target is not None else None
    if features_target is not None:
        check_output(features_target, "--features", prediction_files.FEATURES)
    return features_target


def _named_files(inputs: Sequence[str], console: Console) -> list[str]:
    """The files that the inputs stand for; a line says how many others their folders hold."""
    ignored = Ignored()
    names = prediction_files.expand_inputs(inputs, ignored)
    if ignored[prediction_files.OTHER]:
        console.print(
            f"skipped {counted(ignored[prediction_files.OTHER], 'file')} in the folders: not images by their names"
        )
    prediction_files.check_inputs(names)
    return names


def _print_remarks(opened: RunsAndViews, target: Path, console: Console) -> None:
    """Say which temperature the probabilities have, and which names a spreadsheet would misread."""
    console.print(printable(describe_probabilities(opened)))
    risky = [name for name in opened.classes if name.startswith(prediction_files.FORMULA)]
    if risky and target.suffix.lower() == ".csv":
        console.print(f"note: spreadsheets read class names such as {risky[0]!r} as formulas; import {target} as text")


def _print_rejected(num_rejected: int, num_readable: int, threshold: float | None, console: Console) -> None:
    """Say how many images are none of the classes, where the run has a threshold."""
    if threshold is not None and num_readable:
        console.print(
            f"{num_rejected:,} of {num_readable:,} are none of these classes: the most probable class has less "
            f"than {threshold:.3f} ({prediction_files.NONE_OF_THESE} is true)"
        )


Batches = Iterator[tuple[np.ndarray, Sequence[str | None], np.ndarray | None]]  # log_probs, errors, features
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """No progress."""


def _batches(
    opened: RunsAndViews, names: Sequence[str], features: bool, folder: Path | None, progress: Progress
) -> Batches:
    """The scores of the files, batch by batch; without `folder` they are not stored."""
    if folder is None:
        return _streamed(opened, names, features, progress)
    return _stored(opened, names, folder, progress)


def _streamed(opened: RunsAndViews, names: Sequence[str], features: bool, progress: Progress) -> Batches:
    """The fused scores, batch by batch, not stored."""
    scorers, done = {name: load_scorer(run, testing_recipe(run)) for name, run in opened.runs.items()}, 0
    for scores in fused_batches(opened, scorers, [Path(name) for name in names], features=features):
        yield scores.log_probs, scores.errors, scores.features
        done += len(scores.errors)
        progress(done, len(names))


def _stored(opened: RunsAndViews, names: Sequence[str], folder: Path, progress: Progress) -> Batches:
    """The fused scores by way of a store in `folder`."""
    images = [LabelledFile(Path(name), name) for name in names]
    stored = score_runs(opened, images, score_folders(opened, folder, ""), progress)
    first = next(iter(stored.values())).store
    errors, readable = [image.error for image in first.images], first.readable
    for start in range(0, len(names), BATCH):
        batch = slice(start, start + BATCH)
        results = {
            name: np.stack(
                [read_checked(Result(of_run.store, view.name), start, readable[batch]) for view in opened.views[name]]
            )
            for name, of_run in stored.items()
        }
        yield opened.fused(results), errors[batch], None

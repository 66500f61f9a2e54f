"""A run and images in, prediction rows out."""

import contextlib
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from fewsight.errors import DataError
from fewsight.inference import prediction_files
from fewsight.inference.ensemble import RunsAndViews, open_runs, score_folders, score_runs
from fewsight.inference.score_run import LabelledFile, run_scores
from fewsight.machine import files
from fewsight.scores.calibration import FILE as CALIBRATION
from fewsight.scores.calibration import apply_temperature, calibration_for, read_calibrations
from fewsight.scores.fusion import fused_probs
from fewsight.terminal import print_first, progress_counter
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
    dtype: str = "float32",
) -> tuple[int, int]:
    """Predict files, folders and patterns, and write a row for each as it comes.

    Args:
        target: a .csv, .jsonl or .parquet file; None: CSV to the screen.
        top_k: classes a row, at most those that there are.
        views: center (the default of a run), report (of an ensemble) or names; their probabilities are averaged.
        features: also write the pooled features beside `target`, as `prediction_files.features_file` names it.
        scores: also keep every view's scores in this folder; a prediction that was cut short goes on from it.
        dtype: of the scores that are kept, float32 or float16.

    Returns:
        Rows with an error, and all rows.

    Raises:
        DataError, RecipeError, RunError: before anything is predicted, also where no input is a file; or the disk is
            full, and no file is left behind.
    """
    if top_k < 1:
        raise DataError(f"--top-k {top_k}: expected at least 1")
    if features and target is None:
        raise DataError("--features writes a file beside the predictions, so it needs --out, for example --out new.csv")
    if features and scores is not None:
        raise DataError("--features and --scores: scores that are there already give no features; ask for one of them")
    prediction_files.check_target(target)
    beside = prediction_files.features_file(target) if features and target is not None else None
    if beside is not None:
        files.check_target(beside, "--features")
    asked = open_runs(path, views)
    if features and asked.entries:
        raise DataError("--features: the members of an ensemble have features of their own; ask one of its runs")
    ignored: Counter[str] = Counter()
    names, top_k = prediction_files.expand(inputs, ignored), min(top_k, len(asked.classes))
    if ignored[prediction_files.OTHER]:
        console.print(
            f"skipped {counted(ignored[prediction_files.OTHER], 'file')} in the folders: no images by their names"
        )
    prediction_files.check_inputs(names)
    calibration = calibration_for(path, asked.view_names)
    temperature = None if calibration is None else calibration.temperature
    threshold = None if calibration is None or calibration.threshold is None else calibration.threshold.prob
    if temperature is not None and target is not None:
        console.print(f"probabilities at the temperature {temperature:.2f} that {path / CALIBRATION} keeps")
    if temperature is None and read_calibrations(path) and target is not None:
        console.print(f"note: {path / CALIBRATION} keeps no temperature for these views, so none is applied")
    risky = [name for name in asked.classes if name.startswith(prediction_files.FORMULA)]
    if risky and target is not None and target.suffix.lower() == ".csv":
        console.print(f"note: spreadsheets take class names such as {risky[0]!r} for formulas; import {target} as text")
    done = num_other = 0
    failed: list[str] = []
    with (
        prediction_files.writing(target, top_k, thresholded=threshold is not None) as write,
        prediction_files.writing_features(beside, len(names)) as write_features,
        progress_counter(console, "predicting") as progress,
    ):
        shown = progress if target is not None or not sys.stdout.isatty() else lambda done, total: None
        stream = scores is None and not asked.entries
        found = _streamed(asked, names, features, shown) if stream else _stored(asked, names, scores, dtype, shown)
        for log_probs, errors, pooled in found:
            batch = names[done : done + len(errors)]
            log_probs = log_probs if temperature is None else apply_temperature(log_probs, temperature)
            found_rows = list(prediction_files.rows(batch, log_probs, errors, asked.classes, top_k, threshold))
            write(found_rows)
            num_other += sum(bool(row.get(prediction_files.NONE_OF_THESE)) for row in found_rows)
            if pooled is not None:
                write_features(pooled)
            done += len(batch)
            failed += [f"{row['path']}: {row['error']}" for row in found_rows if row["error"] is not None]
    if target is not None:
        print_first(console, "unreadable", failed)
    if threshold is not None and target is not None and done > len(failed):
        console.print(
            f"{num_other:,} of {done - len(failed):,} are none of these classes: the most probable one has less than "
            f"{threshold:.3f} ({prediction_files.NONE_OF_THESE} is true)"
        )
    return len(failed), done


Found = Iterator[tuple[np.ndarray, Sequence[str | None], np.ndarray | None]]  # log_probs, errors, features
Progress = Callable[[int, int], None]


def _streamed(asked: RunsAndViews, names: Sequence[str], features: bool, progress: Progress) -> Found:
    """A run's rows as they are scored."""
    views = asked.views[asked.path.name]
    for scores in run_scores(asked.first_run, [Path(name) for name in names], views, features=features):
        yield scores.log_probs, scores.errors, scores.features
        progress(scores.start + len(scores.errors), len(names))


def _stored(asked: RunsAndViews, names: Sequence[str], folder: Path | None, dtype: str, progress: Progress) -> Found:
    """The rows of scores that are kept in `folder`, or while this lasts: an ensemble's runs come one by one."""
    images = [LabelledFile(Path(name), name) for name in names]
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) if folder is None else folder
        stored = score_runs(asked, images, score_folders(asked, place, ""), progress, dtype=dtype)
        scored = asked.scored(stored)
        errors = [image.error for image in scored.first_store.images]
        for part, probs in fused_probs([scored.weights]):
            with np.errstate(divide="ignore"):
                log_probs = np.log(probs[0])
            yield log_probs, errors[part], None

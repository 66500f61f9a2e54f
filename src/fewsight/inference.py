"""A run and images in, prediction rows out."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from fewsight import files, rows, runs
from fewsight.console import counting
from fewsight.errors import DataError
from fewsight.predict import Labelled, run_scores, score_into, views_of
from fewsight.runs import Run


def predict_files(
    path: Path,
    inputs: Sequence[str],
    target: Path | None,
    *,
    top_k: int,
    console: Console,
    views: str = "center",
    features: bool = False,
    scores: Path | None = None,
) -> tuple[int, int]:
    """Predict files, folders and patterns, and write a row for each as it comes.

    Args:
        target: a .csv, .jsonl or .parquet file; None: CSV to the screen.
        top_k: classes a row, at most those that there are.
        views: center, report or names; their probabilities are averaged.
        features: also write the pooled features beside `target`, as `rows.features_file` names it.
        scores: also keep every view's scores in this folder; a prediction that was cut short goes on from it.

    Returns:
        Rows with an error, and all rows.

    Raises:
        DataError, RecipeError, RunError: before anything is predicted; or the disk is full, and no file is left behind.
    """
    if top_k < 1:
        raise DataError(f"--top-k {top_k}: expected at least 1")
    if features and target is None:
        raise DataError("--features writes a file beside the predictions, so it needs --out, for example --out new.csv")
    if features and scores is not None:
        raise DataError("--features and --scores: scores that are there already give no features; ask for one of them")
    rows.check_target(target)
    beside = rows.features_file(target) if features and target is not None else None
    if beside is not None:
        files.check_target(beside, "--features")
    run = runs.read_run(path)
    names = rows.expand(inputs)
    done = failed = 0
    with (
        rows.writing(target, min(top_k, len(run.classes))) as write,
        rows.writing_features(beside, len(names)) as write_features,
        counting(console, "predicting") as progress,
    ):
        shown = progress if target is not None or not sys.stdout.isatty() else lambda done, total: None
        found = _streamed(run, names, views, features) if scores is None else _stored(run, names, views, scores, shown)
        for log_probs, errors, pooled in found:
            batch = names[done : done + len(errors)]
            write(list(rows.rows(batch, log_probs, errors, run.classes, min(top_k, len(run.classes)))))
            if pooled is not None:
                write_features(pooled)
            done += len(batch)
            failed += sum(error is not None for error in errors)
            shown(done, len(names))
    return failed, done


Found = Iterator[tuple[np.ndarray, Sequence[str | None], np.ndarray | None]]  # log_probs, errors, features


def _streamed(run: Run, names: Sequence[str], views: str, features: bool) -> Found:
    for scores in run_scores(run, [Path(name) for name in names], views_of(run.recipe, views), features=features):
        yield scores.log_probs, scores.errors, scores.features


def _stored(run: Run, names: Sequence[str], views: str, folder: Path, progress: Callable[[int, int], None]) -> Found:
    asked = views_of(run.recipe, views)
    store = score_into(folder, run, [Labelled(Path(name), name) for name in names], asked, progress)
    for part, probs in store.chunks([view.name for view in asked]):
        yield np.log(probs).astype(np.float32), [image.error for image in store.images[part]], None

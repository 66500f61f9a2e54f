"""A run and images in, prediction rows out."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from fewsight import files, rows, runs
from fewsight.console import counting
from fewsight.device import compute_threads, keep_freed_memory
from fewsight.errors import DataError
from fewsight.predict import Normalise, load_model, score_images, testing_recipe


def predict_files(
    path: Path,
    inputs: Sequence[str],
    target: Path | None,
    *,
    top_k: int,
    console: Console,
    features: bool = False,
) -> tuple[int, int]:
    """Predict files, folders and patterns, and write a row for each as it comes.

    Args:
        target: a .csv, .jsonl or .parquet file; None: CSV to the screen.
        top_k: classes a row, at most those that there are.
        features: also write the pooled features beside `target`, as `rows.features_file` names it.

    Returns:
        Rows with an error, and all rows.

    Raises:
        DataError, RunError: before anything is predicted; or the disk is full, and no file is left behind.
    """
    if top_k < 1:
        raise DataError(f"--top-k {top_k}: expected at least 1")
    if features and target is None:
        raise DataError("--features writes a file beside the predictions, so it needs --out, for example --out new.csv")
    rows.check_target(target)
    beside = rows.features_file(target) if features and target is not None else None
    if beside is not None:
        files.check_target(beside, "--features")
    run = runs.read_run(path)
    top_k = min(top_k, len(run.classes))
    recipe = testing_recipe(run)
    device = torch.device(recipe.run.device)
    keep_freed_memory()
    model, normalise = load_model(run, device), Normalise(run.data.mean, run.data.std).to(device)
    names = rows.expand(inputs)
    done = failed = 0
    assert recipe.run.threads != "auto"
    with (
        compute_threads(recipe.run.threads),
        rows.writing(target, top_k) as write,
        rows.writing_features(beside, len(names), model.head.in_features) as write_features,
        counting(console, "predicting") as progress,
    ):
        paths = [Path(name) for name in names]
        for scores in score_images(model, normalise, paths, recipe, features=features):
            batch = names[scores.start : scores.start + len(scores.errors)]
            write(list(rows.rows(batch, scores.log_probs, scores.errors, run.classes, top_k)))
            if scores.features is not None:
                write_features(scores.features)
            done += len(batch)
            failed += sum(error is not None for error in scores.errors)
            if target is not None or not sys.stdout.isatty():
                progress(done, len(names))
    return failed, done

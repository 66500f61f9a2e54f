"""A run and images in, prediction rows out."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from fewsight import rows, runs
from fewsight.console import counting
from fewsight.device import compute_threads, keep_freed_memory
from fewsight.errors import DataError
from fewsight.predict import Normalise, load_model, score_images, testing_recipe


def predict_files(
    path: Path, inputs: Sequence[str], target: Path | None, *, top_k: int, console: Console
) -> tuple[int, int]:
    """Predict files, folders and patterns, and write a row for each as it comes.

    Args:
        target: a .csv, .jsonl or .parquet file; None: CSV to the screen.
        top_k: classes a row, at most those that there are.

    Returns:
        Rows with an error, and all rows.

    Raises:
        DataError, RunError: before anything is predicted; or the disk is full, and no file is left behind.
    """
    if top_k < 1:
        raise DataError(f"--top-k {top_k}: expected at least 1")
    rows.check_target(target)
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
        counting(console, "predicting") as progress,
    ):
        for scores in score_images(model, normalise, [Path(name) for name in names], recipe):
            batch = names[scores.start : scores.start + len(scores.errors)]
            write(list(rows.rows(batch, scores.log_probs, scores.errors, run.classes, top_k)))
            done += len(batch)
            failed += sum(error is not None for error in scores.errors)
            if target is not None or not sys.stdout.isatty():
                progress(done, len(names))
    return failed, done

"""A run and images in, prediction rows out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from fewsight import rows, runs
from fewsight.console import counting
from fewsight.device import compute_threads, keep_freed_memory, resolve_run
from fewsight.errors import DataError
from fewsight.predict import Normalise, load_model, score_images


def predict_files(
    path: Path, inputs: Sequence[str], target: Path | None, *, top_k: int, console: Console
) -> tuple[int, int]:
    """Predict files, folders and patterns, and write a row for each.

    Returns:
        Rows with an error, and all rows.
    """
    if top_k < 1:
        raise DataError(f"--top-k {top_k}: expected at least 1")
    rows.check_target(target)
    run = runs.read_run(path)
    names = rows.expand(inputs)
    if not names:
        raise DataError(f"no image in {', '.join(inputs)}")
    settings = resolve_run(run.recipe.run.model_copy(update={"device": "auto", "threads": "auto", "workers": "auto"}))
    recipe = run.recipe.model_copy(update={"run": settings})
    device = torch.device(settings.device)
    keep_freed_memory()
    model, normalise = load_model(run, device), Normalise(run.data.mean, run.data.std).to(device)
    table: list[rows.Row] = []
    assert settings.threads != "auto"
    with compute_threads(settings.threads), counting(console, "predicting") as progress:
        for scores in score_images(model, normalise, [Path(name) for name in names], recipe):
            batch = names[scores.start : scores.start + len(scores.errors)]
            table += rows.rows(batch, scores.log_probs, scores.errors, run.classes, top_k)
            progress(len(table), len(names))
    rows.write_rows(table, target)
    return sum(row["error"] is not None for row in table), len(table)

"""A member's scores of val, and the ensemble's figures and temperature from all of them."""

import contextlib
import shutil
from pathlib import Path

import numpy as np

from fewsight import runs
from fewsight.data import evaluation_samples, file_digest, read_bytes
from fewsight.data.samples import size_of
from fewsight.data.training_set import TrainingSet
from fewsight.errors import DataError, RunError
from fewsight.machine import files
from fewsight.runs import Run
from fewsight.scores import store
from fewsight.scores.calibration import fit_temperature, write_calibrations
from fewsight.scores.entries import EnsembleEntry, write_entries
from fewsight.scores.fusion import fused_log_probs, label_indices
from fewsight.scores.members import Scored, scored_ensemble
from fewsight.scores.metrics import Figures, evaluate_scores
from fewsight.scores.scoring import store_info, views_of
from fewsight.scores.store import ScoredImage
from fewsight.training.members.folder import member_paths


def keep_val_scores(run: Run, data: TrainingSet, log_probs: np.ndarray) -> None:
    """Store a member's scores of val, as `evaluate` would.

    Args:
        run: the member, with the digest of its weights.
        data: its images.
        log_probs: float32 [n, K], of the n val images, centre view.

    Raises:
        DataError: val can no longer be read.
        WriteError: the scores cannot be written.
    """
    settings, folder = run.recipe.data, run.path / "scores" / "val"
    holdout, seed, splits = settings.holdout, settings.split_seed, settings.splits
    val = evaluation_samples(run.data.source, run.classes, "val", holdout=holdout, seed=seed, splits=splits)
    images = _scored_images(run, [(sample.path, sample.label) for sample in val.samples], val.root)
    row_of = dict(zip(data.val_paths, log_probs, strict=True))
    missing = np.full(len(run.classes), np.nan, np.float32)
    rows = np.stack([row_of.get(image.path, missing) for image in images])
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed while it wrote them
    info = store_info(run, run.recipe, [(image.path, image.size, image.label) for image in images])
    writer = store.begin(folder, info, [views_of(run.recipe)[0].name])
    store.append(writer, 0, rows[None], images)
    store.finish(writer)


def _scored_images(run: Run, samples: list[tuple[str, str]], root: Path) -> list[ScoredImage]:
    """The lines of images.jsonl for samples of val; those that the run left out have the reason."""
    listed = {image.path: image for image in runs.read_images(run) if image.split == "val"}
    reasons = {image["path"]: image["error"] for image in run.data.left_out}
    trained, chose = runs.trained_on(run), run.recipe.run.select == "best"
    lines = []
    for path, label in samples:
        if (image := listed.get(path)) is not None:
            was_trained_on = (root / path, image.pixels, image.digest) in trained
            lines.append(ScoredImage(path, image.size, label, None, image.digest, was_trained_on, chose))
        else:
            digest = ""
            with contextlib.suppress(DataError):
                digest = file_digest(read_bytes(root / path))
            lines.append(ScoredImage(path, size_of(root / path), label, reasons.get(path, "left out"), digest, False))
    return lines


def finish_ensemble(run: Run) -> Run:
    """Write the figures on val and the temperature of an ensemble of finished members, and mark it as finished.

    Raises:
        RunError: a member's scores of val are damaged or missing.
    """
    members = [runs.read_run(path) for path in member_paths(run)]
    entries = [
        EnsembleEntry(member.path.name, member.path.name, views_of(member.recipe)[0].px, 1 / len(members))
        for member in members
    ]
    figures: Figures | None = None
    if run.data.counts.get("val"):
        stores = {member.path.name: store.read_store(member.path / "scores" / "val") for member in members}
        scored = scored_ensemble(run.path, entries, stores, center_only=True)
        figures = _val_figures(scored)
        with contextlib.suppress(RunError):  # too few images, or some that were trained on
            write_calibrations(run.path, [fit_temperature(scored)])
    files.write_json(run.path / "metrics.json", {"val": figures.as_json() if figures else None})
    write_entries(run.path, entries, "center")
    collapsed = any(member.info.collapsed for member in members)
    return runs.update_info(run, status="finished", finished=runs.now(), collapsed=collapsed)


def _val_figures(scored: Scored) -> Figures:
    of_val = scored.first_store
    log_probs, labels = fused_log_probs(scored.weights)[of_val.readable], label_indices(of_val)[of_val.readable]
    return evaluate_scores(log_probs, labels, of_val.about.classes)

"""Collect what the page shows from a run's files and stored scores; no model is loaded."""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fewsight import runs
from fewsight.apps.report.suspects import confident_from, suspects
from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.recipes import Recipe
from fewsight.runs import Run
from fewsight.scores.calibration import (
    MIN_IMAGES,
    Bin,
    Calibration,
    apply_temperature,
    calibration_for,
    read_calibrations,
    reliability_bins,
    view_names,
)
from fewsight.scores.entries import is_ensemble, read_entries
from fewsight.scores.fusion import fused_log_probs, label_indices
from fewsight.scores.members import Scored
from fewsight.scores.metrics import Figures, Paired, Proportion, evaluate_scores, paired, wilson
from fewsight.scores.opening import default_split, open_scored
from fewsight.scores.queries import Ablation, Line, ablate, describe_mean, lines_by_size

GALLERY = 24  # images
MAX_UNSURE = 0.2  # fraction of the images that may count as least confident


@dataclass(frozen=True)
class Prediction:
    """One image and the run's prediction for it."""

    path: str  # as the store names it
    digest: str  # of the file as it was scored
    label: str
    predicted: str  # the most probable class
    prob: float  # of the predicted class
    label_prob: float  # of the label


@dataclass(frozen=True)
class Examples:
    """Images worth a look, the most telling ones first."""

    mistakes: tuple[Prediction, ...]  # the most confident ones, without the suspects
    unsure: tuple[Prediction, ...]  # the least confident predictions
    suspects: tuple[Prediction, ...]  # the likeliest wrong labels
    num_suspects: int
    confident_from: float | None  # probability from which on the run is confident; None if it never is


@dataclass(frozen=True)
class CalibrationFacts:
    """How confidence matches accuracy, before and after calibration."""

    bins: tuple[Bin, ...]  # without a temperature
    nll: float  # without a temperature; that of the page's probabilities is in `RunFacts.figures`
    stored: Calibration | None  # for these views
    stored_views: tuple[str, ...]  # in words, of every stored calibration
    val: Literal["scored", "not scored", "too few", "none"]  # to fit a temperature for these views on
    tempered_bins: tuple[Bin, ...]  # at the stored temperature; empty without one
    accepted: Proportion | None  # accuracy of the images that the stored threshold accepts; None without one


@dataclass(frozen=True)
class Curve:
    """One quantity over the epochs of a training."""

    name: str
    points: tuple[tuple[float, float], ...]  # (epoch, value)


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's tables in tables.json; `report` in a key stands for the paper."""

    table: int
    model: str
    family: str
    loss: str
    train_px: int | None
    test_px: int | None
    report_px: int
    report_top1: float
    top1: Proportion | None
    collapsed: bool


@dataclass(frozen=True)
class PaperEffect:
    """A line of the ablation in tables.json."""

    question: str
    name: str
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class PaperTables:
    """tables.json, which `fewsight reproduce` writes."""

    rows: list[PaperRow]
    fusion: Proportion
    effects: list[PaperEffect]


@dataclass(frozen=True)
class RunFacts:
    """What the page shows of a run or an ensemble on one split.

    Every probability is at the run's temperature for these views, if it has one, as `predict` gives it; only
    `calibration` has figures without it too.
    """

    path: Path
    scored: Scored
    views: str  # in words, the views whose mean the probabilities are
    figures: Figures
    correct: np.ndarray  # bool [n], of the readable images
    confusion: np.ndarray  # int [K, K]: true class, predicted class
    num_trained_on: int
    num_chose_weights: int  # images on which the epoch of the weights was chosen
    calibration: CalibrationFacts
    counts: dict[str, dict[str, int]]  # split -> class -> images: what the run was trained with, and what is shown
    by_size: tuple[Line, ...]  # each test size, then all together
    ablation: Ablation | None  # None for a single view
    examples: Examples
    curves: tuple[Curve, ...]
    run: Run | None  # None for an ensemble
    source: str | None  # path of the data, of the run or an ensemble's first run
    recipe: Recipe | None  # of the run or an ensemble's first run
    command: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the run's class indices."""
        return self.scored.first_store.about.classes


def gather(path: Path, split: str | None = None, views: Sequence[str] = ()) -> RunFacts:
    """Collect everything that the page shows of a run or an ensemble.

    Args:
        path: the run or ensemble.
        split: the split whose stored scores are used; None: test, else val, else the only one.
        views: use only these views; none: all that are stored.

    Raises:
        RunError: not a run, or it has no such scores, or they have no labels.
    """
    scored = open_scored(path, split or default_split([path]), views)
    labels, readable = label_indices(scored.first_store), scored.first_store.readable
    fused, labels = fused_log_probs(scored.weights)[readable], labels[readable]
    stored, classes = calibration_for(path, view_names(scored)), scored.first_store.about.classes
    scores = (
        fused if stored is None else apply_temperature(fused, stored.temperature)
    )  # what the page shows is of these
    predicted = scores.argmax(1)
    run = None if is_ensemble(path) or not (path / "run.json").is_file() else runs.read_run(path)
    first = run or _first_run(path)
    command = runs.read_info(path).command if (path / "run.json").is_file() else ""
    return RunFacts(
        path=path,
        scored=scored,
        views=describe_mean(scored),
        figures=evaluate_scores(scores, labels, classes, num_images=len(readable)),
        correct=predicted == labels,
        confusion=np.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2).reshape(len(classes), -1),
        num_trained_on=int(scored.trained_on.sum()),
        num_chose_weights=int(scored.chose_weights.sum()),
        calibration=CalibrationFacts(
            bins=reliability_bins(fused, labels),
            nll=float(-fused[np.arange(len(labels)), labels].mean(dtype=np.float64)),
            stored=stored,
            stored_views=tuple(", ".join(calibration.views) for calibration in read_calibrations(path)),
            val=_val(path, first, view_names(scored)),
            tempered_bins=() if stored is None else reliability_bins(scores, labels),
            accepted=_accepted(stored, scores, predicted == labels),
        ),
        counts=_counts(run, scored),
        by_size=tuple(lines_by_size(scored)),
        ablation=_ablation(scored),
        examples=_examples(scored, scores, labels),
        curves=curves(path),
        run=run,
        source=None if first is None else first.data.source,
        recipe=None if first is None else first.recipe,
        command=command,
    )


def _counts(run: Run | None, scored: Scored) -> dict[str, dict[str, int]]:
    """Images by split and class: those that the run's data.json records, and those of the scores."""
    store, recorded = scored.first_store, {} if run is None else run.data.counts
    shown = Counter(image.label for image in store.images if image.label is not None)
    return {**recorded, store.path.name: recorded.get(store.path.name, dict(shown))}


def _val(path: Path, first: Run | None, views: tuple[str, ...]) -> Literal["scored", "not scored", "too few", "none"]:
    """The val images that a temperature for these views can be fitted on."""
    with contextlib.suppress(RunError):
        scored = open_scored(path, "val", views)
        if scored.trained_on.any():
            return "none"
        return "scored" if scored.first_store.readable.sum() >= MIN_IMAGES else "too few"
    num_val = 0 if first is None else sum(first.data.counts.get("val", {}).values())
    if num_val == 0:
        return "none"
    return "not scored" if num_val >= MIN_IMAGES else "too few"


def _examples(scored: Scored, scores: np.ndarray, labels: np.ndarray) -> Examples:
    """Choose the images to show.

    Args:
        scored: the scores.
        scores: log-probabilities [n, K] of the readable images, as the page shows them.
        labels: class indices [n].
    """
    images = [image for image in scored.first_store.images if image.error is None]
    classes = scored.first_store.about.classes
    predicted, confidence = scores.argmax(1), scores.max(1)

    def predictions(indices: np.ndarray) -> tuple[Prediction, ...]:
        return tuple(
            Prediction(
                images[index].path,
                images[index].digest,
                classes[labels[index]],
                classes[predicted[index]],
                float(np.exp(scores[index, predicted[index]])),
                float(np.exp(scores[index, labels[index]])),
            )
            for index in indices[:GALLERY]
        )

    suspected, _ = suspects(scores, labels)
    wrong = np.setdiff1d(np.flatnonzero(predicted != labels), suspected)
    return Examples(
        mistakes=predictions(wrong[np.argsort(-confidence[wrong], kind="stable")]),
        unsure=predictions(np.argsort(confidence, kind="stable")[: math.ceil(MAX_UNSURE * len(confidence))]),
        suspects=predictions(suspected),
        num_suspects=len(suspected),
        confident_from=confident_from(scores, labels),
    )


def against(first: RunFacts, other: RunFacts) -> Paired | None:
    """Compare another run with the first, image by image; None if they were tested on different images."""
    ours, theirs = ([image.digest for image in facts.scored.first_store.images] for facts in (first, other))
    if ours != theirs or first.classes != other.classes or len(first.correct) != len(other.correct):
        return None
    return paired(first.correct, other.correct)


def _accepted(calibration: Calibration | None, scores: np.ndarray, correct: np.ndarray) -> Proportion | None:
    """The accuracy of the images that the stored threshold accepts; None without a threshold or such an image."""
    if calibration is None or calibration.threshold is None:
        return None
    accepted = np.exp(scores.max(1)).astype(np.float64) >= calibration.threshold.prob
    return wilson(int(correct[accepted].sum()), int(accepted.sum())) if accepted.any() else None


def curves(path: Path) -> tuple[Curve, ...]:
    """Training loss and top-1 on val by epoch, from log.jsonl; none without a log."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in runs.read_log(path):
        if line.kind == "epoch" and line.epoch is not None:
            for name, value in (("training loss", line.train_loss), ("top-1 on val", line.val_top1)):
                if value is not None:
                    points.setdefault(name, []).append((line.epoch, value))
    return tuple(Curve(name, tuple(values)) for name, values in points.items())


def paper_tables(path: Path) -> PaperTables | None:
    """The tables that `fewsight reproduce` wrote, if `path` is its folder."""
    file = path / "tables.json"
    return files.read_json(file, PaperTables, "`fewsight reproduce`") if file.is_file() else None


def _first_run(path: Path) -> Run | None:
    """The first run of an ensemble; None if it is not an ensemble, or has only scores."""
    if not is_ensemble(path):
        return None
    folder = path / "runs" / read_entries(path)[0].run
    return runs.read_run(folder) if (folder / "run.json").is_file() else None


def _ablation(scored: Scored) -> Ablation | None:
    """The ablation; None for scores of which nothing can be left out."""
    if len(scored.weights) == 1:
        return None
    try:
        return ablate(scored)
    except RunError as error:
        if re.search("nothing can be left out", str(error)):
            return None
        raise

"""What a run's files and kept scores say, for a page: no model is needed."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewsight import runs
from fewsight.errors import RunError
from fewsight.inference.ensemble import is_ensemble
from fewsight.machine import files
from fewsight.recipes import Recipe
from fewsight.runs import Run
from fewsight.scores.calibration import (
    Bin,
    Calibration,
    calibration_for,
    confidences,
    read_calibrations,
    reliability_bins,
    view_names,
)
from fewsight.scores.fusion import Scored, default_split, fused_log_probs, label_indices, open_scored, read_entries
from fewsight.scores.metrics import Figures, Paired, Proportion, evaluate_scores, paired, wilson
from fewsight.scores.queries import Ablation, Line, ablate, describe_mean, lines_by_size

GALLERY = 24  # images
LEAST_SURE = 0.2  # share of the images that the least sure are at most
AGREED = 0.9  # share of the images from a probability on that bear the class it is of, for a run to be sure there


@dataclass(frozen=True)
class Prediction:
    """One image, and what the run makes of it."""

    path: str  # as the store names it
    digest: str  # of the file that was scored
    label: str
    taken_for: str  # the most probable class
    prob: float  # of that class
    label_prob: float


@dataclass(frozen=True)
class Curve:
    """One value over the epochs of a training."""

    name: str
    points: tuple[tuple[float, float], ...]  # (epoch, value)


@dataclass(frozen=True)
class RunFacts:
    """A run or an ensemble on one split."""

    path: Path
    scored: Scored
    views: str  # whose probabilities these are, in words
    figures: Figures
    right: np.ndarray  # bool [n], of the images that could be read
    confusion: np.ndarray  # int [K, K]: true, taken for
    num_trained_on: int
    reliability: tuple[Bin, ...]
    calibration: Calibration | None  # that the run keeps for these views
    calibrated_views: tuple[str, ...]  # each that it keeps one for, in words
    tempered: tuple[Bin, ...]  # at that temperature; none without one
    above: Proportion | None  # accuracy of the images that the kept threshold lets pass; None without one
    rows: tuple[Line, ...]  # by test size, and all together
    ablation: Ablation | None  # None for one view alone
    sure_mistakes: tuple[Prediction, ...]
    unsure: tuple[Prediction, ...]
    suspects: tuple[Prediction, ...]  # whose labels are perhaps wrong, the first of them
    num_suspects: int
    sure_prob: float | None  # of the most probable class, from which on the run is sure; None where it nowhere is
    curves: tuple[Curve, ...]
    run: Run | None  # None for an ensemble
    source: str | None  # where the data lay, of the run or the first of an ensemble's
    recipe: Recipe | None  # of the run or the first of an ensemble's
    command: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, as the run numbers them."""
        return self.scored.first_store.about.classes


def gather(path: Path, split: str | None = None, views: Sequence[str] = ()) -> RunFacts:
    """Everything that the page shows of a run or an ensemble.

    Args:
        split: whose kept scores; None: test, else val, else the only ones.
        views: only these; all that there are where none is named.

    Raises:
        RunError: not a run, or no such scores, or they have no labels.
    """
    scored = open_scored(path, split or default_split([path]), views)
    labels, readable = label_indices(scored.first_store), scored.first_store.readable
    scores, labels = fused_log_probs(scored.weights)[readable], labels[readable]
    classes = scored.first_store.about.classes
    predicted = scores.argmax(1)
    calibration = calibration_for(path, view_names(scored))
    run = None if is_ensemble(path) or not (path / "run.json").is_file() else runs.read_run(path)
    images = [image for image in scored.first_store.images if image.error is None]

    def seen(places: np.ndarray, taken: np.ndarray) -> tuple[Prediction, ...]:
        return tuple(
            Prediction(
                images[place].path,
                images[place].digest,
                classes[labels[place]],
                classes[other],
                float(np.exp(scores[place, other])),
                float(np.exp(scores[place, labels[place]])),
            )
            for place, other in zip(places[:GALLERY], taken[:GALLERY], strict=True)
        )

    sure = scores[np.arange(len(labels)), predicted]
    wrong = np.flatnonzero(predicted != labels)
    mistakes = wrong[np.argsort(-sure[wrong], kind="stable")]
    unsure = np.argsort(sure, kind="stable")[: math.ceil(LEAST_SURE * len(sure))]
    first = run or _first_run(path)
    suspected, claimed = suspects(scores, labels)
    info = files.read_json(path / "run.json") if (path / "run.json").is_file() else {}
    return RunFacts(
        path=path,
        scored=scored,
        views=describe_mean(scored),
        figures=evaluate_scores(scores, labels, classes, num_images=len(readable)),
        right=predicted == labels,
        confusion=np.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2).reshape(len(classes), -1),
        num_trained_on=int(scored.trained_on.sum()),
        reliability=reliability_bins(scores, labels),
        calibration=calibration,
        calibrated_views=tuple(", ".join(one.views) for one in read_calibrations(path)),
        tempered=() if calibration is None else reliability_bins(scores, labels, calibration.temperature),
        above=_above(calibration, scores, predicted == labels),
        rows=tuple(lines_by_size(scored)),
        ablation=_ablation(scored),
        sure_mistakes=seen(mistakes, predicted[mistakes]),
        unsure=seen(unsure, predicted[unsure]),
        suspects=seen(suspected, claimed),
        num_suspects=len(suspected),
        sure_prob=sure_from(scores, labels),
        curves=curves(path),
        run=run,
        source=None if first is None else first.data.source,
        recipe=None if first is None else first.recipe,
        command=str(info.get("command", "")) if isinstance(info, dict) else "",
    )


def against(first: RunFacts, other: RunFacts) -> Paired | None:
    """Another run against the first, image by image; None where they were tested on other images."""
    ours, theirs = ([image.digest for image in one.scored.first_store.images] for one in (first, other))
    if ours != theirs or first.classes != other.classes or len(first.right) != len(other.right):
        return None
    return paired(first.right, other.right)


def suspects(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of images whose label is perhaps wrong, the likeliest first, and the class that each is taken for.

    Args:
        scores: log-probabilities [n, K].
        labels: [n].

    The most probable class is not the label's, has at least the mean probability that it has over the images with its
    label, and the run is sure there (`sure_from`): a weak run, which is often wrong, then suspects few labels or none.
    First is where it leads the label's class by most.

    Source: Northcutt et al., Confident learning, arXiv:1911.00068 (the mean of the class); the second bound is ours.
    """
    num_classes, given = scores.shape[1], np.exp(scores[np.arange(len(labels)), labels])
    count = np.bincount(labels, minlength=num_classes)
    own = np.bincount(labels, given, num_classes)
    usual = np.where(count > 0, own / np.maximum(count, 1), np.inf)
    taken, peaks, sure = scores.argmax(1), _peaks(scores), sure_from(scores, labels)
    suspect = (taken != labels) & (peaks >= usual[taken]) & (peaks >= (np.inf if sure is None else sure))
    places = np.flatnonzero(suspect)
    order = places[np.argsort(given[places] - peaks[places], kind="stable")]
    return order, taken[order]


def sure_from(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The lowest probability of the most probable class from which on at least `AGREED` of the images bear its label.

    None where there is no such probability. The run's probabilities need not be calibrated for it.

    Source: Geifman and El-Yaniv, arXiv:1705.08500 (a threshold on that probability for an error that is allowed).
    """
    peaks, right = _peaks(scores), scores.argmax(1) == labels
    order = np.argsort(-peaks, kind="stable")
    agreed = np.flatnonzero(np.cumsum(right[order]) >= AGREED * np.arange(1, len(order) + 1))
    return float(peaks[order[agreed[-1]]]) if len(agreed) else None


def _peaks(scores: np.ndarray) -> np.ndarray:
    """float64 [n]: the probability of the most probable class."""
    found: np.ndarray = np.exp(scores.max(1).astype(np.float64))
    return found


def _above(calibration: Calibration | None, scores: np.ndarray, right: np.ndarray) -> Proportion | None:
    """Of the images whose class is sure enough for the kept threshold."""
    if calibration is None or calibration.threshold is None:
        return None
    kept = confidences(scores, calibration.temperature) >= calibration.threshold.prob
    return wilson(int(right[kept].sum()), int(kept.sum())) if kept.any() else None


def curves(path: Path) -> tuple[Curve, ...]:
    """The epochs' training loss and accuracy on val, from log.jsonl; none where there is no log."""
    log = path / "log.jsonl"
    if not log.is_file():
        return ()
    files.check_inside(log, path, most=files.MOST_JSON_BYTES)
    found: dict[str, list[tuple[float, float]]] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            continue  # the last one of a killed run
        if isinstance(value, dict) and value.get("kind") == "epoch":
            for key, name in (("train_loss", "training loss"), ("val_top1", "top-1 on val")):
                if isinstance(value.get(key), float) and isinstance(value.get("epoch"), int):
                    found.setdefault(name, []).append((value["epoch"], value[key]))
    return tuple(Curve(name, tuple(points)) for name, points in found.items())


def report_tables(path: Path) -> dict[str, Any] | None:
    """What `fewsight reproduce` found, where `path` is its folder."""
    if not (path / "tables.json").is_file():
        return None
    found = files.read_json(path / "tables.json")
    if not isinstance(found, dict) or not {"rows", "fusion", "effects"} <= found.keys():
        raise RunError(f"{path / 'tables.json'} is not what `fewsight reproduce` wrote")
    return found


def _first_run(path: Path) -> Run | None:
    """The first run of an ensemble; None where there is none to read."""
    if not is_ensemble(path):
        return None
    place = path / "runs" / read_entries(path)[0].run
    return runs.read_run(place) if (place / "run.json").is_file() else None


def _ablation(scored: Scored) -> Ablation | None:
    if len(scored.weights) == 1:
        return None
    try:
        return ablate(scored)
    except RunError as error:
        if re.search("nothing to take away", str(error)):
            return None
        raise

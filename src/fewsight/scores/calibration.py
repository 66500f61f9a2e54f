"""Temperature scaling, and a confidence threshold for rejecting images.

Both are fitted on scores of images that the run was not trained on, and stored in the run's calibration.json.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from fewsight.errors import RecipeError, RunError
from fewsight.machine import files
from fewsight.scores.chosen_weights import check_not_trained_on
from fewsight.scores.fusion import fused_log_probs, label_indices
from fewsight.scores.members import Scored
from fewsight.scores.metrics import Proportion, wilson
from fewsight.scores.opening import open_scored, parse_views
from fewsight.wording import counted

FILE = "calibration.json"
NUM_BINS = 15  # of the expected calibration error
TEMPERATURE_RANGE = (0.05, 20.0)
MIN_IMAGES_FOR_ECE = 20 * NUM_BINS  # with fewer than 20 images, a bin's accuracy has a standard error of 0.1 or more
MIN_IMAGES = 30  # that a temperature is fitted on; with fewer, a single image decides too much
WHAT_IS_NEEDED = f"a temperature needs at least {MIN_IMAGES} labelled images that did not train"
BOUND_TOLERANCE = 0.01  # relative, within which a temperature is at a bound of its range; a search ends near it
CHUNK_IMAGES = 4096  # whose scaled scores are held in memory at a time


@dataclass(frozen=True)
class Threshold:
    """The confidence below which an image is rejected, and its effect on the images that it was chosen on."""

    prob: float  # of the most probable class, at the calibration's temperature
    coverage: float  # proportion of images of the classes that was to be accepted
    kept: int  # images accepted
    right: int  # of those, the correctly classified

    @property
    def accuracy(self) -> Proportion:
        """Accuracy on the accepted images."""
        return wilson(self.right, self.kept)


@dataclass(frozen=True)
class Calibration:
    """A temperature with its effect on the images that it was fitted on, and a threshold if one was requested."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")  # the file is written again whole, so nothing is ignored

    temperature: float  # the probabilities p become p ** (1 / T), renormalised; T > 1 lowers the confidence
    views: tuple[str, ...]  # the temperature is that of their mean
    fitted_on: str  # the folder of the scores
    num_images: int
    nll: tuple[float, float]  # before and after, on the same images
    ece: tuple[float, float]  # expected calibration error of the most probable class, 15 bins of equal width
    threshold: Threshold | None = None
    num_chose_weights: int = 0  # of the images, on which the run chose the epoch of its weights (run.select = best)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why the temperature and its figures must be read with care."""
        chose = (
            f"{self.num_chose_weights:,} of the {counted(self.num_images, 'image')} chose the epoch of the weights too "
            "(run.select = best), so the temperature and these figures are optimistic"
        )
        return (*filter(None, [self.doubt, self.note]), *([chose] if self.num_chose_weights else []))

    @property
    def doubt(self) -> str | None:
        """Why the temperature cannot be trusted; None if it can."""
        if self.num_images < MIN_IMAGES:
            return f"this temperature was fitted on {counted(self.num_images, 'image')}, and {WHAT_IS_NEEDED}"
        low, high = TEMPERATURE_RANGE
        if low * (1 + BOUND_TOLERANCE) < self.temperature < high * (1 - BOUND_TOLERANCE):
            return None
        return (
            f"this temperature is at the end of the range that is searched, {low:g} to {high:g}: the best lies beyond"
        )

    @property
    def note(self) -> str | None:
        """Why the calibration error must be read with care; None if there is no reason."""
        grew = (
            "the calibration error grew, because the temperature was chosen for the lowest NLL, not for the lowest "
            "calibration error"
        )
        noise = (
            f"the calibration error of {counted(self.num_images, 'image')} is largely chance, because it is measured "
            f"on {NUM_BINS} groups of them by confidence: compare the NLL instead"
        )
        is_noisy = self.num_images < MIN_IMAGES_FOR_ECE
        return "; ".join([grew] * (self.ece[1] > self.ece[0]) + [noise] * is_noisy) or None


@dataclass(frozen=True)
class CalibrationFile:
    """calibration.json."""

    calibrations: list[Calibration]


def calibrate(path: Path, split: str, views: str | None, coverage: float | None = None) -> list[Calibration]:
    """Fit temperatures on stored scores, and thresholds if a coverage is given; both are stored in the run.

    Args:
        path: a run or an ensemble.
        split: whose scores.
        views: names separated by commas, whose mean is calibrated. None: the mean of all scored views, and the centre
            crops (for a run each by itself, for an ensemble their mean).
        coverage: proportion of images of the classes that a threshold is to accept; None: that of the threshold that
            is stored for the same views, if there is one.

    Raises:
        RecipeError: the coverage is not between 0 and 1.
        RunError: as `fit_temperature`; or there are no such scores.
    """
    if coverage is not None and not 0 < coverage < 1:
        raise RecipeError(f"--coverage {coverage:g}: expected a proportion between 0 and 1, such as 0.95")
    if views is not None:
        opened = [open_scored(path, split, parse_views(views))]
    else:
        whole = open_scored(path, split)
        centers = tuple(view for view in view_names(whole) if view.startswith("center-"))
        center_sets = [(view,) for view in centers] if len(whole.members) == 1 else [centers]
        parts = [names for names in center_sets if names not in ((), view_names(whole))]
        opened = [*(open_scored(path, split, names) for names in parts), whole]
    kept = {calibration.views: calibration.threshold for calibration in read_calibrations(path)}
    calibrations = []
    for scored in opened:
        earlier = kept.get(view_names(scored))
        anew = earlier.coverage if coverage is None and earlier is not None else coverage
        calibrations.append(fit_temperature(scored, anew))
    write_calibrations(path, calibrations)
    return calibrations


def fit_temperature(scored: Scored, coverage: float | None = None) -> Calibration:
    """The temperature that minimises the NLL of the fused probabilities; with a coverage, also a threshold.

    Raises:
        RunError: some of the images were trained on, or they have no labels, or are too few for a temperature or for
            the coverage.

    Source: Guo et al., arXiv 1706.04599, on the mean probabilities instead of logits.
    """
    check_not_trained_on(scored, "a temperature")
    store = scored.first_store
    labels, readable = label_indices(store), store.readable
    scores, labels = fused_log_probs(scored.weights)[readable], labels[readable]
    if len(labels) < MIN_IMAGES:
        there = counted(len(labels), "image")
        raise RunError(f"{store.path} has {there}, and {WHAT_IS_NEEDED}; evaluate on more images (--split names them)")
    temperature = _best_temperature(scores, labels)
    threshold = None
    if coverage is not None:
        is_correct = scores.argmax(1) == labels
        threshold = choose_threshold(confidences(scores, temperature), is_correct, coverage, str(store.path))
    num_chose = int(scored.chose_weights[readable].sum())
    return _calibration(scores, labels, temperature, view_names(scored), str(store.path), threshold, num_chose)


def keep_temperature(path: Path, scores: np.ndarray, labels: np.ndarray, view: str, *, chose_weights: bool) -> None:
    """Fit a run's temperature on val at the end of its training, and store it in the run.

    Args:
        path: the run.
        scores: float32 [n, K], log-probabilities of val; from `MIN_IMAGES` images on, else nothing is stored.
        labels: int [n].
        view: whose scores they are.
        chose_weights: whether val chose the epoch of the weights.
    """
    if len(labels) < MIN_IMAGES:
        return
    temperature = _best_temperature(scores, labels)
    num_chose = len(labels) if chose_weights else 0
    calibration = _calibration(scores, labels, temperature, (view,), "val, when its training ended", None, num_chose)
    write_calibrations(path, [calibration])


def _best_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that minimises the NLL of some images and one more.

    Where every image is right, the NLL alone falls without end as the temperature falls. As in Laplace's rule of
    succession, one more image counts, like these on average but with the second most probable class as its label.

    Args:
        scores: float32 [n, K], log-probabilities.
        labels: int [n].
    """
    from scipy.optimize import minimize_scalar  # takes seconds to import, and most commands fit nothing

    second = np.argsort(-scores, axis=1, kind="stable")[:, 1]

    def objective(logarithm: float) -> float:
        temperature = math.exp(logarithm)
        return len(labels) * _nll(scores, labels, temperature) + _nll(scores, second, temperature)

    minimum = minimize_scalar(objective, bounds=np.log(TEMPERATURE_RANGE), method="bounded")
    return math.exp(minimum.x)


def _calibration(
    scores: np.ndarray,
    labels: np.ndarray,
    temperature: float,
    views: tuple[str, ...],
    source: str,
    threshold: Threshold | None,
    num_chose_weights: int,
) -> Calibration:
    """A temperature with its effect on the images that it was fitted on."""
    return Calibration(
        temperature,
        views,
        source,
        len(labels),
        (_nll(scores, labels, 1.0), _nll(scores, labels, temperature)),
        (
            calibration_error(reliability_bins(scores, labels)),
            calibration_error(reliability_bins(scores, labels, temperature)),
        ),
        threshold,
        num_chose_weights,
    )


def choose_threshold(confidence: np.ndarray, is_correct: np.ndarray, coverage: float, source: str) -> Threshold:
    """The confidence that accepts, on average, at least a proportion `coverage` of new images like these.

    Of n images the ceil((n + 1) coverage) most confident are accepted: a new image is equally likely to fall into each
    of the n + 1 gaps between them. The threshold is halfway to the next image, so that the last bits of a probability
    decide nothing.

    Args:
        confidence: float [n], the probability of each image's most probable class.
        is_correct: bool [n], whether that class is the label.
        coverage: between 0 and 1.
        source: of the scores, for the message.

    Raises:
        RunError: n is too small for the coverage.

    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, chapter 2 (the quantile); Geifman
    and El-Yaniv, arXiv 1705.08500 (the most probable class's probability as the score).
    """
    num_accepted = math.ceil(round((len(confidence) + 1) * coverage, 9))
    if num_accepted > len(confidence):
        min_images = math.ceil(round(coverage / (1 - coverage), 9))
        max_coverage = len(confidence) / (len(confidence) + 1)
        raise RunError(
            f"{source}: --coverage {coverage:g} needs at least {counted(min_images, 'image')} to choose a threshold "
            f"on, and there are {len(confidence):,}; give at most {max_coverage:.3f}, or evaluate on more images"
        )
    order = np.argsort(-confidence, kind="stable")
    last, following = (
        float(confidence[order[index]]) for index in (num_accepted - 1, min(num_accepted, len(confidence) - 1))
    )
    accepted = confidence >= (threshold := (last + following) / 2)
    return Threshold(threshold, coverage, int(accepted.sum()), int(is_correct[accepted].sum()))


def confidences(scores: np.ndarray, temperature: float) -> np.ndarray:
    """float64 [n]: the probability of each image's most probable class at a temperature, from log-probabilities."""
    peaks = np.empty(len(scores))
    for start in range(0, len(scores), CHUNK_IMAGES):
        chunk = scores[start : start + CHUNK_IMAGES]
        peaks[start : start + CHUNK_IMAGES] = np.exp(apply_temperature(chunk, temperature).max(1))
    return peaks


def apply_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities [n, K] at a temperature; the order of the classes stays the same."""
    log_probs = np.empty(scores.shape, np.float32)
    for start in range(0, len(scores), CHUNK_IMAGES):
        scaled = scores[start : start + CHUNK_IMAGES].astype(np.float64) / temperature
        scaled -= scaled.max(1, keepdims=True)
        log_probs[start : start + CHUNK_IMAGES] = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    return log_probs


@dataclass(frozen=True)
class Bin:
    """Images whose most probable class has about the same probability."""

    count: int
    confidence: float  # mean probability of their most probable class
    accuracy: float


def reliability_bins(scores: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> tuple[Bin, ...]:
    """Images by their confidence, in bins of equal width; empty bins are left out.

    Args:
        scores: float32 [n, K], log-probabilities.
        labels: int [n].
        temperature: at which the confidence is taken.
    """
    confidence, is_correct = confidences(scores, temperature), scores.argmax(1) == labels
    indices = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    masks = [indices == number for number in range(NUM_BINS)]
    return tuple(
        Bin(int(mask.sum()), float(confidence[mask].mean()), float(is_correct[mask].mean()))
        for mask in masks
        if mask.any()
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: the mean over the images of |accuracy - confidence| of their bin."""
    total = sum(bin_.count for bin_ in bins)
    return sum(bin_.count * abs(bin_.accuracy - bin_.confidence) for bin_ in bins) / total


def view_names(scored: Scored) -> tuple[str, ...]:
    """The views of a fusion, sorted; a temperature is valid for one set of views."""
    return tuple(sorted({result.view for result in scored.weights}))


def write_calibrations(path: Path, calibrations: Sequence[Calibration]) -> None:
    """Add to a run's calibration.json; an older calibration of the same views is replaced."""
    by_views = {calibration.views: calibration for calibration in [*read_calibrations(path), *calibrations]}
    files.write_json(path / FILE, asdict(CalibrationFile(list(by_views.values()))))


def read_calibrations(path: Path) -> list[Calibration]:
    """The calibrations of a run's calibration.json; none if there is no such file.

    Raises:
        RunError: the file is damaged.
    """
    if not (path / FILE).is_file():
        return []
    calibrations = files.read_json(path / FILE, CalibrationFile, "`fewsight scores calibrate`").calibrations
    low, high = TEMPERATURE_RANGE
    if not all(low <= calibration.temperature <= high for calibration in calibrations):
        raise RunError(f"{path / FILE}: a temperature is not between {low} and {high}; remove the file")
    thresholds = [calibration.threshold for calibration in calibrations if calibration.threshold is not None]
    if not all(0 <= threshold.prob <= 1 for threshold in thresholds):
        raise RunError(f"{path / FILE}: a threshold is not a probability; remove the file")
    return calibrations


def calibration_for(path: Path, views: Sequence[str]) -> Calibration | None:
    """A run's stored calibration for the mean of these views, if it has one."""
    key = tuple(sorted(views))
    return next((calibration for calibration in read_calibrations(path) if calibration.views == key), None)


def _nll(scores: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Mean negative log-likelihood, nats."""
    total = 0.0
    for start in range(0, len(labels), CHUNK_IMAGES):
        scaled = scores[start : start + CHUNK_IMAGES] / np.float32(temperature)
        chunk_labels = labels[start : start + CHUNK_IMAGES]
        scaled -= scaled.max(1, keepdims=True)
        of_label = scaled[np.arange(len(chunk_labels)), chunk_labels].astype(np.float64)
        # exponentials in float32, sums in float64: a fit evaluates this a dozen times
        log_likelihood = of_label - np.log(np.exp(scaled).sum(1, dtype=np.float64))
        total -= float(np.maximum(log_likelihood, -100).sum())
    return total / len(labels)

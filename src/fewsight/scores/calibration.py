"""Temperature: how sure a run may say it is. Threshold: how sure it has to be, else an image is none of its classes.

Both are chosen on scores of images that the run was not trained on, and kept in the run.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from fewsight.errors import RecipeError, RunError
from fewsight.machine import files
from fewsight.scores.fusion import (
    Scored,
    check_not_trained_on,
    fused_log_probs,
    label_indices,
    open_scored,
    parse_views,
)
from fewsight.scores.metrics import Proportion, wilson
from fewsight.wording import counted

FILE = "calibration.json"
NUM_BINS = 15  # of the expected calibration error
RANGE = (0.05, 20.0)  # of temperatures
FEW = 20 * NUM_BINS  # images; the share that is right in a bin of fewer than 20 is off by 0.1 and more
PART = 4096  # images that are held anew at a time


@dataclass(frozen=True)
class Threshold:
    """The probability below which an image is none of the classes, and what it did on the images of its choice."""

    prob: float  # of the most probable class, at the calibration's temperature
    coverage: float  # share of such images that was to be kept
    kept: int
    right: int  # of those

    @property
    def accuracy(self) -> Proportion:
        """Of those kept."""
        return wilson(self.right, self.kept)


@dataclass(frozen=True)
class Calibration:
    """A temperature, what it was fitted on and what it did there; a threshold, if one was asked for."""

    temperature: float  # p ** (1 / T), renormalised: above 1 makes less sure
    views: tuple[str, ...]  # whose mean it belongs to
    fitted_on: str  # the scores' folder
    num_images: int
    nll: tuple[float, float]  # before and after, on the same images
    ece: tuple[float, float]  # expected calibration error of the most probable class, 15 bins of equal width
    threshold: Threshold | None = None

    @property
    def note(self) -> str | None:
        """What keeps the calibration error here from being taken at its word; None where nothing does."""
        few = self.num_images < FEW
        if not few and self.ece[1] <= self.ece[0]:
            return None
        worse = "the error grew; " if self.ece[1] > self.ece[0] else ""
        noisy = f", and of {counted(self.num_images, 'image')} it is mostly noise: judge by the NLL" if few else ""
        return (
            f"{worse}the temperature makes the labels most likely (NLL), it does not aim at the error, which is taken "
            f"over {NUM_BINS} bins of probability{noisy}"
        )


def calibrate(path: Path, split: str, views: str | None, coverage: float | None = None) -> list[Calibration]:
    """Fit temperatures on the kept scores of a split, and keep them in the run; with a coverage, thresholds too.

    Args:
        views: whose mean, names with commas between; None: all that were scored, and the centre crops: of a run each
            alone, of an ensemble together.
        coverage: share of images of the classes that a threshold is to keep; None: no threshold.

    Raises:
        RecipeError: the coverage is no share.
        RunError: as `fit_temperature`; or there are no such scores, or too few for the coverage.
    """
    if coverage is not None and not 0 < coverage < 1:
        raise RecipeError(f"--coverage {coverage:g}: expected a share between 0 and 1, such as 0.95")
    if views is not None:
        chosen = [parse_views(views)]
    else:
        scored = open_scored(path, split)
        centers = [view for view in view_names(scored) if view.startswith("center-")]
        alone = [(view,) for view in centers] if len(scored.members) == 1 else [tuple(centers)]
        chosen = list(dict.fromkeys([*alone, view_names(scored)]))
    found = [fit_temperature(open_scored(path, split, names), coverage) for names in chosen if names]
    write_calibrations(path, found)
    return found


def fit_temperature(scored: Scored, coverage: float | None = None) -> Calibration:
    """The temperature that makes the labels most likely under the fusion's probabilities, and a threshold at it.

    Raises:
        RunError: some of the images were trained on, or they have no labels, or are too few for the coverage.

    Source: Guo et al., arXiv 1706.04599, on the mean probabilities instead of logits.
    """
    check_not_trained_on(scored, "a temperature")
    store = scored.first_store
    labels, readable = label_indices(store), store.readable
    scores, labels = fused_log_probs(scored.weights)[readable], labels[readable]
    found = minimize_scalar(
        lambda logarithm: _nll(scores, labels, float(np.exp(logarithm))), bounds=np.log(RANGE), method="bounded"
    )
    temperature = float(np.exp(found.x))
    return Calibration(
        temperature,
        view_names(scored),
        str(store.path),
        len(labels),
        (_nll(scores, labels, 1.0), _nll(scores, labels, temperature)),
        (
            calibration_error(reliability_bins(scores, labels)),
            calibration_error(reliability_bins(scores, labels, temperature)),
        ),
        None
        if coverage is None
        else choose_threshold(confidences(scores, temperature), scores.argmax(1) == labels, coverage, str(store.path)),
    )


def choose_threshold(peaks: np.ndarray, right: np.ndarray, coverage: float, source: str) -> Threshold:
    """The probability that keeps the surest images: at least a share `coverage` of new ones like these, on average.

    Of n images the ceil((n + 1) coverage) surest are kept: a new one is equally likely to fall into each of the n + 1
    gaps between them. The threshold lies halfway to the next, so that the last bits of a probability decide nothing.

    Args:
        peaks: float [n], the probability of each image's most probable class.
        right: bool [n], whether it is the label.
        source: of the scores, for the message.

    Raises:
        RunError: n is too small for the coverage.

    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, chapter 2 (the quantile); Geifman
    and El-Yaniv, arXiv 1705.08500 (the most probable class's probability as the score).
    """
    number = math.ceil(round((len(peaks) + 1) * coverage, 9))
    if number > len(peaks):
        fewest = math.ceil(round(coverage / (1 - coverage), 9))
        raise RunError(
            f"{source}: --coverage {coverage:g} needs {counted(fewest, 'image')} or more to choose a threshold on, and "
            f"these are {len(peaks):,}; ask for {len(peaks) / (len(peaks) + 1):.3f} at most, or evaluate on more images"
        )
    order = np.argsort(-peaks, kind="stable")
    last, following = (float(peaks[order[place]]) for place in (number - 1, min(number, len(peaks) - 1)))
    kept = peaks >= (threshold := (last + following) / 2)
    return Threshold(threshold, coverage, int(kept.sum()), int(right[kept].sum()))


def confidences(scores: np.ndarray, temperature: float) -> np.ndarray:
    """float64 [n]: the probability of each image's most probable class at a temperature."""
    peaks = np.empty(len(scores))
    for start in range(0, len(scores), PART):
        peaks[start : start + PART] = np.exp(apply_temperature(scores[start : start + PART], temperature).max(1))
    return peaks


def apply_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities [n, K] at a temperature: the same classes in the same order, more or less sure."""
    scaled = scores.astype(np.float64) / temperature
    scaled -= scaled.max(1, keepdims=True)
    result: np.ndarray = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    return result.astype(np.float32)


@dataclass(frozen=True)
class Bin:
    """Images whose most probable class has about the same probability."""

    count: int
    confidence: float  # mean probability of their most probable class
    accuracy: float


def reliability_bins(scores: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> tuple[Bin, ...]:
    """Images by the probability of their most probable class, in bins of equal width; those that hold an image.

    Args:
        scores: float32 [n, K], log-probabilities.
        labels: int [n].
    """
    sure, hit = confidences(scores, temperature), scores.argmax(1) == labels
    places = np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1)
    those = [places == number for number in range(NUM_BINS)]
    return tuple(Bin(int(one.sum()), float(sure[one].mean()), float(hit[one].mean())) for one in those if one.any())


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: how far probability and share right lie apart, the mean over the images."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / total


def view_names(scored: Scored) -> tuple[str, ...]:
    """The views of a fusion, sorted: a temperature belongs to them."""
    return tuple(sorted({result.view for result in scored.weights}))


def write_calibrations(path: Path, calibrations: Sequence[Calibration]) -> None:
    """Add to a run's calibration.json; one of the same views is replaced."""
    there = {one.views: one for one in [*read_calibrations(path), *calibrations]}
    files.write_json(path / FILE, {"calibrations": [asdict(one) for one in there.values()]})


def read_calibrations(path: Path) -> list[Calibration]:
    """What calibration.json holds; nothing where there is none.

    Raises:
        RunError: it is damaged.
    """
    if not (path / FILE).is_file():
        return []
    values = files.read_json(path / FILE)
    try:
        found = [Calibration(**{key: _value(key, item) for key, item in one.items()}) for one in values["calibrations"]]
        strange = not all(RANGE[0] <= one.temperature <= RANGE[1] for one in found)
        lost = not all(one.threshold is None or 0 <= one.threshold.prob <= 1 for one in found)
    except (TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path / FILE} is not what `fewsight scores calibrate` wrote: {error!r}") from error
    if strange or lost:
        what = f"temperature is not between {RANGE[0]} and {RANGE[1]}" if strange else "threshold is no probability"
        raise RunError(f"{path / FILE}: a {what}; remove the file")
    return found


def calibration_for(path: Path, views: Sequence[str]) -> Calibration | None:
    """What a run keeps for the mean of these views."""
    return next((one for one in read_calibrations(path) if one.views == tuple(sorted(views))), None)


def _value(key: str, value: Any) -> Any:
    if key == "threshold" and value is not None:
        return Threshold(**value)
    return tuple(value) if isinstance(value, list) else value


def _nll(scores: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Mean negative log-likelihood, nats."""
    total = 0.0
    for start in range(0, len(labels), PART):
        scaled, true = scores[start : start + PART] / np.float32(temperature), labels[start : start + PART]
        scaled -= scaled.max(1, keepdims=True)
        own = scaled[np.arange(len(true)), true].astype(np.float64)
        # exponentials in float32, sums in float64: a fit asks for these a dozen times
        likely = own - np.log(np.exp(scaled).sum(1, dtype=np.float64))
        total -= float(np.maximum(likely, -100).sum())
    return total / len(labels)

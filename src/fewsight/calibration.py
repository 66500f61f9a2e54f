"""Temperature: how sure a run may say it is. Fitted on scores of images that it was not trained on, kept in the run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from fewsight import files
from fewsight.errors import RunError
from fewsight.fusion import Scored, check_unseen, labels_of, log_probs, open_scored, read_views

FILE = "calibration.json"
NUM_BINS = 15  # of the expected calibration error
RANGE = (0.05, 20.0)  # of temperatures
PART = 4096  # images that are held anew at a time


@dataclass(frozen=True)
class Calibration:
    """A temperature, what it was fitted on and what it did there."""

    temperature: float  # p ** (1 / T), renormalised: above 1 makes less sure
    views: tuple[str, ...]  # whose mean it belongs to
    fitted_on: str  # the scores' folder
    num_images: int
    nll: tuple[float, float]  # before and after, on the same images
    ece: tuple[float, float]  # expected calibration error of the most probable class, 15 bins of equal width


def calibrate(path: Path, split: str, views: str | None) -> list[Calibration]:
    """Fit temperatures on the kept scores of a split, and keep them in the run.

    Args:
        views: whose mean, names with commas between; None: all that were scored, and the centre crops: of a run each
            alone, of an ensemble together.

    Raises:
        RunError: as `fit_temperature`; or there are no such scores.
    """
    if views is not None:
        chosen = [read_views(views)]
    else:
        scored = open_scored(path, split)
        centers = [view for view in view_names(scored) if view.startswith("center-")]
        alone = [(view,) for view in centers] if len(scored.members) == 1 else [tuple(centers)]
        chosen = list(dict.fromkeys([*alone, view_names(scored)]))
    found = [fit_temperature(open_scored(path, split, names)) for names in chosen if names]
    keep(path, found)
    return found


def fit_temperature(scored: Scored) -> Calibration:
    """The temperature that makes the labels most likely under the fusion's probabilities.

    Raises:
        RunError: some of the images were trained on, or they have no labels.

    Source: Guo et al., arXiv 1706.04599, on the mean probabilities instead of logits.
    """
    check_unseen(scored, "a temperature")
    store = scored.first
    labels, readable = labels_of(store), store.readable
    scores, labels = log_probs(scored.weights)[readable], labels[readable]
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
        (error_of(reliability(scores, labels)), error_of(reliability(scores, labels, temperature))),
    )


def tempered(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Log-probabilities [n, K] at a temperature: the same classes in the same order, more or less sure."""
    scaled = scores.astype(np.float64) / temperature
    scaled -= scaled.max(1, keepdims=True)
    result: np.ndarray = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
    return result.astype(np.float32)


@dataclass(frozen=True)
class Bin:
    """Images whose most probable class has about the same probability."""

    count: int
    sure: float  # their mean probability
    right: float  # the share that is right


def reliability(scores: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> tuple[Bin, ...]:
    """Images by the probability of their most probable class, in bins of equal width; those that hold an image.

    Args:
        scores: float32 [n, K], log-probabilities.
        labels: int [n].
    """
    sure, hit = np.empty(len(labels)), scores.argmax(1) == labels
    for start in range(0, len(labels), PART):
        sure[start : start + PART] = np.exp(tempered(scores[start : start + PART], temperature).max(1))
    places = np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1)
    those = [places == number for number in range(NUM_BINS)]
    return tuple(Bin(int(one.sum()), float(sure[one].mean()), float(hit[one].mean())) for one in those if one.any())


def error_of(bins: Sequence[Bin]) -> float:
    """The expected calibration error: how far probability and share right lie apart, the mean over the images."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.right - one.sure) for one in bins) / total


def view_names(scored: Scored) -> tuple[str, ...]:
    """The views of a fusion, sorted: a temperature belongs to them."""
    return tuple(sorted({result.view for result in scored.weights}))


def keep(path: Path, calibrations: Sequence[Calibration]) -> None:
    """Add to a run's calibration.json; one of the same views is replaced."""
    there = {one.views: one for one in [*kept(path), *calibrations]}
    files.write_json(path / FILE, {"calibrations": [asdict(one) for one in there.values()]})


def kept(path: Path) -> list[Calibration]:
    """What calibration.json holds; nothing where there is none.

    Raises:
        RunError: it is damaged.
    """
    if not (path / FILE).is_file():
        return []
    values = files.read_json(path / FILE)
    try:
        found = [Calibration(**{key: _tuple(item) for key, item in one.items()}) for one in values["calibrations"]]
        if all(RANGE[0] <= one.temperature <= RANGE[1] for one in found):
            return found
    except (TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path / FILE} is not what `fewsight scores calibrate` wrote: {error!r}") from error
    raise RunError(f"{path / FILE}: a temperature is not between {RANGE[0]} and {RANGE[1]}; remove the file")


def temperature_for(path: Path, views: Sequence[str]) -> float | None:
    """The temperature that a run keeps for the mean of these views."""
    return next((one.temperature for one in kept(path) if one.views == tuple(sorted(views))), None)


def _tuple(value: Any) -> Any:
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

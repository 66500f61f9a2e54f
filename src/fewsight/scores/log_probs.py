"""Natural log-probabilities: which are valid, and the logarithm of a weighted mean of probabilities."""

from collections.abc import Sequence

import numpy as np

NOT_FINITE = (
    "the model's scores of it are not finite numbers, so it has no probabilities: the numbers overflow in its layers; "
    "train again with a lower learning rate"
)


def finite_images(log_probs: np.ndarray) -> np.ndarray:
    """bool [n]: which images have finite log-probabilities [..., n, K] of every class.

    Every probability passes here: when it is made (`scoring.score_cuts`) and when it is read from a store
    (`fusion.fused_probs`).
    """
    finite = np.isfinite(log_probs).all(-1)
    result: np.ndarray = finite.reshape(-1, finite.shape[-1]).all(0)
    return result


def mean_probs(log_probs: np.ndarray) -> np.ndarray:
    """The log of the mean of probabilities over the first axis: float32 [V, ...] -> [...]."""
    peak = log_probs.max(0)
    mean: np.ndarray = peak + np.log(np.exp(log_probs - peak).mean(0))
    return mean


def weighted_mean(log_probs: Sequence[np.ndarray] | np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """The log of a weighted mean of probabilities, float64 [...], from their logs [...]; the weights are above 0."""
    total = np.full(log_probs[0].shape, -np.inf)
    with np.errstate(invalid="ignore"):  # NaN of an image with an error
        for values, weight in zip(log_probs, weights, strict=True):
            total = np.logaddexp(total, values + np.log(weight))
    return total


def first_errors(errors: Sequence[Sequence[str | None]]) -> list[str | None]:
    """The first error of each image in several runs' errors [runs, n]; None where all have scores."""
    return [next((error for error in of_image if error is not None), None) for of_image in zip(*errors, strict=True)]

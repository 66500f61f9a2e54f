"""Find possibly wrong labels by the predictions of a run."""

import numpy as np

AGREEMENT = 0.9  # fraction of labels that a confident run must agree with
OUTLIER = 4.0  # deviations; our choice: of 3.5, 4 and 5 in docs/notes/scores.md
DEVIATION = 1.4826  # of a normal distribution, in median absolute deviations


def suspects(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find images whose label is possibly wrong.

    The predicted class of a suspect is not its label and has at least the mean probability that it has over the images
    labelled with it. The run is confident there (`confident_from`), so that a weak run, which is often wrong, suspects
    few labels or none. And the prediction leads the label by far more than in other images with this label: where the
    run confuses two classes, many images of one lead towards the other, and a large lead is no outlier.

    Args:
        scores: log-probabilities [n, K].
        labels: class indices [n].

    Returns:
        The indices [m] of the suspects, those first whose prediction exceeds the label's probability by most, and
        their predicted classes [m].

    Source: Northcutt et al., Confident learning, arXiv:1911.00068 (the mean of the class); the other bounds are ours.
    """
    num_classes, label_probs = scores.shape[1], np.exp(scores[np.arange(len(labels)), labels])
    count = np.bincount(labels, minlength=num_classes)
    total = np.bincount(labels, label_probs, num_classes)
    mean_probs = np.where(count > 0, total / np.maximum(count, 1), np.inf)
    predicted, peaks, bound = scores.argmax(1), peak_probs(scores), confident_from(scores, labels)
    suspect = (predicted != labels) & (peaks >= mean_probs[predicted]) & (peaks >= (np.inf if bound is None else bound))
    indices = np.flatnonzero(suspect)
    indices = np.array([index for index in indices if _leads_unusually(scores, labels, int(index))], np.intp)
    order = indices[np.argsort(label_probs[indices] - peaks[indices], kind="stable")]
    return order, predicted[order]


def _leads_unusually(scores: np.ndarray, labels: np.ndarray, index: int) -> bool:
    """Whether an image's prediction leads its label by far more than the same class does in images of this label.

    Source: Iglewicz and Hoaglin, How to detect and handle outliers, 1993 (the median absolute deviation).
    """
    label, predicted = labels[index], scores[index].argmax()
    leads = scores[:, predicted].astype(np.float64) - scores[:, label]
    usual = np.median(leads[labels == label])
    deviation = DEVIATION * np.median(np.abs(leads[labels == label] - usual))
    return bool(leads[index] - usual > OUTLIER * deviation)


def confident_from(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The lowest confidence c such that of the predictions with confidence >= c at least `AGREEMENT` equal the label.

    None if there is no such confidence. The probabilities need not be calibrated.

    Args:
        scores: log-probabilities [n, K].
        labels: class indices [n].

    Source: Geifman and El-Yaniv, Selective classification, arXiv:1705.08500 (a confidence threshold for a given error).
    """
    peaks, correct = peak_probs(scores), scores.argmax(1) == labels
    order = np.argsort(-peaks, kind="stable")
    agreeing = np.flatnonzero(np.cumsum(correct[order]) >= AGREEMENT * np.arange(1, len(order) + 1))
    return float(peaks[order[agreeing[-1]]]) if len(agreeing) else None


def peak_probs(scores: np.ndarray) -> np.ndarray:
    """The probability of the most probable class, float64 [n]."""
    peaks: np.ndarray = np.exp(scores.max(1).astype(np.float64))
    return peaks

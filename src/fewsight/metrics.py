"""Figures from labels and scores, each with its count and interval."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

Z95 = 1.959963984540054  # two-sided 95 % of a normal distribution


@dataclass(frozen=True)
class Share:
    """A share of `total` images with its Wilson 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    total: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(count: int, total: int) -> Share:
    """`count` of `total` with the Wilson score interval at 95 % (Wilson 1927). Needs total >= 1."""
    share = count / total
    spread = Z95**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Share(share, 0.0 if count == 0 else low, 1.0 if count == total else high, count, total)


@dataclass(frozen=True)
class ClassFigures:
    """One class: how many images, and how they fared."""

    name: str
    count: int
    recall: float | None  # None where the class has no image
    precision: float | None  # None where nothing was taken for it
    f1: float | None


@dataclass(frozen=True)
class Figures:
    """What an evaluation found on the images that could be read."""

    top1: Share
    top5: Share
    top_k: int  # min(5, classes)
    balanced_accuracy: float
    macro_f1: float
    nll: float  # mean negative log-likelihood, nats
    classes: tuple[ClassFigures, ...]
    confusions: tuple[tuple[str, str, int], ...]  # (true, taken for, images), most frequent first
    num_images: int  # that were asked for; top1.total of them could be read

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)


def evaluate_scores(
    log_probs: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], *, num_images: int | None = None
) -> Figures:
    """Figures of log-probabilities [n, K] against labels [n] (indices into `classes`); n >= 1.

    Balanced accuracy and macro-F1 are means over the classes that have images here (an F1 of 0 where nothing
    was taken for the class).
    """
    top_k = min(5, len(classes))
    predicted = log_probs.argmax(1)
    true_scores = log_probs[np.arange(len(labels)), labels]
    rank = (log_probs > true_scores[:, None]).sum(1)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(classes)), zero_division=0.0
    )
    taken = np.bincount(predicted, minlength=len(classes))
    per_class = tuple(
        ClassFigures(
            name,
            int(support[k]),
            float(recall[k]) if support[k] else None,
            float(precision[k]) if taken[k] else None,
            float(f1[k]) if support[k] else None,
        )
        for k, name in enumerate(classes)
    )
    there = support > 0
    return Figures(
        top1=wilson(int((predicted == labels).sum()), len(labels)),
        top5=wilson(int((rank < top_k).sum()), len(labels)),
        top_k=top_k,
        balanced_accuracy=float(recall[there].mean()),
        macro_f1=float(f1[there].mean()),
        nll=float(-true_scores.mean(dtype=np.float64)),
        classes=per_class,
        confusions=_confusions(labels, predicted, classes),
        num_images=len(labels) if num_images is None else num_images,
    )


def _confusions(
    labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...], most: int = 20
) -> tuple[tuple[str, str, int], ...]:
    wrong = labels != predicted
    pairs, counts = np.unique(labels[wrong] * len(classes) + predicted[wrong], return_counts=True)
    order = np.lexsort((pairs, -counts))[:most]
    return tuple((classes[pairs[i] // len(classes)], classes[pairs[i] % len(classes)], int(counts[i])) for i in order)

"""Figures from labels and scores, each with its count and interval."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from fewsight.wording import counted

Z95 = 1.959963984540054  # two-sided 95 % of a normal distribution


@dataclass(frozen=True)
class Proportion:
    """A share of `total` images with its Wilson 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    total: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(count: int, total: int) -> Proportion:
    """`count` of `total` with the Wilson score interval at 95 % (Wilson 1927). Needs total >= 1."""
    share = count / total
    spread = Z95**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Proportion(share, 0.0 if count == 0 else low, 1.0 if count == total else high, count, total)


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same images."""

    gain: float  # share of images, second less first
    low: float  # bootstrap 95 % interval over the images
    high: float
    first_only: int  # images that only the first has right
    second_only: int
    p_value: float  # McNemar, exact, two-sided
    total: int

    @property
    def distinguishable(self) -> bool:
        """Whether these images tell the two apart at 5 %."""
        return self.p_value < 0.05

    def brief(self) -> str:
        """The gain with its interval, and whether it is one."""
        text = f"{100 * self.gain:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return text if self.distinguishable else f"{text}, not distinguishable"

    def __str__(self) -> str:
        alone = f"{self.second_only:,} right in it alone, {self.first_only:,} in the first alone"
        alone = alone if self.first_only + self.second_only else "both right on the same"
        text = (
            f"{100 * self.gain:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}] on "
            f"{counted(self.total, 'image')} ({alone}), McNemar p = {self.p_value:.2g}"
        )
        return text if self.distinguishable else f"{text}: not distinguishable on these {counted(self.total, 'image')}"


def paired(first_right: np.ndarray, second_right: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> Paired:
    """Compare which images [n] two classifiers have right; n >= 1.

    The bootstrap draws the four kinds of images (both right, either alone, none) anew: as often as their counts say.

    Source: McNemar 1947, its exact binomial form; Efron 1979.
    """
    total = len(first_right)
    second_only, first_only = int((second_right & ~first_right).sum()), int((first_right & ~second_right).sum())
    different = first_only + second_only
    p_value = float(binomtest(second_only, different).pvalue) if different else 1.0
    shares = [first_only / total, second_only / total, 1 - different / total]
    drawn = np.random.default_rng(seed).multinomial(total, shares, resamples)
    low, high = np.percentile((drawn[:, 1] - drawn[:, 0]) / total, [2.5, 97.5])
    return Paired((second_only - first_only) / total, float(low), float(high), first_only, second_only, p_value, total)


def mean_interval(values: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of the mean of values [n] of images, such as differences averaged over several runs.

    Equal values are drawn together, as often as their count says.

    Source: Efron 1979.
    """
    kinds, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), resamples)
    low, high = np.percentile(drawn @ kinds / len(values), [2.5, 97.5])
    return float(low), float(high)


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

    top1: Proportion
    top5: Proportion
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

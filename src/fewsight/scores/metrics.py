"""Accuracies and other metrics from labels and scores, with counts and confidence intervals."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewsight.machine import files
from fewsight.wording import counted


@dataclass(frozen=True)
class Proportion:
    """A proportion `count / total` of images with its Wilson 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    total: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(count: int, total: int) -> Proportion:
    """`count / total` with the Wilson score interval at 95 %; total >= 1.

    Source: Wilson 1927.
    """
    from scipy.stats import binomtest  # takes seconds to import, and most commands need no interval

    interval = binomtest(count, total).proportion_ci(method="wilson")
    return Proportion(count / total, float(interval.low), float(interval.high), count, total)


@dataclass(frozen=True)
class Paired:
    """Comparison of two classifiers on the same images."""

    gain: float  # accuracy of the second minus that of the first
    low: float  # exact 95 % interval; it excludes 0 exactly where the p value is below 0.05
    high: float
    first_only: int  # images that only the first classifies correctly
    second_only: int
    p_value: float  # McNemar, exact, two-sided
    total: int

    @property
    def distinguishable(self) -> bool:
        """Whether the difference is significant at 5 %."""
        return self.p_value < 0.05

    def brief(self) -> str:
        """The gain with its interval, and a remark if it is not significant."""
        text = f"{100 * self.gain:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return text if self.distinguishable else f"{text}, not distinguishable"

    def __str__(self) -> str:
        counts = f"{self.second_only:,} correct in it alone, {self.first_only:,} in the first alone"
        counts = counts if self.first_only + self.second_only else "both correct on the same images"
        text = (
            f"{100 * self.gain:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}] on "
            f"{counted(self.total, 'image')} ({counts}), McNemar p = {self.p_value:.2g}"
        )
        return text if self.distinguishable else f"{text}: not distinguishable on these {counted(self.total, 'image')}"


def paired(first_correct: np.ndarray, second_correct: np.ndarray) -> Paired:
    """Compare two classifiers by which images each classifies correctly: the exact McNemar test, and its interval.

    Of the d images that one classifier alone has correct, the second has a binomial number. The interval of that
    proportion p (Clopper and Pearson) is the inversion of the test of p = 1/2, and the gain is d (2 p - 1) / n.

    Args:
        first_correct: bool [n], n >= 1.
        second_correct: bool [n].

    Source: McNemar 1947, its exact binomial form; Clopper and Pearson 1934.
    """
    from scipy.stats import binomtest

    total = len(first_correct)
    second_only, first_only = int((second_correct & ~first_correct).sum()), int((first_correct & ~second_correct).sum())
    different = first_only + second_only
    p_value, low, high = 1.0, 0.0, 0.0
    if different:
        test = binomtest(second_only, different)
        interval = test.proportion_ci(method="exact")
        p_value = float(test.pvalue)
        low, high = (different * (2 * float(end) - 1) / total for end in (interval.low, interval.high))
    return Paired((second_only - first_only) / total, low, high, first_only, second_only, p_value, total)


def mean_interval(values: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Bootstrap 95 % interval of the mean of values [n], one per image, such as differences averaged over runs.

    Equal values are resampled together, by their count.

    Source: Efron 1979.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), resamples)
    low, high = np.percentile(drawn @ distinct / len(values), [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class ClassFigures:
    """Metrics of one class."""

    name: str
    count: int
    recall: float | None  # None where the class has no image
    precision: float | None  # None where no image was predicted as the class
    f1: float | None


@dataclass(frozen=True)
class Figures:
    """Metrics of an evaluation on the images that could be read."""

    top1: Proportion
    top5: Proportion
    top_k: int  # min(5, classes); where it is the number of classes, top5 says nothing, and no text shows it
    balanced_accuracy: float
    macro_f1: float
    nll: float  # mean negative log-likelihood, nats
    classes: tuple[ClassFigures, ...]
    confusions: tuple[tuple[str, str, int], ...]  # (true, predicted, images), most frequent first
    num_images: int  # requested; top1.total of them could be read

    def as_json(self) -> dict[str, Any]:
        """A dictionary of plain values for a JSON file."""
        return asdict(self)


@dataclass(frozen=True)
class MetricsFile:
    """metrics.json of a run."""

    val: Figures | None  # of its weights on val, by the centre view; None if there is no val


def read_val_figures(run: Path) -> Figures | None:
    """The figures on val that `train` wrote to a run's metrics.json; None if it had no val.

    Raises:
        RunError: the file is missing or damaged.
    """
    return files.read_json(run / "metrics.json", MetricsFile, "`fewsight train`").val


def evaluate_scores(
    log_probs: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], *, num_images: int | None = None
) -> Figures:
    """Metrics of log-probabilities against labels.

    Ties are decided as in `label_ranks`. Balanced accuracy and macro-F1 are means over the classes that have images
    here; the F1 of a class as which no image was predicted is 0.

    Args:
        log_probs: float [n, K], n >= 1.
        labels: int [n], indices into `classes`.
        num_images: images that were requested, readable or not; default n.
    """
    from sklearn.metrics import precision_recall_fscore_support  # as slow to import

    top_k = min(5, len(classes))
    predicted = log_probs.argmax(1)
    true_scores = log_probs[np.arange(len(labels)), labels]
    rank = label_ranks(log_probs, labels)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(classes)), zero_division=0.0
    )
    num_predicted = np.bincount(predicted, minlength=len(classes))
    per_class = tuple(
        ClassFigures(
            name,
            int(support[k]),
            float(recall[k]) if support[k] else None,
            float(precision[k]) if num_predicted[k] else None,
            float(f1[k]) if support[k] else None,
        )
        for k, name in enumerate(classes)
    )
    has_images = support > 0
    return Figures(
        top1=wilson(int((predicted == labels).sum()), len(labels)),
        top5=wilson(int((rank < top_k).sum()), len(labels)),
        top_k=top_k,
        balanced_accuracy=float(recall[has_images].mean()),
        macro_f1=float(f1[has_images].mean()),
        nll=float(-true_scores.mean(dtype=np.float64)),
        classes=per_class,
        confusions=_confusions(labels, predicted, classes),
        num_images=len(labels) if num_images is None else num_images,
    )


def label_ranks(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int [n]: how many classes come before each image's label, from log-probabilities [n, K].

    Of classes with equal scores the one with the lower index comes first, as in the rows of `predict` and in `argmax`:
    an image is correct in the top k where its label is among the k classes that `predict` lists.
    """
    true_scores = log_probs[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(log_probs.shape[1]) < labels[:, None]
    ranks: np.ndarray = ((log_probs > true_scores) | ((log_probs == true_scores) & earlier)).sum(1)
    return ranks


def _confusions(
    labels: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...], limit: int = 20
) -> tuple[tuple[str, str, int], ...]:
    wrong = labels != predicted
    pairs, counts = np.unique(labels[wrong] * len(classes) + predicted[wrong], return_counts=True)
    order = np.lexsort((pairs, -counts))[:limit]
    return tuple((classes[pairs[i] // len(classes)], classes[pairs[i] % len(classes)], int(counts[i])) for i in order)

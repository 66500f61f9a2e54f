"""Which images form each batch: shuffled, or P classes x K images."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fewsight.data.training_set import TrainingSet
from fewsight.losses import batch_kind
from fewsight.machine.rng import order_stream
from fewsight.recipes import Recipe, Stage


class Plan(Protocol):
    """The batches of every epoch: a function of (seed, epoch) alone."""

    @property
    def batch_size(self) -> int:
        """Nominal size."""

    @property
    def mean_size(self) -> float:
        """Images in a batch of an epoch, on average."""

    @property
    def num_steps(self) -> int:
        """Batches per epoch."""

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The image indices of each batch of `epoch`."""


@dataclass(frozen=True)
class ShuffledBatches:
    """Every image once per epoch, in a new random order each epoch.

    The batches of an epoch differ in size by at most one image, no image is dropped, and no batch has fewer than two
    images (a single image has no batch statistics).

    Args:
        labels: class index of each image, [N], N >= 2.
        batch_size: nominal size, at least 2. No batch is larger, except one of 3 images where 2 would leave one over.
        seed: of the order.
        sampling: draw classes equally often, images with replacement (`data.balance = "sampling"`).
    """

    labels: tuple[int, ...]
    batch_size: int
    seed: int
    sampling: bool = False

    @property
    def num_steps(self) -> int:
        """Batches per epoch."""
        count = len(self.labels)
        return max(1, min(math.ceil(count / self.batch_size), count // 2))

    @property
    def mean_size(self) -> float:
        """Images in a batch, on average."""
        return len(self.labels) / self.num_steps

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The image indices of each batch of `epoch`."""
        rng = order_stream(self.seed, epoch)
        if self.sampling:
            labels = np.asarray(self.labels)
            weights = 1 / np.bincount(labels)[labels]
            order = rng.choice(len(labels), len(labels), p=weights / weights.sum())
        else:
            order = rng.permutation(len(self.labels))
        return np.array_split(order, self.num_steps)


@dataclass(frozen=True)
class ClassBatches:
    """P classes x K images in every batch, for losses that compare images within a batch.

    K starts at `images_per_class`, P = min(classes, max_images // K), and K is then raised to fill the batch:
    K = max_images // P, at most the number of images of the largest class. An epoch has max(1, N // (P * K)) batches.
    Classes are drawn from a queue that is reshuffled when it is empty, so that within an epoch the numbers of draws of
    two classes differ by at most one; the images of each class are drawn from a queue in the same way. Only a class
    with fewer than K images has an image twice in a batch.

    Args:
        labels: class index of each image, [N], of at least two classes.
        max_images: maximum number of images per batch, at least 4.
        seed: of the draws.
        images_per_class: K, at least 2; K is smaller if `max_images` is below 2 * K.

    Source: Hermans et al., arXiv 1703.07737, section 2; the queues are our choice.
    """

    labels: tuple[int, ...]
    max_images: int
    seed: int
    images_per_class: int = 4

    @property
    def shape(self) -> tuple[int, int]:
        """(P, K)."""
        sizes = np.bincount(self.labels)
        num_classes = min(int((sizes > 0).sum()), max(2, self.max_images // self.images_per_class))
        return num_classes, min(self.max_images // num_classes, max(2, int(sizes.max())))

    @property
    def batch_size(self) -> int:
        """P * K."""
        return math.prod(self.shape)

    @property
    def mean_size(self) -> float:
        """P * K: every batch is whole."""
        return self.batch_size

    @property
    def num_steps(self) -> int:
        """Batches per epoch."""
        return max(1, len(self.labels) // self.batch_size)

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The image indices of each batch of `epoch`; the images of a class are adjacent."""
        rng = order_stream(self.seed, epoch)
        num_classes, num_images = self.shape
        of_class: dict[int, list[int]] = {}
        for index, label in enumerate(self.labels):
            of_class.setdefault(label, []).append(index)
        images = {label: _Queue(of_class[label], rng) for label in sorted(of_class)}
        classes = _Queue(images, rng)
        return [
            np.array([index for label in classes.take(num_classes) for index in images[label].take(num_images)])
            for _ in range(self.num_steps)
        ]


class _Queue:
    """Items in a random order, shuffled again whenever it is used up."""

    def __init__(self, items: Iterable[int], rng: np.random.Generator) -> None:
        self.items, self.rng = np.array(list(items)), rng
        self.waiting: list[int] = []

    def take(self, count: int) -> list[int]:
        """The next `count` items; none is repeated unless there are fewer than `count`."""
        taken: list[int] = []
        while len(taken) < count:
            if not self.waiting:
                order = self.rng.permutation(self.items).tolist()
                self.waiting = [item for item in order if item in taken]
                self.waiting += [item for item in order if item not in taken]
            taken.append(self.waiting.pop())
        return taken


def draws_before(batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each image index in an epoch's batches, how often the epoch has drawn it before: [B] per batch."""
    indices = np.concatenate(batches)
    order = np.argsort(indices, kind="stable")  # the draws of an image side by side, in their order
    first = np.searchsorted(indices[order], indices[order])
    draws = np.empty(len(indices), np.int64)
    draws[order] = np.arange(len(indices)) - first
    return np.split(draws, np.cumsum([len(batch) for batch in batches])[:-1])


def class_counts(labels: Sequence[int], num_classes: int) -> list[int]:
    """Number of images of each class."""
    return [int(count) for count in np.bincount(np.asarray(labels), minlength=num_classes)]


def batch_plan(recipe: Recipe, stage: Stage, data: TrainingSet) -> Plan:
    """The plan of a stage's batches."""
    if batch_kind(stage) == "pk":
        return ClassBatches(data.labels, stage.batch_size, recipe.run.seed, stage.images_per_class)
    sampling = recipe.data.balance == "sampling"
    return ShuffledBatches(data.labels, stage.batch_size, recipe.run.seed, sampling)


def lr_batch_size(stage: Stage, plan: Plan) -> float:
    """The batch size that a stage's learning rate is proportional to, as `optim.lr_batch` says."""
    return plan.mean_size if stage.optim.lr_batch == "actual" else plan.batch_size

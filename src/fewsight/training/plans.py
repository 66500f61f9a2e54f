"""Which image stands in which batch: shuffled, or P classes x K images."""

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
        """Nominal size, from which the rate comes."""

    @property
    def num_steps(self) -> int:
        """Batches an epoch."""

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The image indices of each batch of `epoch`."""


@dataclass(frozen=True)
class ShuffledBatches:
    """Every image once an epoch, in an order of its own.

    Batches of an epoch differ in size by at most one, no image is dropped, and no batch has fewer than two
    images (a lone one has no batch statistics).

    Args:
        labels: class index of each image, [N], N >= 2.
        batch_size: nominal size, at least 2; no batch is larger, but for one of 3 where 2 would leave a lone image.
        sampling: draw classes equally often, images with replacement (`data.balance = "sampling"`).
    """

    labels: tuple[int, ...]
    batch_size: int
    seed: int
    sampling: bool = False

    @property
    def num_steps(self) -> int:
        """Batches an epoch."""
        count = len(self.labels)
        return max(1, min(math.ceil(count / self.batch_size), count // 2))

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The image indices of each batch of `epoch`."""
        rng = order_stream(self.seed, epoch)
        if self.sampling:
            labels = np.asarray(self.labels)
            share = 1 / np.bincount(labels)[labels]
            order = rng.choice(len(labels), len(labels), p=share / share.sum())
        else:
            order = rng.permutation(len(self.labels))
        return np.array_split(order, self.num_steps)


@dataclass(frozen=True)
class ClassBatches:
    """P classes x K images in every batch, for losses that compare images within it.

    K starts at `images_per_class`, P = min(classes, most // K), and K then fills the batch: K = most // P, at most as
    many as the largest class has. An epoch has max(1, N // (P * K)) batches. Classes come from a reshuffled queue, so
    that in an epoch each is drawn equally often, by at most one; each class's images from a queue of its own, likewise.
    A class with fewer than K images gives some of them twice, and only then does an image stand twice in a batch.

    Args:
        labels: class index of each image, [N], of at least two classes.
        most: images a batch at most, at least 4.
        images_per_class: K, at least 2; less where `most` is under 2 * K.

    Source: Hermans et al., arXiv 1703.07737, section 2; the queues are our choice.
    """

    labels: tuple[int, ...]
    most: int
    seed: int
    images_per_class: int = 4

    @property
    def shape(self) -> tuple[int, int]:
        """(P, K)."""
        sizes = np.bincount(self.labels)
        num_classes = min(int((sizes > 0).sum()), max(2, self.most // self.images_per_class))
        return num_classes, min(self.most // num_classes, max(2, int(sizes.max())))

    @property
    def batch_size(self) -> int:
        """P * K."""
        return math.prod(self.shape)

    @property
    def num_steps(self) -> int:
        """Batches an epoch."""
        return max(1, len(self.labels) // self.batch_size)

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The image indices of each batch of `epoch`, a class's images side by side."""
        rng = order_stream(self.seed, epoch)
        num_classes, num_images = self.shape
        members: dict[int, list[int]] = {}
        for index, label in enumerate(self.labels):
            members.setdefault(label, []).append(index)
        images = {label: _Queue(members[label], rng) for label in sorted(members)}
        classes = _Queue(images, rng)
        return [
            np.array([index for label in classes.take(num_classes) for index in images[label].take(num_images)])
            for _ in range(self.num_steps)
        ]


class _Queue:
    """Members in a random order that is drawn anew whenever it runs out."""

    def __init__(self, members: Iterable[int], rng: np.random.Generator) -> None:
        self.members, self.rng = np.array(list(members)), rng
        self.waiting: list[int] = []

    def take(self, count: int) -> list[int]:
        """The next `count`; none twice, unless there are fewer members than that."""
        taken: list[int] = []
        while len(taken) < count:
            if not self.waiting:
                fresh = self.rng.permutation(self.members).tolist()
                self.waiting = [one for one in fresh if one in taken] + [one for one in fresh if one not in taken]
            taken.append(self.waiting.pop())
        return taken


def class_counts(labels: Sequence[int], num_classes: int) -> list[int]:
    """Images of each class."""
    return [int(count) for count in np.bincount(np.asarray(labels), minlength=num_classes)]


def batch_plan(recipe: Recipe, stage: Stage, data: TrainingSet) -> Plan:
    """Which image stands in which batch of a stage."""
    if batch_kind(stage) == "pk":
        return ClassBatches(data.labels, stage.batch_size, recipe.run.seed, stage.images_per_class)
    sampling = recipe.data.balance == "sampling"
    return ShuffledBatches(data.labels, stage.batch_size, recipe.run.seed, sampling)

"""Which images train and which validate, where the dataset does not say: drawn by seed, class by class."""

import hashlib
import math
from collections.abc import Iterable

from fewsight.data.samples import Sample
from fewsight.errors import DataError
from fewsight.machine import rng


def split_by_seed(
    samples: Iterable[Sample], *, holdout: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Cut `samples` into (train, val), each class by itself, both in the order given.

    Of a class's n images round(holdout * n) go to val, but at least one stays in train and, where n >= 2
    and holdout > 0, at least one goes to val. The draw depends on the seed, the class's name and its number
    of images, not on the other classes nor on the order of `samples`.

    Raises:
        DataError: `holdout` is not in [0, 1).
    """
    if not 0 <= holdout < 1:
        raise DataError(
            f"holdout is {holdout}: it must be at least 0 and below 1 (0.2 keeps every fifth image for val)"
        )
    samples = tuple(samples)
    by_class: dict[str, list[str]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample.path)
    held: set[str] = set()
    for label, paths in by_class.items():
        order = rng.stream(seed, rng.SPLIT, _name_number(label)).permutation(len(paths))
        in_order = sorted(paths)
        held.update(in_order[i] for i in order[: num_held_out(len(paths), holdout)])
    train = tuple(sample for sample in samples if sample.path not in held)
    return train, tuple(sample for sample in samples if sample.path in held)


def num_held_out(num_images: int, holdout: float) -> int:
    """How many of a class's images go to val."""
    if holdout == 0:
        return 0
    return min(max(math.floor(holdout * num_images + 0.5), 1), num_images - 1)


def _name_number(label: str) -> int:
    digest = hashlib.blake2b(label.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits, so that it fits a signed integer too

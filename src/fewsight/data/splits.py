"""Split a dataset that names no splits into train and val: drawn by seed, class by class."""

import hashlib
import math
from collections.abc import Iterable

from fewsight.data.samples import Sample
from fewsight.errors import DataError
from fewsight.machine import rng


def split_by_seed(
    samples: Iterable[Sample], *, holdout: float, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split `samples` into (train, val), each class separately, both in the given order.

    Of a class's n images round(holdout * n) go to val, but at least one stays in train and, if n >= 2
    and holdout > 0, at least one goes to val. The draw depends on the seed, the class name and the number
    of its images, not on other classes nor on the order of `samples`.

    Args:
        samples: labelled images.
        holdout: the fraction of each class that goes to val.
        seed: the seed of the draw.

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
    val_paths: set[str] = set()
    for label, paths in by_class.items():
        order = rng.stream(seed, rng.SPLIT, _name_number(label)).permutation(len(paths))
        in_order = sorted(paths)
        val_paths.update(in_order[index] for index in order[: num_held_out(len(paths), holdout)])
    train = tuple(sample for sample in samples if sample.path not in val_paths)
    return train, tuple(sample for sample in samples if sample.path in val_paths)


def num_held_out(num_images: int, holdout: float) -> int:
    """The number of a class's images that go to val."""
    if holdout == 0:
        return 0
    return min(max(math.floor(holdout * num_images + 0.5), 1), num_images - 1)


def _name_number(label: str) -> int:
    digest = hashlib.blake2b(label.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits, so that it also fits a signed integer

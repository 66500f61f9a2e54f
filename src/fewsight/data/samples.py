"""What a dataset is: labelled images by split. Labels are names; positions come from the sorted names."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fewsight.errors import DataError
from fewsight.machine.rng import SAMPLE, stream

VAL_NAMES = ("valid", "validation")  # other names of val


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image."""

    path: str  # relative to Dataset.root with "/" between the parts; a manifest may hold absolute ones
    label: str  # the class's name


@dataclass(frozen=True)
class Dataset:
    """Labelled images by split, as they were found.

    `splits` holds them in code-point order of the path (in a manifest's order for a manifest).
    `layout` says where the splits come from: "splits" and "vipriors" are folders beside train/; "classes" is
    one level of class folders and "manifest" a table; `split_by_seed` tells whether train and val were drawn.
    `unlabelled` holds the splits without labels, `ignored` what was passed over: reason -> count.
    """

    root: Path
    splits: dict[str, tuple[Sample, ...]]
    layout: str
    ignored: dict[str, int] = field(default_factory=dict)
    unlabelled: dict[str, tuple[str, ...]] = field(default_factory=dict)
    split_by_seed: bool = False

    def classes_of(self, *splits: str) -> tuple[str, ...]:
        """The class names of these splits (of all when none is named), in code-point order."""
        return classes_in(sample for name in splits or self.splits for sample in self.splits.get(name, ()))


def classes_in(samples: Iterable[Sample]) -> tuple[str, ...]:
    """The class names of `samples` in code-point order."""
    return tuple(sorted({sample.label for sample in samples}))


def digest(samples: Iterable[Sample], root: Path) -> str:
    """BLAKE2b over each image's path, size and label, in the order given: 32 hexadecimal digits.

    Raises:
        DataError: a file is gone.
    """
    return digest_of_list((sample.path, _size(root / sample.path), sample.label) for sample in samples)


def digest_of_list(images: Iterable[tuple[str, int, str | None]]) -> str:
    """BLAKE2b over (path, size in bytes, label) of each image: 32 hexadecimal digits."""
    result = hashlib.blake2b(digest_size=16)
    for path, size, label in images:
        result.update(f"{path}\0{size}\0{label}\0".encode("utf-8", "surrogateescape"))
    return result.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def val_by_its_name(splits: dict[str, tuple[Sample, ...]]) -> dict[str, tuple[Sample, ...]]:
    """The same splits, with valid or validation called val where there is no val."""
    other = next((name for name in VAL_NAMES if name in splits), None)
    if other is None or "val" in splits:
        return splits
    return {"val" if name == other else name: samples for name, samples in splits.items()}


def named(names: Iterable[str], limit: int = 5) -> str:
    """Names for a message: the first few, then how many more."""
    listed = list(names)
    more = f" and {len(listed) - limit:,} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def sample_positions(num_images: int, most: int, seed: int) -> np.ndarray:
    """At most `most` image indices, drawn by `seed`, in order."""
    if num_images <= most:
        return np.arange(num_images)
    return np.sort(stream(seed, SAMPLE).choice(num_images, most, replace=False))

"""Datasets: labelled images by split. Labels are class names; class indices come from the sorted names."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fewsight.errors import DataError
from fewsight.machine.rng import SAMPLE, stream

MAX_NAMED = 3  # of the files that are skipped for one reason


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image."""

    path: str  # relative to Dataset.root, with "/" between the parts; a manifest may hold absolute paths
    label: str  # the class name


class Ignored(Counter[str]):
    """The number of skipped files and folders by reason, and the first few of each."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, list[Path]] = {}

    def note(self, reason: str, *paths: Path) -> None:
        """Count skipped files or folders."""
        self[reason] += len(paths)
        known = self.first.setdefault(reason, [])
        known.extend(paths[: MAX_NAMED - len(known)])


@dataclass(frozen=True)
class Dataset:
    """The labelled images of a folder or manifest, by split.

    `splits` holds them in code-point order of the path (for a manifest, in its order).
    `names` holds for each split, labelled or not, how it is called in the data: its folder below the root, or the
    manifest's value. `file` is the manifest, if it is one. `notes` are lines for the user on how it was understood.
    `layout` says where the splits come from: "splits" and "vipriors" are folders beside train/, "classes" is
    one level of class folders, "manifest" is a table; `split_by_seed` says whether train and val were drawn.
    `unlabelled` holds the splits without labels, `ignored` the number of skipped files and folders by reason, and
    `first_ignored` the paths of the first few of them, relative to the root.
    """

    root: Path
    splits: dict[str, tuple[Sample, ...]]
    layout: str
    ignored: dict[str, int] = field(default_factory=dict)
    unlabelled: dict[str, tuple[str, ...]] = field(default_factory=dict)
    split_by_seed: bool = False
    names: dict[str, str] = field(default_factory=dict)
    file: Path | None = field(default=None, compare=False)
    notes: tuple[str, ...] = ()
    first_ignored: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)

    @property
    def source(self) -> Path:
        """The folder or manifest, for messages."""
        return self.file or self.root

    def classes_of(self, *splits: str) -> tuple[str, ...]:
        """The class names of these splits (of all splits if none is given), in code-point order."""
        return classes_in(sample for name in splits or self.splits for sample in self.splits.get(name, ()))


def classes_in(samples: Iterable[Sample]) -> tuple[str, ...]:
    """The class names of `samples` in code-point order."""
    return tuple(sorted({sample.label for sample in samples}))


def digest(samples: Iterable[Sample], root: Path) -> str:
    """BLAKE2b over each image's path, size and label, in the given order: 32 hexadecimal digits.

    Raises:
        DataError: a file no longer exists.
    """
    return digest_of_list((sample.path, size_of(root / sample.path), sample.label) for sample in samples)


def digest_of_list(images: Iterable[tuple[str, int, str | None]]) -> str:
    """BLAKE2b over (path, size in bytes, label) of each image: 32 hexadecimal digits."""
    result = hashlib.blake2b(digest_size=16)
    for path, size, label in images:
        result.update(f"{path}\0{size}\0{label}\0".encode("utf-8", "surrogateescape"))
    return result.hexdigest()


def size_of(path: Path) -> int:
    """The size of a file in bytes.

    Raises:
        DataError: it no longer exists.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def sample_indices(num_images: int, limit: int, seed: int) -> np.ndarray:
    """At most `limit` image indices, drawn by `seed`, in ascending order."""
    if num_images <= limit:
        return np.arange(num_images)
    return np.sort(stream(seed, SAMPLE).choice(num_images, limit, replace=False))

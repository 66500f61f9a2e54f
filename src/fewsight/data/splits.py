"""Splits: which of a dataset's folders or values is train, val and test; train and val drawn where none are named."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from fewsight.data.samples import Sample
from fewsight.errors import DataError
from fewsight.machine import rng
from fewsight.wording import named

USUAL_NAMES = {  # read as the split, in upper and lower case
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def usual_split(name: str) -> str | None:
    """The split, train, val or test, whose usual name this is."""
    return next((split for split, names in USUAL_NAMES.items() if name.lower() in names), None)


def parse_splits(text: str) -> dict[str, str]:
    """The value of `--splits`: `train=NAME,val=NAME,test=NAME`, each part optional.

    Returns:
        train, val or test -> the name in the data: a folder's path below the dataset, or a value of a manifest.

    Raises:
        DataError: it has another form, or names something twice.
    """
    pairs = [part.partition("=") for part in text.split(",")] if text.strip() else []
    given = {split.strip(): name.strip().rstrip("/") for split, _, name in pairs}
    if not text.isprintable():  # a recipe is TOML, which has no other characters
        raise DataError("--splits: a name is not UTF-8 or has characters that cannot be shown; rename the folder")
    wrong = [split for split in given if split not in USUAL_NAMES]
    if wrong or not all(given.values()) or len(given) < len(pairs) or len(set(given.values())) < len(given):
        raise DataError(
            f"--splits {text}: expected a different name for each of train, val and test that has another name, for "
            "example --splits train=images_a,val=images_b"
        )
    return given


def split_names(names: Iterable[str], given: Mapping[str, str], source: Path) -> dict[str, str]:
    """What each split of a dataset is read as; no other code decides it.

    A split that is called train, val or test is that. Where there is none, one with another usual name is; every other
    split keeps its name.

    Args:
        names: of the splits in the data.
        given: `parse_splits`, which goes before.
        source: the dataset, for messages.

    Returns:
        The name in the data -> the name that it is read as.

    Raises:
        DataError: a given name does not exist, or two names mean the same split.
    """
    found = list(names)
    read_as = {name: name for name in found}
    for split, name in given.items():
        if name not in read_as:
            raise DataError(f"{source}: --splits {split}={name}: there is no {name}; found {named(sorted(found))}")
        if split in read_as and split != name:
            raise DataError(f"{source}: --splits {split}={name}: there is a {split} too; rename it, or leave this out")
        read_as[name] = split
    for split in USUAL_NAMES:
        usual = [name for name in found if usual_split(name) == split and name not in given.values()]
        if split in read_as.values() or not usual:
            continue
        if len(usual) > 1:
            raise DataError(
                f"{source}: {' and '.join(sorted(usual))} both mean {split}; say which one does: "
                f"--splits {split}={min(usual)}"
            )
        read_as[usual[0]] = split
    return read_as


def naming_notes(names: Mapping[str, str]) -> tuple[str, ...]:
    """A line on every split (the key) that is called otherwise in the data (the value)."""
    return tuple(f"{name} is read as {split}" for split, name in names.items() if split != name)


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

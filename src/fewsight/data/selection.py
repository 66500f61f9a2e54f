"""Choose the samples to train on, validate on or evaluate. Labels are matched by name, never by index."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewsight.data.samples import Dataset, Sample, classes_in
from fewsight.data.sources import read_dataset
from fewsight.data.splits import usual_split
from fewsight.errors import DataError
from fewsight.wording import named

WHOLE = "all"  # the name of the split where the data has no named splits


@dataclass(frozen=True)
class EvaluationSet:
    """Samples to evaluate; `labels[i]` is the index of `samples[i].label` in the run's classes."""

    root: Path
    split: str  # WHOLE if all labelled images were taken
    samples: tuple[Sample, ...]
    labels: tuple[int, ...]
    notes: tuple[str, ...] = ()  # as `Dataset.notes`
    untested: tuple[str, ...] = ()  # the other labelled splits beside train, where val is taken without being named


def training_samples(
    dataset: Dataset, *, merge_val: bool = False
) -> tuple[tuple[str, ...], tuple[Sample, ...], tuple[Sample, ...]]:
    """Choose the samples to train on and to validate on.

    With `merge_val` the val split is trained on as well and nothing is left to validate on.

    Returns:
        (class names in code-point order, samples to train on, samples to validate on).

    Raises:
        DataError: no train split, fewer than 2 classes, a class with one image, class names that look alike, or a
            label in val that train lacks.
    """
    root = dataset.source
    if "train" not in dataset.splits:
        found = named(dataset.splits)
        hint = f"; if one of them is, give --splits train={next(iter(dataset.splits))}" if found else ""
        raise DataError(f"{root}: no train split; found {found or 'none'}{hint}")
    train, val = dataset.splits["train"], dataset.splits.get("val", ())
    classes = classes_in(train)
    _check_distinct(root, classes_in((*train, *val)))
    if len(classes) < 2:
        hint = _hint_on_one_class(dataset, train)
        raise DataError(f"{root}: only one class to train on ({classes[0]}); at least 2 are needed{hint}")
    unknown = sorted(set(classes_in(val)) - set(classes))
    if unknown:
        raise DataError(
            f"{root}: val holds classes that train lacks ({named(unknown)}); add them to train or remove them"
        )
    if merge_val and not val:
        raise DataError(f"{root}: there is no val split to merge; found {named(dataset.splits)}")
    joined = merge_val or dataset.split_by_seed  # a class of two images may be drawn 1 + 1
    check_class_sizes(root, (*train, *val) if joined else train)
    return (classes, (*train, *val), ()) if merge_val else (classes, train, val)


def check_class_sizes(root: Path, samples: Iterable[Sample]) -> None:
    """Check that every class has at least 2 images.

    Raises:
        DataError: some classes have one; the message names them.
    """
    counts = Counter(sample.label for sample in samples)
    single = sorted(label for label, count in counts.items() if count < 2)
    if single:
        raise DataError(
            f"{root}: {_classes_have(single)} one image to train on ({named(single)}); at least 2 are needed"
        )


def evaluation_samples(
    path: str | Path,
    classes: Sequence[str],
    split: str | None = None,
    *,
    holdout: float = 0.2,
    seed: int = 0,
    trained_on: Path | None = None,
    splits: str = "",
) -> EvaluationSet:
    """The samples of one split of the data at `path`, with labels as indices into the run's `classes`.

    Without `split` it is test, else val. Data without named splits is taken whole; but if it is what the run was
    trained on, or if `split` is val, val is drawn from it by `holdout` and `seed`, as it was for training.

    Args:
        path: a folder or a manifest.
        classes: the run's class names, in its order.
        split: the name of a split; `all` is every labelled image, unless a split has that name.
        holdout: the fraction of each class that becomes val where the data does not name its splits.
        seed: the seed of that draw.
        trained_on: the data that the run was trained on.
        splits: as for `read_dataset`.

    Raises:
        DataError: there is no such split, it has no labels, or it has classes that the run does not have.
    """
    dataset = read_dataset(path, holdout=holdout, seed=seed, splits=splits)
    name, samples = _choose_split(dataset, Path(path), split, trained_on)
    class_index = {label: index for index, label in enumerate(classes)}
    unknown = sorted({sample.label for sample in samples} - set(class_index))
    if unknown:
        raise DataError(
            f"{path}: {name} holds classes that the run was not trained on ({named(unknown)}); "
            f"the run has {len(classes):,} ({named(classes)}){_alike(unknown, classes)}"
        )
    labels = tuple(class_index[sample.label] for sample in samples)
    untested = [other for other in dataset.splits if other not in ("train", "val")] if split is None else []
    return EvaluationSet(dataset.root, name, samples, labels, dataset.notes, tuple(untested) if name == "val" else ())


def _choose_split(
    dataset: Dataset, path: Path, split: str | None, trained_on: Path | None
) -> tuple[str, tuple[Sample, ...]]:
    if split is None:
        is_training_data = trained_on is not None and path.resolve() == trained_on.resolve()
        has_own_val = is_training_data and "val" in dataset.splits
        if "train" not in dataset.splits or (dataset.split_by_seed and not has_own_val):
            return WHOLE, _whole(dataset)
        split = next((name for name in ("test", "val") if name in dataset.splits), "test")
    if split not in (*dataset.splits, *dataset.unlabelled, WHOLE):
        usual = usual_split(split)
        read_as = next((name for name, own in dataset.names.items() if own == split), usual)
        split = read_as if read_as in (*dataset.splits, *dataset.unlabelled) else split
    if split in dataset.splits:
        return split, dataset.splits[split]
    if split == WHOLE:
        return WHOLE, _whole(dataset)
    available = f"splits with labels: {named(dataset.splits)}"
    if split in dataset.unlabelled:
        raise DataError(f"{path}: {split} has no labels, so it can be predicted but not evaluated; {available}")
    raise DataError(f"{path}: no split {split!r}; {available}")


def _whole(dataset: Dataset) -> tuple[Sample, ...]:
    samples = (sample for part in dataset.splits.values() for sample in part)
    return tuple(sorted(samples, key=lambda sample: sample.path))


def _hint_on_one_class(dataset: Dataset, train: Sequence[Sample]) -> str:
    """What to type where the one class is a folder around those of the classes."""
    folder = f"{dataset.names['train']}/{train[0].label}" if "train" in dataset.names else train[0].label
    if dataset.file is not None or not all("/" in sample.path.removeprefix(f"{folder}/") for sample in train):
        return ""
    pass_on = f"--splits train={folder}" if "train" in dataset.names else f"{dataset.root / folder} as DATA"
    return f"; if the folders in it are the classes, give {pass_on}"


def as_seen(name: str) -> str:
    """What a person sees of a name: names with equal values look alike.

    Case, compatible and decomposed characters (Unicode's NFKC), invisible characters and blanks make no difference.
    """
    visible = (char for char in name if char.isspace() or not _is_invisible(char))
    return " ".join(unicodedata.normalize("NFKC", "".join(visible)).casefold().split())


def _is_invisible(char: str) -> bool:
    """Whether it is a control or format character, or a variation selector."""
    return unicodedata.category(char) in ("Cf", "Cc") or "\ufe00" <= char <= "\ufe0f"


def _check_distinct(root: Path, names: Sequence[str]) -> None:
    by_look: dict[str, str] = {}
    for name in names:
        other = by_look.setdefault(as_seen(name), name)
        if other != name:
            raise DataError(f"{root}: class names {_difference(other, name)}; rename or merge them")


def _difference(first: str, second: str) -> str:
    if first.casefold() == second.casefold():
        return f"{first!r} and {second!r} differ only by case"
    return f"{first!a} and {second!a} look alike: they differ only by case, blanks or the Unicode form of a character"


def _alike(unknown: Sequence[str], classes: Sequence[str]) -> str:
    """The first unknown class that looks like one of the run's."""
    by_look = {as_seen(name): name for name in classes}
    pair = next(((by_look[as_seen(name)], name) for name in unknown if as_seen(name) in by_look), None)
    return f"; {_difference(*pair)}: rename the data's" if pair else ""


def _classes_have(labels: Sequence[str]) -> str:
    return f"{len(labels):,} {'class has' if len(labels) == 1 else 'classes have'}"

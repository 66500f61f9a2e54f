"""Choose the samples to train on, validate on or evaluate. Labels are matched by name, never by index."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewsight.data.samples import VAL_NAMES, Dataset, Sample, classes_in
from fewsight.data.sources import read_dataset
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


def training_samples(
    dataset: Dataset, *, merge_val: bool = False
) -> tuple[tuple[str, ...], tuple[Sample, ...], tuple[Sample, ...]]:
    """Choose the samples to train on and to validate on.

    With `merge_val` the val split is trained on as well and nothing is left to validate on.

    Returns:
        (class names in code-point order, samples to train on, samples to validate on).

    Raises:
        DataError: no train split, fewer than 2 classes, a class with one image, class names that differ only by
            case, or a label in val that train lacks.
    """
    root = dataset.root
    if "train" not in dataset.splits:
        raise DataError(f"{root}: no train split; found {named(dataset.splits) or 'none'}")
    train, val = dataset.splits["train"], dataset.splits.get("val", ())
    classes = classes_in(train)
    _check_case(root, classes_in((*train, *val)))
    if len(classes) < 2:
        raise DataError(f"{root}: only one class to train on ({classes[0]}); at least 2 are needed")
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

    Raises:
        DataError: there is no such split, it has no labels, or it has classes that the run does not have.
    """
    dataset = read_dataset(path, holdout=holdout, seed=seed)
    name, samples = _choose_split(dataset, Path(path), split, trained_on)
    class_index = {label: index for index, label in enumerate(classes)}
    unknown = sorted({sample.label for sample in samples} - set(class_index))
    if unknown:
        raise DataError(
            f"{path}: {name} holds classes that the run was not trained on ({named(unknown)}); "
            f"the run has {len(classes):,} ({named(classes)})"
        )
    return EvaluationSet(dataset.root, name, samples, tuple(class_index[sample.label] for sample in samples))


def _choose_split(
    dataset: Dataset, path: Path, split: str | None, trained_on: Path | None
) -> tuple[str, tuple[Sample, ...]]:
    if split is None:
        is_training_data = trained_on is not None and path.resolve() == trained_on.resolve()
        has_own_val = is_training_data and "val" in dataset.splits
        if "train" not in dataset.splits or (dataset.split_by_seed and not has_own_val):
            return WHOLE, _whole(dataset)
        split = next((name for name in ("test", "val") if name in dataset.splits), "test")
    if split in VAL_NAMES and split not in dataset.splits:
        split = "val"
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


def _check_case(root: Path, names: Sequence[str]) -> None:
    by_folded: dict[str, str] = {}
    for name in names:
        other = by_folded.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(f"{root}: class names {other!r} and {name!r} differ only by case; rename or merge them")


def _classes_have(labels: Sequence[str]) -> str:
    return f"{len(labels):,} {'class has' if len(labels) == 1 else 'classes have'}"

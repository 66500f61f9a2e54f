"""Prepare a training set: read the dataset, scan its images, leave unreadable ones out, measure the statistics."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fewsight.data import Dataset, Sample, Scanned, channel_stats, digest, read_dataset, scan, training_samples
from fewsight.data.leaks import Leaks, find_leaks
from fewsight.data.memory import memory_notes
from fewsight.data.samples import sample_indices, size_of
from fewsight.data.training_set import ListedImage, RunData, TrainingSet
from fewsight.errors import DataError
from fewsight.machine.cores import num_cores
from fewsight.recipes import Data
from fewsight.wording import counted, first_few, named

MAX_IMAGES_FOR_STATISTICS = 50_000
MAX_NAMED = 20  # in an error message


@dataclass(frozen=True)
class Prepared:
    """The data of a run before its first step."""

    classes: tuple[str, ...]
    images: TrainingSet
    facts: RunData
    listed: list[ListedImage]  # the training images, then those of val
    sizes: tuple[tuple[int, int], ...]  # (width, height) of each training image
    notes: tuple[str, ...] = ()  # as `Dataset.notes`
    splits: str = ""  # as for `read_dataset`
    note_on_val: str = ""  # what a training without val lacks


@dataclass(frozen=True)
class _Chosen:
    """The images that a run trains on and selects on."""

    classes: tuple[str, ...]
    train: list[tuple[int, Sample]]  # each with its index in the split before some were left out
    val: list[Sample]
    scans: dict[str, Scanned]  # by path
    left_out: list[dict[str, str]]  # as in `RunData`
    leaks: Leaks


def prepare(source: Path, settings: Data, *, progress: Callable[[int, int], None] | None = None) -> Prepared:
    """Read and scan a dataset, and choose the images that a run trains on and selects on.

    Args:
        source: a folder or a manifest.
        settings: the recipe's section data.
        progress: called with (images scanned, images in all).

    Raises:
        DataError: the data cannot be used, or more than `settings.max_bad` of its images cannot be read.
    """
    dataset = read_dataset(source, holdout=settings.holdout, seed=settings.split_seed, splits=settings.splits)
    classes, train, val = training_samples(dataset, merge_val=settings.merge_val)
    others = _not_trained_on(dataset, settings.merge_val)
    scanned = scan(dataset.root, [*train, *others], workers=num_cores(), progress=progress)
    scans = {sample.path: result for sample, result in zip([*train, *others], scanned, strict=True)}
    left_out = [
        {"path": sample.path, "split": split, "error": str(scans[sample.path].error)}
        for split, samples in (("train", train), ("val", val))
        for sample in samples
        if scans[sample.path].error is not None
    ]
    _check_bad(source, left_out, len(train) + len(val), settings.max_bad)
    leaks = find_leaks(
        dataset.root,
        settings.leak,
        [(sample, scans[sample.path]) for sample in train],
        [(sample, scans[sample.path]) for sample in others],
    )
    dropped = dict(leaks.equal) if settings.leak == "drop" else {}
    label_of = {sample.path: sample.label for sample in [*train, *others]}
    left_out += [
        {"path": path, "split": "train", "error": _why_dropped(path, other, label_of)}
        for path, other in dropped.items()
    ]
    kept = [
        (number, sample)
        for number, sample in enumerate(train)
        if scans[sample.path].error is None and sample.path not in dropped
    ]
    _check_counts(source, classes, [sample for _, sample in kept], bool(left_out))
    kept_val = [sample for sample in val if scans[sample.path].error is None]
    return _fix(dataset, source, settings, _Chosen(classes, kept, kept_val, scans, left_out, leaks))


def _why_dropped(path: str, other: str, label_of: Mapping[str, str]) -> str:
    """That a training image equals one of another split, which may have another label; "" in a split without labels."""
    equal = f"{path}: equal to {other}"
    if label_of[other] in ("", label_of[path]):
        return equal
    return f"{equal}, but their labels differ ({label_of[path]} and {label_of[other]}): one of them is wrong"


def _not_trained_on(dataset: Dataset, merge_val: bool) -> list[Sample]:
    """The images of every split that is not trained on, labelled or not."""
    trained = ("train", "val") if merge_val else ("train",)
    labelled = [sample for split, samples in dataset.splits.items() if split not in trained for sample in samples]
    return [*labelled, *(Sample(path, "") for paths in dataset.unlabelled.values() for path in paths)]


def _fix(dataset: Dataset, source: Path, settings: Data, chosen: _Chosen) -> Prepared:
    class_index = {name: index for index, name in enumerate(chosen.classes)}
    train, val, scans = [sample for _, sample in chosen.train], chosen.val, chosen.scans
    measured = sample_indices(len(train), MAX_IMAGES_FOR_STATISTICS, settings.split_seed)
    mean, std = channel_stats([scans[train[index].path] for index in measured])
    splits = {"train": train, "val": val}
    facts = RunData(
        source=str(source.resolve()),
        layout=dataset.layout,
        digest=digest([*train, *val], dataset.root),
        counts={split: dict(Counter(s.label for s in samples)) for split, samples in splits.items() if samples},
        mean=mean if settings.mean == "data" else settings.mean,
        std=std if settings.std == "data" else settings.std,
        left_out=chosen.left_out,
        ignored=dict(dataset.ignored),
        leaks=chosen.leaks.as_json(),
        test_splits=[split for split in dataset.splits if split not in ("train", "val")],
    )
    images = TrainingSet(
        root=dataset.root.resolve(),
        paths=tuple(sample.path for sample in train),
        labels=tuple(class_index[sample.label] for sample in train),
        val_paths=tuple(sample.path for sample in val),
        val_labels=tuple(class_index[sample.label] for sample in val),
        numbers=tuple(number for number, _ in chosen.train),
    )
    listed = [
        ListedImage(split, sample.path, sample.label, size_of(dataset.root / sample.path), scan.pixels, scan.digest)
        for split, samples in splits.items()
        for sample in samples
        for scan in [scans[sample.path]]
    ]
    sizes = tuple((scans[sample.path].width, scans[sample.path].height) for sample in train)
    notes, lacks_val = (*dataset.notes, *memory_notes()), not val and not settings.merge_val
    note_on_val = _note_on_val(dataset) if lacks_val else ""
    return Prepared(chosen.classes, images, facts, listed, sizes, notes, settings.splits, note_on_val)


def _note_on_val(dataset: Dataset) -> str:
    """What a training without val lacks, and how to get one; of splits that are named, all of train is trained on."""
    folder = dataset.root / dataset.names.get("train", "train")
    hint = f", or train on {folder} alone, of which a part is then held out (--holdout)" if folder.is_dir() else ""
    return (
        "there is no val split, so accuracy is not measured while training, and probabilities cannot be calibrated; "
        f"call some of the training images val{hint}"
    )


def _check_bad(source: Path, left_out: list[dict[str, str]], total: int, max_bad: float) -> None:
    if len(left_out) <= max_bad * total:
        return
    errors = "\n  ".join(first_few((image["error"] for image in left_out), MAX_NAMED))
    raise DataError(
        f"{source}: {len(left_out):,} of {counted(total, 'image')} cannot be read, more than --max-bad {max_bad:g} "
        f"allows; fix or remove them, or raise --max-bad:\n  {errors}"
    )


def _check_counts(source: Path, classes: tuple[str, ...], train: list[Sample], some_left_out: bool) -> None:
    counts = Counter(sample.label for sample in train)
    empty = [name for name in classes if counts[name] == 0]
    if empty:
        reason = (
            " after unreadable images and those equal to images of other splits were left out" if some_left_out else ""
        )
        raise DataError(
            f"{source}: no image to train on{reason} for {named(map(repr, empty))}; "
            "add images of the class or remove its folder"
        )

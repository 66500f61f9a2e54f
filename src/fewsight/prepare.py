"""From a folder or manifest to a training set: scanned, with what cannot be read left out, measured and fixed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewsight.data import (
    Dataset,
    Sample,
    Scanned,
    channel_stats,
    digest,
    read_dataset,
    scan,
    training_samples,
)
from fewsight.device import num_cores
from fewsight.errors import DataError
from fewsight.feed import sample_positions
from fewsight.recipes import Data
from fewsight.runs import RunData
from fewsight.train import TrainingSet

MOST_IMAGES_FOR_STATISTICS = 50_000
NAMED_IN_MESSAGE = 20


@dataclass(frozen=True)
class Prepared:
    """What a run needs to know of its data before the first step."""

    classes: tuple[str, ...]
    images: TrainingSet
    facts: RunData
    listed: list[dict[str, Any]]  # {"split", "path", "label", "size"} of each training and val image
    sizes: tuple[tuple[int, int], ...]  # (width, height) of each training image


def prepare(source: Path, settings: Data, *, progress: Callable[[int, int], None] | None = None) -> Prepared:
    """Read, scan and fix the images that a run trains on and selects on.

    Raises:
        DataError: the data cannot be used, or more than `settings.max_bad` of its images cannot be read.
    """
    dataset = read_dataset(source, holdout=settings.holdout, seed=settings.split_seed)
    classes, train, val = training_samples(dataset, merge_val=settings.merge_val)
    scanned = scan(dataset.root, [*train, *val], workers=num_cores(), progress=progress)
    left_out = [
        {"path": sample.path, "split": "train" if position < len(train) else "val", "error": one.error}
        for position, (sample, one) in enumerate(zip([*train, *val], scanned, strict=True))
        if one.error is not None
    ]
    _check_bad(source, left_out, len(scanned), settings.max_bad)
    train_scanned, val_scanned = scanned[: len(train)], scanned[len(train) :]
    kept, kept_scanned = _readable(train, train_scanned)
    kept_val, _ = _readable(val, val_scanned)
    _check_counts(source, classes, kept, bool(left_out))
    return _fix(dataset, source, classes, kept, kept_val, kept_scanned, left_out, settings)


def _fix(
    dataset: Dataset,
    source: Path,
    classes: tuple[str, ...],
    train: list[Sample],
    val: list[Sample],
    scanned: list[Scanned],
    left_out: list[dict[str, str]],
    settings: Data,
) -> Prepared:
    index = {name: number for number, name in enumerate(classes)}
    chosen = sample_positions(len(train), MOST_IMAGES_FOR_STATISTICS, settings.split_seed)
    mean, std = channel_stats([scanned[position] for position in chosen])
    splits = {"train": train, "val": val}
    facts = RunData(
        source=str(source.resolve()),
        layout=dataset.layout,
        digest=digest([*train, *val], dataset.root),
        counts={split: dict(Counter(one.label for one in samples)) for split, samples in splits.items() if samples},
        mean=mean if settings.mean == "data" else settings.mean,
        std=std if settings.std == "data" else settings.std,
        left_out=left_out,
        ignored=dict(dataset.ignored),
    )
    images = TrainingSet(
        root=dataset.root.resolve(),
        paths=tuple(sample.path for sample in train),
        labels=tuple(index[sample.label] for sample in train),
        val_paths=tuple(sample.path for sample in val),
        val_labels=tuple(index[sample.label] for sample in val),
    )
    listed = [
        {
            "split": split,
            "path": one.path,
            "label": one.label,
            "size": (dataset.root / one.path).stat().st_size,
        }
        for split, samples in splits.items()
        for one in samples
    ]
    return Prepared(classes, images, facts, listed, tuple((one.width, one.height) for one in scanned))


def _readable(samples: tuple[Sample, ...] | list[Sample], scanned: list[Scanned]) -> tuple[list[Sample], list[Scanned]]:
    pairs = [(sample, one) for sample, one in zip(samples, scanned, strict=True) if one.error is None]
    return [sample for sample, _ in pairs], [one for _, one in pairs]


def _check_bad(source: Path, left_out: list[dict[str, str]], total: int, max_bad: float) -> None:
    if len(left_out) <= max_bad * total:
        return
    named = "".join(f"\n  {one['error']}" for one in left_out[:NAMED_IN_MESSAGE])
    more = len(left_out) - NAMED_IN_MESSAGE
    raise DataError(
        f"{source}: {len(left_out):,} of {total:,} images cannot be read, more than --max-bad {max_bad:g} allows; "
        f"mend or remove them, or raise --max-bad:{named}" + (f"\n  and {more:,} more" if more > 0 else "")
    )


def _check_counts(source: Path, classes: tuple[str, ...], train: list[Sample], some_left_out: bool) -> None:
    counts = Counter(sample.label for sample in train)
    lacking = [name for name in classes if counts[name] == 0]
    if lacking:
        reason = " after those that cannot be read were left out" if some_left_out else ""
        raise DataError(
            f"{source}: no image to train on{reason} for {', '.join(map(repr, lacking[:5]))}; "
            "add images of the class or remove its folder"
        )

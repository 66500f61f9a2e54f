"""Read a dataset, decode every image and collect the findings."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewsight.apps.check.findings import Entry, Finding, find_problems
from fewsight.data import Dataset, Ignored, Sample, images_under, is_hidden, load_compared, read_dataset, scan
from fewsight.data.memory import memory_notes
from fewsight.machine.cores import num_cores


@dataclass(frozen=True)
class CheckResult:
    """The dataset that was checked, and the findings."""

    data: str
    root: Path
    layout: str
    notes: tuple[str, ...]  # as `Dataset.notes`
    counts: dict[str, dict[str, int]]  # split -> class -> readable images; the class is "" in a split without labels
    num_images: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no findings but notes."""
        return all(finding.level == "note" for finding in self.findings)


def check(
    data: Path,
    *,
    holdout: float = 0.2,
    seed: int = 0,
    splits: str = "",
    reread: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CheckResult:
    """Decode every image of a dataset and find problems with its files, labels and splits.

    Args:
        data: a folder or a manifest.
        holdout: fraction of each class to hold out as val if the data has no splits.
        seed: of that holdout.
        splits: as for `read_dataset`.
        reread: as for `scan`.
        progress: called with (done, total) images.

    Raises:
        DataError: it is not a dataset.
    """
    dataset = read_dataset(data, holdout=holdout, seed=seed, splits=splits)
    samples = [(split, sample) for split, members in dataset.splits.items() for sample in members]
    samples += [(split, Sample(path, "")) for split, paths in dataset.unlabelled.items() for path in paths]
    scanned = scan(
        dataset.root, [sample for _, sample in samples], workers=num_cores(), progress=progress, reread=reread
    )
    entries = [
        Entry(sample.path, split, None if split in dataset.unlabelled else sample.label, result)
        for (split, sample), result in zip(samples, scanned, strict=True)
    ]

    def load(index: int) -> np.ndarray:
        return load_compared(dataset.root / entries[index].path)

    empty, hidden = _folders(dataset)
    counts: dict[str, Counter[str]] = {}
    for entry in entries:
        counts.setdefault(entry.split, Counter())[entry.label or ""] += entry.scanned.error is None
    plain = {split: dict(classes) for split, classes in counts.items()}
    findings = find_problems(entries, empty, hidden, load, dataset)
    about = str(data), dataset.root, dataset.layout, (*dataset.notes, *memory_notes())
    return CheckResult(*about, plain, len(entries), tuple(findings))


def check_json(checked: CheckResult) -> dict[str, Any]:
    """The result as plain values for a JSON file."""
    return asdict(checked) | {"root": str(checked.root), "ok": checked.ok}


def _folders(dataset: Dataset) -> tuple[list[str], list[str]]:
    """(class folders without images, hidden folders), both where class folders are expected."""
    if dataset.layout == "manifest":
        return [], []
    parents = [""] if dataset.layout == "classes" else [f"{dataset.names[split]}/" for split in dataset.splits]
    empty, hidden = [], []
    for parent in parents:
        for name in sorted(os.listdir(dataset.root / parent)):  # noqa: PTH208
            folder = dataset.root / parent / name
            if not folder.is_dir():
                continue
            if is_hidden(name):
                hidden.append(f"{parent}{name}")
            elif not images_under(folder, Ignored()):
                empty.append(f"{parent}{name}")
    return empty, hidden

"""Read a dataset, decode every file, and find what is wrong."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewsight.apps.check.findings import Entry, Finding, find
from fewsight.data import Dataset, Sample, images_under, is_hidden, load_compared, read_dataset, scan
from fewsight.machine.cores import num_cores


@dataclass(frozen=True)
class Checked:
    """What a check looked at, and what it found."""

    data: str
    root: Path
    layout: str
    counts: dict[str, dict[str, int]]  # split -> class -> images that can be read; "" where there are no labels
    num_images: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is nothing but notes."""
        return all(one.level == "note" for one in self.findings)


def check(
    data: Path, *, holdout: float = 0.2, seed: int = 0, progress: Callable[[int, int], None] = lambda done, total: None
) -> Checked:
    """Decode every image of a dataset, and say what is wrong with files, labels and splits.

    Raises:
        DataError: it is no dataset at all.
    """
    dataset = read_dataset(data, holdout=holdout, seed=seed)
    samples = [(split, sample) for split, those in dataset.splits.items() for sample in those]
    samples += [(split, Sample(path, "")) for split, paths in dataset.unlabelled.items() for path in paths]
    scanned = scan(dataset.root, [sample for _, sample in samples], workers=num_cores(), progress=progress)
    entries = [
        Entry(sample.path, split, None if split in dataset.unlabelled else sample.label, one)
        for (split, sample), one in zip(samples, scanned, strict=True)
    ]

    def load(place: int) -> np.ndarray:
        return load_compared(dataset.root / entries[place].path)

    empty, hidden = _folders(dataset)
    counts: dict[str, Counter[str]] = {}
    for one in entries:
        counts.setdefault(one.split, Counter())[one.label or ""] += one.scanned.error is None
    plain = {split: dict(classes) for split, classes in counts.items()}
    found = find(entries, empty, hidden, load, dataset.ignored)
    return Checked(str(data), dataset.root, dataset.layout, plain, len(entries), tuple(found))


def checked_json(checked: Checked) -> dict[str, Any]:
    """Plain values for a JSON file."""
    return asdict(checked) | {"root": str(checked.root), "ok": checked.ok}


def _folders(dataset: Dataset) -> tuple[list[str], list[str]]:
    """(class folders without an image, hidden folders) at the places where classes lie."""
    if dataset.layout == "manifest":
        return [], []
    places = [""] if dataset.layout == "classes" else [f"{split}/" for split in dataset.splits]
    empty, hidden = [], []
    for place in places:
        for name in sorted(os.listdir(dataset.root / place)):  # noqa: PTH208
            folder = dataset.root / place / name
            if not folder.is_dir():
                continue
            if is_hidden(name):
                hidden.append(f"{place}{name}")
            elif not images_under(folder, Counter()):
                empty.append(f"{place}{name}")
    return empty, hidden

"""Rows of probabilities: written by the peers, read for every side."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LEAST_PROB = 1e-7  # what a row rounds to 0


@dataclass(frozen=True)
class Scored:
    """What a side says of a split's images, in the order of their names."""

    names: tuple[str, ...]  # class/file
    correct: np.ndarray  # bool [n]
    labels: np.ndarray  # str [n]
    nll: np.ndarray  # float [n], nats


def write_rows(path: Path, names: Sequence[Path], classes: Sequence[str], probs: np.ndarray) -> None:
    """`path,label,prob,label2,prob2,...`: the classes of each image by probability.

    Args:
        probs: [n, K].
    """
    heads = [f"{word}{rank or ''}" for rank in (0, *range(2, len(classes) + 1)) for word in ("label", "prob")]
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", *heads])
        for name, row in zip(names, probs, strict=True):
            order = np.argsort(-row, kind="stable")
            writer.writerow([name, *(cell for index in order for cell in (classes[index], f"{row[index]:.8g}"))])


def read_rows(path: Path) -> Scored:
    """The rows of either side; an image's class is its folder."""
    found: dict[str, tuple[str, bool, float]] = {}
    with path.open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            image = Path(row["path"])
            label = image.parent.name
            ranks = ["", *(str(rank) for rank in range(2, len(row)) if f"label{rank}" in row)]
            probs = {row[f"label{rank}"]: float(row[f"prob{rank}"] or "nan") for rank in ranks if row[f"label{rank}"]}
            prob = max(probs.get(label, 0.0), LEAST_PROB)
            found[f"{label}/{image.name}"] = label, row["label"] == label, -float(np.log(prob))
    names = tuple(sorted(found))
    labels, correct, nll = zip(*(found[name] for name in names), strict=True)
    return Scored(names, np.array(correct), np.array(labels), np.array(nll))

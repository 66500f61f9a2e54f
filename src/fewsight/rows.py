"""Prediction rows: one for each input, in order, to CSV, JSON lines or Parquet."""

import csv
import glob
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fewsight import files
from fewsight.data import images_under
from fewsight.errors import DataError

SUFFIXES = (".csv", ".jsonl", ".parquet")
Row = dict[str, Any]


def expand(inputs: Sequence[str]) -> list[str]:
    """Files, folders and glob patterns as a list of files, in the order given.

    A folder gives its images, also those of its sub-folders, in code-point order; hidden ones are left out. A
    name that matches nothing stays in the list: its row will say so.
    """
    paths: list[str] = []
    for one in inputs:
        path = Path(one)
        if path.is_dir():
            paths += _images_below(path)
        elif path.exists() or not glob.has_magic(one):
            paths.append(one)
        else:
            found = sorted(glob.glob(one, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
            for match in found:
                paths += _images_below(Path(match)) if Path(match).is_dir() else [match]
            if not found:
                paths.append(one)
    return paths


def rows(paths: Sequence[str], log_probs: np.ndarray, errors: Sequence[str | None], classes: Sequence[str],
         top_k: int) -> Iterator[Row]:  # fmt: skip
    """`path, label, prob, label2, prob2, ..., error` for each of `paths`; log_probs [n, K]."""
    top_k = min(top_k, len(classes))
    for path, scores, error in zip(paths, log_probs, errors, strict=True):
        row: Row = {"path": path}
        order = np.argsort(-scores, kind="stable")[:top_k]
        for place in range(top_k):
            name = "" if place == 0 else str(place + 1)
            row[f"label{name}"] = classes[order[place]] if error is None else None
            row[f"prob{name}"] = float(np.exp(scores[order[place]])) if error is None else None
        row["error"] = error
        yield row


def check_target(target: Path | None) -> None:
    """Refuse a file type that cannot be written, before anything is predicted.

    Raises:
        DataError: the suffix is not one of SUFFIXES, or Parquet lacks its extra.
    """
    if target is None:
        return
    if target.suffix.lower() not in SUFFIXES:
        raise DataError(f"--out {target}: expected a name that ends in {', '.join(SUFFIXES)}")
    if not target.parent.is_dir():
        raise DataError(f"--out {target}: the folder {target.parent} is not there; create it first")
    if target.suffix.lower() == ".parquet":
        _pyarrow()


def write_rows(table: Sequence[Row], target: Path | None) -> None:
    """Write rows to a file by its suffix, whole or not at all; to the screen as CSV without a target."""
    if target is None:
        _write_csv(table, sys.stdout)
        return
    with files.replacing(target) as part:
        if target.suffix.lower() == ".parquet":
            arrow, parquet = _pyarrow()
            parquet.write_table(arrow.Table.from_pylist(list(table)), part)
            return
        with part.open("w", encoding="utf-8", newline="") as handle:
            if target.suffix.lower() == ".csv":
                _write_csv(table, handle)
            else:
                handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table)


def _write_csv(table: Sequence[Row], handle: TextIO) -> None:
    writer = csv.DictWriter(handle, list(table[0]) if table else ["path", "label", "prob", "error"])
    writer.writeheader()
    writer.writerows(table)


def _images_below(folder: Path) -> list[str]:
    return [str(folder / name) for name in images_under(folder, Counter())]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            "Parquet files need pyarrow, which is not installed: pip install 'fewsight[parquet]'"
        ) from error
    return pyarrow, parquet

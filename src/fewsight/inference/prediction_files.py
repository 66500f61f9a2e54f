"""Prediction rows: one for each input, in order, to CSV, JSON lines or Parquet."""

import contextlib
import csv
import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fewsight.data import images_under
from fewsight.errors import DataError
from fewsight.machine import files

SUFFIXES = (".csv", ".jsonl", ".parquet")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one
NONE_OF_THESE = "none_of_these"  # the column: true, false, or nothing where the image could not be read
OTHER = "other file"  # as `data.images_under` counts them
ROW_GROUP = 10_000  # rows that a Parquet file holds together
Row = dict[str, Any]


def expand(inputs: Sequence[str], ignored: Counter[str] | None = None) -> list[str]:
    """Files, folders and glob patterns as a list of files, in the order given.

    A folder gives its images, also those of its sub-folders, in code-point order; hidden ones are left out. A
    name or pattern that matches nothing and a folder without images stay in the list: their row says so.

    Args:
        ignored: counts what is passed over in folders, by the reason; OTHER: no image by its name.
    """
    paths, ignored = list[str](), Counter() if ignored is None else ignored
    for one in inputs:
        # os.path answers False for what cannot be a path at all; pathlib raises
        if os.path.lexists(one) or not glob.has_magic(one):
            paths += _images_below(one, ignored)
        else:
            found = sorted(glob.glob(one, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
            paths += [path for match in found for path in _images_below(match, ignored)] or [one]
    return paths


def check_inputs(names: Sequence[str]) -> None:
    """Refuse inputs of which not one is there; what lacks among others gets a row that says so.

    Raises:
        DataError: no file at all, with the reason of the first.
    """
    if not any(os.path.exists(name) and not os.path.isdir(name) for name in names):  # noqa: PTH110, PTH112
        others = f" (and so on: {len(names):,} inputs)" if len(names) > 1 else ""
        raise DataError(f"nothing to predict: {names[0]}: {_reason(names[0], 'no such file or folder')}{others}")


def column_names(top_k: int, *, thresholded: bool = False) -> list[str]:
    """`path, label, prob, label2, prob2, ..., error`; with a threshold, `none_of_these` before `error`."""
    numbers = ["", *(str(place) for place in range(2, top_k + 1))]
    labels = [f"{kind}{number}" for number in numbers for kind in ("label", "prob")]
    return ["path", *labels, *([NONE_OF_THESE] if thresholded else []), "error"]


def rows(paths: Sequence[str], log_probs: np.ndarray, errors: Sequence[str | None], classes: Sequence[str],
         top_k: int, threshold: float | None = None) -> Iterator[Row]:  # fmt: skip
    """A row for each of `paths`, with the columns of `column_names`; log_probs [n, K], top_k <= K.

    Args:
        threshold: an image whose most probable class has less is none of these classes; its row keeps that class.
    """
    names = column_names(top_k, thresholded=threshold is not None)
    for path, scores, error in zip(paths, log_probs, errors, strict=True):
        values: list[Any] = [valid_text(path)]
        for place in np.argsort(-scores, kind="stable")[:top_k]:
            # the shortest decimal that is this float32
            values += [None, None] if error else [valid_text(classes[place]), float(str(np.exp(scores[place])))]
        if threshold is not None:
            values.append(None if error else values[2] < threshold)
        yield dict(zip(names, [*values, _reason(path, error) if error else None], strict=True))


def check_target(target: Path | None) -> None:
    """Refuse a file that cannot be written, before anything is predicted; what a killed process left beside it goes.

    Raises:
        DataError: the suffix is not one of SUFFIXES, or Parquet lacks its extra.
        RunError: a folder, or in a folder that is not there.
    """
    if target is None:
        return
    if target.suffix.lower() not in SUFFIXES:
        raise DataError(f"--out {target}: expected the name of a file that ends in {', '.join(SUFFIXES)}")
    files.check_target(target, "--out")
    files.remove_parts(target.parent, target.name)
    if target.suffix.lower() == ".parquet":
        _pyarrow()


@contextlib.contextmanager
def writing(target: Path | None, top_k: int, *, thresholded: bool = False) -> Iterator[Callable[[Sequence[Row]], None]]:
    """Yield `write(rows)`, which writes them as they come; to the screen as CSV without a target.

    The file appears under its name when the block ends well, and not at all otherwise.
    """
    names = column_names(top_k, thresholded=thresholded)
    if target is None:
        yield _csv_writer(sys.stdout, names)
        return
    kind = target.suffix.lower()
    with files.replacing(target) as part:
        if kind == ".parquet":
            with _parquet_writer(part, names) as write:
                yield write
            return
        with part.open("w", encoding="utf-8", newline="") as handle:
            yield _csv_writer(handle, names) if kind == ".csv" else _json_writer(handle)


def features_file(target: Path) -> Path:
    """Where the features of the predictions in `target` lie: new.csv -> new.features.npy."""
    return target.with_suffix(".features.npy")


@contextlib.contextmanager
def writing_features(target: Path | None, num_rows: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield `write(features)` for float32 [n, D], in the order of the rows; nothing is written without a target.

    The file is NumPy's format: float32 [num_rows, D], without pickle.
    """
    if target is None:
        yield lambda features: None
        return
    with files.replacing(target) as part, part.open("wb") as handle:

        def write(features: np.ndarray) -> None:
            if handle.tell() == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, features.shape[1])}
                np.lib.format.write_array_header_1_0(handle, header)
            handle.write(features.astype("<f4").tobytes())

        yield write


def _csv_writer(handle: TextIO, names: Sequence[str]) -> Callable[[Sequence[Row]], None]:
    writer = csv.DictWriter(handle, names)
    begun = False

    def write(table: Sequence[Row]) -> None:
        nonlocal begun
        if not begun:  # with the first rows: what is refused before them leaves the screen alone
            writer.writeheader()
            begun = True
        writer.writerows(_csv_row(row) for row in table)

    return write


def _csv_row(row: Row) -> Row:
    """A path that is no formula; true and false as JSON writes them."""
    told = {name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()}
    return {**told, "path": _no_formula(row["path"])}


def _json_writer(handle: TextIO) -> Callable[[Sequence[Row]], None]:
    return lambda table: handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table)


@contextlib.contextmanager
def _parquet_writer(part: Path, names: Sequence[str]) -> Iterator[Callable[[Sequence[Row]], None]]:
    arrow, parquet = _pyarrow()
    kinds = {NONE_OF_THESE: arrow.bool_()} | {name: arrow.float64() for name in names if name.startswith("prob")}
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in names])
    waiting: list[Row] = []

    def write_group() -> None:
        writer.write_table(arrow.Table.from_pylist(waiting, schema=schema))
        waiting.clear()

    def write(table: Sequence[Row]) -> None:
        waiting.extend(table)
        if len(waiting) >= ROW_GROUP:
            write_group()

    with parquet.ParquetWriter(part, schema) as writer:
        yield write
        write_group()


def _images_below(path: str, ignored: Counter[str]) -> list[str]:
    """The images of a folder; any other path, and a folder without images, as it is."""
    if not os.path.isdir(path):  # noqa: PTH112
        return [path]
    return [str(Path(path) / name) for name in images_under(Path(path), ignored)] or [path]


def _no_formula(path: str) -> str:
    """The same path, but nothing that a spreadsheet would run."""
    return f"./{path}" if path.startswith(FORMULA) else path


def _reason(path: str, error: str) -> str:
    """Why there is no prediction; the path stands in its own column."""
    if os.path.isdir(path):  # noqa: PTH112
        return "no image in this folder"
    if glob.has_magic(path) and not os.path.lexists(path):
        return "no file matches this pattern"
    return valid_text(error.removeprefix(f"{Path(path)}: "))


def valid_text(name: str) -> str:
    r"""A name as valid Unicode: a byte of it that is not UTF-8 becomes `\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            "Parquet files need pyarrow, which is not installed: pip install 'fewsight[parquet]'"
        ) from error
    return pyarrow, parquet

"""Prediction rows: one for each input, in order, written as CSV, JSON lines or Parquet."""

import contextlib
import csv
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fewsight.data import Ignored, images_under
from fewsight.errors import DataError
from fewsight.machine import files
from fewsight.machine.outputs import Kind, check_output

KINDS = {
    ".csv": Kind("a table of fewsight predict", (b"path,label,prob,",)),
    ".jsonl": Kind("a file of fewsight predict", (b'{"path":', b'"prob":')),
    ".parquet": Kind("a Parquet file", (b"PAR1", b"prob")),
}
SUFFIXES = tuple(KINDS)
FEATURES = Kind("an array of NumPy", (b"\x93NUMPY",))
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins with one of these is read as a formula by spreadsheets
NONE_OF_THESE = "none_of_these"  # the column: true, false, or empty if the image could not be read
OTHER = "other file"  # the key under which `data.images_under` counts them
ROW_GROUP = 10_000  # rows in a group of a Parquet file
Row = dict[str, Any]


def expand_inputs(inputs: Sequence[str], ignored: Ignored | None = None) -> list[str]:
    """Files, folders and glob patterns as a list of files, in the order given.

    A folder stands for its images, including those of its sub-folders, in code-point order; hidden ones are left out. A
    name or pattern that matches nothing, and a folder without images, stay in the list: their rows give the reason.

    Args:
        inputs: files, folders and patterns.
        ignored: is updated with the counts of ignored files in folders, by reason; OTHER: not the name of an image.
    """
    paths, ignored = list[str](), Ignored() if ignored is None else ignored
    for name in inputs:
        # os.path returns False for a string that cannot be a path; pathlib raises
        if os.path.lexists(name) or not glob.has_magic(name):
            paths += _images_below(name, ignored)
        else:
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
            paths += [path for match in matches for path in _images_below(match, ignored)] or [name]
    return paths


def check_inputs(names: Sequence[str]) -> None:
    """Check that at least one input is a file; the others get rows with an error.

    Raises:
        DataError: there is no file at all; with the reason of the first input.
    """
    if not any(os.path.exists(name) and not os.path.isdir(name) for name in names):  # noqa: PTH110, PTH112
        others = f" (and so on: {len(names):,} inputs)" if len(names) > 1 else ""
        raise DataError(f"nothing to predict: {names[0]}: {_reason(names[0], 'no such file or folder')}{others}")


def column_names(top_k: int, *, has_threshold: bool = False) -> list[str]:
    """`path, label, prob, label2, prob2, ..., error`; with a threshold, `none_of_these` before `error`."""
    numbers = ["", *(str(rank) for rank in range(2, top_k + 1))]
    labels = [f"{kind}{number}" for number in numbers for kind in ("label", "prob")]
    return ["path", *labels, *([NONE_OF_THESE] if has_threshold else []), "error"]


def prediction_rows(
    paths: Sequence[str],
    log_probs: np.ndarray,
    errors: Sequence[str | None],
    classes: Sequence[str],
    top_k: int,
    threshold: float | None = None,
) -> Iterator[Row]:
    """A row for each of `paths`, with the columns of `column_names`.

    Args:
        paths: n names.
        log_probs: float32 [n, K].
        errors: [n], why an image could not be read.
        classes: K names.
        top_k: classes in a row, at most K.
        threshold: an image whose most probable class has less than this is none of the classes; its row still names
            that class.
    """
    names = column_names(top_k, has_threshold=threshold is not None)
    for path, scores, error in zip(paths, log_probs, errors, strict=True):
        values: list[Any] = [valid_text(path)]
        for index in np.argsort(-scores, kind="stable")[:top_k]:
            # by way of str, so that the shortest decimal of this float32 is written
            values += [None, None] if error else [valid_text(classes[index]), float(str(np.exp(scores[index])))]
        if threshold is not None:
            values.append(None if error else values[2] < threshold)
        yield dict(zip(names, [*values, _reason(path, error) if error else None], strict=True))


def check_target(target: Path | None) -> None:
    """Check that a file can be written, before anything is predicted; parts left by a killed process are removed.

    Raises:
        DataError: the suffix is not one of SUFFIXES, or pyarrow is missing for Parquet.
        RunError: it is a folder, a device or a pipe, or its folder does not exist.
    """
    if target is None:
        return
    if target.suffix.lower() not in SUFFIXES:
        raise DataError(f"--out {target}: expected the name of a file that ends in {', '.join(SUFFIXES)}")
    check_output(target, "--out", KINDS[target.suffix.lower()])
    file = files.link_target(target)
    files.remove_parts(file.parent, file.name)
    if target.suffix.lower() == ".parquet":
        _pyarrow()


@contextlib.contextmanager
def row_writer(
    target: Path | None, top_k: int, *, has_threshold: bool = False
) -> Iterator[Callable[[Sequence[Row]], None]]:
    """Yield `write(rows)`, which can be called repeatedly; without a target it writes CSV to standard output.

    The file appears under its name only if the block ends without an exception.
    """
    names = column_names(top_k, has_threshold=has_threshold)
    if target is None:
        yield _csv_writer(sys.stdout, names)
        return
    kind = target.suffix.lower()
    with files.replacing(files.link_target(target)) as part:
        if kind == ".parquet":
            with _parquet_writer(part, names) as write:
                yield write
            return
        with part.open("w", encoding="utf-8", newline="") as handle:
            yield _csv_writer(handle, names) if kind == ".csv" else _json_writer(handle)


def features_file(target: Path) -> Path:
    """The file for the features of the predictions in `target`: new.csv -> new.features.npy."""
    return target.with_suffix(".features.npy")


@contextlib.contextmanager
def features_writer(target: Path | None, num_rows: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield `write(features)` for float32 [n, D], in the order of the rows; without a target nothing is written.

    The file is NumPy's format: float32 [num_rows, D], without pickle.
    """
    if target is None:
        yield lambda features: None
        return
    with files.replacing(files.link_target(target)) as part, part.open("wb") as handle:

        def write(features: np.ndarray) -> None:
            if handle.tell() == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (num_rows, features.shape[1])}
                np.lib.format.write_array_header_1_0(handle, header)
            handle.write(features.astype("<f4").tobytes())

        yield write


def _csv_writer(handle: TextIO, names: Sequence[str]) -> Callable[[Sequence[Row]], None]:
    writer = csv.DictWriter(handle, names)
    has_header = False

    def write(table: Sequence[Row]) -> None:
        nonlocal has_header
        if not has_header:  # only with the first rows, so that an earlier error leaves standard output empty
            writer.writeheader()
            has_header = True
        writer.writerows(_csv_row(row) for row in table)

    return write


def _csv_row(row: Row) -> Row:
    """Booleans as in JSON, and a path that no spreadsheet reads as a formula."""
    cells = {name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()}
    return {**cells, "path": _no_formula(row["path"])}


def _json_writer(handle: TextIO) -> Callable[[Sequence[Row]], None]:
    return lambda table: handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table)


@contextlib.contextmanager
def _parquet_writer(part: Path, names: Sequence[str]) -> Iterator[Callable[[Sequence[Row]], None]]:
    arrow, parquet = _pyarrow()
    kinds = {NONE_OF_THESE: arrow.bool_()} | {name: arrow.float64() for name in names if name.startswith("prob")}
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in names])
    pending: list[Row] = []

    def write_group() -> None:
        writer.write_table(arrow.Table.from_pylist(pending, schema=schema))
        pending.clear()

    def write(table: Sequence[Row]) -> None:
        pending.extend(table)
        if len(pending) >= ROW_GROUP:
            write_group()

    with parquet.ParquetWriter(part, schema) as writer:
        yield write
        write_group()


def _images_below(path: str, ignored: Ignored) -> list[str]:
    """The images of a folder; any other path, and a folder without images, unchanged."""
    if not os.path.isdir(path):  # noqa: PTH112
        return [path]
    return [str(Path(path) / name) for name in images_under(Path(path), ignored)] or [path]


def _no_formula(path: str) -> str:
    """The same path, written so that no spreadsheet reads it as a formula."""
    return f"./{path}" if path.startswith(FORMULA) else path


def _reason(path: str, error: str) -> str:
    """Why there is no prediction; without the path, which has its own column."""
    if os.path.isdir(path):  # noqa: PTH112
        return "no image in this folder"
    if glob.has_magic(path) and not os.path.lexists(path):
        return "no file matches this pattern"
    return valid_text(error.removeprefix(f"{Path(path)}: "))


def valid_text(name: str) -> str:
    r"""A name as valid Unicode: a byte that is not UTF-8 becomes `\xff`."""
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

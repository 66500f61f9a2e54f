"""Datasets listed in a table: `path,label[,split]` as CSV or Parquet, paths relative to the manifest.

Values are text: a label `01` stays `01`. A row that repeats another is counted and dropped; the same file
under two labels or in two splits is refused, because it would be a multi-label image or a leak.
"""

import csv
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewsight.data.samples import Dataset, Sample
from fewsight.data.splits import naming_notes, split_by_seed, split_names
from fewsight.errors import DataError
from fewsight.wording import named

MANIFEST_SUFFIXES = frozenset({".csv", ".parquet"})
MISSING = "does not exist"
_GROUPS = re.compile("(group|object|patient|subject|site|animal|leaf|leaves)s?([ _-]?id)?")  # columns, in lower case
_COLUMNS = "expected the columns path,label and, optionally, split"


def read_manifest(path: Path, *, holdout: float, seed: int, given: Mapping[str, str]) -> Dataset:
    """Read the dataset that the manifest `path` lists; without a split column it is split by seed.

    Args:
        path: a CSV or Parquet file.
        holdout: the fraction of each class that becomes val.
        seed: the seed of that draw.
        given: `parse_splits`: values of the split column that are not train, val or test.

    Raises:
        DataError: a column, value or file is missing, or an image has several labels.
    """
    rows, unused = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    if not rows:
        raise DataError(f"{path}: no rows; {_COLUMNS}, then one row per image")
    _check_values(path, rows)
    ignored: Counter[str] = Counter()
    rows = _without_repeats(path, rows, ignored)
    _check_files(path, rows)
    splits: dict[str, list[Sample]] = {}
    for row in rows:
        splits.setdefault(row.split, []).append(Sample(row.path, row.label))
    if given and "" in splits:
        raise DataError(f"{path}: --splits needs a column split, and there is none; leave it out, or add the column")
    if drawn := "" in splits:
        train, val = split_by_seed(splits[""], holdout=holdout, seed=seed)
        named_splits, names = {"train": train} | ({"val": val} if val else {}), dict[str, str]()
    else:
        read_as = split_names(splits, given, path)
        names = {split: value for value, split in read_as.items()}
        named_splits = {read_as[value]: tuple(samples) for value, samples in splits.items()}
    return Dataset(
        path.parent,
        named_splits,
        "manifest",
        dict(ignored),
        split_by_seed=drawn,
        names=names,
        file=path,
        notes=(*naming_notes(names), *_notes_on_columns(unused, drawn=drawn and "val" in named_splits)),
    )


def _notes_on_columns(unused: list[str], *, drawn: bool) -> tuple[str, ...]:
    """A line on the columns that are not used, and one on a column of groups where train and val are drawn."""
    notes = [f"not used: the manifest's {named(map(repr, unused), 10)} (used: path, label and split)"]
    groups = [name for name in unused if _GROUPS.fullmatch(name.lower())]
    if groups and drawn:
        notes.append(
            f"the draw of val does not know {groups[0]!r}: images of one object may be in train and in val, which then "
            "measures too high an accuracy; write a column split with one value for all images of an object"
        )
    return tuple(notes) if unused else ()


class _Row:
    """One row: its location for messages and its values as text; `split` is "" where there is no such column."""

    __slots__ = ("has_split", "label", "location", "path", "split")

    def __init__(self, location: str, values: dict[str, str]) -> None:
        self.location = location
        self.path = values["path"]
        self.label = values["label"]
        self.has_split = "split" in values
        self.split = values.get("split", "")


def _read_csv(path: Path) -> tuple[list[_Row], list[str]]:
    """The rows, and the columns that are not used."""
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            columns = _columns(path, header)
            for values in reader:
                if not any(value.strip() for value in values):
                    continue
                location = f"line {reader.line_num}"
                if len(values) != len(header):
                    raise DataError(
                        f"{path}, {location}: {len(values)} values under {len(header)} column names; "
                        'put a value that contains a comma in "quotes"'
                    )
                rows.append(_Row(location, {name: values[i].strip() for name, i in columns.items()}))
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as CSV UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: not a valid CSV file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return rows, _unused(header, columns)


def _read_parquet(path: Path) -> tuple[list[_Row], list[str]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs the extra 'parquet': pip install 'fewsight[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            header = list(file.schema_arrow.names)
            columns = _columns(path, header)
            table = file.read(columns=[header[i] for i in columns.values()])
            values = {name: table.column(header[i]).to_pylist() for name, i in columns.items()}
    except (ArrowException, OSError, UnicodeDecodeError) as error:  # damaged text too
        raise DataError(f"{path}: not a readable Parquet file ({_one_line(error)})") from None
    rows = [
        _Row(f"row {number + 1}", {name: _text(path, name, column[number]) for name, column in values.items()})
        for number in range(table.num_rows)
    ]
    return rows, _unused(header, columns)


def _unused(header: list[str], columns: dict[str, int]) -> list[str]:
    return [name.strip() for index, name in enumerate(header) if index not in columns.values()]


def _text(path: Path, column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, (list, dict)):
        raise DataError(f"{path}: column {column!r} holds lists; several labels per image are not supported")
    return str(value).strip()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """The column index of path, label and split in the header; case and blanks around a name do not matter."""
    names = [name.strip().lower() for name in header]
    repeated = sorted(
        name for name, count in Counter(names).items() if count > 1 and name in ("path", "label", "split")
    )
    if repeated:
        raise DataError(f"{path}: the column {repeated[0]!r} is given twice; one label per image; {_COLUMNS}")
    missing = [name for name in ("path", "label") if name not in names]
    if not missing:
        return {name: names.index(name) for name in ("path", "label", "split") if name in names}
    if not any(names):
        raise DataError(f"{path}: empty; {_COLUMNS}")
    if len(names) == 1:
        for separator, name in ((";", "';'"), ("\t", "tabs"), ("|", "'|'")):
            if separator in names[0]:
                raise DataError(f"{path}: separated by {name}; save it with commas")
    if "label" in missing and "labels" in names:
        raise DataError(f"{path}: several labels per image (column 'labels') are not supported; {_COLUMNS}")
    raise DataError(f"{path}: no column {' and no '.join(map(repr, missing))}; found {named(header, 10)}; {_COLUMNS}")


def _check_values(path: Path, rows: list[_Row]) -> None:
    for column in ("path", "label", "split"):
        empty = [row.location for row in rows if not getattr(row, column) and (column != "split" or row.has_split)]
        if empty:
            raise DataError(f"{path}: no {column} in {len(empty):,} of {len(rows):,} rows ({named(empty)}); fill it in")


def _without_repeats(path: Path, rows: list[_Row], ignored: Counter[str]) -> list[_Row]:
    first: dict[str, _Row] = {}
    for row in rows:
        row.path = posixpath.normpath(row.path)
        earlier = first.setdefault(row.path, row)
        if earlier is row:
            continue
        where = f"{path}: {row.path} ({earlier.location} and {row.location})"
        if earlier.label != row.label:
            raise DataError(f"{where} has the labels {earlier.label!r} and {row.label!r}; give each image one label")
        if earlier.split != row.split:
            raise DataError(f"{where} is in the splits {earlier.split!r} and {row.split!r}; keep it in one")
        ignored["repeated row"] += 1
    return list(first.values())


def _check_files(path: Path, rows: list[_Row]) -> None:
    root = os.fspath(path.parent)
    faults = {row.path: _fault(os.path.join(root, row.path)) for row in rows}  # noqa: PTH118 fast
    missing = [name for name, fault in faults.items() if fault == MISSING]
    others = [f"{name}: {fault}" for name, fault in faults.items() if fault not in ("", MISSING)]
    if missing:
        hint = "; write / between folders" if any("\\" in name for name in missing) else ""
        raise DataError(
            f"{path}: {len(missing):,} of {len(rows):,} files do not exist ({named(missing, 3)}); "
            f"paths are relative to {path.parent.resolve()}{hint}"
        )
    if others:
        raise DataError(f"{path}: {len(others):,} of {len(rows):,} files cannot be read ({named(others, 3)})")


def _fault(path: str) -> str:
    """Why there is no file to read at a path; empty if there is one."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 fast
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
        return MISSING
    except OSError as error:
        return str(error.strerror or error)
    return "" if stat.S_ISREG(mode) else "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"

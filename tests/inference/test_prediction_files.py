"""Prediction rows: their order and columns, names written unchanged, complete files or none."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from fewsight.errors import DataError, FewsightError, RunError
from fewsight.inference.prediction_files import (
    Row,
    check_target,
    column_names,
    expand_inputs,
    prediction_rows,
    row_writer,
)

CLASSES = ["cat", 'new\nline, "quoted"\r', "[red]<b>\u202e"]
NAMES = ["a.png", 'b\n"c",\r.png', "[red]" + "x" * 300, "bad.png"]
LOG_PROBS = np.log(np.array([[0.7, 0.2, 0.1], [0.2, 0.1, 0.7], [0.1, 0.5, 0.4], [1, 1, 1]], np.float32))
ERRORS = [None, None, None, "bad.png: not an image"]


def three_rows() -> list[Row]:
    return list(prediction_rows(NAMES, LOG_PROBS, ERRORS, CLASSES, 2))


def read_back(path: Path) -> list[Row]:
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        return list(parquet.read_table(path).to_pylist())
    with path.open(encoding="utf-8", newline="") as handle:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in handle]
        rows = []
        for row in csv.DictReader(handle):
            values: Row = {name: value or None for name, value in row.items()}
            rows.append({k: float(v) if v and k.startswith("prob") else v for k, v in values.items()})
        return rows


def test_columns_have_fixed_names() -> None:
    assert column_names(3) == ["path", "label", "prob", "label2", "prob2", "label3", "prob3", "error"]


def test_row_has_the_top_classes_or_an_error() -> None:
    first, *_, last = three_rows()
    assert list(first) == column_names(2)
    assert (first["label"], first["label2"], first["error"]) == ("cat", CLASSES[1], None)
    assert (first["prob"], first["prob2"]) == (pytest.approx(0.7), pytest.approx(0.2))
    assert list(last.values()) == ["bad.png", None, None, None, None, "not an image"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_threshold_marks_images_that_are_none_of_the_classes(suffix: str, tmp_path: Path) -> None:
    table = list(prediction_rows(NAMES, LOG_PROBS, ERRORS, CLASSES, 2, 0.6))
    assert list(table[0]) == column_names(2, has_threshold=True)
    assert list(table[0])[-2:] == ["none_of_these", "error"]
    assert [row["none_of_these"] for row in table] == [False, False, True, None]
    without = [{name: value for name, value in row.items() if name != "none_of_these"} for row in table]
    assert without == three_rows(), "the other columns are unchanged"
    with row_writer(tmp_path / f"out{suffix}", 2, has_threshold=True) as write:
        write(table)
    expected = ["false", "false", "true", None] if suffix == ".csv" else [False, False, True, None]
    assert [row["none_of_these"] for row in read_back(tmp_path / f"out{suffix}")] == expected


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_names_are_written_unchanged(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"out{suffix}"
    with row_writer(target, 2) as write:
        write(three_rows()[:2])
        write(three_rows()[2:])
    assert read_back(target) == three_rows()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_failed_writing_leaves_the_old_file(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / f"out{suffix}"
    target.write_text("before")

    def fail_halfway() -> None:
        with row_writer(target, 2) as write:
            write(three_rows())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_rows_go_to_standard_output_without_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    with row_writer(None, 1) as write:
        write(list(prediction_rows(NAMES[:1], LOG_PROBS[:1], [None], CLASSES, 1)))
    assert capsys.readouterr().out.splitlines() == ["path,label,prob,error", "a.png,cat,0.7,"]


def test_probability_is_the_shortest_decimal_of_its_float32() -> None:
    log_probs = np.log(np.array([[0.1, 0.9]], np.float32))
    prob = next(prediction_rows(["a"], log_probs, [None], ["x", "y"], 2))["prob"]
    assert np.float32(prob) == np.exp(log_probs[0, 1])
    assert len(str(prob)) <= 10


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows any bytes in a file name")
def test_name_that_is_not_utf8_stays_readable(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    with row_writer(tmp_path / "out.jsonl", 1) as write:
        write(list(prediction_rows([name], LOG_PROBS[:1], [None], CLASSES, 1)))
    assert read_back(tmp_path / "out.jsonl")[0]["path"] == r"caf\xe9.png"


def test_expand_keeps_the_order_given_and_sorts_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ["f/b.png", "f/Z.png", "f/a/x.png", "f/.hidden.png", "f/notes.txt", "g1.png", "g2.png", "é.png"]:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    paths = expand_inputs(["g2.png", "f", "g*.png", "g2.png", "nothere.png", "no*.png"])
    in_folder = [str(Path("f", name)) for name in ["Z.png", "a/x.png", "b.png"]]
    assert paths == ["g2.png", *in_folder, "g1.png", "g2.png", "g2.png", "nothere.png", "no*.png"]


def test_expand_takes_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    file = tmp_path / "a[1].png"
    file.touch()
    assert expand_inputs([str(file)]) == [str(file)]
    assert expand_inputs(["x" * 5000]) == ["x" * 5000], "a name that cannot be a path gets a row with an error"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no*.png", "no file matches this pattern"),
        (".", "no image in this folder"),
        ("gone.png", "cannot be read"),
    ],
)
def test_row_has_the_reason_for_a_missing_image(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = next(prediction_rows([name], LOG_PROBS[:1], [f"{name}: cannot be read"], CLASSES, 1))
    assert row["error"] == reason


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("out.txt", DataError, r"\.csv, \.jsonl, \.parquet"),
        ("nowhere/out.csv", RunError, "nowhere does not exist; create it"),
        ("folder.csv", RunError, "this is a folder"),
    ],
)
def test_bad_target_is_refused(name: str, error: type[FewsightError], message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(error, match=message):
        check_target(tmp_path / name)


def test_parquet_without_its_extra_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'fewsight\[parquet\]'"):
        check_target(tmp_path / "out.parquet")

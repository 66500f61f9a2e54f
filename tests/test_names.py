"""Files, classes, folders and runs whose names are not UTF-8: every command takes them and writes them."""

import csv
import io
import json
import os
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import TINY, Command
from fewsight import load, runs
from fewsight.apps.check import check, check_json, show_check, write_page
from fewsight.data.prepare import prepare
from fewsight.data.training_set import ListedImage
from fewsight.errors import DataError
from fewsight.inference.prediction_files import prediction_rows, row_writer
from fewsight.machine import files
from fewsight.recipes import Data
from fewsight.terminal import make_console
from services import running

BYTE = os.fsdecode(b"\xe9")  # a Latin-1 é
NAMES = {"nought": f"z{BYTE}ro", "one": "one", "two": f"d{BYTE}ux"}


@pytest.fixture
def named_data(digit_images: Path, tmp_path: Path) -> Path:
    """`digit_images` with such bytes in every kind of name."""
    data = tmp_path / f"donn{BYTE}es"
    try:
        data.mkdir()
    except OSError:
        pytest.skip("this file system refuses such names")
    for file in sorted(digit_images.rglob("*.png")):
        split, label, name = file.relative_to(digit_images).parts
        (data / split / NAMES[label]).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, data / split / NAMES[label] / f"{BYTE}{name}")
    return data


def test_names_that_are_not_utf8_go_through_every_command(
    named_data: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = f"r{BYTE}"
    answer = command("check", named_data, "--json", "check.json", "--html", "check.html")
    assert (answer.code, answer.err) == (0, "")
    options = [part for value in TINY for part in ("--set", value)]
    answer = command("train", named_data, "--out", run, "--recipe", "digits", *options)
    assert (answer.code, answer.err) == (0, "")
    assert "the run is in r\\xe9\n" in answer.out
    next_command = answer.out.splitlines()[-1].removeprefix("next: fewsight evaluate ")
    typed = subprocess.run(["bash", "-c", f"printf '%s\\n' {next_command}"], capture_output=True, check=True).stdout
    assert typed.splitlines() == [os.fsencode(run), os.fsencode(named_data)], "the command can be typed"
    read = runs.read_run(Path(run))
    assert read.classes == tuple(sorted(NAMES.values()))
    assert {image.path.split("/")[1] for image in runs.read_images(read)} == set(NAMES.values())

    answer = command("evaluate", run, named_data, "--json", "figures.json")
    assert (answer.code, answer.err) == (0, "")
    assert "scores in r\\xe9/scores/test\n" in answer.out
    assert {row["name"] for row in json.loads(Path("figures.json").read_text())["classes"]} == set(NAMES.values())
    image = named_data / "test" / NAMES["two"] / f"{BYTE}12.png"
    shown = str(image).replace(BYTE, "\\xe9")
    for out in ("rows.csv", "rows.jsonl"):
        assert command("predict", run, image, "--out", out).code == 0
    (row,) = csv.DictReader(Path("rows.csv").read_text(encoding="utf-8").splitlines())
    assert (row["path"], row["label"] in {name.replace(BYTE, "\\xe9") for name in NAMES.values()}) == (shown, True)
    assert json.loads(Path("rows.jsonl").read_text())["path"] == shown
    assert load(run).predict([image]).labels[0] in NAMES.values()

    assert command("report", run, "--out", "page.html").code == 0
    assert "d\\xe9ux" in Path("page.html").read_text(encoding="utf-8")
    assert command("runs", ".", "--json", "runs.json").code == 0
    assert json.loads(Path("runs.json").read_text())[0]["path"] == run
    shutil.copytree(run, f"b{BYTE}")
    assert command("ensemble", run, f"b{BYTE}", "--out", f"e{BYTE}").code == 0
    assert command("scores", "calibrate", run, "--split", "test").code in (0, 2)
    with running(Path(f"e{BYTE}")) as service:
        answered = service.predict([("files", ("2.png", image.read_bytes()))])
    assert answered.json()["results"][0]["label"].replace("\\xe9", BYTE) in NAMES.values()


NAME = st.binary(min_size=1, max_size=60).filter(lambda name: not set(name) & {0, ord("/")})


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(NAME, min_size=2, max_size=3, unique=True), file=NAME)
def test_any_name_is_read_back_as_it_was(
    labels: list[bytes], file: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In every encoding, with control characters, blanks and quotes; or it is refused or skipped, and said."""
    folder = tmp_path_factory.mktemp("names")
    for number, label in enumerate(labels):
        (folder / os.fsdecode(label)).mkdir(exist_ok=True)
        for index in range(2):
            pixels = np.full((4, 4, 3), 60 * number + index, np.uint8)
            name = os.fsdecode(b"%d" % index + file + b".png")
            Image.fromarray(pixels).save(folder / os.fsdecode(label) / name, "PNG")
    console = make_console(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))  # which refuses what it cannot write
    try:
        checked = check(folder)
        prepared = prepare(folder, Data())
    except DataError:
        return
    show_check(console, checked)
    files.write_json(folder / "check.json", check_json(checked))
    assert json.loads((folder / "check.json").read_bytes())["counts"] == checked.counts
    write_page(checked, folder / "check.html")
    lines = [files.json_text(asdict(image)) for image in prepared.listed]
    assert files.parse_json_lines([line.encode() for line in lines], ListedImage) == prepared.listed
    names, log_probs = [image.path for image in prepared.listed], np.zeros((len(lines), len(prepared.classes)))
    rows = list(prediction_rows(names, log_probs, [None] * len(names), prepared.classes, 2, None))
    for suffix in ("csv", "jsonl", "parquet"):
        with row_writer(folder / f"rows.{suffix}", 2) as write:
            write(rows)


def test_split_whose_name_no_recipe_can_hold_is_refused(named_data: Path, command: Command) -> None:
    (named_data / "train").rename(named_data / NAMES["two"])
    answer = command("train", named_data, "--out", named_data / "run", "--splits", f"train={NAMES['two']}")
    assert answer.code == 2
    assert answer.err.startswith("fewsight: --splits: a name is not UTF-8")

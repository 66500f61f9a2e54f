"""Untrusted files and names: read or refused in bounded time and memory, never run as code, shown harmlessly."""

import contextlib
import csv
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import fuzz
from conftest import Command
from fewsight.apps.vipriors.lists import read_lists
from fewsight.data import ImageError, decode_bytes, load_image, read_dataset, scan_image
from fewsight.data.decode import UNKNOWN, read_header
from fewsight.errors import DataError, FewsightError
from fewsight.inference import prediction_files
from fewsight.machine.files import json_text
from fewsight.terminal import printable

NAMES = [
    "=cmd|' /C calc'!A0",
    pytest.param("+1+1", marks=pytest.mark.slow),
    pytest.param("-2", marks=pytest.mark.slow),
    pytest.param("@SUM(A1)", marks=pytest.mark.slow),
    "two\nlines",
    pytest.param("carriage\rreturn", marks=pytest.mark.slow),
    "quote \" and ' and ,",
    "<script>alert(1)</script>",
    pytest.param("&amp;", marks=pytest.mark.slow),
    "\u202egnp.exe",
    "\x1b[31mred\x1b[0m",
    "x" * 250,
    "$(touch hacked)",
    "%s {0} [bold]",
]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, fuzz.Kind]:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSIGHT_CACHE", str(folder / "cache"))
        return fuzz.kinds(folder)


@pytest.mark.parametrize("name", ["names", "image", "manifest", "recipe", "list", "run", "store", "ensemble"])
def test_undamaged_files_are_taken(name: str, kinds: dict[str, fuzz.Kind]) -> None:
    kinds[name].read(kinds[name].folder)


@pytest.mark.parametrize("name", ["names", "image", "manifest", "recipe", "list", "run", "store", "ensemble"])
def test_damaged_files_are_taken_or_refused(name: str, kinds: dict[str, fuzz.Kind]) -> None:
    for _ in range(20):
        seed = random.randrange(2**32)
        outcome = fuzz.try_input(name, kinds[name], seed)
        assert outcome in ("taken", "refused"), f"seed {seed}, {name}: {outcome}"


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(value=plain, split=st.sampled_from(["train", "val", "test"]), protocol=st.integers(0, 5))
def test_any_pickled_value_is_a_list_of_names_or_refused(
    value: Any, split: str, protocol: int, kinds: dict[str, fuzz.Kind], tmp_path: Path
) -> None:
    for file in kinds["list"].folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / f"{split}.pickle").write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(DataError):
        read_lists(tmp_path)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('run as code')",))


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_that_calls_is_refused_and_does_not_run(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "train.pickle").write_bytes(pickle.dumps([Hostile()], protocol=protocol))
    with pytest.raises(DataError, match="nothing in it was run"):
        read_lists(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02]r\xff\xff\xff\x7f.", "its memo index 2,147,483,647 is too large"),  # LONG_BINPUT allocates it
        (b"}(U\x01aq\x00" + b"h\x00h\x00\x86q\x00" * 40 + b"K\x01u.", "it holds SETITEMS and tuples"),
    ],
    ids=["memo", "hash"],
)
def test_pickle_that_would_exhaust_the_machine_is_refused_at_once(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "train.pickle").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_lists(tmp_path)


def test_message_on_a_nested_entry_is_short(tmp_path: Path) -> None:
    doubled: tuple[Any, ...] = ("n01440764", "n01440764_3.JPEG")
    for _ in range(40):
        doubled = (doubled, doubled)
    (tmp_path / "train.pickle").write_bytes(pickle.dumps([doubled]))
    with pytest.raises(DataError, match=r"entry 0 is .{1,90}; expected"):
        read_lists(tmp_path)


@pytest.mark.parametrize(("section", "key", "code"), [("eval", "test_px", 2), ("run", "precision", 0)])
def test_unresolved_recipe_in_a_run_does_not_crash(
    section: str, key: str, code: int, tiny_run: Path, digit_images: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.toml"
    values = tomllib.loads(recipe.read_text())
    values[section][key] = "auto"
    recipe.write_text(tomli_w.dumps(values))
    answer = command("predict", tmp_path / "run", digit_images / "test")
    assert answer.code == code, answer.err
    assert ("the run's recipe.toml has eval.test_px" in answer.err) == (code == 2)


def test_parquet_manifest_with_damaged_text_is_refused(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    damaged = arrow.array([b"a/\xff\xfe.png", b"b/1.png"], arrow.binary()).view(arrow.string())
    parquet.write_table(arrow.table({"path": damaged, "label": ["a", "b"]}), tmp_path / "images.parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_dataset(tmp_path / "images.parquet")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(value=json_values, chosen=st.data())
def test_any_json_in_place_of_a_files_own_is_taken_or_refused(
    value: Any, chosen: st.DataObject, kinds: dict[str, fuzz.Kind], tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = chosen.draw(st.sampled_from(["run", "store", "ensemble"]))
    kind = kinds[name]
    target = chosen.draw(st.sampled_from([file for file in kind.targets if file.endswith((".json", ".jsonl"))]))
    folder = tmp_path_factory.mktemp("hostile") / name
    own = json.loads((kind.folder / target).read_text().splitlines()[0] if target.endswith("l")
                     else (kind.folder / target).read_text())  # fmt: skip
    if isinstance(own, dict) and chosen.draw(st.booleans()):
        value = {**own, chosen.draw(st.sampled_from(sorted(own))): value}  # one value is replaced
    fuzz.damage(kind, random.Random(0), folder)
    for file in kind.targets:  # restore all files; then replace one
        (folder / file).unlink()
        (folder / file).write_bytes((kind.folder / file).read_bytes())
    (folder / target).unlink()
    (folder / target).write_text(json.dumps(value) + "\n")
    with contextlib.suppress(FewsightError):
        kind.read(folder)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *between: bytes, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", data or zlib.compress(bytes(height * (3 * width + 1))))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + pixels + chunk(b"IEND", b"")


def gif(frames: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6)
    frame = b"!\xf9\x04\0\0\0\0\0" + b"," + struct.pack("<HHHHB", 0, 0, 4, 4, 0) + b"\x02\x02\x84\x51\x00"
    return screen + b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0" + frame * frames + b";"


TIFF = b"II*\0\x08\0\0\0"  # the header; its directory follows
HOSTILE_IMAGES: dict[str, Any] = {
    "a header of 100,000 x 100,000 pixels": lambda: png(100_000, 100_000, data=b"x"),
    "a bomb: 12,000 x 12,000 in 430 kB": lambda: png(12_000, 12_000),
    "a bomb: 4,000 x 4,000 in 50 kB": lambda: png(4_000, 4_000),
    "a million tiny chunks": lambda: png(8, 8, chunk(b"teSt", b"") * 1_000_000),
    "100,000 tiny chunks": lambda: png(8, 8, chunk(b"teSt", b"") * 100_000),
    "a million text chunks": lambda: png(8, 8, chunk(b"tEXt", b"a\0b") * 1_000_000),
    "100,000 text chunks": lambda: png(8, 8, chunk(b"tEXt", b"a\0b") * 100_000),
    "a text that unpacks to 256 MiB": lambda: png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28)))),
    "a GIF of 200,000 frames": lambda: gif(200_000),
    "a GIF that never ends": lambda: gif(50_000)[:-1],
    "an SVG": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "a script": lambda: b"#!/bin/sh\ntouch hacked\n",
    "EPS, which others give to Ghostscript": lambda: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    ),
    "EXIF that points at itself": lambda: _looped_exif(),
    "a TIFF whose directory is its own next": lambda: TIFF + struct.pack("<HI", 0, 8),
    "a TIFF of 65,535 entries": lambda: TIFF + struct.pack("<H", 65_535) + struct.pack("<HHII", 256, 4, 1, 9) * 65_535,
}  # fmt: skip


def _looped_exif() -> bytes:
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 2)
    tiff += struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<HHII", 0x0112, 3, 2**31, 8) + struct.pack("<I", 8)
    written = io.BytesIO()
    Image.new("RGB", (8, 8)).save(written, "JPEG", exif=b"Exif\0\0" + tiff)
    return written.getvalue()


SLOW_IMAGES = ("a bomb: 12,000 x 12,000 in 430 kB", "a million tiny chunks", "a million text chunks")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_IMAGES)) for name in HOSTILE_IMAGES]
)
def test_hostile_image_costs_bounded_time_and_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(HOSTILE_IMAGES[name]())
    code = (
        "import resource, sys, time; from pathlib import Path; from fewsight.data import scan_image\n"
        "before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()\n"
        "found = scan_image(Path(sys.argv[1]), 'image.jpg')\n"
        "print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, found.error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "image.jpg")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    seconds, kilobytes, _ = ran.stdout.split(maxsplit=2)
    assert float(seconds) < 30
    assert int(kilobytes) < 3 * 2**20, "3 GiB, which the largest accepted image needs"
    assert not (tmp_path / "hacked").exists()


def test_malformed_exif_keeps_the_pixels(tmp_path: Path) -> None:
    assert decode_bytes(_looped_exif(), "x.jpg").size == (8, 8)
    (tmp_path / "x.jpg").write_bytes(_looped_exif())
    assert scan_image(tmp_path / "x.jpg", "x.jpg").error is None


@pytest.mark.parametrize("name", NAMES)
def test_hostile_class_and_file_names_survive_a_whole_session(
    name: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = name.replace("/", "∕")
    for number, label in enumerate([folder, "other"]):
        (tmp_path / "data" / label).mkdir(parents=True)
        for count in range(4):
            pixels = np.full((9, 9, 3), 100 * number + count, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{count}.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / f"{folder}.png")
    sets = [part for setting in fuzz.TINY for part in ("--set", setting)]
    trained = command("train", "data", "--out", "run", "--recipe", "digits", *sets)
    assert trained.code == 0, trained
    checked = command("check", "data", "--json", "check.json", "--html", "check.html")
    evaluated = command("evaluate", "run", "data", "--split", "val", "--json", "figures.json")
    assert evaluated.code == 0, evaluated
    given_path = tmp_path / f"{folder}.png" if folder.startswith("-") else f"{folder}.png"
    for suffix in ("csv", "jsonl", "parquet"):
        said = command("predict", "run", given_path, "--out", f"rows.{suffix}")
        assert said.code == 0, said
        for text in (trained.out, checked.out, evaluated.out, said.out, said.err):
            assert "\x1b" not in text
            assert "\u202e" not in text
    with Path("rows.csv").open(newline="", encoding="utf-8") as handle:
        (from_csv,) = list(csv.DictReader(handle))
    (from_json,) = [json.loads(line) for line in Path("rows.jsonl").read_text(encoding="utf-8").splitlines()]
    from pyarrow import parquet

    (from_parquet,) = parquet.read_table("rows.parquet").to_pylist()
    for row in (from_csv, from_json, from_parquet):
        assert {row["label"], row["label2"]} == {folder, "other"}
        assert Path(row["path"]) == Path(given_path)
    assert not from_csv["path"].startswith(prediction_files.FORMULA)
    assert json.loads(Path("run/classes.json").read_text()) == sorted([folder, "other"])
    assert {image["label"] for image in map(json.loads, Path("run/images.jsonl").read_text().splitlines())} == {
        folder,
        "other",
    }
    page = Path("check.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert not Path("hacked").exists()


@given(st.text())
def test_any_name_is_one_harmless_line_in_a_terminal(name: str) -> None:
    shown = printable(name)
    assert "\n" not in shown
    assert "\r" not in shown
    assert "\x1b" not in shown
    assert shown.isprintable()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_names_come_back_from_json_and_csv(names: list[str]) -> None:
    assert json.loads(json_text(names)) == names
    handle = io.StringIO(newline="")
    write = prediction_files._csv_writer(handle, prediction_files.column_names(1))
    write([{"path": name, "label": name, "prob": 1.0, "error": None} for name in names])
    handle.seek(0)
    found = list(csv.DictReader(handle))
    assert [row["label"] for row in found] == names
    assert [row["path"].removeprefix("./") for row in found] == [name.removeprefix("./") for name in names]


@given(st.binary(max_size=200))
def test_any_bytes_are_an_image_or_an_image_error(data: bytes) -> None:
    try:
        mode = decode_bytes(data, "x").mode
    except ImageError:
        mode = "refused"
    assert mode in ("RGB", "refused")


def test_postscript_under_an_images_name_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads EPS by calling Ghostscript."""
    called = tmp_path / "called"
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\necho called >> {called}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}{os.pathsep}{os.environ['PATH']}")
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ImageError, match=r"not an image of a supported format \(JPEG, PNG"):
        decode_bytes(data, "x.jpg")
    assert read_header(data) == UNKNOWN
    assert not called.exists()


def test_unsupported_formats_are_refused(tmp_path: Path) -> None:
    for kind in ("PPM", "TGA", "PCX", "ICO", "SGI", "EPS"):
        handle = io.BytesIO()
        Image.new("RGB", (16, 16)).save(handle, kind)
        with pytest.raises(ImageError, match="not an image of a supported format"):
            decode_bytes(handle.getvalue(), "x.png")


def test_path_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(Path("a\0b.png"))

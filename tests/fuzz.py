"""A fuzzer: damaged and hostile files for every reader, and names in every encoding.

An input is a function of its seed: a valid file of some kind, damaged at random, or images whose files and classes are
renamed. A reader may take it or refuse it with
a `FewsightError`; anything else is a crash. `python tests/fuzz.py --minutes 30` runs for that time and prints a
Markdown table; `--seed N` runs one input and shows its traceback.
"""

import argparse
import contextlib
import csv
import faulthandler
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewsight.apps.check import check, check_json, show_check, write_page
from fewsight.apps.vipriors.lists import read_lists
from fewsight.data import decode_bytes, read_dataset, scan_image
from fewsight.data.prepare import prepare
from fewsight.errors import DataError, FewsightError
from fewsight.inference.ensemble import combine
from fewsight.inference.member_text import parse_member
from fewsight.inference.opening import open_runs
from fewsight.inference.predict import predict_files
from fewsight.inference.score_run import run_scores
from fewsight.machine.files import write_json
from fewsight.recipes import Data, load_recipe, shipped_recipes
from fewsight.runs import create_run, read_images, read_run, read_state, read_weights
from fewsight.scores.calibration import calibration_for
from fewsight.scores.fusion import fused_log_probs
from fewsight.scores.opening import open_scored
from fewsight.scores.queries import ablate, lines_by_size
from fewsight.terminal import make_console
from fewsight.training.resolve import check_parts
from fewsight.training.session import train
from stores import CLASSES, random_labels, random_scores, write_store

HANG_SECONDS = 60  # of one input
EXTREMES = [0, 1, -1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
NUMBERS = ["0", "-1", "1e309", "NaN", "9" * 30, "0.5", "4294967296", "1" + "0" * 5000]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    1e308,
    "",
    "x",
    "../../etc/passwd",
    "=1+1",
    "\0",
    [],
    [[]],
    {},
    {"a": 1},
]
ENCODINGS = ["utf-8", "latin-1", "cp1252", "shift_jis", "euc_kr", "gb18030", "koi8-r", "utf-16-le", "utf-7"]
LETTERS = "éßÑø漢字カナ한글Жщ\u05d0\u0639\u202e\u200b\ufeff\U0001f98b \t\n\r\x07\x1b[31m'\"\\$`*?;&|<>(){}=,-.%#~ab1"
TINY = [
    "model.width=0.125",
    "run.device=cpu",
    "stages.0.epochs=1",
    "run.precision=float32",
    "run.threads=1",
    "run.workers=0",
]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four faults."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        offset, length = rng.randrange(len(changed) + 1), rng.choice([1, 2, 4, 16, 256, 4096])
        kind = rng.randrange(8)
        if kind == 0 and changed:
            changed[offset % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[offset : offset + length] = b""
        elif kind == 2:
            changed[offset:offset] = rng.randbytes(length)
        elif kind == 3:
            del changed[offset:]
        elif kind == 4:
            changed[offset:offset] = changed[offset : offset + length] * rng.choice([1, 2, 100])
        elif kind == 5:
            size, order = rng.choice([1, 2, 4, 8]), rng.choice(["big", "little"])
            value = rng.choice(EXTREMES) % 2 ** (8 * size)
            changed[offset : offset + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
        elif kind == 6 and (numbers := list(re.finditer(rb"-?\d+(\.\d+)?", bytes(changed[:100_000])))):
            start, stop = rng.choice(numbers).span()
            changed[start:stop] = rng.choice(NUMBERS).encode()
        else:
            other = rng.randrange(len(changed) + 1)
            changed[offset : offset + length] = changed[other : other + length]
    return bytes(changed)


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON text, or one of its lines, in which one value is replaced or removed."""
    lines = data.splitlines() if data.count(b"}\n{") else [data]
    number = rng.randrange(len(lines))
    value = json.loads(lines[number])
    parent, key = None, None
    node = value
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.8):
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
    if parent is None:
        value = rng.choice(VALUES)
    elif rng.random() < 0.2:
        del parent[key]
    else:
        parent[key] = rng.choice([*VALUES, node * 2 if isinstance(node, (int, str, list)) else None])
    lines[number] = json.dumps(value).encode()
    return b"\n".join(lines) + b"\n"


@dataclass(frozen=True)
class Kind:
    """A kind of input: a folder with valid files, the files to damage, and the reader."""

    folder: Path
    targets: tuple[str, ...]
    read: Callable[[Path], object]


def kinds(folder: Path) -> dict[str, Kind]:
    """Create valid inputs of every kind in `folder`."""
    images = pictures()
    (folder / "images").mkdir()
    for name, data in images.items():
        (folder / "images" / name).write_bytes(data)
    labelled, rng = folder / "labelled", random.Random(0)
    for split in ("train", "val", "test"):
        for label in CLASSES:
            (labelled / split / label).mkdir(parents=True)
            for count in range(3):
                picture(rng.randrange(2**32), 12).save(labelled / split / label / f"{count}.png")
    (folder / "manifest").mkdir()
    shutil.copytree(labelled, folder / "manifest" / "labelled")
    write_manifests(folder / "manifest")
    (folder / "recipes").mkdir()
    for name, path in shipped_recipes().items():
        shutil.copy(path, folder / "recipes" / f"{name}.toml")
    (folder / "lists").mkdir()
    write_lists(folder / "lists")
    run = folder / "run" / "run"
    train(labelled, run, recipe="digits", overrides=TINY, console=make_console(io.StringIO()))
    picture(5, 12).save(folder / "run" / "image.png")
    truth = random_labels(0, 12)
    for name in ("a", "b"):
        scores = {view: random_scores(len(name + view), truth) for view in ("center-8", "random-8")}
        write_store(folder / "scores" / name / "scores" / "test", scores, truth, unreadable=[3])
    made = folder / "ensemble" / "ensemble"
    other = folder / "other"
    train(labelled, other, recipe="digits", overrides=[*TINY, "run.seed=1"], console=make_console(io.StringIO()))
    combine([parse_member(str(path)) for path in (run, other)], made)
    run_files = ("recipe.toml", "classes.json", "data.json", "images.jsonl", "run.json", "weights.safetensors")
    (folder / "names").mkdir()
    shutil.copytree(labelled, folder / "names" / "labelled")
    shutil.copytree(run, folder / "names" / "run")
    return {
        "names": Kind(folder / "names", (), read_names),
        "image": Kind(folder / "images", tuple(images), read_image),
        "manifest": Kind(folder / "manifest", ("list.csv", "list.tsv.csv", "list.parquet"), read_manifests),
        "recipe": Kind(folder / "recipes", tuple(f"{name}.toml" for name in shipped_recipes()), read_recipe),
        "list": Kind(folder / "lists", ("train.pickle", "val.pickle", "test.pickle"), read_lists),
        "run": Kind(folder / "run", tuple(f"run/{name}" for name in run_files), read_run_folder),
        "store": Kind(
            folder / "scores",
            tuple(f"a/scores/test/{name}" for name in ("store.json", "images.jsonl", "center-8.f32")),
            read_scores,
        ),
        "ensemble": Kind(
            folder / "ensemble",
            tuple(f"ensemble/{name}" for name in ("ensemble.json", "run.json", "classes.json", "runs/run/run.json")),
            read_ensemble,
        ),
    }


def picture(seed: int, px: int) -> Image.Image:
    """A small random image."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (px, px, 3), np.uint8))


def pictures() -> dict[str, bytes]:
    """Valid images of every format that Pillow can write, by file name."""
    plain, exif = picture(0, 40), Image.Exif()
    exif[274] = 6
    frames = [picture(number, 40) for number in range(3)]
    pictures_to_write: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.jpg": (plain, {}),
        "progressive.jpg": (plain, {"progressive": True, "exif": exif}),
        "cmyk.jpg": (plain.convert("CMYK"), {}),
        "plain.png": (plain, {"exif": exif}),
        "palette.png": (plain.convert("P"), {"transparency": 3}),
        "grey16.png": (Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)), {}),
        "frames.gif": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "plain.tif": (plain, {"compression": "tiff_deflate"}),
        "lzw.tiff": (plain.convert("L"), {"compression": "tiff_lzw"}),
        "plain.webp": (plain, {"exif": exif}),
        "frames.webp": (frames[0], {"save_all": True, "append_images": frames[1:], "lossless": True}),
        "plain.bmp": (plain, {}),
        "plain.avif": (plain, {}),
    }
    contents = {}
    for name, (image, options) in pictures_to_write.items():
        written = io.BytesIO()
        image.save(written, {"jpg": "JPEG", "tif": "TIFF"}.get(name.split(".")[1], name.split(".")[1]), **options)
        contents[name] = written.getvalue()
    return contents


def write_manifests(folder: Path) -> None:
    """The same table as CSV, as CSV with a byte-order mark and quotes, and as Parquet."""
    from pyarrow import Table, parquet

    rows = [
        {"path": f"labelled/{split}/{label}/{count}.png", "label": label, "split": split}
        for split in ("train", "val", "test")
        for label in CLASSES
        for count in range(3)
    ]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    quoted = "\r\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in lines)
    (folder / "list.tsv.csv").write_text("\ufeff" + quoted, encoding="utf-8")
    parquet.write_table(Table.from_pylist(rows), folder / "list.parquet")


def write_lists(folder: Path) -> None:
    """Lists in the format of the challenge's toolkit."""
    names = [f"n{number:08d}" for number in range(4)]
    for split, first in (("train", 0), ("val", 50)):
        listed = [(name, f"{name}_{first + count}.JPEG") for name in names for count in range(3)]
        (folder / f"{split}.pickle").write_bytes(pickle.dumps(listed, protocol=2 + first // 25))
    listed_test = [f"{name}/ILSVRC2012_val_{count:08d}.JPEG" for count, name in enumerate(names)]
    (folder / "test.pickle").write_bytes(pickle.dumps(listed_test, protocol=0))


def read_image(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        scan_image(file, file.name)
        with contextlib.suppress(DataError):
            decode_bytes(file.read_bytes(), file.name)


def read_manifests(folder: Path) -> None:
    for file in sorted(folder.glob("list.*")):
        read_dataset(file)


def read_names(folder: Path) -> None:
    """What is written of names is read back as it was: lists, classes, findings, rows of a table."""
    labelled = folder / "labelled"
    prepared = prepare(labelled, Data())
    listed = create_run(folder / "new", load_recipe("digits", TINY), prepared.classes, prepared.facts, prepared.listed)
    assert list(read_images(listed)) == prepared.listed
    assert read_run(listed.path).classes == prepared.classes
    checked = check(labelled)
    write_json(folder / "check.json", check_json(checked))
    assert json.loads((folder / "check.json").read_bytes())["ok"] == checked.ok
    write_page(checked, folder / "check.html")
    show_check(make_console(io.StringIO()), checked)
    rows = folder / "rows.csv"
    predict_files(folder / "run", [str(labelled / "test")], rows, top_k=1, console=make_console(io.StringIO()))
    with rows.open(encoding="utf-8", newline="") as handle:
        assert len(list(csv.DictReader(handle))) == sum(file.is_file() for file in (labelled / "test").rglob("*"))


def name_in_any_encoding(rng: random.Random) -> bytes:
    """A file name: text in some encoding, or any bytes."""
    if rng.random() < 0.2:
        name = rng.randbytes(rng.choice([1, 3, 40, 200]))
    else:
        text = "".join(rng.choices(LETTERS, k=rng.choice([1, 2, 5, 30])))
        name = text.encode(rng.choice(ENCODINGS), "replace")
    return name.replace(b"/", b"_").replace(b"\0", b"_")[:200].strip(b".") or b"_"


def rename(kind: Kind, rng: random.Random, folder: Path) -> None:
    """Copy a kind's folder to `folder`, with some of its classes and images renamed."""
    shutil.copytree(kind.folder, folder, copy_function=os.link)
    for label in CLASSES:
        renamed = os.fsdecode(name_in_any_encoding(rng)) if rng.random() < 0.5 else label
        for parent in (folder / "labelled" / split for split in ("train", "val", "test")):
            for image in sorted((parent / label).iterdir()):
                if rng.random() < 0.5:
                    image.rename(image.parent / os.fsdecode(name_in_any_encoding(rng) + b".png"))
            if not (parent / renamed).exists():
                (parent / label).rename(parent / renamed)


def read_recipe(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        check_parts(load_recipe(file))


def read_run_folder(folder: Path) -> None:
    opened = open_runs(folder / "run", None)
    read_state(folder / "run")
    calibration_for(folder / "run", opened.view_names)
    for result in run_scores(opened.first_run, [folder / "image.png"], opened.views["run"]):
        assert result.log_probs.shape == (1, len(opened.classes))
        assert np.isfinite(result.log_probs).all() == (result.errors[0] is None), "probabilities, or an error"


def read_scores(folder: Path) -> None:
    scored = open_scored(folder / "a", "test")
    lines_by_size(scored)
    ablate(scored)
    assert np.isfinite(fused_log_probs(scored.weights)[scored.first_store.readable]).all()


def read_ensemble(folder: Path) -> None:
    opened = open_runs(folder / "ensemble", None)
    calibration_for(folder / "ensemble", opened.view_names)
    for run in opened.runs.values():
        read_weights(run)


def damage(kind: Kind, rng: random.Random, folder: Path) -> Path:
    """Copy a kind's folder to `folder` with one file damaged; for independent files only that one is copied."""
    if kind.read is read_names:
        rename(kind, rng, folder)
        return folder
    target = rng.choice(kind.targets)
    alone = kind.read in (read_image, read_recipe)
    if alone:
        folder.mkdir()
    else:
        shutil.copytree(kind.folder, folder, copy_function=os.link)
    data = (kind.folder / target).read_bytes()
    structured = target.endswith((".json", ".jsonl")) and rng.random() < 0.7
    data = damaged_json(data, rng) if structured else damaged(data, rng)
    (folder / target).unlink(missing_ok=True)
    (folder / target).write_bytes(data)
    if target.endswith(".safetensors") and rng.random() < 0.8:  # an attacker who also fixes the digest
        info = json.loads((folder / "run" / "run.json").read_text())
        info["weights_digest"] = hashlib.blake2b(data, digest_size=16).hexdigest()
        (folder / "run" / "run.json").unlink()
        (folder / "run" / "run.json").write_text(json.dumps(info))
    return folder / target


def try_input(name: str, kind: Kind, seed: int) -> str:
    """The outcome of one input: taken, refused, or the traceback of a crash."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        damage(kind, rng, Path(folder) / name)
        try:
            kind.read(Path(folder) / name)
        except FewsightError as error:
            return "refused" if str(error).strip() else "crash: an error without a message"
        except BaseException:
            return f"crash: {traceback.format_exc()}"
    return "taken"


def of_seed(kind_by_name: dict[str, Kind], seed: int) -> str:
    """The kind of input of a seed."""
    return list(kind_by_name)[seed % len(kind_by_name)]


def work(folder: str, first: int, pipe: Connection) -> None:
    """Try seeds from `first` on and report each; a hang ends the process with its traceback."""
    os.environ["FEWSIGHT_CACHE"] = f"{folder}/cache"
    kind_by_name = kinds(Path(folder))
    peak_megabytes()
    for seed in iter_from(first):
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        began, name = time.monotonic(), of_seed(kind_by_name, seed)
        outcome = try_input(name, kind_by_name[name], seed)
        faulthandler.cancel_dump_traceback_later()
        pipe.send((seed, name, time.monotonic() - began, outcome, peak_megabytes()))


def peak_megabytes() -> float:
    """The peak memory of this process since the last call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def iter_from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


def run(minutes: float, first: int) -> int:
    """Try inputs for a time in a separate process; returns how many crashed or hung."""
    context = multiprocessing.get_context("spawn")
    tried: dict[str, dict[str, float]] = {}
    until, seed, bad = time.monotonic() + 60 * minutes, first, list[int]()
    while time.monotonic() < until:
        ours, theirs = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as folder:
            process = context.Process(target=work, args=(folder, seed, theirs))
            process.start()
            theirs.close()
            try:
                while time.monotonic() < until:
                    seed, name, seconds, outcome, memory = ours.recv()
                    count = tried.setdefault(name, {"inputs": 0, "taken": 0, "refused": 0, "worst s": 0, "MB": 0})
                    count["inputs"] += 1
                    count["worst s"] = max(count["worst s"], seconds)
                    count["MB"] = max(count["MB"], memory)
                    if outcome in count:
                        count[outcome] += 1
                    else:
                        bad.append(seed)
                        print(f"seed {seed}, {name}: {outcome}", flush=True)
                    seed += 1
            except EOFError:
                process.join()
                bad.append(seed)
                print(f"seed {seed}: the process ended with {process.exitcode} (a hang or a crash)", flush=True)
                seed += 1
            process.kill()
            process.join()
    print("| reader | inputs | taken | refused | worst s | peak MB |\n|---|---|---|---|---|---|")
    for name, count in tried.items():
        print(f"| {name} | {count['inputs']:,.0f} | {count['taken']:,.0f} | {count['refused']:,.0f} | "
              f"{count['worst s']:.2f} | {count['MB']:,.0f} |")  # fmt: skip
    print(f"{sum(count['inputs'] for count in tried.values()):,.0f} inputs, seeds {first} to {seed - 1}; "
          f"crashes and hangs: {len(bad)} {bad[:20]}")  # fmt: skip
    return len(bad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="try this one only")
    arguments = parser.parse_args()
    if arguments.seed is None:
        sys.exit(run(arguments.minutes, arguments.first) > 0)
    with tempfile.TemporaryDirectory() as folder:
        kind_by_name = kinds(Path(folder))
        name = of_seed(kind_by_name, arguments.seed)
        print(name, try_input(name, kind_by_name[name], arguments.seed))


if __name__ == "__main__":
    main()

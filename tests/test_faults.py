"""Faults: random kills, a full or read-only disk at every write, lost workers, concurrent runs, missing data.

Each ends with one clear line, and the same command, or --resume, then gives the same bits.
"""

import contextlib
import errno
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import Answer, Command
from fewsight import runs
from fewsight.recipes import parse_recipe, recipe_toml
from fewsight.training.loop import fit
from trainings import SETTINGS, STAGE, VALUES, Quiet, assert_finished_alike, begin, finished, log_lines
from trainings import command as start_command

TRAINING_KILLS, SCORING_KILLS = 130, 80


def wait_for(text: Path, process: BaseProcess, code: int = 0) -> float:
    """Wait for a process, which must end with this exit code; returns the seconds that it took."""
    started = time.monotonic()
    finished(text, process, code)
    return time.monotonic() - started


def files_below(folder: Path) -> dict[str, bytes]:
    """The contents of every file except locks."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def figures() -> Iterator[Counter[str]]:
    """Counts of what was tried, printed at the end (`pytest -s`)."""
    counted: Counter[str] = Counter()
    yield counted
    print("\n" + "; ".join(f"{name}: {number}" for name, number in counted.items()))


@pytest.fixture
def many_images(tmp_path: Path) -> Path:
    """200 images of 12 px in two classes, one of them broken, without splits."""
    rng = np.random.default_rng(1)
    for label in ("nought", "one"):
        (tmp_path / "many" / label).mkdir(parents=True)
        for number in range(100):
            pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "many" / label / f"{number:03d}.png")
    (tmp_path / "many" / "nought" / "050.png").write_bytes(b"broken")
    return tmp_path / "many"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_random_kills_in_training(class_images: Path, tmp_path: Path, figures: Counter[str]) -> None:
    """Runs of every setting, each killed once to three times at random moments of the whole command."""
    text, before = tmp_path / "said", files_below(class_images)
    longer, seconds = {}, {}
    for name, values in SETTINGS.items():
        stages = [{**stage, "epochs": 5 * stage["epochs"]} for stage in values.get("stages", [STAGE])]
        longer[name] = {**values, "stages": stages}
        run, _ = begin(class_images, tmp_path / name, longer[name], "run.state_minutes=0.0005")
        seconds[name] = wait_for(text, start_command(text, "train", "--resume", run.path))
    kills = half_written = 0
    for number in itertools.count():
        if kills >= TRAINING_KILLS:
            break
        name = list(longer)[number % len(longer)]
        run, _ = begin(class_images, tmp_path / f"killed {number}", longer[name], "run.state_minutes=0.0005")
        for _ in range(random.randint(1, 3)):
            process = start_command(text, "train", "--resume", run.path)
            time.sleep(random.uniform(0, seconds[name]))
            process.kill()
            process.join()
            kills += process.exitcode != 0
            half_written += len(list(run.path.rglob("*.part")))
        wait_for(text, start_command(text, "train", "--resume", run.path))
        assert_finished_alike(run.path, tmp_path / name)
        figures["runs recovered after kills, bits equal"] += 1
        shutil.rmtree(run.path)
    assert files_below(class_images) == before, "no image was touched"
    figures["kills in training"] += kills
    figures["files that a kill left half-written, all removed"] += half_written


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_random_kills_in_scoring(
    command: str, tiny_run: Path, many_images: Path, tmp_path: Path, figures: Counter[str]
) -> None:
    text, before = tmp_path / "said", {**files_below(tiny_run), **files_below(many_images)}
    views = ["--views", "report", "--scores"]

    def arguments(place: Path) -> list[object]:
        place.mkdir(exist_ok=True)
        written = ["--out", place / "rows.csv"] if command == "predict" else ["--json", place / "figures.json"]
        return [command, tiny_run, many_images, *views, place / "scores", *written]

    seconds = wait_for(text, start_command(text, *arguments(tmp_path / "whole")), 1)
    expected = files_below(tmp_path / "whole")
    assert len(expected) >= 4, "the rows or figures, the store and its views"
    kills = 0
    for number in itertools.count():
        if kills >= SCORING_KILLS // 2:
            break
        out = tmp_path / f"killed {number}"
        for _ in range(random.randint(1, 3)):
            process = start_command(text, *arguments(out))
            time.sleep(random.uniform(0, seconds))
            process.kill()
            process.join()
            kills += process.exitcode != 1
        wait_for(text, start_command(text, *arguments(out)), 1)
        assert files_below(out) == expected
        figures["scorings recovered after kills, bits equal"] += 1
        shutil.rmtree(out)
    assert {**files_below(tiny_run), **files_below(many_images)} == before, "no weight and no image was touched"
    figures[f"kills in {command}"] += kills


class FullDisk:
    """A disk that is full for all writes in a folder from number `first` on; it counts the writes."""

    def __init__(self, folder: Path, first: int | None) -> None:
        self.folder, self.first, self.count = os.fspath(folder), first, 0

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.truncate", "os.mkdir", "os.link", "os.symlink")
        if event == "open":
            changes = isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        out = arguments[1] if event in ("os.link", "os.symlink") else arguments[0] if changes else None
        if not changes or not isinstance(out, (str, os.PathLike)) or not os.fspath(out).startswith(self.folder):
            return
        self.count += 1
        if self.first is not None and self.count > self.first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(out))


disk: FullDisk | None = None


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if disk is not None:
        disk.audit(event, arguments)


sys.addaudithook(audit)  # it cannot be removed


@contextlib.contextmanager
def writes_below(folder: Path, first: int | None = None) -> Iterator[FullDisk]:
    """Count the writes in a folder, and make those from number `first` on fail."""
    global disk
    disk = FullDisk(folder, first)
    try:
        yield disk
    finally:
        disk = None


Arguments = list[object]
Commands = dict[str, Callable[[Path], Arguments]]  # name -> arguments of a command that writes to a folder


@pytest.fixture
def writers(tiny_run: Path, digit_images: Path, many_images: Path, tmp_path: Path) -> Commands:
    """Commands that write to a folder, by name."""
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    (tmp_path / "lists").mkdir()
    tree = tmp_path / "imagenet"
    challenge(tree, tmp_path / "lists")
    views = ["--views", "report", "--scores"]
    lists = ["--imagenet", tree, "--lists", tmp_path / "lists"]
    return {
        "evaluate": lambda out: ["evaluate", tiny_run, digit_images, *views, out / "s", "--json", out / "e"],
        "predict": lambda out: ["predict", tiny_run, many_images, *views, out / "s", "--out", out / "p.csv"],
        "predict to parquet": lambda out: ["predict", tiny_run, many_images, "--out", out / "p.parquet"],
        "features": lambda out: ["predict", tiny_run, many_images, "--features", "--out", out / "p.jsonl"],
        "ensemble": lambda out: ["ensemble", tiny_run, other, "--out", out / "e"],
        "check": lambda out: ["check", many_images, "--json", out / "c.json", "--html", out / "c.html"],
        "vipriors build": lambda out: ["vipriors", "build", *lists, "--out", out, "--link", "copy"],
    }


def challenge(tree: Path, lists: Path) -> None:
    """A small ImageNet tree and the lists of its images."""
    import pickle

    chosen: dict[str, list[object]] = {"train": [], "val": [], "test": []}
    for split, names in chosen.items():
        folder = tree / ("val" if split == "test" else "train") / "n00000001"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{split}_1.JPEG"
        Image.new("RGB", (8, 8), (split == "val" and "red") or "blue").save(folder / name)
        names.append(f"n00000001/{name}" if split == "test" else ("n00000001", name))
        (lists / f"{split}.pickle").write_bytes(pickle.dumps(names))


def without_times(found: dict[str, bytes]) -> dict[str, bytes]:
    """Files without the times and command lines, which differ between two runs of a command."""
    return {name: re.sub(rb'"(started|command|finished)": "[^"]*"', b"", data) for name, data in found.items()}


WRITERS = ["evaluate", "predict", "predict to parquet", "features", "ensemble", "check", "vipriors build"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "features")) for name in WRITERS]
)
def test_full_disk_at_every_write(
    name: str, writers: Commands, tmp_path: Path, command: Command, figures: Counter[str]
) -> None:
    (tmp_path / "out").mkdir()
    with writes_below(tmp_path / "out") as counted:
        whole = command(*writers[name](tmp_path / "out"))
    assert whole.code in (0, 1), whole
    expected = without_times(files_below(tmp_path / "out"))
    assert counted.count >= 2
    for first in range(counted.count):
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").mkdir()
        with writes_below(tmp_path / "out", first):
            answer = command(*writers[name](tmp_path / "out"))
        assert_says_full(answer)
        assert not list((tmp_path / "out").rglob("*.part"))
        again = command(*writers[name](tmp_path / "out"))
        assert again.code == whole.code, (first, again)
        assert without_times(files_below(tmp_path / "out")) == expected, first
        figures["full disk: writes tried, recovered"] += 1


def assert_says_full(answer: Answer) -> None:
    assert answer.code == 2, answer
    assert "No space left on device" in answer.err
    assert answer.err.startswith("fewsight: cannot ")
    assert answer.err.count("\n") == 1, answer.err


@pytest.fixture
def small_recipe(tmp_path: Path) -> Path:
    """A recipe that trains quickly, keeps the best weights and saves a state after each epoch."""
    (tmp_path / "recipe.toml").write_text(recipe_toml(parse_recipe(VALUES, ["run.state_minutes=1000.0"])))
    return tmp_path / "recipe.toml"


def trained(run: Path, images: Path, recipe: Path, command: Command) -> Answer:
    """Train, or resume the run if it exists."""
    arguments = ["--resume", run] if (run / "run.json").is_file() else [images, "--out", run, "--recipe", recipe]
    return command("train", *arguments)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_disk_at_every_write_of_a_training(
    class_images: Path, small_recipe: Path, tmp_path: Path, command: Command, figures: Counter[str]
) -> None:
    with writes_below(tmp_path / "whole") as counted:
        assert trained(tmp_path / "whole", class_images, small_recipe, command).code == 0
    assert counted.count > 30
    for first in range(counted.count):
        run = tmp_path / f"full {first}"
        with writes_below(run, first):
            assert_says_full(trained(run, class_images, small_recipe, command))
        if not (run / "run.json").is_file():
            assert not run.exists(), "an incomplete run folder is removed"
        assert trained(run, class_images, small_recipe, command).code == 0
        assert_finished_alike(run, tmp_path / "whole")
        shutil.rmtree(run)
        figures["full disk in training: writes tried, recovered"] += 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system in memory, as a function that sets its mount options, such as size=64k or ro."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a file system needs root")

    def options(wanted: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,{wanted}", place], check=True)
        return place

    yield options
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_disk_that_is_really_full(
    class_images: Path,
    small_recipe: Path,
    tmp_path: Path,
    command: Command,
    small_disk: Callable[[str], Path],
    figures: Counter[str],
) -> None:
    assert trained(tmp_path / "whole", class_images, small_recipe, command).code == 0
    size = 4096
    while True:
        run = small_disk(f"size={size}") / "run"
        answer = trained(run, class_images, small_recipe, command)
        if answer.code == 0:
            break
        assert answer.code == 2, answer
        assert "No space left on device" in answer.err
        small_disk("size=64m")
        assert trained(run, class_images, small_recipe, command).code == 0
        assert_finished_alike(run, tmp_path / "whole")
        shutil.rmtree(run)
        size = int(size * 1.3) // 4096 * 4096 + 4096
        figures["small file systems filled by a training, recovered"] += 1
    assert figures["small file systems filled by a training, recovered"] > 5


@pytest.mark.slow
def test_read_only_disk(
    tiny_run: Path, digit_images: Path, tmp_path: Path, command: Command, small_disk: Callable[[str], Path]
) -> None:
    mount_point = small_disk("size=64m")
    shutil.copytree(tiny_run, mount_point / "run")
    small_disk("ro")
    answer = command("evaluate", mount_point / "run", digit_images)
    assert answer.code == 0, "a run on a read-only disk can be tested"
    assert "scores not kept: cannot write" in answer.out
    assert "Read-only file system" in answer.out
    for arguments in (
        ["predict", mount_point / "run", digit_images, "--out", mount_point / "p.csv"],
        ["train", digit_images, "--out", mount_point / "new", "--recipe", "digits"],
        ["ensemble", mount_point / "run", tiny_run, "--out", mount_point / "e"],
        ["scores", "calibrate", mount_point / "run"],
        ["check", digit_images, "--html", mount_point / "c.html"],
    ):
        answer = command(*arguments)
        assert answer.code == 2, answer
        assert answer.err.count("\n") == 1


def training(images: Path, out: Path, text: Path, *overrides: str) -> BaseProcess:
    """Start a training in a new process; it has saved a state when this returns."""
    begin(images, out, {"stages": [{**STAGE, "epochs": 60}]}, "run.state_minutes=0.0005", *overrides)
    process = start_command(text, "train", "--resume", out)
    while not (out / "state" / "state.json").exists():
        assert process.is_alive(), text.read_text()
        time.sleep(0.005)
    return process


@pytest.fixture
def whole(class_images: Path, tmp_path: Path) -> Path:
    """The finished run that `training` must equal."""
    run, images = begin(class_images, tmp_path / "whole", {"stages": [{**STAGE, "epochs": 60}]})
    return fit(run, images, Quiet()).path


@pytest.mark.slow
def test_second_training_in_a_run_is_refused_and_the_first_continues(
    class_images: Path, whole: Path, tmp_path: Path, command: Command
) -> None:
    process = training(class_images, tmp_path / "run", tmp_path / "said")
    answer = command("train", "--resume", tmp_path / "run")
    assert answer.code == 2, answer
    assert f"{tmp_path / 'run'}: another process is training there" in answer.err
    wait_for(tmp_path / "said", process)
    assert_finished_alike(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_lost_worker_ends_the_run_which_resumes(class_images: Path, whole: Path, tmp_path: Path) -> None:
    text = tmp_path / "said"
    process = training(class_images, tmp_path / "run", text, "run.workers=1")
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert workers
    os.kill(int(workers[0]), 9)
    wait_for(text, process, 2)
    assert "a process that loads images has ended" in text.read_text()
    assert "--resume" in text.read_text()
    wait_for(text, start_command(text, "train", "--resume", tmp_path / "run"))
    assert log_lines(tmp_path / "run") == log_lines(whole)


@pytest.mark.slow
def test_missing_data_ends_the_run_which_resumes(class_images: Path, whole: Path, tmp_path: Path) -> None:
    text = tmp_path / "said"
    process = training(class_images, tmp_path / "run", text)
    class_images.rename(tmp_path / "elsewhere")
    wait_for(text, process, 2)
    assert "cannot be read" in text.read_text()
    assert not runs.read_run(tmp_path / "run").finished
    wait_for(text, start_command(text, "train", "--resume", tmp_path / "run"), 2)
    advice = f"restore it there, or name its new place: fewsight train DATA --resume {tmp_path / 'run'}"
    assert f"its data {class_images} does not exist; {advice}" in text.read_text()
    (tmp_path / "elsewhere").rename(class_images)
    wait_for(text, start_command(text, "train", "--resume", tmp_path / "run"))
    assert_finished_alike(tmp_path / "run", whole)


def test_truncated_state_is_refused_with_what_to_do(class_images: Path, tmp_path: Path, command: Command) -> None:
    run, images = begin(class_images, tmp_path / "run", {}, "run.state_minutes=1e-9")
    with pytest.raises(InterruptedError):
        fit(run, images, _EndsAfterOneStep())
    for file in (run.path / "state").iterdir():
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        answer = command("train", "--resume", run.path)
        assert answer.code == 2
        assert "from a copy" in answer.err
        file.write_bytes(data)
    assert command("train", "--resume", run.path).code == 0


class _EndsAfterOneStep(Quiet):
    def step(self, line: Any, done_steps: int) -> None:
        if done_steps == 2:
            raise InterruptedError

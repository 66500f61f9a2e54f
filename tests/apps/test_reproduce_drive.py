"""`fewsight reproduce`: what it refuses, what it plans and starts, and a whole reproduction end to end."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Answer, Command
from fewsight.apps.reproduce import Settings, drive, plan, reproduce
from fewsight.data import file_digest
from fewsight.machine.jobs import Outcome, Task
from fewsight.recipes import load_recipe
from fewsight.scores.entries import read_entries
from fewsight.terminal import make_console
from fewsight.training.planning.probe import Pace
from stores import random_labels, random_scores, write_store

JOBS = ["resnest14_ce", "tresnet_s_ce", "seresnext26d_ce", "resnest14_ce_2x", "resnest14_ce_triplet",
        "resnest14_ce_arcface", "tresnet_s_ce_triplet", "seresnext26d_ce_arcface"]  # fmt: skip
STARTS = {"resnest14_ce_triplet": "resnest14_ce", "resnest14_ce_arcface": "resnest14_ce",
          "tresnet_s_ce_triplet": "tresnet_s_ce", "seresnext26d_ce_arcface": "seresnext26d_ce"}  # fmt: skip
TABLES = ["tables.md", "tables.csv", "effects.csv", "tables.json"]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Nothing is timed: a step takes a second, and the maximum is 3 epochs. The current folder is `tmp_path`.

    Returns:
        The backbones that were to be timed, in order.
    """
    monkeypatch.chdir(tmp_path)
    backbones: list[str] = []

    def probe(recipe: plan.Recipe, prepared: plan.Prepared) -> Pace:
        backbones.append(recipe.model.backbone)
        return Pace(1.0, 0.0, 0.0, 1000)

    monkeypatch.setattr(plan, "probe", probe)
    monkeypatch.setattr(plan, "MAX_EPOCHS", 3)
    return backbones


@dataclass
class Started:
    """The arguments of `run_tasks`, and the outcome to return; None: it is interrupted."""

    tasks: list[Task] = field(default_factory=list)
    slots: list[str | None] = field(default_factory=list)
    threads: int | None = None
    outcome: Outcome | None = None

    def commands(self, name: str) -> dict[str, list[str]]:
        """The commands of a task, without the interpreter."""
        task = next(task for task in self.tasks if task.name == name)
        assert all(line[:3] == [sys.executable, "-m", "fewsight"] for line in task.commands.values())
        return {activity: list(line[3:]) for activity, line in task.commands.items()}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, timed: list[str]) -> Started:
    """Nothing is trained: `run_tasks` only records its arguments."""
    started = Started()

    def run_tasks(
        tasks: Sequence[Task], slots: Sequence[str | None], *, threads: int | None, say: object, watch: object
    ) -> Outcome:
        started.tasks, started.slots, started.threads = list(tasks), list(slots), threads
        if started.outcome is None:
            raise KeyboardInterrupt
        return started.outcome

    monkeypatch.setattr(drive, "run_tasks", run_tasks)
    return started


def small(data: Path, out: Path | str, *more: object) -> list[object]:
    return ["reproduce", data, "--out", out, "--scale", "small", "--devices", "cpu", *more]


# Refused


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--test nowhere", "no split 'nowhere'; splits with labels: test, train, val"),
        ("--test train", "--test train: the paper's models are trained on it; use another split or a folder"),
        ("--jobs 0", "--jobs 0: expected at least 1"),
        ("--jobs=-2", "--jobs -2: expected at least 1"),
        ("--jobs many", "many"),
        ("--devices nonsense", "'nonsense' is not available; this machine has cpu"),
        ("--devices cpu,cuda:77", "'cuda:77' is not available"),
        ("--scale tiny", "tiny"),
        ("--scale small --hours 0.001", "--hours 0.001 is not enough for one epoch of each of the eight trainings"),
        ("--scale small --hours 0", "--hours 0: expected a number above 0"),
        ("--scale small --hours=-1", "--hours -1: expected a number above 0"),
        ("--scale small --hours nan", "--hours nan: expected a number above 0"),
    ],
)
def test_wrong_options_are_refused(
    arguments: str, message: str, refused: Callable[..., str], digit_images: Path
) -> None:
    assert message in refused("reproduce", digit_images, "--out", "rep", *arguments.split())


@pytest.mark.usefixtures("started")
def test_test_images_need_labels(refused: Callable[..., str], digit_images: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(digit_images, tmp_path / "data"))
    shutil.rmtree(data / "test")
    assert "no split 'test'; splits with labels: train, val" in refused("reproduce", data, "--out", "rep")
    shutil.copytree(digit_images / "test" / "one", data / "test" / "imgs")
    line = refused("reproduce", data, "--out", "rep")
    assert "test has no labels, which the tables need; use --test SPLIT or --test FOLDER" in line
    (tmp_path / "zebras" / "zebra").mkdir(parents=True)
    shutil.copy(digit_images / "test/one/10.png", tmp_path / "zebras/zebra/1.png")
    assert "zebra" in refused("reproduce", data, "--out", "rep", "--test", "zebras")


@pytest.mark.usefixtures("started")
def test_folder_next_to_the_data_is_suggested(refused: Callable[..., str], digit_images: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(digit_images, tmp_path / "deep" / "data"))
    shutil.copytree(digit_images / "test", tmp_path / "deep" / "devtest")
    line = refused("reproduce", data, "--out", "rep", "--test", "devtest")
    assert f"no split 'devtest'; for the folder next to it use --test {tmp_path / 'deep/devtest'}" in line


@pytest.mark.usefixtures("started")
def test_folder_with_other_content_is_refused(refused: Callable[..., str], digit_images: Path) -> None:
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("folder/notes.txt").write_text("mine")
    for name in ("file", "folder"):
        line = refused(*small(digit_images, name))
        assert f"{name} already exists and holds no reproduction; choose another --out. Nothing was changed." in line


def test_different_options_than_before_are_refused(
    started: Started, command: Command, refused: Callable[..., str], digit_images: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(digit_images, tmp_path / "other"))
    assert command(*small(digit_images, "rep")).code == 130
    line = refused("reproduce", digit_images, "--out", "rep", "--devices", "cpu")
    assert "rep was started with different options (scale small, not full); choose another --out" in line
    assert "(test test, not val)" in refused(*small(digit_images, "rep", "--test", "val"))
    assert f"(data {digit_images}, not {other})" in refused(*small(other, "rep"))
    started.tasks = []
    assert command(*small(digit_images, "rep")).code == 130
    assert len(started.tasks) == 8, "the same options go on"


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda out: (out / "plan.json").write_text("{"), "cannot read rep/plan.json"),
        (lambda out: (out / "plan.json").write_text("[]"), "rep/plan.json is not what `fewsight reproduce` wrote"),
        (
            lambda out: change(out / "plan.json", '"name"', '"nome"'),
            "plan.json is not what `fewsight reproduce` wrote: jobs.0.name: Field required",
        ),
        (lambda out: change(out / "plan.json", '"resnest101_ce"', '"x"'), "wrote: there is no training 'x'"),
        (lambda out: (out / "recipes/tresnet_s_ce.toml").unlink(), "tresnet_s_ce.toml"),
        (lambda out: (out / "recipes/tresnet_s_ce.toml").write_text("[model"), "cannot read recipe"),
        (
            lambda out: change(out / "recipes/tresnet_s_ce.toml", "members = 1", "members = 2"),
            "tresnet_s_ce.toml: the tables are of single runs; set run.members = 1",
        ),
    ],
)
def test_damaged_plan_is_refused(
    spoil: Callable[[Path], object], message: str, command: Command, refused: Callable[..., str], digit_images: Path
) -> None:
    assert command(*small(digit_images, "rep")).code == 130
    spoil(Path("rep"))
    assert message in refused(*small(digit_images, "rep"))


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# The plan


@pytest.mark.usefixtures("timed")
def test_dry_run_shows_the_plan_and_writes_nothing(command: Command, digit_images: Path, tmp_path: Path) -> None:
    answer = command(*small(digit_images, tmp_path / "rep", "--jobs", 2, "--dry-run"))
    assert (answer.code, answer.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    lines = answer.out.splitlines()
    assert lines[0] == "30 images of train + val in 3 classes, tested on 15 images of test; small scale, 2 at a time"
    assert lines[1] == (
        "images of 8 px are trained on at 16 px: not below their own size, so larger test sizes show no more detail"
    )
    assert [line.split(":")[0].strip() for line in lines[2:10]] == JOBS
    assert lines[2].startswith("  resnest14_ce: resnest14 at 0.5 width, CE, 3 epochs at 16 px, tested at 16/24/28/32;")
    assert lines[5].startswith("  resnest14_ce_2x: resnest14 at 0.5 width, CE, 3 epochs at 32 px, tested at 32;")
    assert lines[6].startswith(
        "  resnest14_ce_triplet: resnest14 at 0.5 width, CE + triplet from resnest14_ce, 2 epochs at 16 px, "
    )
    for line in lines[2:10]:
        assert re.search(r"; about \d+ s, \d+\.\d GiB of memory, \d+ MiB of disk$", line)
    assert re.fullmatch(r"in total about 1 min \d\d s, \d+\.\d GiB of memory, \d+ MiB of disk", lines[10])
    assert len(lines) == 11


@pytest.mark.usefixtures("timed")
def test_splits_of_another_name_are_read_and_said(command: Command, digit_images: Path, tmp_path: Path) -> None:
    for split, name in {"train": "training", "val": "held", "test": "testing"}.items():
        shutil.copytree(digit_images / split, tmp_path / "data" / name)
    answer = command(*small(tmp_path / "data", "rep", "--splits", "val=held", "--dry-run"))
    assert (answer.code, answer.err) == (0, "")
    notes = ["training is read as train", "held is read as val", "testing is read as test"]
    assert sorted(line for line in answer.out.splitlines() if " is read as " in line) == sorted(
        f"note: {n}" for n in notes
    )
    assert "30 images of train + val in 3 classes, tested on 15 images of test" in answer.out


def test_dry_run_at_full_scale(timed: list[str], command: Command, digit_images: Path) -> None:
    answer = command("reproduce", digit_images, "--out", "rep", "--devices", "cpu", "--dry-run")
    assert answer.code == 0
    assert not Path("rep").exists()
    assert timed == ["resnest101", "tresnet_xl", "seresnext101", "resnest101"]
    first, second = answer.out.splitlines()[:2]
    assert first == "timing a step of each training at full size, which takes minutes without a GPU"
    assert "full scale, 1 at a time" in second
    assert "  resnest101_ce_448: resnest101, CE, 250 epochs at 448 px, tested at 448; about " in answer.out
    assert "  tresnet_xl_ce_triplet: tresnet_xl, CE + triplet from tresnet_xl_ce, 200 epochs at 224 px" in answer.out


@pytest.mark.usefixtures("timed")
@pytest.mark.parametrize(
    ("px", "line"),
    [
        (64, "images of 64 px are trained on at 32 px: half their size"),
        (50, "images of 50 px are trained on at 24 px: half their size"),
        (20, "images of 20 px are trained on at 16 px: 80 % of their size"),
        (200, "images of 200 px are trained on at 64 px: 32 % of their size"),
        (16, "images of 16 px are trained on at 16 px: not below their own size"),
    ],
)
def test_plan_tells_the_train_size(px: int, line: str, command: Command, tmp_path: Path) -> None:
    for number, name in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for copy in range(2):
            pixels = np.random.default_rng([number, copy]).integers(0, 255, (px, px + 6, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{copy}.png")
    answer = command(*small(tmp_path / "data", tmp_path / "rep", "--dry-run"))
    assert answer.out.splitlines()[1].startswith(line)
    assert answer.out.startswith("4 images of train in 2 classes, tested on 4 images of test;")


@pytest.mark.usefixtures("timed")
def test_test_images_are_not_trained_on(command: Command, digit_images: Path, tmp_path: Path) -> None:
    shutil.copytree(digit_images / "test", tmp_path / "devtest")
    lines = {"val": "18 images of train in", "validation": "18 images of train in",
             str(tmp_path / "devtest"): "30 images of train + val in"}  # fmt: skip
    for test, line in lines.items():
        answer = command(*small(digit_images, tmp_path / "rep", "--dry-run", "--test", test))
        assert answer.out.startswith(line), test
    assert f"tested on 15 images of {tmp_path / 'devtest'};" in answer.out


def test_plan_is_kept_once_it_is_written(
    started: Started, timed: list[str], command: Command, digit_images: Path
) -> None:
    """Nothing is timed again, and the recipes are those in the folder."""
    assert command(*small(digit_images, "rep")).code == 130
    assert len(timed) == 4
    change(Path("rep/recipes/resnest14_ce.toml"), "epochs = 3\n", "epochs = 77\n")
    before = {path: path.read_bytes() for path in Path("rep").rglob("*.*")}
    again = command(*small(digit_images, "rep", "--hours", "0.0001", "--dry-run"))
    assert again.code == 0
    assert "resnest14_ce: resnest14 at 0.5 width, CE, 77 epochs" in again.out
    assert len(timed) == 4
    assert {path: path.read_bytes() for path in Path("rep").rglob("*.*")} == before


# The commands


def test_each_training_is_started_by_its_recipe_and_start(
    started: Started, command: Command, digit_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rep"
    assert command(*small(digit_images, out, "--jobs", 3)).code == 130
    assert [task.name for task in started.tasks] == JOBS
    assert {task.name: task.after for task in started.tasks if task.after} == STARTS
    assert started.slots == ["cpu"] * 3
    assert sorted(path.name for path in (out / "recipes").iterdir()) == sorted(f"{name}.toml" for name in JOBS)
    for task in started.tasks:
        commands, run = started.commands(task.name), str(out / "runs" / task.name)
        assert list(commands) == ["training", "testing"]
        recipe = out / "recipes" / f"{task.name}.toml"
        start = ["--init-from", str(out / "runs" / str(task.after))] if task.after else []
        assert commands["training"] == [
            "train", str(digit_images), "--out", run, "--recipe", str(recipe), *start]  # fmt: skip
        sizes = [32] if task.name == "resnest14_ce_2x" else [16, 24, 28, 32]
        views = [f"{crop}-{px}" for px in sizes for crop in ("center", "random")]
        assert commands["testing"] == [
            "evaluate", run, str(digit_images), "--split", "test",
            "--views", ",".join([*views, *(f"{view}-noflip" for view in views)]), "--scores", f"{run}/scores/test",
        ]  # fmt: skip
        assert task.log == out / "logs" / f"{task.name}.log"
        assert not task.check()


def test_written_recipes_are_those_of_the_plan(started: Started, command: Command, digit_images: Path) -> None:
    command(*small(digit_images, "rep", "--test", "val", "--jobs", 1))
    recipe = load_recipe(Path("rep/recipes/tresnet_s_ce_triplet.toml"))
    assert (recipe.model.backbone, recipe.augment.train_px, recipe.data.merge_val) == ("tresnet_s", 16, False)
    assert [stage.epochs for stage in recipe.stages] == [3, 2]
    assert recipe.run.threads == started.threads == drive.num_cores()
    values = json.loads(Path("rep/plan.json").read_text())
    assert (values["data"], values["test"], values["scale"]) == (str(digit_images), "val", "small")


def test_trainings_that_another_call_planned_use_the_cores_of_this_one(
    started: Started, command: Command, digit_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "num_cores", lambda: 8)
    monkeypatch.setattr("fewsight.machine.device.num_cores", lambda: 8)
    command(*small(digit_images, "rep", "--jobs", 2))
    first = started.commands("resnest14_ce")["training"]
    command(*small(digit_images, "rep", "--jobs", 4))
    assert started.commands("resnest14_ce")["training"] == [*first, "--set", "run.threads=2"]


def test_cores_are_shared_by_parallel_trainings(
    started: Started, command: Command, digit_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "num_cores", lambda: 8)
    monkeypatch.setattr("fewsight.machine.device.num_cores", lambda: 8)
    for number, (more, slots, threads) in enumerate([([], 8, 1), (["--jobs", 3], 3, 2), (["--jobs", 20], 20, 1)]):
        arguments = ["reproduce", digit_images, "--out", f"rep{number}", "--scale", "small", *more]
        if drive.resolve_device("auto").type != "cpu":
            pytest.skip("this machine has more than a CPU")
        assert command(*arguments).code == 130
        assert (started.slots, started.threads) == ([None] * slots, threads)
        assert load_recipe(Path(f"rep{number}/recipes/resnest14_ce.toml")).run.threads == threads


def test_all_images_of_a_folder_are_tested(
    started: Started, command: Command, digit_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(digit_images / "test", tmp_path / "devtest")
    command(*small(digit_images, tmp_path / "rep", "--test", tmp_path / "devtest"))
    run = tmp_path / "rep/runs/resnest14_ce"
    assert started.commands("resnest14_ce")["testing"][:4] == [
        "evaluate",
        str(run),
        str(tmp_path / "devtest"),
        "--views",
    ]


VIEWS = [f"{crop}-{px}{end}" for px in (16, 24, 28, 32) for crop in ("center", "random") for end in ("", "-noflip")]


def give_scores(run: Path, *views: str) -> None:
    """Write scores of 20 images, and a run.json with the same digest of the weights."""
    labels = random_labels(0, 20)
    seed = sum(run.name.encode())
    write_store(run / "scores/test", {view: random_scores(seed + n, labels) for n, view in enumerate(views)}, labels)
    run.joinpath("run.json").write_text(json.dumps({"format": 1, "status": "finished", "weights_digest": "w"}))


def as_run(source: Path, run: Path, **info: object) -> Path:
    """Copy a run, and change values in its run.json."""
    shutil.copytree(source, run)
    values = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**values, **info}))
    return run


def test_interrupted_trainings_go_on_where_they_stopped(
    started: Started, command: Command, digit_images: Path, tiny_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rep"
    command(*small(digit_images, out))
    runs = out / "runs"
    as_run(tiny_run, runs / "resnest14_ce", status="training")
    as_run(tiny_run, runs / "tresnet_s_ce")
    give_scores(as_run(tiny_run, runs / "seresnext26d_ce"), *VIEWS)
    give_scores(as_run(tiny_run, runs / "resnest14_ce_triplet"), *VIEWS[:-1])  # one view is missing
    give_scores(as_run(tiny_run, runs / "resnest14_ce_arcface"), *VIEWS)
    os.truncate(runs / "resnest14_ce_arcface/scores/test/center-16.f32", 8)
    give_scores(stale := as_run(tiny_run, runs / "tresnet_s_ce_triplet"), *VIEWS)
    (stale / "run.json").write_text(json.dumps({"format": 1, "status": "finished", "weights_digest": "other"}))
    command(*small(digit_images, out))
    assert started.commands("resnest14_ce")["training"] == ["train", "--resume", str(runs / "resnest14_ce")]
    expected = {"resnest14_ce": ["training", "testing"], "tresnet_s_ce": ["testing"], "seresnext26d_ce": [],
                "resnest14_ce_2x": ["training", "testing"], "resnest14_ce_triplet": ["testing"],
                "resnest14_ce_arcface": ["testing"], "tresnet_s_ce_triplet": ["testing"],
                "seresnext26d_ce_arcface": ["training", "testing"]}  # fmt: skip
    assert {task.name: list(task.commands) for task in started.tasks} == expected
    assert {task.name: task.check() for task in started.tasks} == {
        name: not commands for name, commands in expected.items()
    }


def test_changed_test_images_are_tested_again(
    started: Started, command: Command, digit_images: Path, tiny_run: Path, tmp_path: Path
) -> None:
    data, out = Path(shutil.copytree(digit_images, tmp_path / "data")), tmp_path / "rep"
    command(*small(data, out))
    labels, file = random_labels(0, 20), data / "test" / "7.png"  # as `write_store` names the images
    file.write_bytes(b"as it was tested")
    for job in JOBS[:2]:
        run = as_run(tiny_run, out / "runs" / job)
        give_scores(run, *VIEWS)
        digests = [file_digest(b"as it was tested")] * 20
        shutil.rmtree(run / "scores")
        write_store(run / "scores/test", {view: random_scores(0, labels) for view in VIEWS}, labels, digests=digests)
    command(*small(data, out))
    assert [list(task.commands) for task in started.tasks[:2]] == [[], []]
    file.write_bytes(b"as it is now....")
    answer = command(*small(data, out))
    assert f"{JOBS[0]}: test images have changed since it was tested, so it is tested again" in answer.out
    assert [list(task.commands) for task in started.tasks[:2]] == [["testing"], ["testing"]]


def test_tables_are_written_although_a_training_failed(
    started: Started, command: Command, digit_images: Path, tiny_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rep"
    command(*small(digit_images, out))
    for name in JOBS[:2] + JOBS[3:7]:
        as_run(tiny_run, out / "runs" / name)
        sized = [view for view in VIEWS if "-32" in view] if name == "resnest14_ce_2x" else VIEWS
        give_scores(out / "runs" / name, *sized)
    started.outcome = Outcome({}, {"seresnext26d_ce": 2}, {"seresnext26d_ce_arcface": "seresnext26d_ce"})
    answer = command(*small(digit_images, out))
    assert answer.code == 1, answer
    assert "failed: seresnext26d_ce (exit 2); run the same command to try again\n" in answer.out
    assert "not started: seresnext26d_ce_arcface, which starts from seresnext26d_ce\n" in answer.out
    assert "the fusion of 20 rows: " in answer.out
    assert [f"wrote {out / name}" in answer.out for name in TABLES] == [True] * 4
    assert tables_of(out).count("not trained") == 8
    assert not (out / "ensemble").exists(), "members would be missing"


def tables_of(out: Path) -> str:
    return (out / "tables.md").read_text(encoding="utf-8")


def test_no_tables_without_any_training(started: Started, command: Command, digit_images: Path, tmp_path: Path) -> None:
    started.outcome = Outcome({}, {"resnest14_ce": 2, "tresnet_s_ce": -9}, {})
    answer = command(*small(digit_images, tmp_path / "rep"))
    assert answer.code == 2
    assert "failed: tresnet_s_ce (exit -9); run the same command to try again" in answer.out
    assert f"no training succeeded, so there are no tables; see {tmp_path / 'rep/logs'}" in answer.err


# A whole reproduction


def in_a_process(*arguments: object) -> Answer:
    line = [sys.executable, "-m", "fewsight", *map(str, arguments)]
    result = subprocess.run(line, capture_output=True, text=True, timeout=1200, check=False)
    return Answer(result.returncode, result.stdout, result.stderr)


def states(answer: Answer) -> dict[str, str]:
    """The last word about each job."""
    return dict(re.findall(rf"^({'|'.join(JOBS)}): (already done|started|done|failed)", answer.out, re.MULTILINE))


def files_of(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in TABLES}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_reproduction_end_to_end(digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reproduction with one epoch per training: interrupted, resumed, with a failure, fixed, repeated, damaged."""
    out = tmp_path / "rep"
    arguments = small(digit_images, out, "--jobs", 2)

    def stopped(*_: object, **__: object) -> Outcome:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # the plan, with its real timing
        patch.setattr(drive, "run_tasks", stopped)
        patch.setattr(plan, "MAX_EPOCHS", 1)
        settings = Settings(scale="small", jobs=2, devices=["cpu"])
        with pytest.raises(KeyboardInterrupt):
            reproduce(digit_images, out, settings, console=make_console(io.StringIO()))
    broken = out / "recipes/seresnext26d_ce.toml"
    change(broken, '"seresnext26d"', '"seresnxt26"')

    line = [sys.executable, "-m", "fewsight", *map(str, arguments)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not (out / "runs/resnest14_ce/run.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out_text, err_text = process.communicate(timeout=200)
    assert process.returncode == 130, (out_text, err_text)
    assert "stopping; the trainings are saving their states" in out_text
    assert not (out / "tables.md").exists()

    failed = in_a_process(*arguments)
    assert failed.code == 1, failed
    assert [name for name, state in states(failed).items() if state == "failed"] == ["seresnext26d_ce"]
    assert re.search(r"^seresnext26d_ce: failed in training \(.*'seresnxt26'.*did you mean 'seresnext26'\?", failed.out,
                     re.MULTILINE)  # fmt: skip
    assert "failed: seresnext26d_ce (exit 2); run the same command to try again" in failed.out
    assert "not started: seresnext26d_ce_arcface, which starts from seresnext26d_ce" in failed.out
    assert "the fusion of 20 rows" in failed.out
    assert tables_of(out).count("not trained") == 8
    assert not (out / "ensemble").exists()

    change(broken, '"seresnxt26"', '"seresnext26d"')
    fixed = in_a_process(*arguments)
    assert fixed.code == 0, fixed
    again = {"seresnext26d_ce", "seresnext26d_ce_arcface"}
    assert states(fixed) == {name: "done" if name in again else "already done" for name in JOBS}
    tables = files_of(out)
    assert "not trained" not in tables_of(out)
    *rows, fusion = csv.DictReader(io.StringIO(tables["tables.csv"].decode()))
    assert len(rows) == 28
    assert all(0 <= float(row["top1"]) <= 1 and row["images"] == "15" for row in [*rows, fusion])
    assert fusion["loss"] == "28 rows"
    specs = read_entries(out / "ensemble")
    assert (len(specs), len({spec.member for spec in specs}), len({spec.run for spec in specs})) == (28, 7, 8)
    assert {round(spec.weight, 12) for spec in specs} == {round(1 / 28, 12)}
    predicted = in_a_process("predict", out / "ensemble", digit_images / "test", "--out", tmp_path / "p.csv")
    assert predicted.code == 0, predicted
    with (tmp_path / "p.csv").open(newline="") as handle:
        correct = sum(row["label"] == Path(row["path"]).parent.name for row in csv.DictReader(handle))
    assert correct == round(float(fusion["top1"]) * 15), "the ensemble predicts as the fusion"

    repeated = in_a_process(*arguments)
    assert repeated.code == 0
    assert states(repeated) == dict.fromkeys(JOBS, "already done")
    assert files_of(out) == tables

    run = out / "runs/resnest14_ce_triplet"  # once there are scores, the tables need no weights
    (run / "weights.safetensors").unlink()
    without = in_a_process(*arguments)
    assert (without.code, states(without)) == (0, dict.fromkeys(JOBS, "already done"))
    assert files_of(out) == tables

    shutil.rmtree(run / "scores")
    lost = in_a_process(*arguments)
    assert lost.code == 1, lost
    assert states(lost) == {**dict.fromkeys(JOBS, "already done"), "resnest14_ce_triplet": "failed"}
    assert "resnest14_ce_triplet: failed in testing (" in lost.out
    assert "the fusion of 24 rows" in lost.out

    shutil.rmtree(run)
    repaired = in_a_process(*arguments)
    assert repaired.code == 0, repaired
    assert states(repaired) == {**dict.fromkeys(JOBS, "already done"), "resnest14_ce_triplet": "done"}
    assert files_of(out) == tables, "the same recipe, data and start give the same run"

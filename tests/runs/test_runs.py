"""The run folder: it is read back as it was written, and damaged files are refused by name."""

import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewsight import runs
from fewsight.data import digest_of_list, file_digest
from fewsight.data.training_set import ListedImage, RunData
from fewsight.errors import RecipeError, RunError
from fewsight.machine import files
from fewsight.recipes import parse_recipe
from fewsight.runs import LogLine, Run

RECIPE = parse_recipe(
    {
        "model": {"backbone": "resnest14", "stem": "small"},
        "augment": {"train_px": 16},
        "stages": [{"epochs": 1, "batch_size": 2, "optim": {"base_lr": 0.1 + 0.2}}],
        "run": {"device": "cpu", "threads": 1, "workers": 0, "precision": "float32"},
    }
)
DATA = RunData(
    source="/photos",
    layout="classes",
    digest=digest_of_list([("a/ü 1.jpg", 12, "a")]),
    counts={"train": {"a": 2, "ü\nb": 3}},
    mean=(0.1, 1 / 3, 0.3),
    std=(0.2, 0.2, 2 / 3),
    left_out=[{"path": "a/x.jpg", "split": "train", "error": "broken"}],
    ignored={"hidden file": 1},
)
IMAGES = [ListedImage("train", "a/ü 1.jpg", "a", 12)]
TENSORS = {"w": torch.arange(6.0).view(2, 3), "count": torch.tensor(3), "half": torch.ones(2, dtype=torch.bfloat16)}
POSITION = {"position": {"step": 4, "loss_sum": 0.1 + 0.2}, "scaler": {}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return runs.create_run(tmp_path / "runs" / "one", RECIPE, ("a", "ü\nb"), DATA, IMAGES, "why\nso")


def flip_a_byte(path: Path, offset: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def assert_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(tensors) == sorted(expected)
    assert all(torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype
               for name, value in expected.items())  # fmt: skip


def test_run_is_read_as_it_was_written(run: Run) -> None:
    again = runs.read_run(run.path)
    assert again == run
    assert (again.recipe, again.classes, again.data) == (RECIPE, ("a", "ü\nb"), DATA)
    assert runs.read_images(run) == IMAGES
    assert not again.finished
    assert (run.path / "recipe.toml").read_text().startswith("# why\n# so\n")
    expected_keys = {
        "format",
        "status",
        "fewsight",
        "torch",
        "commit",
        "device",
        "command",
        "seed",
        "started",
        "recipe",
    }
    assert expected_keys <= set(files.read_json(run.path / "run.json", dict[str, Any], "a test"))
    assert (again.info.status, again.info.seed, again.info.recipe) == ("training", 0, RECIPE.model_dump(mode="json"))


def test_run_has_a_one_line_repr(run: Run) -> None:
    shown = f"Run({str(run.path)!r}: {RECIPE.model.backbone}, {RECIPE.augment.train_px} px, 2 classes, training)"
    assert repr(run) == shown


@pytest.mark.parametrize(
    ("program", "named"),
    [("/usr/bin/fewsight", "fewsight"), ("/lib/fewsight/__main__.py", "fewsight"), ("my work.py", "my work.py")],
)
def test_command_is_quoted_for_the_shell(program: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", "my photos", "--out", "it's; a $run"]
    monkeypatch.setattr(sys, "argv", [program, *words])
    assert shlex.split(runs.command_line()) == [named, *words]


def test_moved_run_is_still_a_run(run: Run, tmp_path: Path) -> None:
    runs.save_weights(run, TENSORS)
    runs.save_state(run.path, TENSORS, POSITION)
    moved = Path(shutil.move(run.path, tmp_path / "mailed"))
    again = runs.read_run(moved)
    assert again.path == moved
    assert_equal(runs.read_weights(again), TENSORS)
    assert runs.read_state(moved) is not None


@pytest.mark.parametrize("kind", ["a run", "not empty", "a file"])
def test_taken_folder_is_refused_and_untouched(tmp_path: Path, run: Run, kind: str) -> None:
    taken = {"a run": run.path, "not empty": run.path.parent, "a file": run.path / "run.json"}[kind]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=rf"already exists \({kind}\); choose another --out.*Nothing was changed"):
        runs.create_run(taken, RECIPE, ("a", "b"), DATA, IMAGES)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    runs.create_run(tmp_path / "empty", RECIPE, ("a", "b"), DATA, IMAGES)
    assert runs.read_run(tmp_path / "empty").classes == ("a", "b")


@pytest.mark.parametrize("version", [runs.FORMAT + 1, None, "1"])
def test_other_format_is_refused(run: Run, version: Any) -> None:
    file = run.path / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": version}))
    expected = (
        r"run format .* reads up to 2; upgrade fewsight" if version == 3 else r"run\.json is not what .* the format"
    )
    with pytest.raises(RunError, match=expected):
        runs.read_run(run.path)


def test_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist; expected a folder that"):
        runs.read_run(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"holds no run\.json"):
        runs.read_run(tmp_path)


@pytest.mark.parametrize("name", ["classes.json", "data.json", "recipe.toml"])
def test_missing_file_is_named(run: Run, name: str) -> None:
    (run.path / name).unlink()
    with pytest.raises((RunError, RecipeError), match=name):
        runs.read_run(run.path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "[1]"),
        ("run.json", "{"),
        ("classes.json", '{"a": 1}'),
        ("classes.json", "[1, 2]"),
        ("data.json", "{}"),
        ("data.json", "[]"),
        ("data.json", '{"mean": [0], "std": [1], "more": 1}'),
        ("recipe.toml", "[model]"),
    ],
)
def test_file_that_is_not_ours_is_named(run: Run, name: str, text: str) -> None:
    (run.path / name).write_text(text)
    with pytest.raises((RunError, RecipeError), match=name):
        runs.read_run(run.path)


def test_missing_or_broken_image_list_is_named(run: Run) -> None:
    (run.path / "images.jsonl").write_text("{\n")
    with pytest.raises(RunError, match=r"images\.jsonl is not what `fewsight train` wrote: line 1: "):
        runs.read_images(run)
    (run.path / "images.jsonl").unlink()
    with pytest.raises(RunError, match=r"images\.jsonl is missing"):
        runs.read_images(run)


def test_unknown_values_of_run_json_are_kept(run: Run) -> None:
    file = run.path / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of a newer version": [1]}))
    runs.update_info(run, status="finished")
    assert json.loads(file.read_text())["of a newer version"] == [1]


def test_log_is_read_without_the_lines_that_a_kill_cut_off(run: Run) -> None:
    assert runs.read_log(run.path) == []
    for line in ({"kind": "step", "epoch": 1, "loss": 0.5}, {"kind": "epoch", "epoch": 1, "val_top1": 0.25}):
        runs.append_log(run.path, line)
    with (run.path / "log.jsonl").open("a") as log:
        log.write('{"kind": "st')
    expected = [LogLine("step", 1), LogLine("epoch", 1, None, 0.25)]
    assert runs.read_log(run.path) == expected
    assert runs.read_log(run.path, tail_bytes=70) == expected[1:]


def test_weights_are_read_as_they_were_saved(run: Run) -> None:
    with pytest.raises(RunError, match=r"no weights yet.*--resume"):
        runs.read_weights(run)
    run = runs.save_weights(run, TENSORS, best_epoch=3)
    assert_equal(runs.read_weights(runs.read_run(run.path)), TENSORS)
    assert runs.read_run(run.path).info.best_epoch == 3


def test_damaged_weights_are_refused(run: Run) -> None:
    run = runs.save_weights(run, TENSORS)
    whole = (run.path / runs.WEIGHTS).read_bytes()
    for offset in (0, 20, len(whole) // 2, -1):
        flip_a_byte(run.path / runs.WEIGHTS, offset)
        with pytest.raises(RunError, match=r"weights\.safetensors is damaged"):
            runs.read_weights(run)
        (run.path / runs.WEIGHTS).write_bytes(whole)
    (run.path / runs.WEIGHTS).write_bytes(whole[:-1])
    with pytest.raises(RunError, match=r"weights\.safetensors is damaged"):
        runs.read_weights(run)


def test_info_of_a_stale_run_keeps_what_was_noted_since(run: Run) -> None:
    runs.save_weights(run, TENSORS)
    finished = runs.update_info(run, status="finished")  # `run` was read before the weights were saved
    assert finished.finished
    assert_equal(runs.read_weights(finished), TENSORS)


def test_state_is_read_as_it_was_saved(run: Run) -> None:
    assert runs.read_state(run.path) is None
    runs.save_state(run.path, TENSORS, POSITION)
    state = runs.read_state(run.path)
    assert state is not None
    assert_equal(state[0], TENSORS)
    assert state[1] == POSITION


def test_newer_state_replaces_the_older(run: Run) -> None:
    for step in range(3):
        runs.save_state(run.path, {"w": torch.full((2,), float(step))}, {"step": step})
    state = runs.read_state(run.path)
    assert state is not None
    assert (state[0]["w"][0].item(), state[1]) == (2.0, {"step": 2})
    assert len(list((run.path / "state").iterdir())) == 2, "the older tensors are deleted"


@pytest.mark.parametrize("moment", ["before state.json", "before the tensors", "in the middle of the tensors"])
def test_death_while_saving_leaves_the_older_state(run: Run, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    runs.save_state(run.path, TENSORS, POSITION)
    newer = {"w": torch.zeros(2)}

    def die(path: Path, data: bytes) -> None:
        if moment == "in the middle of the tensors":
            path.with_name(f".{path.name}.00aa.part").write_bytes(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_json" if moment == "before state.json" else "write_bytes", die)
    with pytest.raises(KeyboardInterrupt):
        runs.save_state(run.path, newer, {"step": 9})
    monkeypatch.undo()
    state = runs.read_state(run.path)
    assert state is not None
    assert_equal(state[0], TENSORS)
    runs.remove_leftovers(run.path)
    assert not list(run.path.rglob("*.part"))
    runs.save_state(run.path, newer, {"step": 9})
    assert len(list((run.path / "state").iterdir())) == 2, "the next state removes what the killed process left"


@pytest.mark.parametrize("name", ["state.json", "*.safetensors"])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "gone"])
def test_damaged_state_is_refused(run: Run, name: str, harm: str) -> None:
    runs.save_state(run.path, TENSORS, POSITION)
    (file,) = (run.path / "state").glob(name)
    if harm == "flip":
        flip_a_byte(file)
    elif harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9] if harm == "cut" else b"")
    if name == "state.json" and harm == "gone":
        assert runs.read_state(run.path) is None
        return
    with pytest.raises(RunError, match=r"state.* is damaged|cannot read .*state|safetensors is missing; restore"):
        runs.read_state(run.path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"digest": 1, "values": {}}', '{"digest": "../../x", "values": {}}'])
def test_state_that_is_not_ours_is_refused(run: Run, text: str) -> None:
    runs.save_state(run.path, TENSORS, POSITION)
    (run.path / "state" / "state.json").write_text(text)
    with pytest.raises(
        RunError, match=r"state\.json is not what `fewsight train` wrote|x\.safetensors is missing; restore"
    ):
        runs.read_state(run.path)


def test_edited_value_of_the_state_is_refused(run: Run) -> None:
    runs.save_state(run.path, TENSORS, POSITION)
    file = run.path / "state" / "state.json"
    file.write_text(file.read_text().replace('"step": 4', '"step": 5'))
    with pytest.raises(RunError, match="state is damaged"):
        runs.read_state(run.path)


def test_removed_state_leaves_other_peoples_files(run: Run) -> None:
    runs.save_state(run.path, TENSORS, POSITION)
    (run.path / "state" / ".x.safetensors.00aa.part").write_text("half")
    runs.remove_state(run.path)
    assert not (run.path / "state").exists()
    runs.remove_state(run.path)
    runs.save_state(run.path, TENSORS, POSITION)
    (run.path / "state" / "notes.txt").write_text("mine")
    runs.remove_state(run.path)
    assert [path.name for path in (run.path / "state").iterdir()] == ["notes.txt"]


def test_log_is_cut_to_where_the_state_was_saved(run: Run) -> None:
    runs.cut_log(run.path, 0)
    assert not (run.path / "log.jsonl").exists()
    runs.append_log(run.path, {"step": 1, "name": "ü"})
    size = runs.sync_log(run.path)
    runs.append_log(run.path, {"step": 2})
    with (run.path / "log.jsonl").open("a") as log:
        log.write('{"st')  # killed in the middle of a line
    runs.cut_log(run.path, size)
    assert [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()] == [
        {"step": 1, "name": "ü"}
    ]
    with pytest.raises(RunError, match=r"log\.jsonl is shorter than when the state was saved"):
        runs.cut_log(run.path, size + 1)
    runs.cut_log(run.path, 0)
    assert (run.path / "log.jsonl").read_bytes() == b""


def test_weights_file_is_the_same_bytes_each_time(run: Run) -> None:
    digests = {runs.save_weights(run, TENSORS).info.weights_digest for _ in range(20)}
    assert len(digests) == 1


def test_version_that_an_older_run_did_not_record_does_not_differ() -> None:
    here = runs.Conditions(1, 1, "x86_64 AVX2", "cpu", "0.1.0", "2.14.1", "12.0.0", "1.9.0")
    assert runs.changed_conditions(replace(here, simplejpeg=""), here) == []
    assert runs.changed_conditions(replace(here, simplejpeg="0"), here) == [f"simplejpeg 0, here {here.simplejpeg}"]


def test_training_image_is_recognised_by_its_contents(tmp_path: Path) -> None:
    """Not by its name: another image under the name of one that was trained on is new."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    digest = file_digest(b"a.jpg")
    listed = [
        ListedImage("train", "a.jpg", "a", 5, "pixels a", digest),
        ListedImage("train", "b.jpg", "a", 5, "pixels b", digest),
        ListedImage("train", "c.jpg", "a", 5, "pixels c"),
        ListedImage("val", "d.jpg", "a", 5, "pixels d", digest),
    ]
    data = replace(DATA, source=str(tmp_path), digest=digest_of_list((i.path, i.size, i.label) for i in listed))
    trained = runs.trained_on(runs.create_run(tmp_path / "run", RECIPE, ("a", "b"), data, listed))
    assert (tmp_path / "copy.jpg", "pixels a", digest) in trained
    assert (tmp_path / "a.jpg", "pixels of another decoder", digest) in trained
    assert (tmp_path / "b.jpg", "pixels of another image", file_digest(b"b.jpg")) not in trained
    assert (tmp_path / "c.jpg", "unknown", file_digest(b"c.jpg")) in trained, "an earlier version listed no digest"
    assert (tmp_path / "d.jpg", "pixels d", digest) not in trained

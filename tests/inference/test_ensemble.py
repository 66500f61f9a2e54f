"""Ensembles as runs: their members, their predictions, where their scores are stored, what is refused."""

import csv
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL.Image import Image
from rich.console import Console

from conftest import TINY, Command
from fewsight.apps import listing
from fewsight.apps.listing import list_runs
from fewsight.augment import View, views
from fewsight.errors import RecipeError, RunError, WriteError
from fewsight.inference.ensemble import combine
from fewsight.inference.evaluate import evaluate
from fewsight.inference.member_text import parse_member
from fewsight.inference.model import load
from fewsight.inference.opening import open_runs, score_folders, score_runs
from fewsight.inference.score_run import LabelledFile, ScoringResult
from fewsight.machine.locks import LOCK
from fewsight.scores import scoring
from fewsight.scores.calibration import Calibration, apply_temperature, read_calibrations, write_calibrations
from fewsight.scores.chosen_weights import greedy_weights
from fewsight.scores.entries import EnsembleEntry, read_entries, read_views
from fewsight.scores.fusion import correct_top1
from fewsight.scores.opening import open_scored
from fewsight.terminal import make_console
from fewsight.training.session import train

Refused = Callable[..., str]
CLASSES = ("nought", "one", "two")


@pytest.fixture(scope="session")
def trained(digit_images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with different seeds, trained long enough to differ in their predictions. Do not change them."""
    out = tmp_path_factory.mktemp("runs")
    overrides = [*TINY, "stages.0.epochs=20"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        trained_runs = train(digit_images, out, recipe="digits", overrides=overrides, seeds=[0, 1], console=quiet())
    return [run.path for run in trained_runs]


def make_ensemble(texts: Sequence[str], out: Path, **options: Any) -> tuple[EnsembleEntry, ...]:
    """As in the paper: every test size, both crops."""
    return combine([parse_member(text) for text in texts], out, **{"views": "paper", **options}).entries


def quiet() -> Console:
    return make_console(io.StringIO())


def copied(source: Path, target: Path, *test_px: int) -> Path:
    """A copy of a run, tested at these sizes."""
    shutil.copytree(source, target)
    if test_px:
        change(target / "recipe.toml", r"test_px = \[[^]]*\]", f"test_px = {list(test_px)}")
    return target


def change(file: Path, pattern: str, text: str) -> None:
    changed, count = re.subn(pattern, text, file.read_text())
    assert count == 1, file.read_text()
    file.write_text(changed)


@pytest.fixture
def runs(trained: list[Path], tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of one recipe, tested at 32 px."""
    return copied(trained[0], tmp_path / "a"), copied(trained[1], tmp_path / "b")


@pytest.fixture
def mixed(trained: list[Path], tmp_path: Path) -> Path:
    """An ensemble of two runs, `a` tested at 32 and 40 px, `b` at 32 px."""
    members = copied(trained[0], tmp_path / "a", 32, 40), copied(trained[1], tmp_path / "b")
    make_ensemble([str(path) for path in members], tmp_path / "e")
    return tmp_path / "e"


@pytest.fixture(scope="session")
def evaluated_once(trained: list[Path], enough_val: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `a`, `b` and their ensemble `e`, all with scores of test and val, every view. Do not change it."""
    folder = tmp_path_factory.mktemp("evaluated")
    members = copied(trained[0], folder / "a", 32, 40), copied(trained[1], folder / "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        for path in members:
            for split in ("test", "val"):
                evaluate(path, enough_val, split=split, views="paper", console=quiet())
    make_ensemble([str(path) for path in members], folder / "e")
    return folder


@pytest.fixture
def evaluated(evaluated_once: Path, tmp_path: Path) -> Path:
    """A copy of `evaluated_once`."""
    return Path(shutil.copytree(evaluated_once, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def predicted(command: Command, digit_images: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    """float64 [15, 3]: the probabilities that `predict` writes for the test images."""

    def predict(path: Path, *options: object) -> np.ndarray:
        target = tmp_path / "predicted.jsonl"
        answer = command("predict", path, digit_images / "test", "--out", target, "--top-k", 3, *options)
        assert answer.code == 0, answer
        table = [json.loads(line) for line in target.read_text().splitlines()]
        return np.array([[by_class(row)[name] for name in CLASSES] for row in table])

    return predict


def by_class(row: dict[str, object]) -> dict[object, float]:
    return {row[f"label{rank}"]: float(str(row[f"prob{rank}"])) for rank in ("", "2", "3")}


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


def entries_of(path: Path) -> list[tuple[str, str, int, float]]:
    return [(entry.member, entry.run, entry.px, pytest.approx(entry.weight)) for entry in read_entries(path)]


# Parsing members


@pytest.mark.parametrize(
    ("text", "name", "parts"),
    [
        ("runs/a", "a", [("runs/a", ())]),
        ("runs/a:32", "a", [("runs/a", (32,))]),
        ("runs/a:32,40", "a", [("runs/a", (32, 40))]),
        ("x=runs/a", "x", [("runs/a", ())]),
        ("x=runs/a:224,320+runs/b:448", "x", [("runs/a", (224, 320)), ("runs/b", (448,))]),
        ("runs/a+runs/b:8", "a", [("runs/a", ()), ("runs/b", (8,))]),
        ("runs/a:large", "a:large", [("runs/a:large", ())]),
        ("runs/a:", "a:", [("runs/a:", ())]),
        ("runs/a:٣٢", "a:٣٢", [("runs/a:٣٢", ())]),
        ("x=c:/runs/a", "x", [("c:/runs/a", ())]),
        ("lr=0.1:32+b", "lr=0.1:32+b", [("lr=0.1:32+b", ())]),
        ("here", "there", [("here", ())]),
    ],
)
def test_member_is_parsed(
    text: str, name: str, parts: list[tuple[str, tuple[int, ...]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1:32+b").mkdir()  # the name of an existing folder is not parsed
    Path("there").mkdir()
    Path("here").symlink_to("there")
    assert parse_member(text) == (name, [(Path(path), sizes) for path, sizes in parts])


NAMES = st.text("abz019_-.é ", min_size=1, max_size=8).filter(lambda name: not set(name) <= set("."))
PARTS = st.lists(st.tuples(NAMES, st.lists(st.integers(8, 4096), max_size=3)), min_size=1, max_size=3)


@given(NAMES, PARTS)
def test_formatted_member_is_parsed_back(name: str, parts: list[tuple[str, list[int]]]) -> None:
    text = "+".join(f"/nowhere/{run}" + (":" + ",".join(map(str, sizes)) if sizes else "") for run, sizes in parts)
    expected = [(Path("/nowhere") / run, tuple(sizes)) for run, sizes in parts]
    assert parse_member(f"{name}={text}") == (name, expected)
    assert parse_member(text) == (expected[0][0].name, expected)


# Predictions of an ensemble


def test_ensemble_is_the_mean_of_its_sizes(
    predicted: Callable[..., np.ndarray], mixed: Path, command: Command, digit_images: Path, tmp_path: Path
) -> None:
    first, second = (predicted(mixed.parent / name, "--views", "paper") for name in "ab")
    both = predicted(mixed, "--views", "paper")
    assert abs(first - second).max() > 0.01
    np.testing.assert_allclose(both, 2 / 3 * first + 1 / 3 * second, atol=1e-6)
    np.testing.assert_allclose(predicted(mixed), both, atol=1e-9)
    center = predicted(mixed, "--views", "center")
    first = predicted(mixed.parent / "a", "--views", "center-32,center-40")
    second = predicted(mixed.parent / "b", "--views", "center")
    np.testing.assert_allclose(center, 2 / 3 * first + 1 / 3 * second, atol=1e-6)
    assert abs(center - both).max() > 1e-3

    answer = command("evaluate", mixed, digit_images, "--json", tmp_path / "f.json")
    assert (answer.code, answer.err) == (0, "")
    assert f"{mixed} on {digit_images} (test, 4 views) · 15 images" in answer.out
    figures = json.loads((tmp_path / "f.json").read_text())
    labels = np.repeat([0, 1, 2], 5)  # the folders, in code-point order
    assert figures["top1"]["count"] == (both.argmax(1) == labels).sum()
    assert figures["nll"] == pytest.approx(-np.log(both[np.arange(15), labels]).mean(), rel=1e-5)


def test_two_runs_have_equal_weight(
    predicted: Callable[..., np.ndarray], runs: tuple[Path, Path], tmp_path: Path
) -> None:
    make_ensemble([str(run) for run in runs], tmp_path / "e")
    first, second, both = (predicted(path, "--views", "paper") for path in (*runs, tmp_path / "e"))
    np.testing.assert_allclose(both, (first + second) / 2, atol=1e-6)


def test_runs_of_an_ensemble_share_decoded_images(
    runs: tuple[Path, Path], digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_ensemble([str(run) for run in runs], tmp_path / "e")
    files = sorted(digit_images.glob("test/*/*.png"))
    images = []
    for number in range(2 * scoring.BATCH + 5):
        os.link(files[number % len(files)], tmp_path / f"{number}.png")
        images.append(LabelledFile(tmp_path / f"{number}.png", f"{number}.png"))
    decoded: list[str] = []
    decode = scoring.decode_bytes
    monkeypatch.setattr(scoring, "decode_bytes", lambda data, name: decoded.append(name) or decode(data, name))

    def scored(path: Path, folder: str) -> dict[str, ScoringResult]:
        decoded.clear()
        opened = open_runs(path, "paper")
        return score_runs(opened, images, score_folders(opened, tmp_path / folder, ""))

    together = scored(tmp_path / "e", "together")
    assert sorted(decoded) == sorted(str(image.file) for image in images)
    for name, run in zip(together, runs, strict=True):
        (alone,) = scored(run, f"alone-{name}").values()
        for view in alone.store.views:
            assert np.array_equal(together[name].store.results(view), alone.store.results(view))


def test_numbers_are_weights_of_members(
    predicted: Callable[..., np.ndarray], command: Command, mixed: Path, tmp_path: Path
) -> None:
    made = command(
        "ensemble",
        f"x={tmp_path / 'a'}",
        f"y={tmp_path / 'b'}",
        "--out",
        tmp_path / "w",
        "--weights",
        "3,1",
        "--views",
        "paper",
    )
    assert (made.code, made.err) == (0, "")
    assert [line.split() for line in made.out.splitlines()[:2]] == [
        ["x", "weight", "0.750", "at", "32", "px,", "40", "px"],
        ["y", "weight", "0.250", "at", "32", "px"],
    ]
    note, last = made.out.splitlines()[2:]
    assert note.startswith("note: the probabilities are not calibrated: val has 12 images, and ")
    assert last == f"the ensemble is in {tmp_path / 'w'}"
    assert entries_of(tmp_path / "w") == [("x", "x", 32, 0.375), ("x", "x", 40, 0.375), ("y", "y", 32, 0.25)]
    first, second = (predicted(tmp_path / name, "--views", "paper") for name in "ab")
    np.testing.assert_allclose(predicted(tmp_path / "w"), 0.75 * first + 0.25 * second, atol=1e-6)


def test_member_of_weight_0_is_left_out(runs: tuple[Path, Path], tmp_path: Path) -> None:
    make_ensemble([str(run) for run in runs], tmp_path / "e", weights="0,2")
    assert entries_of(tmp_path / "e") == [("b", "b", 32, 1.0)]
    assert [path.name for path in (tmp_path / "e" / "runs").iterdir()] == ["b"]


def test_member_combines_given_sizes_of_several_runs(
    predicted: Callable[..., np.ndarray], mixed: Path, tmp_path: Path
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    make_ensemble([f"ce={a}:40+{b}:32", f"late={a}:32"], tmp_path / "w", weights="3,1")
    assert entries_of(tmp_path / "w") == [("ce", "a", 40, 0.375), ("ce", "b", 32, 0.375), ("late", "a", 32, 0.25)]
    assert sorted(path.name for path in (tmp_path / "w" / "runs").iterdir()) == ["a", "b"], "a run is copied once"
    views = [(a, "center-40,random-40"), (b, "paper"), (a, "center-32,random-32")]
    means = [predicted(path, "--views", names) for path, names in views]
    np.testing.assert_allclose(predicted(tmp_path / "w"), np.tensordot([0.375, 0.375, 0.25], means, 1), atol=1e-6)


def test_ensemble_can_be_moved_and_needs_no_original_runs(
    predicted: Callable[..., np.ndarray], command: Command, evaluated: Path, digit_images: Path
) -> None:
    before = predicted(evaluated / "e")
    shown = command("scores", "rows", evaluated / "e").out
    (evaluated / "e").rename(evaluated / "moved")
    shutil.rmtree(evaluated / "a")
    shutil.rmtree(evaluated / "b")
    assert np.array_equal(predicted(evaluated / "moved"), before)
    assert command("scores", "rows", evaluated / "moved").out == shown.replace("/e\n", "/moved\n")
    assert command("evaluate", evaluated / "moved", digit_images, "--split", "train").code == 0


def test_symbolic_links_are_resolved(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Weights are often on another disk; the ensemble must not link to it, least of all by a relative path."""
    weights = (runs[0] / "weights.safetensors").read_bytes()
    (runs[0] / "weights.safetensors").rename(tmp_path / "large")
    (runs[0] / "weights.safetensors").symlink_to("../large")
    make_ensemble([str(run) for run in runs], tmp_path / "e")
    shutil.rmtree(runs[0])
    (tmp_path / "large").unlink()
    assert not any(path.is_symlink() for path in (tmp_path / "e").rglob("*"))
    assert (tmp_path / "e" / "runs" / "a" / "weights.safetensors").read_bytes() == weights


def test_members_may_change_afterwards(runs: tuple[Path, Path], digit_images: Path, tmp_path: Path) -> None:
    """Writing to a member does not change the ensemble, nor the other way round."""
    evaluate(runs[0], digit_images, console=quiet())
    make_ensemble([str(run) for run in runs], tmp_path / "e")
    before = files_of(tmp_path / "e"), files_of(runs[0])
    evaluate(runs[0], digit_images, views="paper", console=quiet())
    write_calibrations(runs[0], [])
    assert files_of(tmp_path / "e") == before[0]
    evaluate(tmp_path / "e", digit_images, split="val", console=quiet())
    assert before[1].items() <= files_of(runs[0]).items()


# Ensembles of ensembles


def test_ensemble_of_an_ensemble_weights_it_by_its_sizes(
    predicted: Callable[..., np.ndarray], runs: tuple[Path, Path], trained: list[Path], tmp_path: Path
) -> None:
    make_ensemble([str(run) for run in runs], tmp_path / "e", weights="3,1")
    third = copied(trained[0], tmp_path / "c", 40)
    make_ensemble([f"pair={tmp_path / 'e'}", str(third)], tmp_path / "all")
    assert entries_of(tmp_path / "all") == [("pair", "a", 32, 0.5), ("pair", "b", 32, 1 / 6), ("c", "c", 40, 1 / 3)]
    pair, alone = predicted(tmp_path / "e"), predicted(third, "--views", "paper")
    np.testing.assert_allclose(predicted(tmp_path / "all"), (2 * pair + alone) / 3, atol=1e-6)
    make_ensemble([f"pair={tmp_path / 'e'}", str(third)], tmp_path / "even", weights="1,1")
    assert entries_of(tmp_path / "even") == [("pair", "a", 32, 0.375), ("pair", "b", 32, 0.125), ("c", "c", 40, 0.5)]


def test_ensemble_is_used_as_a_whole(refused: Refused, mixed: Path) -> None:
    assert f"{mixed} is an ensemble and is used as a whole; leave out :32,40" in refused(
        "ensemble", f"{mixed}:32,40", "--out", "new"
    )


# Names of the folders in an ensemble


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("x", "y"), ["x", "y"]),
        (("deep/x", "y"), ["x", "y"]),
        (("deep/x", "other/x"), ["x", "x-2"]),
        (("x-2", "x"), ["x-2", "x"]),
        (("x-2", "deep/x-2"), ["x-2", "x-2-2"]),
        (("..", "y"), ["a", "y"]),
        (("", "y"), ["a", "y"]),
    ],
)
def test_each_run_has_its_own_folder(
    names: tuple[str, str], folders: list[str], runs: tuple[Path, Path], tmp_path: Path
) -> None:
    make_ensemble([f"{name}={run}" for name, run in zip(names, runs, strict=True)], tmp_path / "e")
    entries = read_entries(tmp_path / "e")
    assert [entry.member for entry in entries] == list(names)
    assert [entry.run for entry in entries] == folders
    weights = [(tmp_path / "e" / "runs" / entry.run / "weights.safetensors").read_bytes() for entry in entries]
    assert weights == [(run / "weights.safetensors").read_bytes() for run in runs]
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == [
        "classes.json", "ensemble.json", "run.json", "runs"]  # fmt: skip


def test_folders_of_equal_names_are_numbered(trained: list[Path], tmp_path: Path) -> None:
    """Several runs of one member keep the names of their own folders."""
    parts = [copied(run, tmp_path / folder / "run") for run, folder in zip(trained, "12", strict=True)]
    third = copied(trained[0], tmp_path / "3" / "run-2")
    text = "m=" + "+".join(map(str, [third, *parts]))
    entries = make_ensemble([text], tmp_path / "e")
    assert len({entry.run for entry in entries}) == 3
    weights = [(tmp_path / "e" / "runs" / entry.run / "weights.safetensors").read_bytes() for entry in entries]
    assert weights == [(run / "weights.safetensors").read_bytes() for run in (third, *parts)]


# Weights that are carried over


def test_weights_are_carried_over_by_member_and_size(command: Command, runs: tuple[Path, Path], tmp_path: Path) -> None:
    """For runs of the same recipe with other seeds, or on train + val."""
    change(runs[1] / "recipe.toml", "merge_val = false", "merge_val = true")
    make_ensemble([f"x={runs[0]}", f"y={runs[1]}"], tmp_path / "source", weights="3,1")
    extra = copied(runs[0], tmp_path / "c")
    answer = command(
        *(
            "ensemble",
            f"z={extra}",
            f"y={runs[0]}",
            f"x={runs[1]}",
            "--from",
            tmp_path / "source",
            "--out",
            tmp_path / "e",
        )
    )
    assert answer.code == 0, answer
    assert entries_of(tmp_path / "e") == [("y", "y", 32, 0.25), ("x", "x", 32, 0.75)], "z is not in the source"
    weights = (tmp_path / "e" / "runs" / "x" / "weights.safetensors").read_bytes()
    assert weights == (runs[1] / "weights.safetensors").read_bytes()


def test_weights_are_carried_over_run_by_run(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """A member may have one size of several runs, if it was an ensemble."""
    make_ensemble([str(run) for run in runs], tmp_path / "pair", weights="3,1")
    make_ensemble([f"p={tmp_path / 'pair'}", f"c={runs[0]}"], tmp_path / "source", weights="1,1")
    expected = [("p", "a", 32, 0.375), ("p", "b", 32, 0.125), ("c", "c", 32, 0.5)]
    assert entries_of(tmp_path / "source") == expected
    make_ensemble([str(run) for run in runs], tmp_path / "even")
    make_ensemble([f"p={tmp_path / 'even'}", f"c={runs[1]}"], tmp_path / "e", carried_from=tmp_path / "source")
    assert entries_of(tmp_path / "e") == expected


def test_weights_of_other_recipes_are_not_carried_over(refused: Refused, runs: tuple[Path, Path]) -> None:
    make_ensemble([f"x={runs[0]}", f"y={runs[1]}"], Path("source"))
    members = [f"x={runs[0]}", f"y={runs[1]}"]
    assert "--from a: expected an ensemble" in refused("ensemble", *members, "--out", "new", "--from", "a")
    assert "--from takes the weights of that ensemble; leave out --weights" in refused(
        "ensemble", *members, "--out", "new", "--from", "source", "--weights", "1,1"
    )
    assert "it has y at 32 px, which is missing here; give the members its names" in refused(
        "ensemble", *members[:1], "--out", "new", "--from", "source"
    )
    change(runs[1] / "recipe.toml", "base_lr = 0.5", "base_lr = 0.25")
    line = refused("ensemble", *members, "--out", "new", "--from", "source")
    assert f"{runs[1]} and source/runs/y have different recipes, so nothing can be carried over" in line
    assert "stages.0.optim.base_lr: 0.5 -> 0.25" in line
    assert "seed" not in line


# Weights that are chosen


def test_greedy_weights_are_chosen_on_kept_scores(command: Command, evaluated: Path) -> None:
    a, b, out = evaluated / "a", evaluated / "b", evaluated / "g"
    answer = command(
        "ensemble",
        f"{a}:40",
        f"x={b}",
        f"y={a}:32",
        "--weights",
        "greedy",
        "--split",
        "test",
        "--out",
        out,
        "--views",
        "paper",
    )
    assert answer.code == 0, answer
    scored = {name: open_scored(evaluated / name, "test") for name in "ab"}
    sized = [scored["a"].sized_runs[1], scored["b"].sized_runs[0], scored["a"].sized_runs[0]]
    members = [
        open_scored(evaluated / run.run, "test", [result.view for result in run.results]).members[0] for run in sized
    ]
    weights = greedy_weights(members)
    rows = zip(("a", "x", "y"), ("a", "x", "a"), (40, 32, 32), weights, strict=True)
    expected = [row for row in rows if row[3]]
    assert entries_of(out) == expected


def test_greedy_weights_need_scores_that_were_not_trained_on(
    refused: Refused, evaluated: Path, digit_images: Path
) -> None:
    choose = ["ensemble", "a", "b", "--weights", "greedy", "--views", "paper", "--out", "new"]
    assert "a has no scores of 'train'; it has scores of test, val" in refused(*choose, "--split", "train")
    for name in "ab":
        evaluate(Path(name), digit_images, split="train", console=quiet())
    assert "18 of these 18 images were trained on, so weights cannot be chosen on them" in refused(
        *choose, "--split", "train"
    )
    (evaluated / "a" / "scores" / "val" / "center-40.f32").unlink()
    (evaluated / "a" / "scores" / "val" / "random-40.f32").unlink()
    assert "a has no scores at 40 px on 'val'; make them with: fewsight evaluate a DATA --split val" in refused(*choose)


# What is refused


def test_members_of_other_classes_are_refused(refused: Refused, runs: tuple[Path, Path]) -> None:
    (runs[1] / "classes.json").write_text(json.dumps(["nought", "one", "three"]))
    line = refused("ensemble", "a", "b", "--out", "new")
    lacking = "b and a have different classes (a lacks 'three'; b lacks 'two')"
    assert f"{lacking}; the members of an ensemble need the same classes" in line


def test_member_that_lacks_a_class_is_refused(refused: Refused, runs: tuple[Path, Path]) -> None:
    (runs[1] / "classes.json").write_text(json.dumps(["nought", "one"]))
    assert "(b lacks 'two')" in refused("ensemble", "a", "b", "--out", "new")
    assert "(b lacks 'two')" in refused("ensemble", "b", "a", "--out", "new")


def test_ensemble_whose_runs_changed_is_refused(refused: Refused, mixed: Path, digit_images: Path) -> None:
    (mixed / "runs" / "b" / "weights.safetensors").unlink()
    assert "b has lost its weights.safetensors; restore the file" in refused("evaluate", "e", digit_images)
    shutil.copy("a/weights.safetensors", "e/runs/b/weights.safetensors")
    (mixed / "runs" / "b" / "classes.json").unlink()  # a hard link: the run keeps its own
    (mixed / "runs" / "b" / "classes.json").write_text(json.dumps(["nought", "one"]))
    assert "have different classes" in refused("predict", "e", digit_images)
    shutil.rmtree(mixed / "runs" / "b")
    assert "runs/b does not exist" in refused("predict", "e", digit_images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "a late --out new",
            "late has no weights yet: its training did not finish; finish it with `fewsight train --resume",
        ),
        ("a x=late --out new", "late has no weights yet"),
        ("a nowhere --out new", "nowhere does not exist"),
        ("a x=nowhere:32 --out new", "nowhere does not exist"),
        ("a empty --out new", "empty holds no run.json"),
        ("a a --out new", "two members are called 'a'; name them, for example a-2=RUN"),
        ("x=a x=b --out new", "two members are called 'x'"),
        ("x=a y=a --out new", "a at 32 px is given twice; give it once, and set the members' weights with --weights"),
        ("x=a:32,32 b --out new", "a at 32 px is given twice"),
        ("x=a+link b --out new", "a at 32 px is given twice"),
        ("a:40 b --out new", "a is not tested at 40 px; its test sizes are 32"),
        ("a images/a --out new", "images/a holds no run.json, so it is not a run folder"),
        ("a b --out a", "a already exists (a run); choose another --out, or remove it first. Nothing was changed"),
        ("a b --out empty/..", "already exists"),
        ("a b --out file", "file already exists (a file)"),
        ("a b --out file/e", "cannot write file/e"),
        (
            "a b --weights 1 --out new",
            "--weights 1: expected a finite number of at least 0 for each of the 2 members, not all 0, for example 2,1",
        ),
        ("a b --weights 1,-1 --out new", "--weights 1,-1: expected a finite number"),
        ("a b --weights uniformly --out new", "--weights uniformly: expected a finite number"),
        ("a b --weights greedy --out new", "a has no scores of 'val'; make them with: fewsight evaluate a DATA"),
        ("--out new", "MEMBERS requires an argument"),
        ("a b", "--out requires an argument"),
    ],
)
def test_invalid_ensembles_are_refused(arguments: str, message: str, refused: Refused, runs: tuple[Path, Path]) -> None:
    late = copied(runs[0], Path("late"))
    (late / "weights.safetensors").unlink()
    change(late / "run.json", '"status": "finished"', '"status": "training"')
    Path("empty").mkdir()
    Path("images/a/oak").mkdir(parents=True)
    Path("file").write_text("mine")
    Path("link").symlink_to("a")
    before = files_of(Path())
    assert message in refused("ensemble", *arguments.split())
    assert files_of(Path()) == before


def test_ensemble_is_not_overwritten(refused: Refused, mixed: Path) -> None:
    before = files_of(mixed)
    assert "e already exists (a run); choose another --out" in refused("ensemble", "a", "b", "--out", "e")
    assert files_of(mixed) == before


def test_failed_ensemble_leaves_nothing(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RunError, match="No space left on device"):
        make_ensemble([str(run) for run in runs], tmp_path / "e")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("name", ["images.jsonl", "center-32.f32"])
def test_disk_full_while_scores_are_copied_leaves_nothing(
    name: str, evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, before = shutil.copyfile, {run: files_of(evaluated / run) for run in "ab"}

    def full(source: Path, target: Path) -> object:
        if (source.parent.parent.name, source.name) == ("scores", name):
            raise OSError(28, "No space left on device")
        return copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(RunError, match="No space left on device"):
        make_ensemble([str(evaluated / run) for run in "ab"], evaluated / "new")
    assert not (evaluated / "new").exists()
    assert {run: files_of(evaluated / run) for run in "ab"} == before


def test_disk_full_while_the_temperature_is_written_is_named_and_leaves_nothing(
    evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise WriteError("cannot write calibration.json: No space left on device")

    monkeypatch.setattr("fewsight.scores.calibration.write_calibrations", full)
    with pytest.raises(WriteError, match="No space left on device"):
        make_ensemble([str(evaluated / run) for run in "ab"], evaluated / "new")
    assert not (evaluated / "new").exists()


def test_disk_without_hard_links_gets_copies(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: object, target: object) -> None:
        raise OSError(1, "Operation not permitted")

    make_ensemble([str(run) for run in runs], tmp_path / "linked")
    monkeypatch.setattr(os, "link", no_links)
    make_ensemble([str(run) for run in runs], tmp_path / "copied")
    weights = [tmp_path / name / "runs" / "a" / "weights.safetensors" for name in ("linked", "copied")]
    assert [path.samefile(runs[0] / "weights.safetensors") for path in weights] == [True, False]
    assert weights[0].read_bytes() == weights[1].read_bytes()


# Scores of an ensemble


def test_ensemble_uses_its_own_test_sizes(refused: Refused, command: Command, mixed: Path, digit_images: Path) -> None:
    for words in (("evaluate", "e", digit_images), ("predict", "e", digit_images / "test")):
        line = refused(*words, "--views", "center-48")
        assert "--views center-48: no member of e has this view; they have center-32, random-32, center-40" in line
        line = refused(*words, "--views", "center-40")
        assert "--views center-40: the member b has none of these views; add one of center-32" in line
    answer = command("evaluate", "e", digit_images, "--views", "center")
    assert (answer.code, "(test, center-32, center-40)" in answer.out) == (0, True)
    stores = {run: sorted(file.name for file in Path("e/runs", run, "scores/test").glob("*.f32")) for run in "ab"}
    assert stores == {"a": ["center-32.f32", "center-40.f32"], "b": ["center-32.f32"]}
    assert "scores in e/runs/*/scores/test" in answer.out
    before = Path("e/runs/a/scores/test/center-40.f32").stat().st_mtime_ns
    assert "(test, 4 views)" in command("evaluate", "e", digit_images).out
    assert Path("e/runs/a/scores/test/center-40.f32").stat().st_mtime_ns == before, "stored views are not scored again"
    assert sorted(file.name for file in Path("e/runs/b/scores/test").glob("*.f32")) == [
        "center-32.f32",
        "random-32.f32",
    ]


def test_named_views_are_those_of_members_of_different_sizes(
    predicted: Callable[..., np.ndarray], trained: list[Path], mixed: Path, tmp_path: Path
) -> None:
    """Each member uses those at its own sizes; the weights of sizes that are not named are left out."""
    a, b = copied(trained[0], tmp_path / "c", 40), tmp_path / "b"
    combine([parse_member(text) for text in (f"{a}:40", str(b))], tmp_path / "d", weights="3,1")
    alone = [predicted(path, "--views", view) for path, view in ((a, "center-40"), (b, "center-32"))]
    both = predicted(tmp_path / "d", "--views", "center-40,center-32")
    np.testing.assert_allclose(both, 0.75 * alone[0] + 0.25 * alone[1], atol=1e-6)
    np.testing.assert_allclose(
        load(tmp_path / "d", "center-40,center-32").predict(sorted(tmp_path.glob("none"))).probs, np.empty((0, 3))
    )
    assert predicted(mixed, "--views", "center-32-noflip,random-32").shape == both.shape
    first = predicted(tmp_path / "a", "--views", "center-32")
    np.testing.assert_allclose(predicted(mixed, "--views", "center-32"), (first + alone[1]) / 2, atol=1e-6)


def test_run_that_has_none_of_the_named_views_is_not_used(
    predicted: Callable[..., np.ndarray], command: Command, mixed: Path, digit_images: Path, tmp_path: Path
) -> None:
    """The member has one of them in its other run."""
    a, b, e = tmp_path / "a", tmp_path / "b", tmp_path / "d"
    combine([parse_member(f"ce={a}:40+{b}:32")], e)
    named = ["--views", "center-40"]
    alone = predicted(a, *named)
    np.testing.assert_allclose(predicted(e, *named), alone, atol=1e-9)
    np.testing.assert_allclose(predicted(e, *named, "--scores", tmp_path / "predicted"), alone, atol=1e-9)
    files = sorted((digit_images / "test").rglob("*.png"))
    model = load(e, "center-40")
    np.testing.assert_allclose(model.predict(files).probs, alone, atol=1e-6)
    cuts = [model.cut(files[0].read_bytes(), "a", max_pixels=1000)]
    np.testing.assert_allclose(model.predict_views(cuts).members["ce"], alone[:1], atol=1e-6)
    assert [activation.run for activation in model.activations(cuts[0], 0)] == ["a"]
    of_run = command("evaluate", a, digit_images, *named).out.splitlines()[1:4]
    for options in ([], ["--scores", tmp_path / "kept"]):
        answer = command("evaluate", e, digit_images, *named, *options)
        assert (answer.code, answer.err) == (0, "")
        assert answer.out.splitlines()[1:4] == of_run
    for path in (e, tmp_path / "kept"):
        assert "40 px" in command("scores", "rows", path, *named).out


def test_view_that_was_added_is_one_of_an_ensemble_too(
    predicted: Callable[..., np.ndarray], mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(image: Image, view: View, *_: object) -> np.ndarray:
        return np.array(image.resize((view.px, view.px)))

    monkeypatch.setitem(views.CROPS, "whole", whole)
    first, second = (predicted(mixed.parent / name, "--views", "whole-32") for name in "ab")
    np.testing.assert_allclose(predicted(mixed, "--views", "whole-32"), (first + second) / 2, atol=1e-6)
    with pytest.raises(RecipeError, match=r"--views half-32: no member of .* has this view"):
        open_runs(mixed, "half-32")


def test_weights_that_were_changed_by_hand_still_give_probabilities(
    predicted: Callable[..., np.ndarray], mixed: Path
) -> None:
    before = predicted(mixed)
    file = mixed / "ensemble.json"
    values = json.loads(file.read_text())
    for row in values["rows"]:
        row["weight"] = 0.9
    file.write_text(json.dumps(values))
    np.testing.assert_allclose(predicted(mixed), before, atol=1e-6)


def test_ensemble_is_tested_in_the_first_size_without_scores_that_show_more(
    command: Command, mixed: Path, tmp_path: Path, digit_images: Path
) -> None:
    made = command("ensemble", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "d")
    assert made.code == 0
    assert entries_of(tmp_path / "d") == [("a", "a", 32, 0.5), ("b", "b", 32, 0.5)]
    said = " ".join(made.out.split())
    assert "views: the centre view at the first test size: " in said
    assert "has no scores of 'val'; make them with: fewsight evaluate" in said
    assert "(--views paper uses every size, both crops)" in said
    assert "(test, center-32)" in command("evaluate", tmp_path / "d", digit_images).out
    assert [open_runs(tmp_path / name, None).view_names for name in "de"] == [
        ("center-32",), ("center-32", "random-32", "center-40", "random-40")]  # fmt: skip
    paper = command("ensemble", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "p", "--views", "paper")
    assert paper.code == 0
    assert read_entries(tmp_path / "p") == read_entries(mixed)
    nested = combine([parse_member(str(tmp_path / "d"))], tmp_path / "n")
    assert (nested.views, nested.reason) == ("center", None)


def test_ensemble_of_runs_with_scores_of_val_has_a_temperature(command: Command, evaluated: Path) -> None:
    made = command("ensemble", evaluated / "a", evaluated / "b", "--out", evaluated / "d")
    assert (made.code, made.err) == (0, "")
    assert "views: on val (36 images) every size that does no harm, both crops, has " in " ".join(made.out.split())
    assert read_calibrations(evaluated / "d")
    assert open_runs(evaluated / "d", None).view_names == read_calibrations(evaluated / "d")[-1].views
    assert "\nprobabilities at the temperature " in made.out


def test_ensemble_of_runs_with_scores_of_few_images_has_no_temperature(
    command: Command, runs: tuple[Path, Path], digit_images: Path, tmp_path: Path
) -> None:
    """With one of 12 images it would be sure of every image, the wrong ones too."""
    for run in runs:
        evaluate(run, digit_images, split="val", views="paper", console=quiet())
    made = command("ensemble", *runs, "--out", tmp_path / "d")
    assert (made.code, made.err) == (0, "")
    needed = "a temperature needs at least 30 labelled images that did not train"
    note = f"note: the probabilities are not calibrated: val has 12 images, and {needed}\n"
    assert note in made.out
    assert read_calibrations(tmp_path / "d") == []
    answer = command("predict", tmp_path / "d", digit_images / "test", "--out", tmp_path / "x.csv")
    assert answer.err == note


def test_scores_of_members_are_copied(command: Command, evaluated: Path, digit_images: Path) -> None:
    files = sorted((evaluated / "e" / "runs").rglob("*.f32"))
    assert len(files) == 2 * 6
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    answer = command("evaluate", evaluated / "e", digit_images)
    assert answer.code == 0
    assert "not kept" not in answer.out
    assert [(file.stat().st_mtime_ns, file.read_bytes()) for file in files] == before
    of_run = [(file, evaluated / file.relative_to(evaluated / "e" / "runs")) for file in files]
    assert all(file.read_bytes() == other.read_bytes() for file, other in of_run)


def test_temperatures_of_members_are_copied(runs: tuple[Path, Path], tmp_path: Path) -> None:
    write_calibrations(runs[0], [Calibration(3.0, ("center-32",), "val", 12, (1.0, 1.0), (0.1, 0.1))])
    make_ensemble([str(run) for run in runs], tmp_path / "e")
    assert [read_calibrations(tmp_path / "e" / "runs" / run.name) for run in runs] == [read_calibrations(runs[0]), []]


def test_incomplete_scores_are_not_copied(
    predicted: Callable[..., np.ndarray], runs: tuple[Path, Path], digit_images: Path, tmp_path: Path
) -> None:
    evaluate(runs[0], digit_images, console=quiet())
    os.truncate(runs[0] / "scores" / "test" / "center-32.f32", 100)
    make_ensemble([str(run) for run in runs], tmp_path / "e")
    assert not list((tmp_path / "e").rglob("*.f32"))
    evaluate(tmp_path / "e", digit_images, console=quiet())
    assert (runs[0] / "scores" / "test" / "center-32.f32").stat().st_size == 100


def test_ensemble_is_listed_with_its_runs_and_val_accuracy(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = list_runs(evaluated / "e")
    assert (one.kind, one.status, one.model, one.training) == ("ensemble", "finished", "ensemble of 2 runs", "a, b")
    found = correct_top1([open_scored(evaluated / "e", "val").weights])
    assert one.val is not None
    assert (one.val.value, one.val.total) == (found.mean(), found.size)
    monkeypatch.setattr(listing, "MOST_SCORE_BYTES", 1)
    assert list_runs(evaluated / "e")[0].val is None
    monkeypatch.undo()
    shutil.rmtree(evaluated / "e" / "runs" / "b" / "scores" / "val")
    assert list_runs(evaluated / "e")[0].val is None


def test_stored_scores_of_an_ensemble_give_every_table(command: Command, evaluated: Path) -> None:
    ensemble, run = evaluated / "e", evaluated / "a"
    rows = command("scores", "rows", ensemble)
    assert rows.code == 0
    assert [line.split("  ")[1] for line in rows.out.splitlines()[1:]] == ["a 32 px", "a 40 px", "b 32 px", "fusion"]
    assert rows.out.splitlines()[-1].endswith("on 15 images, 6 views")
    fused = command("scores", "rows", run, evaluated / "b", "--fuse")
    assert "2 runs, uniform over 3 test sizes" in fused.out
    figure = re.compile(r"fusion +(\d.*)")
    assert figure.findall(fused.out) == figure.findall(rows.out), "the ensemble is the uniform fusion of its runs"
    compared = command("scores", "compare", run, ensemble, evaluated / "b")
    assert [line.split(": ")[0] for line in compared.out.splitlines()] == [
        f"{ensemble} against {run}", "note", f"{evaluated / 'b'} against {run}"]  # fmt: skip
    assert "note: the two have different views (4 and 2); --views compares" in compared.out
    assert re.search(r"on 15 images \(.*\), McNemar p = ", compared.out)
    ablated = command("scores", "ablate", ensemble).out
    for part in ("32 px alone", "40 px alone", "center crops alone", "one member", "without a", "without b"):
        assert part in ablated
    assert "flips" not in ablated
    several = command("scores", "ablate", run, evaluated / "b").out
    assert "2 runs, uniform over 3 test sizes" in several
    figures = [re.findall(r"  (\d.*)", text) for text in (several, ablated)]
    assert figures[0] == figures[1]


def test_rows_of_an_ensemble_name_a_member_that_is_better_alone(command: Command, evaluated: Path) -> None:
    for file in (evaluated / "b" / "scores" / "test").glob("*.f32"):
        file.write_bytes(np.tile(np.array([0, -20, -20], "<f4"), 15).tobytes())
    make_ensemble([str(evaluated / name) for name in "ab"], evaluated / "uneven", weights="1,9")
    rows = command("scores", "rows", evaluated / "uneven").out
    assert re.search(r"note: a (at \d+ px )?alone has a higher accuracy", " ".join(rows.split()))
    assert "note" not in command("scores", "rows", evaluated / "a").out


def test_weights_can_be_tried_without_writing_an_ensemble(command: Command, evaluated: Path) -> None:
    answer = command("scores", "rows", evaluated / "a", evaluated / "b", "--weights", "0,1", "--choose-on", "val")
    assert answer.code == 0
    assert "2 runs, weights 0,1\n" in answer.out
    weights = greedy_weights([open_scored(evaluated / name, "val").members[0] for name in "ab"])
    assert f"2 runs, weights {weights[0]:.2f}, {weights[1]:.2f} chosen on val\n" in answer.out
    fusion = next(line for line in answer.out.splitlines() if line.startswith("  fusion"))
    alone = command("scores", "rows", evaluated / "b").out.splitlines()[1]
    assert re.sub(r"^ *\S+ +(px +)?", "", fusion) == re.sub(r"^ *\S+ +(px +)?", "", alone)


def test_ensemble_without_scores_says_how_to_make_them(refused: Refused, mixed: Path) -> None:
    for name in ("rows", "ablate", "calibrate"):
        assert "make them with: fewsight evaluate e DATA" in refused("scores", name, "e")


# Temperatures


def test_stored_temperature_changes_the_confidence(
    predicted: Callable[..., np.ndarray], command: Command, evaluated: Path, digit_images: Path
) -> None:
    ensemble = evaluated / "e"
    (ensemble / "calibration.json").unlink()  # it had one from the start, by the scores of its runs
    before = predicted(ensemble)
    answer = command("scores", "calibrate", ensemble)
    assert answer.code == 0
    found = read_calibrations(ensemble)
    assert [calibration.views for calibration in found] == [
        ("center-32", "center-40"), ("center-32", "center-40", "random-32", "random-40")]  # fmt: skip
    assert f"{ensemble}, 4 views: temperature {found[1].temperature:.3f}, fitted on 36 images of " in answer.out
    after = predicted(ensemble)
    powers = before ** (1 / found[1].temperature)
    np.testing.assert_allclose(after, powers / powers.sum(1, keepdims=True), atol=1e-5)
    assert abs(after - before).max() > 1e-3
    assert np.array_equal(after.argmax(1), before.argmax(1))
    np.testing.assert_allclose(after.sum(1), 1, atol=1e-6)
    said = command("predict", ensemble, digit_images / "test", "--out", evaluated / "x.csv").err
    assert said == (f"probabilities at the temperature {found[1].temperature:.2f} of {ensemble / 'calibration.json'}\n")


def test_stored_temperature_is_valid_for_its_views(
    predicted: Callable[..., np.ndarray], command: Command, runs: tuple[Path, Path], digit_images: Path
) -> None:
    run = runs[0]
    views = {name: predicted(run, "--views", name) for name in ("center", "paper")}
    write_calibrations(run, [Calibration(3.0, ("center-32",), "val", 12, (1.0, 1.0), (0.1, 0.1))])
    after = {name: predicted(run, "--views", name) for name in views}
    assert np.array_equal(after["paper"], views["paper"])
    expected = np.exp(apply_temperature(np.log(views["center"]), 3.0))
    np.testing.assert_allclose(after["center"], expected, atol=1e-5)
    assert np.array_equal(after["center"].argmax(1), views["center"].argmax(1))
    assert "temperature 3.00" in command("predict", run, digit_images / "test", "--out", run / "x.csv").err
    quiet = command("predict", run, digit_images / "test", "--out", run / "x.csv", "--views", "paper")
    assert "has no temperature for these views, so none is applied" in quiet.err
    screen = command("predict", run, digit_images / "test")
    assert (screen.code, screen.err) == (0, "")
    shown = [float(row["prob"]) for row in csv.DictReader(screen.out.splitlines())]
    assert shown == pytest.approx(after["center"].max(1)), "on standard output too"


def test_damaged_temperature_stops_a_prediction(refused: Refused, runs: tuple[Path, Path], digit_images: Path) -> None:
    (runs[0] / "calibration.json").write_text("{")
    assert "cannot read a/calibration.json" in refused("predict", "a", digit_images / "test", "--out", "x.csv")


def test_temperature_is_carried_over_to_the_same_recipe(
    refused: Refused, command: Command, evaluated: Path, digit_images: Path
) -> None:
    assert "a has no temperature; fit one with: fewsight scores calibrate a" in refused(
        "scores", "calibrate", "a", "--from", "a"
    )
    assert command("scores", "calibrate", "b", "--coverage", 0.8).code == 0
    again = copied(evaluated / "b", evaluated / "again")
    (again / "calibration.json").unlink()
    change(again / "recipe.toml", "merge_val = false", "merge_val = true")
    assert command("scores", "calibrate", "again", "--from", "b").code == 0
    assert read_calibrations(again) == read_calibrations(evaluated / "b") != []
    assert all(entry.threshold and "b/scores/val" in entry.fitted_on for entry in read_calibrations(again)), (
        "with the thresholds and the folder of the scores"
    )
    write_calibrations(evaluated / "b", [Calibration(0.05, ("center-32",), "val", 6, (1.0, 0.0), (0.1, 0.1))])
    line = refused("scores", "calibrate", "again", "--from", "b")
    assert "the temperature of b for center-32 is not carried over: this temperature was fitted on 6 images" in line
    said = command("predict", "b", digit_images / "test", "--out", "x.csv").err
    assert "the temperature 0.05 of b/calibration.json; note: this temperature was fitted on 6 images, and" in said
    line = refused("scores", "calibrate", "a", "--from", "b")
    assert "a and b have different recipes, so nothing can be carried over: eval.test_px: [32] -> [32, 40]" in line
    assert "expected an ensemble of the same members and weights as e" in refused(
        "scores", "calibrate", "e", "--from", "b"
    )


# Predictions by way of stored scores


@pytest.fixture
def images(digit_images: Path, tmp_path: Path) -> list[Path]:
    """Some images, of which one is damaged and one does not exist."""
    paths = sorted((digit_images / "test").rglob("*.png"))[:6]
    (tmp_path / "damaged.png").write_text("no image")
    return [*paths[:3], tmp_path / "damaged.png", *paths[3:], tmp_path / "missing.png"]


def test_unreadable_image_has_an_error_and_changes_no_other_row(
    command: Command, mixed: Path, images: Sequence[Path], tmp_path: Path
) -> None:
    answer = command("predict", mixed, *images, "--out", tmp_path / "all.csv")
    assert (answer.code, answer.out) == (1, f"wrote {tmp_path / 'all.csv'}: 8 rows, 2 with an error\n")
    good = [path for path in images if path.parent != tmp_path]
    assert command("predict", mixed, *good, "--out", tmp_path / "good.csv").code == 0
    rows = read_csv(tmp_path / "all.csv")
    assert [row["path"] for row in rows] == [str(path) for path in images]
    assert [bool(row["error"]) for row in rows] == [False] * 3 + [True] + [False] * 3 + [True]
    assert [row["label"] + row["prob"] for row in rows if row["error"]] == ["", ""]
    for row, alone in zip([row for row in rows if not row["error"]], read_csv(tmp_path / "good.csv"), strict=True):
        names = ("path", "label", "label2", "label3")
        assert [row[name] for name in names] == [alone[name] for name in names]
        probs = [[float(values[f"prob{rank}"]) for rank in ("", "2", "3")] for values in (row, alone)]
        assert probs[0] == pytest.approx(probs[1], abs=1e-6)


def test_prediction_of_an_ensemble_puts_nothing_on_a_temporary_disk(
    command: Command, mixed: Path, images: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # fails wherever it is used
    before = set(tmp_path.rglob("*"))
    assert command("predict", mixed, *images, "--out", tmp_path / "new.csv").code == 1, "one image is unreadable"
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "new.csv"}


def test_prediction_of_an_ensemble_continues_from_its_scores(
    command: Command, mixed: Path, images: Sequence[Path], tmp_path: Path
) -> None:
    keeping = ["--scores", tmp_path / "kept"]
    assert command("predict", mixed, *images, "--out", tmp_path / "whole.csv", *keeping).code == 1
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["a", "b", "ensemble.json"]
    before = files_of(tmp_path / "kept")
    assert len([path for path in before if path.suffix == ".f32"]) == 6
    store = tmp_path / "kept" / "b"
    os.truncate(store / "random-32.f32", 4 * 3 * 5 + 7)
    lines = (store / "images.jsonl").read_text().splitlines(keepends=True)
    (store / "images.jsonl").write_text("".join(lines[:6]) + lines[6][:9])
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept" / "a").iterdir()}
    assert command("predict", mixed, *images, "--out", tmp_path / "again.csv", *keeping).code == 1
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "whole.csv").read_text()
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "the other run is not scored again"
    after = files_of(tmp_path / "kept")
    assert after.keys() == before.keys()
    assert all(after[path] == before[path] for path in before if path.suffix != ".f32")
    for path in (path for path in before if path.suffix == ".f32"):
        values = [np.frombuffer(contents[path], "<f4") for contents in (before, after)]
        np.testing.assert_allclose(values[0], values[1], atol=1e-5)
    command("predict", mixed, *images, "--out", tmp_path / "direct.csv")
    assert (tmp_path / "direct.csv").read_text() == (tmp_path / "whole.csv").read_text(), "stored or not"


def test_scores_of_another_ensemble_are_unchanged(
    refused: Refused, command: Command, mixed: Path, digit_images: Path
) -> None:
    images = digit_images / "test" / "one"
    assert command("predict", "e", images, "--out", "x.csv", "--scores", "kept").code == 0
    make_ensemble(["a", "b"], Path("other"), weights="3,1")
    before = files_of(Path())
    line = refused("predict", "other", images, "--out", "y.csv", "--scores", "kept")
    assert "kept holds scores of another ensemble; give --scores another folder, or remove this one" in line
    line = refused("predict", "e", digit_images / "test" / "two", "--out", "y.csv", "--scores", "kept")
    assert "kept/a holds scores of other images; give --scores another folder" in line
    assert files_of(Path()) == before


def test_scores_of_a_run_and_of_an_ensemble_do_not_share_a_folder(
    refused: Refused, command: Command, mixed: Path, digit_images: Path
) -> None:
    images = digit_images / "test" / "one"
    assert command("predict", "a", images, "--out", "x.csv", "--scores", "of_a").code == 0
    assert command("predict", "e", images, "--out", "x.csv", "--scores", "of_e").code == 0
    before = files_of(Path())
    assert "of_a holds scores" in refused("predict", "e", images, "--out", "y.csv", "--scores", "of_a")
    assert "of_e holds scores" in refused("predict", "a", images, "--out", "y.csv", "--scores", "of_e")
    assert files_of(Path()) == before


def test_folder_of_scores_gives_the_tables_of_the_ensemble(
    command: Command, evaluated: Path, digit_images: Path
) -> None:
    answer = command("evaluate", evaluated / "e", digit_images, "--scores", evaluated / "kept")
    assert f"scores in {evaluated / 'kept'}" in answer.out
    of_folder, of_ensemble = (command("scores", "rows", evaluated / name).out for name in ("kept", "e"))
    assert of_folder.splitlines()[1:] == of_ensemble.splitlines()[1:]


def test_folder_of_scores_keeps_the_default_views_of_the_ensemble(
    command: Command, evaluated: Path, digit_images: Path
) -> None:
    make_ensemble([str(evaluated / name) for name in "ab"], evaluated / "c", views="center")
    assert command("evaluate", evaluated / "c", digit_images, "--scores", evaluated / "kept").code == 0
    assert read_views(evaluated / "kept") == read_views(evaluated / "c") == "center"


def test_probability_0_gives_no_warning(
    command: Command, runs: tuple[Path, Path], digit_images: Path, tmp_path: Path
) -> None:
    words = ["predict", runs[0], digit_images / "test" / "one", "--scores", tmp_path / "kept", "--out"]
    assert command(*words, tmp_path / "x.csv").code == 0
    rows = np.tile(np.array([-200, 0, -200], "<f4"), 5)  # e^-200 is 0 in float32
    (tmp_path / "kept" / "center-32.f32").write_bytes(rows.tobytes())
    assert command(*words, tmp_path / "x.csv").code == 0
    found = read_csv(tmp_path / "x.csv")
    assert [(row["label"], float(row["prob"]), float(row["prob2"])) for row in found] == [("one", 1.0, 0.0)] * 5


def test_ensemble_has_no_features(refused: Refused, mixed: Path, digit_images: Path) -> None:
    line = refused("predict", "e", digit_images, "--out", "x.csv", "--features")
    assert "--features: an ensemble has no features of its own; predict with one of its runs" in line


# float16, which commit d22e4e0 could write


def test_scores_in_float16_are_refused_and_unchanged(
    refused: Refused, command: Command, runs: tuple[Path, Path], digit_images: Path
) -> None:
    assert command("evaluate", "a", digit_images).code == 0
    store = runs[0] / "scores" / "test"
    change(store / "store.json", '"dtype": "float32"', '"dtype": "float16"')
    np.fromfile(store / "center-32.f32", "<f4").astype("<f2").tofile(store / "center-32.f16")
    (store / "center-32.f32").unlink()
    before = files_of(runs[0])
    expected = (
        "a/scores/test has scores in float16, which fewsight no longer reads; remove the folder, then repeat the "
        "command that wrote it, without --scores-dtype"
    )
    assert expected in refused("scores", "rows", "a")
    assert expected in refused("evaluate", "a", digit_images, "--scores", "a/scores/test")
    answer = command("evaluate", "a", digit_images)
    assert answer.code == 0
    assert f"scores not kept: {expected}" in answer.out
    assert files_of(runs[0]) == before
    make_ensemble(["a", "b"], Path("e"))
    assert not (Path("e") / "runs" / "a" / "scores").exists()

"""The accuracy benchmark: what a side is charged, which setting of a peer is run, and what the tables say."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.accuracy.__main__ import sides_for
from benchmarks.accuracy.measure import make_plan, run_command
from benchmarks.accuracy.picture import draw, points
from benchmarks.accuracy.sets import SETS, DataSet
from benchmarks.accuracy.sides import Job, all_sides, fewsight
from benchmarks.accuracy.table import at_chosen, chosen, differences, drawn, lines
from PIL import Image


def job(folder: Path, split: str, data_set: DataSet = SETS["cifar10-50-0"]) -> Job:
    return Job(data_set, folder, 0, 60.0, 2, split, folder / "run")


def result(side: str, name: str, correct: Sequence[int], budget: float = 60.0, **more: Any) -> dict[str, Any]:
    """As a result file has it; the images are of class a but for the last, of class b."""
    names = [f"{'ab'[index == len(correct) - 1]}/{index}.png" for index in range(len(correct))]
    values = {"set": name, "side": side, "seed": 0, "budget": budget, "core_seconds": budget, **more}
    nlls = [0.1 if one else 2.0 for one in correct]
    return {**values, "n": len(correct), "count": sum(correct), "names": names, "correct": list(correct), "nlls": nlls}


def test_core_seconds_are_those_of_the_process_and_of_its_children(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], check=True)"
    grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    alone = run_command([sys.executable, "-c", "pass"], {}, tmp_path / "log")
    assert alone < 0.4
    assert 0.4 <= run_command([sys.executable, "-c", grandchild], {}, tmp_path / "log") < 5


def test_the_better_setting_on_val_is_chosen_for_each_set() -> None:
    val = [
        result("resnet18/lr1e-3", "trash", [1, 1, 0, 0]),
        result("resnet18/lr2e-3", "trash", [1, 1, 1, 0]),
        result("ridge/grid", "trash", [1, 1, 1, 1]),
        result("resnet18/lr1e-3", "steel", [1, 0, 0, 0]),
        result("resnet18/lr2e-3", "steel", [0, 0, 0, 0]),
        result("resnet18/lr1e-3", "trash", [1, 1, 1, 1], budget=30.0),  # a smaller budget, which has its own result
        result("fewsight", "trash", [1, 1, 1, 1]),
    ]
    assert list(chosen(val, 60.0, "trash").items()) == [("ridge", "ridge/grid"), ("resnet18", "resnet18/lr2e-3")]
    assert chosen(val, 60.0, "steel") == {"resnet18": "resnet18/lr1e-3"}
    assert chosen(val, 1200.0, "steel") == {"resnet18": "resnet18/lr1e-3"}  # the largest budget that val was run with
    assert chosen(val, 30.0, "trash") == {"resnet18": "resnet18/lr1e-3"}
    assert chosen(val, 60.0, "coffee") == {}


def test_devtest_has_each_peer_at_its_chosen_setting_and_the_best_peer_of_val() -> None:
    val = [result("resnet18/lr1e-3", "trash", [1, 0]), result("resnet18/lr2e-3", "trash", [0, 0])]
    val.append(result("ridge/grid", "trash", [1, 1]))
    devtest = [result(side, "trash", [0, 1]) for side in ("resnet18/lr1e-3", "resnet18/lr2e-3", "ridge/grid", "new")]
    assert [one["side"] for one in at_chosen(devtest, val)] == ["resnet18", "ridge", "best peer of each set", "new"]


def test_devtest_is_refused_until_val_has_both_settings(tmp_path: Path) -> None:
    args = argparse.Namespace(out=tmp_path, split="devtest", budget=60.0, sides="ridge", fewsight=[], fastai="python")
    for side, correct in (("ridge/grid", [1, 0]), ("ridge/whole", [1, 1])):
        with pytest.raises(SystemExit, match=r"no result on val of .*ridge/whole; run --split val first"):
            sides_for(args, "trash")
        (tmp_path / f"{len(side)}-val.json").write_text(json.dumps(result(side, "trash", correct)))
    assert [side.name for side in sides_for(args, "trash")] == ["ridge/whole"]
    args.split = "val"
    assert [side.name for side in sides_for(args, "trash")] == ["ridge/grid", "ridge/whole"]


def test_differences_are_paired_and_classes_weigh_equally_in_balanced_accuracy() -> None:
    both = [result("new", "trash", [1, 1, 1, 0]), result("ridge", "trash", [1, 0, 0, 1])]
    assert differences(both, "ridge", "new", "top1")["trash"][0] == pytest.approx(25.0)
    assert differences(both, "ridge", "new", "balanced")["trash"][0] == pytest.approx(100 * (2 / 3 - 1) / 2)
    assert differences(both, "ridge", "new", "nll")["trash"][0] == pytest.approx(-1.9 / 4)
    with pytest.raises(SystemExit, match="other images"):
        differences([both[0], {**both[1], "names": ["other"]}], "ridge", "new", "top1")


def test_interval_is_that_of_a_mean_of_many_images() -> None:
    rng = np.random.default_rng(1)
    of_image = 100.0 * (rng.random(400) < 0.5)
    draws = drawn(of_image, np.full(400, ""), rng)
    assert draws[0] == of_image.mean()
    assert draws[1:].std() == pytest.approx(of_image.std() / 20, rel=0.05)


def test_tables_and_picture_of_results(tmp_path: Path) -> None:
    results = [
        result(side, name, correct, budget)
        for budget in (60.0, 120.0)
        for name in ("trash", "steel")
        for side, correct in (
            ("new", [1, 1, 1, 1]),
            ("before", [1, 1, 1, 0]),
            ("ridge/grid", [1, 1, 0, 0]),
            ("ridge/whole", [1, 0, 0, 0]),
        )
    ]
    results.append(result("new", "coffee", [1, 0, 0, 0]))  # not of all sides: in no mean over sets
    text = "\n".join(lines(results, results, "new", 60.0))
    assert "| set | new | before | ridge |" in text
    assert "| mean, 2 sets | 100.0 | 75.0 | 50.0 |" in text
    assert "| mean without steel, 1 sets |" in text
    assert "| before | 2 | +25.0 [" in text
    assert "| best peer of each set | 2 | +50.0 [" in text
    assert "| trash | **50.0** | 25.0 | ridge |" in text
    shared, sides = points(results, results)
    assert shared == ["steel", "trash"]
    assert sides["ridge"] == [(60.0, 50.0), (120.0, 50.0)]
    assert draw(results, results, "val", tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as image:
        assert image.format == "PNG"


def test_devtest_of_cifar_trains_on_train_and_val(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "cifar10-50" / "split0" / part / "cat").mkdir(parents=True)
        (tmp_path / "cifar10-50" / "split0" / part / "cat" / "1.png").write_text(part)
    ours, peer = all_sides()["fewsight"], all_sides()["resnet18/lr1e-3"]
    assert "--merge-val" not in ours.commands(job(tmp_path, "val"))[0]
    assert "--merge-val" in ours.commands(job(tmp_path, "devtest"))[0]
    assert peer.commands(job(tmp_path, "val"))[0][3] == str(tmp_path / "cifar10-50" / "split0")
    folder = Path(peer.commands(job(tmp_path, "devtest"))[0][3])
    assert sorted(path.read_text() for path in folder.glob("train/cat/*")) == ["train", "val"]
    assert "--merge-val" not in ours.commands(job(tmp_path, "devtest", SETS["trash"]))[0]


def test_plan_is_the_recipe_of_a_training_that_is_stopped(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys, time\n"
        "run = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "run.mkdir()\n"
        "(run / 'recipe.toml').write_text(sys.argv[sys.argv.index('--hours') + 1])\n"
        "(run / 'run.json').touch()\n"
        "time.sleep(60)\n"
    )
    stub.chmod(0o755)
    one = job(tmp_path, "devtest")
    make_plan(fewsight("before", str(stub)), one, tmp_path / "plans" / one.plan)
    assert float((tmp_path / "plans" / "60s" / "cifar10-50-0-merged.toml").read_text()) == pytest.approx(
        30 / 3600, 1e-3
    )
    assert not one.folder.exists()
    repeated = fewsight("before", plans=str(tmp_path / "plans")).commands(one)[0]
    assert repeated[repeated.index("--recipe") + 1] == str(tmp_path / "plans" / "60s" / "cifar10-50-0-merged.toml")
    stub.write_text(f"#!{sys.executable}\nraise SystemExit(2)\n")
    with pytest.raises(SystemExit, match="ended before it had a plan"):
        make_plan(fewsight("before", str(stub)), one, tmp_path / "plans" / "other.toml")

"""The command line as a user sees it: exit codes, one line for a mistake, nothing left half-made."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import fewsight
from conftest import TINY, Answer, Command

QUICK = ["--recipe", "digits", *(part for value in TINY for part in ("--set", value))]


def in_a_process(*arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "fewsight", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False, **options)  # type: ignore[call-overload,no-any-return]


# Help and start


def test_version_and_help_need_no_torch() -> None:
    code = (
        "import sys, fewsight.cli\n"
        "try: fewsight.cli.main(sys.argv[1].split())\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'sklearn', 'numpy', 'PIL', 'rich.markdown'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for arguments in ["--version", "--help", "train --help", "predict --help", "recipes"]:
        subprocess.run([sys.executable, "-c", code, arguments], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_version_is_the_packages(command: Command) -> None:
    assert command("--version") == Answer(0, f"{fewsight.__version__}\n", "")


def test_python_m_is_the_command() -> None:
    answer = in_a_process("--version")
    assert (answer.returncode, answer.stdout) == (0, f"{fewsight.__version__}\n")


def test_help_is_wrapped_to_the_terminal_not_to_the_source(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    answer = command("scores", "calibrate", "--help")
    assert "few right ones do not make it sure of all), and is stored in the run; it needs" in answer.out
    assert "fewer than 300 images.\n" in re.sub(r" +\n", "\n", answer.out), "paragraphs stay separate"


def test_help_names_every_command(command: Command) -> None:
    answer = command("--help")
    assert answer.code == 0
    assert all(name in answer.out for name in ["demo", "train", "evaluate", "predict", "recipes"])


@pytest.mark.parametrize("name", ["demo", "train", "evaluate", "predict", "recipes"])
def test_help_of_a_command_is_short(name: str, command: Command) -> None:
    answer = command(name, "--help")
    assert answer.code == 0
    assert len(answer.out.splitlines()) < 40
    assert "[default" not in answer.out
    assert "--no-" not in answer.out
    assert "--empty-" not in answer.out


def test_recipes_are_listed_and_printed(command: Command) -> None:
    listed = command("recipes")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()][:2] == ["auto", "digits"]
    assert 'backbone = "resnest14"' in command("recipes", "digits").out
    assert command("recipes", "auto").code == 0


# Views and scores


@pytest.fixture
def scored(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, whose scores may be written."""
    return Path(shutil.copytree(tiny_run, tmp_path / "scored"))


def test_evaluate_stores_every_view_and_reuses_it(command: Command, scored: Path, digit_images: Path) -> None:
    store = scored / "scores" / "test"
    first = command("evaluate", scored, digit_images)
    assert f"scores in {store}" in first.out
    assert [file.name for file in sorted(store.glob("*.f32"))] == ["center-32.f32"]
    before = (store / "center-32.f32").stat().st_mtime_ns
    both = command("evaluate", scored, digit_images, "--views", "paper")
    assert "(test, center-32, random-32)" in both.out
    assert (store / "center-32.f32").stat().st_mtime_ns == before, "stored views are not scored again"
    assert [file.name for file in sorted(store.glob("*.f32"))] == ["center-32.f32", "random-32.f32"]
    rows = command("scores", "rows", scored)
    assert re.search(r"32 px +[0-9.]+ % \[.*\]  on 15 images, 2 views", rows.out)


def test_scores_of_other_images_are_left_alone_and_figures_are_shown_all_the_same(
    command: Command, scored: Path, digit_images: Path, tmp_path: Path
) -> None:
    command("evaluate", scored, digit_images)
    other = Path(shutil.copytree(digit_images / "test", tmp_path / "other" / "test"))
    shutil.copytree(digit_images / "train", tmp_path / "other" / "train")
    (other / "one" / "10.png").unlink()
    before = (scored / "scores" / "test" / "center-32.f32").read_bytes()
    answer = command("evaluate", scored, tmp_path / "other")
    assert answer.code == 0
    assert "14 images" in answer.out
    assert "scores not kept" in answer.out
    assert "holds scores of other images; give --scores another folder, or remove this one" in answer.out
    assert (scored / "scores" / "test" / "center-32.f32").read_bytes() == before
    refused = command("evaluate", scored, tmp_path / "other", "--scores", scored / "scores" / "test")
    assert refused.code == 2


def test_runs_are_compared_image_by_image(command: Command, scored: Path, digit_images: Path, tmp_path: Path) -> None:
    command("evaluate", scored, digit_images)
    again = shutil.copytree(scored, tmp_path / "again")
    answer = command("scores", "compare", scored, again)
    assert answer.code == 0
    assert "+0.0 points [+0.0, +0.0] on 15 images" in answer.out
    assert "not distinguishable on these 15 images; by the view center-32\n" in answer.out
    assert "needs at least two runs" in command("scores", "compare", scored).err
    for name in ("rows", "compare", "ablate"):
        assert f"{scored} is given twice; give each run once" in command("scores", name, scored, scored).err
    assert "it has scores of test (--split)" in command("scores", "rows", scored, "--split", "val").err


def test_scores_of_val_are_used_if_there_are_none_of_test(
    command: Command, scored: Path, digit_images: Path, tmp_path: Path
) -> None:
    command("evaluate", scored, digit_images, "--split", "val", "--views", "report")
    command("evaluate", scored, digit_images, "--split", "train")
    for name in ("rows", "ablate"):
        answer = command("scores", name, scored)
        assert answer.out.startswith("on val: there are no scores of test (--split chooses another)\n")
        assert " on 12 images, 2 views" in answer.out
    shutil.copytree(scored, tmp_path / "unscored", ignore=shutil.ignore_patterns("scores"))
    answer = command("scores", "compare", scored, tmp_path / "unscored")
    assert (answer.code, answer.out) == (2, ""), "the split is said only with its figures"
    command("evaluate", scored, digit_images)
    assert " on 15 images, 1 view" in command("scores", "rows", scored).out


def test_scores_are_analysed_without_torch(command: Command, scored: Path, digit_images: Path) -> None:
    command("evaluate", scored, digit_images)
    call = "import sys; from fewsight.cli import app; app(['scores', 'rows', sys.argv[1]])"
    code = f"{call}\nassert 'torch' not in sys.modules and 'fewsight.scores.queries' in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(scored)], check=True, capture_output=True)


def test_data_is_checked_without_torch(digit_images: Path) -> None:
    call = "import sys; from fewsight.cli import app; app(['check', sys.argv[1]])"
    code = f"{call}\nassert 'torch' not in sys.modules and 'fewsight.apps.check' in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(digit_images)], check=True, capture_output=True)


def test_subset_is_built_without_torch() -> None:
    code = "import sys, fewsight.apps.vipriors.subset; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_images_are_marked(command: Command, scored: Path, digit_images: Path) -> None:
    command("evaluate", scored, digit_images, "--split", "train")
    assert "18 of 18 images were in the training set" in command("scores", "rows", scored, "--split", "train").out


def test_prediction_resumes_from_its_scores(command: Command, scored: Path, digit_images: Path, tmp_path: Path) -> None:
    images = [digit_images / "test" / "one", tmp_path / "missing.png", digit_images / "test" / "two"]
    options = ["--views", "report", "--scores", tmp_path / "kept"]
    assert command("predict", scored, *images, "--out", tmp_path / "whole.csv", *options).code == 1
    for view in ("center-32", "random-32"):
        os.truncate(tmp_path / "kept" / f"{view}.f32", 4 * 3 * 7 + 5)
    lines = (tmp_path / "kept" / "images.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "kept" / "images.jsonl").write_text("".join(lines[:6]))
    assert command("predict", scored, *images, "--out", tmp_path / "again.csv", *options).code == 1
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "whole.csv").read_text()
    direct = ["--views", "report", "--out", tmp_path / "direct.csv"]
    command("predict", scored, *images, *direct)
    rows = [list(csv.DictReader((tmp_path / name).read_text().splitlines())) for name in ("whole.csv", "direct.csv")]
    for kept, streamed in zip(*rows, strict=True):
        assert (kept["label"], kept["error"]) == (streamed["label"], streamed["error"])
        assert kept["error"] or float(kept["prob"]) == pytest.approx(float(streamed["prob"]), rel=1e-5)


def test_scores_of_a_prediction_need_no_features(refused: Callable[..., str], scored: Path, digit_images: Path) -> None:
    assert "give only one of the two" in refused(
        "predict", scored, digit_images, "--out", "new.csv", "--features", "--scores", "kept"
    )


# Mistakes in the arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian data", 'Did you mean "train"'),
        ("nonsense", "report, runs and others (see fewsight --help)"),
        ("train", "train needs DATA and --out RUN, for example"),
        ("train data", "train needs DATA and --out RUN"),
        ("train data more --out new", "too many arguments: more (see fewsight train --help)"),
        ("train data --out new --recpie digits", "Did you mean --recipe?"),
        (
            "train data --out new --epochs 5",
            "--epochs is no option: it is a value of the recipe, --set stages.0.epochs=",
        ),
        (
            "train data --out new --batch=5",
            "a value of the recipe, --set stages.0.batch_size=... or --set stages.0.optim",
        ),
        ("train data --out new --other-machine", "--other-machine is for a run that goes on: fewsight train --resume"),
        ("train data --out new --hours many", 'unable to convert "many" into float'),
        ("train data --out new --hours 0", "--hours 0: expected a number above 0"),
        ("train data --out new --hours=-1", "--hours -1: expected a number above 0"),
        ("train data --out new --hours nan", "--hours nan: expected"),
        ("train data --out new --hours 1 --recipe digits", "--hours is the time budget of `--recipe auto`"),
        ("train data --out new --seeds a,b", "--seeds a,b: expected numbers"),
        ("train data --out new --seeds 1,1", "a seed is given twice"),
        ("train data --out new --seeds=-1", "expected numbers"),
        ("train data --out new --seeds=0,", "expected numbers"),
        ("train data --out new --seeds 99999999999999999999", "below 2^63"),
        ("train data --out new --members 0", "--members 0: expected a whole number from 1 to 32"),
        ("train data --out new --members -1", "--members -1: expected a whole number from 1 to 32"),
        ("train data --out new --members 1.5", "--members 1.5: expected a whole number from 1 to 32"),
        ("train data --out new --members 33", "--members 33: expected a whole number from 1 to 32"),
        ("train data --out new --members abc", "--members abc: expected a whole number from 1 to 32"),
        (
            "train data --out new --recipe digits --set run.members=33",
            "run.members: input should be less",
        ),
        ("train --resume data --members 2", "leave out --members"),
        ("train data --out new --preview 0", "--preview 0: expected at least 1"),
        ("train data --out new --holdout 2 --recipe digits", "data.holdout: input should be less than 1, got 2"),
        ("train data --out new --max-bad 7 --recipe digits", "data.max_bad: input should be less than or equal to 1"),
        ("train data --out new --recipe digit", "did you mean 'digits'?"),
        ("train data --out new --set nonsense", "--set nonsense: expected KEY=VALUE"),
        ("train data --out new --set augment.train_pxx=9", "did you mean 'augment.train_px'?"),
        ("train data --out new --recipe digits --set augment.train_px=big", "valid integer, got 'big'"),
        ("train data --out new --recipe digits --set model.backbone=resnst14", "did you mean 'resnest14'?"),
        ("train data --out new --recipe digits --set stages.0.loss=cee", "did you mean 'ce'?"),
        ("train data --out new --recipe digits --set stages.0.loss=ce+triplt", "did you mean 'triplet'?"),
        (
            "train data --out new --recipe digits --set stages.0.loss=triplet",
            "does not train the linear head, which predicts; use 'ce+triplet'",
        ),
        (
            "train data --out new --recipe digits --set stages.0.losses.triplet.margin=wide",
            "stages.0.losses.triplet.margin",
        ),
        (
            "train data --out new --recipe digits --set stages.0.losses.arcface.margin=0.3",
            "'stages.0.losses.arcface.margin_rad'?",
        ),
        ("train data --out new --recipe digits --set run.on_collapse=stopp", "'stop' or 'continue', got 'stopp'"),
        ("train data --out new --recipe digits --init-from nowhere", "nowhere does not exist"),
        ("train data --out new --recipe digits --init-from data", "data holds no run.json"),
        ("train --resume data --init-from data", "leave out --init-from"),
        ("train data --out new --recipe digits --set run.device=cuda:77", "'cuda:77' is not available"),
        ("train data --out new --recipe digits --set run.threads=9999", "lower one of them"),
        ("train data --out new --recipe digits --set data.balance=wieghts", "'weights' or 'sampling', got 'wieghts'"),
        ("train --resume data --out new", "leave out --out"),
        ("train data --resume data", "data holds no run.json, so it is not a run folder"),
        ("train data --resume data --set run.seed=1", "continues with the run's own recipe and data; leave out --set"),
        ("train --resume data --hours 1 --merge-val", "leave out --hours, --merge-val"),
        ("train --resume data", "data holds no run.json, so it is not a run folder"),
        ("train --resume new", "new does not exist"),
        ("evaluate", "RUN requires an argument (see fewsight evaluate --help)"),
        ("evaluate data", "data holds no run.json"),
        ("evaluate data data", "data holds no run.json"),
        ("evaluate new data", "new does not exist"),
        ("predict data", "IMAGES requires an argument"),
        ("predict data data", "data holds no run.json"),
        ("predict data data --topk 3", "Did you mean --top-k?"),
        ("scores rows", "RUNS requires an argument"),
        ("scores rows data", "data holds no run.json and no scores, so it is neither a run nor a folder of scores"),
        ("scores rows nowhere", "nowhere does not exist; expected a run that was evaluated"),
        ("report nowhere --out page.html", "nowhere does not exist; expected a run that was evaluated"),
        ("predict data data --top-k 0", "--top-k 0: expected at least 1"),
        ("predict data data --out x.txt", ".csv, .jsonl, .parquet"),
        ("predict data data --out nowhere/x.csv", "the folder nowhere does not exist; create it first"),
        ("predict data data --out data", "expected the name of a file"),
        ("recipes digit", "did you mean 'digits'?"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: str, message: str, refused: Callable[..., str], digit_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to(digit_images)
    assert message in refused(*arguments.split())


def test_wrong_type_in_a_recipe_file_is_refused(refused: Callable[..., str], digit_images: Path) -> None:
    Path("bad.toml").write_text("[model]\nbackbone = 3\n")
    line = refused("train", digit_images, "--out", "new", "--recipe", "bad.toml")
    assert "recipe bad.toml: model.backbone: input should be a valid string, got 3" in line


# Data that cannot be used


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def no_images(data: Path) -> str:
    shutil.rmtree(data)
    data.mkdir()
    return "this folder is empty; expected class folders"


def one_class(data: Path) -> str:
    for split in data.iterdir():
        shutil.rmtree(split / "one")
        shutil.rmtree(split / "two")
    return "only one class to train on (nought); at least 2"


def single_image(data: Path) -> str:
    for image in sorted((data / "train/two").iterdir())[1:]:
        image.unlink()
    return "1 class has one image to train on (two)"


def other_case(data: Path) -> str:
    shutil.copytree(data / "train/one", data / "train/One")
    return "class names 'One' and 'one' differ only by case"


def unknown_in_val(data: Path) -> str:
    shutil.copytree(data / "val/one", data / "val/zebra")
    return "val holds classes that train lacks (zebra)"


def missing_file(data: Path) -> str:
    (data.parent / "data.csv").write_text("path,label\ndata/train/one/gone.png,a\n")
    return "1 of 1 files do not exist (data/train/one/gone.png)"


def missing_column(data: Path) -> str:
    (data.parent / "data.csv").write_text("file,label\nx.png,a\n")
    return "no column 'path'; found file, label"


def no_val_to_merge(data: Path) -> str:
    shutil.rmtree(data / "val")
    return "there is no val split to merge"


@pytest.mark.parametrize(
    "spoil",
    [no_images, one_class, single_image, other_case, unknown_in_val, missing_file, missing_column, no_val_to_merge],
)
def test_data_that_cannot_be_used_is_refused(
    spoil: Callable[[Path], str], refused: Callable[..., str], digit_images: Path, tmp_path: Path
) -> None:
    data = copied(digit_images, tmp_path / "data")
    message = spoil(data)
    manifest = tmp_path / "data.csv"
    merge = ["--merge-val"] if spoil is no_val_to_merge else []
    line = refused("train", manifest if manifest.exists() else data, "--out", "new", *merge, *QUICK)
    assert message in line


def test_missing_data_is_refused(refused: Callable[..., str]) -> None:
    assert "nowhere: no such file or folder (looked in " in refused("train", "nowhere", "--out", "new", *QUICK)
    assert "File name too long" in refused("train", "x" * 5000, "--out", "new", *QUICK)


def test_too_many_unreadable_images_are_listed(command: Command, digit_images: Path, tmp_path: Path) -> None:
    data = copied(digit_images, tmp_path / "data")
    for name in ["a.png", "b\n\x1b[31m.png"]:
        (data / "train/one" / name).write_text("no image")
    answer = command("train", data, "--out", tmp_path / "new", *QUICK)
    assert answer.code == 2
    head, *listed = answer.err.splitlines()
    assert head.endswith("2 of 32 images cannot be read, more than --max-bad 0.01 allows; fix or remove them, "
                         "or raise --max-bad:")  # fmt: skip
    assert [line.split(": ")[0] for line in listed] == ["  train/one/a.png", r"  train/one/b\n\u001b[31m.png"]
    assert not (tmp_path / "new").exists()


def test_control_characters_do_not_reach_the_terminal(refused: Callable[..., str]) -> None:
    assert r"no\n\u001b[31mrun does not exist" in refused("evaluate", "no\n\x1b[31mrun", "data")


# The run folder


def test_existing_run_is_not_overwritten(refused: Callable[..., str], digit_images: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "run")
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    for more in [[], ["--seeds", "0,1"]]:
        line = refused("train", digit_images, "--out", "run", *QUICK, *more)
        assert "run already exists (a run); choose another --out, or continue it with" in line
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before


def test_existing_path_is_refused(refused: Callable[..., str], digit_images: Path) -> None:
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("folder/notes.txt").write_text("mine")
    assert "file already exists (a file)" in refused("train", digit_images, "--out", "file", *QUICK)
    assert "folder already exists (not empty)" in refused("train", digit_images, "--out", "folder", *QUICK)
    assert "file is a file, not a folder" in refused("train", digit_images, "--out", "file/run", *QUICK)


def test_full_disk_leaves_no_half_made_run(
    command: Command, digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "images.jsonl" in path.name:
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    answer = command("train", digit_images, "--out", tmp_path / "new", *QUICK)
    assert answer.code == 2
    assert "No space left on device" in answer.err
    assert not (tmp_path / "new").exists()


def test_finished_run_has_nothing_to_continue(command: Command, tiny_run: Path) -> None:
    answer = command("train", "--resume", tiny_run)
    assert answer.code == 0
    assert "is finished; there is nothing to continue" in answer.out
    assert "val top-1" in answer.out


def test_unfinished_run_says_how_to_finish(refused: Callable[..., str], digit_images: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, "run")
    Path("run/weights.safetensors").unlink()
    info = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(info | {"status": "training"}))
    assert "fewsight train --resume run" in refused("evaluate", "run", digit_images)
    assert "run has no scores yet: its training did not finish; finish it with" in refused("scores", "rows", "run")


# train


def test_train_prints_plain_lines_and_the_next_command(command: Command, digit_images: Path, tmp_path: Path) -> None:
    answer = command("train", digit_images, "--out", tmp_path / "a/b/run", *QUICK)
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[0] == "3 classes; images: 18 train, 12 val"
    assert lines[-2:] == [
        f"the run is in {tmp_path / 'a/b/run'}",
        f"next: fewsight evaluate {tmp_path / 'a/b/run'} {digit_images}",
    ]
    assert any(line.startswith("epoch 2 of 2 · train loss ") for line in lines)
    assert any(line.startswith("val top-1 ") and line.endswith(" on 12 images") for line in lines)
    assert all(char.isprintable() or char == "\n" for char in answer.out)


def test_data_without_val_is_said_and_its_test_is_next(command: Command, digit_images: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for split in ("train", "test"):
        shutil.copytree(digit_images / split, data / split)
    answer = command("train", data, "--out", run, *QUICK)
    assert (answer.code, answer.err) == (0, "")
    assert "note: there is no val split, so accuracy is not measured while training" in answer.out
    assert f"or train on {data / 'train'} alone, of which a part is then held out (--holdout)" in answer.out
    assert answer.out.splitlines()[-1] == f"next: fewsight evaluate {run} {data}"
    assert "(test, " in command("evaluate", run, data).out
    answer = command("train", data / "train", "--out", tmp_path / "part", *QUICK)
    assert answer.out.startswith("3 classes; images: 15 train, 3 val\n"), "the advice can be followed"
    assert "no val split" not in answer.out


def test_seeds_share_a_plan_and_give_mean_and_deviation(command: Command, digit_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    answer = command("train", digit_images, "--out", out, "--seeds", "3,1", *QUICK, "--set", "stages.0.epochs=1")
    assert answer.code == 0
    assert "val top-1 over 2 seeds: " in answer.out.splitlines()[-1]
    assert "(mean ± standard deviation)" in answer.out.splitlines()[-1]
    assert sorted(path.name for path in out.iterdir()) == ["seed1", "seed3"]
    recipes = [(out / name / "recipe.toml").read_text() for name in ("seed3", "seed1")]
    assert recipes[0].replace("seed = 3", "seed = 1") == recipes[1]


@pytest.mark.parametrize(
    "more", [["--merge-val"], ["--set", "data.balance=weights"], ["--set", "data.balance=sampling"]]
)
def test_train_takes_merged_and_balanced_data(
    more: list[str], command: Command, digit_images: Path, tmp_path: Path
) -> None:
    answer = command("train", digit_images, "--out", tmp_path / "run", *QUICK, *more, "--set", "stages.0.epochs=1")
    assert answer.code == 0
    assert answer.out.startswith("3 classes; images: 30 train\n" if "--merge-val" in more else "3 classes; images: 18 ")
    assert ("val top-1" in answer.out) == ("--merge-val" not in more)


def test_holdout_takes_val_from_plain_folders(command: Command, digit_images: Path, tmp_path: Path) -> None:
    more = ["--holdout", "0.5", "--set", "stages.0.epochs=1"]
    answer = command("train", digit_images / "train", "--out", tmp_path / "run", *QUICK, *more)
    assert answer.out.startswith("3 classes; images: 9 train, 9 val\n")


def test_preview_trains_nothing_and_does_not_block_training(
    command: Command, digit_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    answer = command("train", digit_images, "--out", out, "--preview", 2, *QUICK)
    assert answer.code == 0
    assert answer.out.splitlines()[-1].endswith("2 batches of 18 images as the model will see them")
    assert [path.name for path in out.iterdir()] == ["preview.png"]
    assert command("train", digit_images, "--out", out, *QUICK, "--set", "stages.0.epochs=1").code == 0


def test_few_unreadable_images_are_named_and_left_out(command: Command, digit_images: Path, tmp_path: Path) -> None:
    data = copied(digit_images, tmp_path / "data")
    (data / "train/one/bad.png").write_text("no image")
    more = ["--max-bad", "0.1", "--set", "stages.0.epochs=1"]
    answer = command("train", data, "--out", tmp_path / "run", *QUICK, *more)
    assert answer.code == 0
    assert "left out: train/one/bad.png: " in answer.out


# evaluate


def test_evaluate_shows_figures_and_writes_them(
    command: Command, tiny_run: Path, digit_images: Path, tmp_path: Path
) -> None:
    answer = command("evaluate", tiny_run, digit_images, "--json", tmp_path / "figures.json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines()[0] == f"{tiny_run} on {digit_images} (test, center-32) · 15 images"
    assert "top-1 " in answer.out
    assert "top-3" not in answer.out, "of three classes"
    assert "trained on" not in answer.out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["split"], figures["num_images"], figures["top_k"], figures["top1"]["total"]) == ("test", 15, 3, 15)
    assert [row["name"] for row in figures["classes"]] == ["nought", "one", "two"]


def test_evaluate_names_a_split_that_it_does_not_test(
    command: Command, tiny_run: Path, digit_images: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(digit_images, tmp_path / "data"))
    assert "has labels too" not in command("evaluate", tiny_run, data).out
    (data / "test").rename(data / "devtest")
    line = f"note: val is tested, since there is no test; devtest has labels too: fewsight evaluate {tiny_run} {data}"
    assert f"{line} --split devtest\n" in command("evaluate", tiny_run, data).out
    assert "has labels too" not in command("evaluate", tiny_run, data, "--split", "val").out
    assert "(devtest, " in command("evaluate", tiny_run, data, "--split", "devtest").out


def test_evaluate_announces_training_images(command: Command, tiny_run: Path, digit_images: Path) -> None:
    answer = command("evaluate", tiny_run, digit_images, "--split", "train")
    assert answer.code == 0
    assert answer.out.startswith("18 of 18 images were in the training set: these figures are optimistic\n")


def test_evaluate_leaves_out_copies_of_training_images_by_default(
    command: Command, tiny_run: Path, digit_images: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        shutil.copytree(digit_images / split, tmp_path / "copy", dirs_exist_ok=True)
    answer = command("evaluate", tiny_run, tmp_path / "copy")
    assert answer.out.startswith(
        "left out: 18 of 30 images, because they were in the training set; --split all tests them too\n"
    )
    assert f"{tiny_run} on {tmp_path / 'copy'} (val, center-32) · 12 images" in answer.out
    assert "optimistic" not in answer.out
    whole = command("evaluate", tiny_run, tmp_path / "copy", "--split", "all")
    assert whole.out.startswith("18 of 30 images were in the training set: these figures are optimistic\n")
    (tmp_path / "copy" / "one" / "broken.png").write_text("no image")
    assert "(val, center-32) · 12 of 13 images" in command("evaluate", tiny_run, tmp_path / "copy").out
    shutil.copytree(digit_images / "test", tmp_path / "copy", dirs_exist_ok=True)
    assert "(unseen, center-32) · 27 of 28 images" in command("evaluate", tiny_run, tmp_path / "copy").out
    assert "18 of 18 images were in the training set" in command("evaluate", tiny_run, digit_images / "train").out


def test_evaluate_counts_the_unreadable(command: Command, tiny_run: Path, digit_images: Path, tmp_path: Path) -> None:
    data = copied(digit_images, tmp_path / "data")
    next((data / "test/one").iterdir()).write_text("no image")
    answer = command("evaluate", tiny_run, data)
    assert answer.code == 1
    assert "14 of 15 images (1 unreadable)" in answer.out
    assert f"unreadable: {data / 'test/one'}" in answer.out


def test_evaluate_refuses_what_it_cannot_test(
    refused: Callable[..., str], tiny_run: Path, digit_images: Path, tmp_path: Path
) -> None:
    assert "no split 'tset'; splits with labels: test, train, val" in refused(
        "evaluate", tiny_run, digit_images, "--split", "tset"
    )
    data = copied(digit_images, tmp_path / "data")
    (data / "test/one").rename(data / "test/zebra")
    assert "classes that the run was not trained on (zebra); the run has 3" in refused("evaluate", tiny_run, data)
    assert "--json data: this is a folder" in refused("evaluate", tiny_run, data, "--json", "data")


def test_evaluate_refuses_a_split_without_labels(command: Command, tiny_run: Path, fewsight_data: Path) -> None:
    answer = command("evaluate", tiny_run, fewsight_data / "tiny-imagenet-50", "--split", "test")
    assert answer.code == 2
    assert "test has no labels, so it can be predicted but not evaluated" in answer.err


# predict


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_predict_gives_a_row_for_each_input_in_order(
    command: Command, tiny_run: Path, digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied(digit_images, tmp_path / "data"))
    Path("notes.txt").write_text("no image")
    answer = command(
        "predict", tiny_run, "test/two/12.png", "gone.png", "val/one", "notes.txt", "val/two/*.png", "none*"
    )
    assert (answer.code, answer.err) == (1, "")
    table = read_csv(answer.out)
    assert [row["path"] for row in table] == ["test/two/12.png", "gone.png",
        *(f"val/one/{number:02d}.png" for number in range(6, 10)), "notes.txt",
        *(f"val/two/{number:02d}.png" for number in range(6, 10)), "none*"]  # fmt: skip
    assert [row["path"] for row in table if row["error"]] == ["gone.png", "notes.txt", "none*"]
    assert all(bool(row["label3"]) != bool(row["error"]) for row in table)


def test_predict_counts_skipped_files_and_fails_if_nothing_was_predicted(
    command: Command, tiny_run: Path, digit_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(digit_images / "test" / "one", tmp_path / "new")
    for name in ("notes.txt", "more.csv"):
        (tmp_path / "new" / name).write_text("text")
    answer = command("predict", tiny_run, tmp_path / "new", "--out", tmp_path / "new.csv")
    assert answer.code == 0
    assert "skipped 2 files in the folders: not images by their names\n" in answer.err
    for image in (tmp_path / "new").glob("*.png"):
        image.unlink()
    answer = command("predict", tiny_run, tmp_path / "new", "--out", tmp_path / "new.csv")
    reason = f"nothing to predict: {tmp_path / 'new'}: no image in this folder"
    assert answer == Answer(2, "", f"skipped 2 files in the folders: not images by their names\nfewsight: {reason}\n")
    answer = command("predict", tiny_run, "no*.png", "nor-this.png", "--out", tmp_path / "other.csv")
    assert answer.err == ("fewsight: nothing to predict: no*.png: no file matches this pattern (and so on: 2 inputs)\n")
    assert not (tmp_path / "other.csv").exists()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_predict_writes_a_file(
    suffix: str, command: Command, tiny_run: Path, digit_images: Path, tmp_path: Path
) -> None:
    target = tmp_path / f"rows.{suffix}"
    answer = command("predict", tiny_run, digit_images / "test", "--out", target, "--top-k", 1)
    assert (answer.code, answer.out) == (0, f"wrote {target}: 15 rows\n")
    assert answer.err.startswith(
        "note: the probabilities are not calibrated: val has 12 images, and a temperature needs "
    )
    assert answer.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [target]
    assert len(target.read_text().splitlines()) == 15 + (suffix == "csv")


def test_features_are_written_beside_the_predictions(
    command: Command, tiny_run: Path, digit_images: Path, tmp_path: Path
) -> None:
    images = [digit_images / "test" / "one", tmp_path / "missing.png", digit_images / "test" / "two" / "10.png"]
    answer = command("predict", tiny_run, *images, "--out", tmp_path / "new.csv", "--features")
    assert answer.code == 1
    assert f"unreadable: {tmp_path / 'missing.png'}: cannot be read (No such file or directory)\n" in answer.err
    assert f"wrote {tmp_path / 'new.features.npy'}" in answer.out
    features = np.load(tmp_path / "new.features.npy", allow_pickle=False)
    rows = list(csv.DictReader((tmp_path / "new.csv").read_text(encoding="utf-8").splitlines()))
    head = load_file(tiny_run / "weights.safetensors")
    assert features.dtype == np.float32
    assert features.shape == (len(rows), head["head.weight"].shape[1])
    assert [bool(row["error"]) for row in rows] == np.isnan(features).all(axis=1).tolist()
    logits = features @ head["head.weight"].T + head["head.bias"]  # the digits recipe flips nothing
    names = json.loads((tiny_run / "classes.json").read_text())
    assert all(row["error"] or names[scores.argmax()] == row["label"] for row, scores in zip(rows, logits, strict=True))


def test_features_need_a_file(refused: Callable[..., str], tiny_run: Path, digit_images: Path) -> None:
    assert "--features writes a file beside the predictions, so it needs --out" in refused(
        "predict", tiny_run, digit_images, "--features"
    )


def test_prediction_does_not_depend_on_the_others(command: Command, tiny_run: Path, digit_images: Path) -> None:
    together = read_csv(command("predict", tiny_run, digit_images / "test").out)
    for row in together[::5]:
        (alone,) = read_csv(command("predict", tiny_run, row["path"]).out)
        assert alone["label"] == row["label"]
        assert float(alone["prob"]) == pytest.approx(float(row["prob"]), abs=1e-5)


def test_probabilities_fall_and_sum_to_one(command: Command, tiny_run: Path, digit_images: Path) -> None:
    table = read_csv(command("predict", tiny_run, digit_images / "test", "--top-k", 99).out)
    probs = np.array([[float(row[f"prob{suffix}"]) for suffix in ("", "2", "3")] for row in table])
    assert (np.diff(probs) <= 0).all()
    assert probs.sum(1) == pytest.approx(1, abs=1e-5)


# Signals and streams


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "ended"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_signal_before_training_ends_cleanly(number: int, ended: str, digit_images: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "fewsight", "train", digit_images, "--out", tmp_path / "run", *QUICK]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while maps.exists() and process.poll() is None and "libtorch" not in maps.read_text():
        time.sleep(0.01)  # until torch is imported
    time.sleep(0.1 if maps.exists() else 0.7)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert err == f"fewsight: {ended}; everything saved before is kept\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        line = [sys.executable, "-m", "fewsight", "recipes"]
        answer = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (answer.returncode, answer.stderr) == (2, "fewsight: No space left on device\n")


def test_terminal_that_is_not_utf8_gets_escapes() -> None:
    answer = in_a_process("recipes", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert answer.returncode == 0, answer.stderr


def test_plain_mistakes_are_answered_before_torch_is_loaded(tmp_path: Path, tiny_run: Path) -> None:
    """Loading torch takes seconds."""
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    lines = [
        "train nowhere --out new", "train data --out new --hours 0", "train data --out taken",
        "train data --out new --recipe digts", "train data --out new --set batch=5", "train --resume nowhere",
        "train data --out new --init-from nowhere", f"evaluate {tiny_run} nowhere", "evaluate nowhere data",
        "predict nowhere a.png", "report nowhere --out page.html", "check nowhere", "runs nowhere",
        "reproduce nowhere --out new", f"ensemble {tiny_run} x=nowhere:32 --out new",
        "serve nowhere", "export nowhere --out m.onnx", "scores rows nowhere",
    ]  # fmt: skip
    code = (
        "import sys; from fewsight.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    try: main(line.split())\n"
        "    except SystemExit as ended: assert ended.code == 2, line\n"
        "    assert 'torch' not in sys.modules, line\n"
        f"main(['runs', {str(tiny_run.parent)!r}])"
    )
    line = [sys.executable, "-c", code + "\n", *lines]
    answer = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count("\n") == len(lines), answer.stderr
    assert tiny_run.name in answer.stdout
    assert not (tmp_path / "new").exists()

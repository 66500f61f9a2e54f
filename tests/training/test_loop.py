"""`fit`: the smallest data, and runs that are stopped or killed at any moment and resumed to the same bits."""

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Mapping
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fewsight import losses, runs
from fewsight.cli.show import show_run
from fewsight.errors import DataError, Interrupted, RecipeError, RunError
from fewsight.machine import signals
from fewsight.models import classifier
from fewsight.models.classifier import Classifier, build_model, initial_model, weights_out
from fewsight.recipes import parse_recipe, recipe_toml
from fewsight.runs import Run
from fewsight.terminal import make_console
from fewsight.training import finish, loop, state
from fewsight.training.loop import fit
from fewsight.training.session import resume
from trainings import (
    SETTINGS,
    STAGE,
    VALUES,
    Death,
    DieAfter,
    Quiet,
    assert_finished_alike,
    begin,
    command,
    finished,
    killed,
    log_lines,
    outcome,
    wait_for_log,
)

CONTAINED = ("plain", "ce, then all losses on classes")  # in the others, nearly


class SignalAfter(Quiet):
    """Sends the process a signal in a step, counted from where the run continues."""

    def __init__(self, number: int = signal.SIGINT, steps: int = 1) -> None:
        self.number, self.steps = number, steps

    def step(self, line: Mapping[str, Any], done_steps: int) -> None:
        if done_steps == self.done_steps + self.steps:
            signal.raise_signal(self.number)


def again(path: Path) -> Run:
    """As `fewsight train --resume`."""
    return resume(path, console=make_console(StringIO()))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Uninterrupted runs by setting, made on first use."""
    return {}


def uninterrupted(whole: dict[str, Path], images: Path, name: str, factory: pytest.TempPathFactory) -> Path:
    if name not in whole:
        whole[name] = factory.mktemp("whole") / "run"
        fit(*begin(images, whole[name], SETTINGS[name]), Quiet())
    return whole[name]


@pytest.mark.parametrize("counts", [(2, 2), (2, 3), (3, 2, 2)])
def test_fit_runs_from_two_classes_of_two_images(tmp_path: Path, counts: tuple[int, ...]) -> None:
    for number, count in enumerate(counts):
        (tmp_path / "images" / f"class{number}").mkdir(parents=True)
        for image in range(count):
            Image.new("RGB", (20, 20), (80 * number, 30 * image, 9)).save(
                tmp_path / f"images/class{number}/{image}.png"
            )
    run = fit(*begin(tmp_path / "images", tmp_path / "run"), Quiet())
    assert run.finished
    assert runs.read_weights(run)
    assert [line["kind"] for line in log_lines(run.path)].count("epoch") == 2


def test_fit_learns(class_images: Path, tmp_path: Path) -> None:
    run, images = begin(class_images, tmp_path / "run", {"augment": {"train_px": 16, "policy": "none"}},
                        "stages.0.epochs=12", "augment.cutmix_prob=0.0", "eval.every_epochs=0")  # fmt: skip
    fit(run, images, Quiet())
    losses = [line["train_loss"] for line in log_lines(run.path) if line["kind"] == "epoch"]
    assert losses[-1] < 0.8 * losses[0]
    assert json.loads((run.path / "metrics.json").read_text())["val"]["top1"]["count"] >= 4


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in CONTAINED else ()) for name in SETTINGS]
)
def test_run_stopped_after_every_step_equals_the_uninterrupted(
    class_images: Path, tmp_path: Path, name: str, whole: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = uninterrupted(whole, class_images, name, tmp_path_factory)
    run, images = begin(class_images, tmp_path / "run", SETTINGS[name])
    stops = 0
    while True:
        number = (signal.SIGINT, signal.SIGTERM)[stops % 2]
        reporter = SignalAfter(number)
        try:
            run = fit(runs.read_run(run.path), images, reporter)
        except Interrupted as error:
            stopped = error
            stops += 1
        else:
            break
        assert stopped.signal_number == number
        assert f"fewsight train --resume {run.path}" in str(stopped)
    assert stops == reporter.total_steps >= 8, "stopped once after every step"
    assert_finished_alike(run.path, expected)


@pytest.mark.parametrize(
    "name", ["average, best, accumulated", "two stages, averages, weights", "ce, then all losses on classes"]
)
@pytest.mark.parametrize("state_minutes", [5.0, pytest.param(1e-9, marks=pytest.mark.slow)])
def test_run_that_died_in_any_step_equals_the_uninterrupted(
    class_images: Path,
    tmp_path: Path,
    name: str,
    state_minutes: float,
    whole: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Steps after the last state are run again, and are in the log once."""
    expected = uninterrupted(whole, class_images, name, tmp_path_factory)
    run, images = begin(class_images, tmp_path / "run", SETTINGS[name], f"run.state_minutes={state_minutes}")
    for step in (2, 3, 5, 7):
        with pytest.raises(Death):
            fit(runs.read_run(run.path), images, DieAfter(step))
        with (run.path / "log.jsonl").open("a") as log:
            log.write('{"kind": "st')
    again(run.path)
    assert_finished_alike(run.path, expected)


def test_run_that_died_at_any_write_equals_the_uninterrupted(
    class_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Before each file is renamed to its final name: best weights, run.json, tensors, state.json, metrics."""
    name = "average, best, accumulated"
    expected = uninterrupted(whole, class_images, name, tmp_path_factory)
    run, images = begin(class_images, tmp_path / "run", SETTINGS[name], "run.state_minutes=1e-9")
    original = Path.replace
    died: set[tuple[str, bytes]] = set()

    def replace(part: Path, target: Path) -> Path:
        content = part.read_bytes().partition(b'"finished":')[0]
        if (
            target.name == "state.json"
        ):  # the rest has the length of the log, which varies with the digits of the seconds
            content = json.dumps(json.loads(content)["values"]["position"]).encode()
        key = target.name, content
        if key not in died:  # the second time the same bytes are written
            died.add(key)
            shutil.copy(part, part.with_name(f".{target.name}.dead.part"))
            raise Death
        return original(part, target)

    monkeypatch.setattr(Path, "replace", replace)
    for _ in range(60):
        try:
            fit(runs.read_run(run.path), images, Quiet())
        except Death:
            continue
        break
    monkeypatch.undo()
    written = [name for name, _ in died]
    assert written.count("state.json") == 8
    assert {"weights.safetensors", "run.json", "metrics.json"} < set(written)
    assert_finished_alike(run.path, expected)


def test_log_has_the_terms_of_the_losses(
    class_images: Path, whole: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = log_lines(uninterrupted(whole, class_images, "ce, then all losses on classes", tmp_path_factory))
    steps = [line for line in lines if line["kind"] == "step" and line["stage"] == 1]
    assert not any("terms" in line for line in lines if line["stage"] == 0)
    assert len(steps) == 6, "13 images in batches of 2 classes x 2"
    mixed = [line["terms"] for line in steps if "triplet" not in line["terms"]]
    unmixed = [line["terms"] for line in steps if "triplet" in line["terms"]]
    assert mixed, "there is a batch of each kind"
    assert unmixed, "there is a batch of each kind"
    for line in steps:
        terms = line["terms"]
        assert line["loss"] == pytest.approx(terms["ce"] + terms["arcface"] + terms.get("triplet", 0.0), rel=1e-5)
    means = [line["terms"] for line in lines if line["kind"] == "epoch" and line["stage"] == 1]
    for number, mean in enumerate(means):
        of_epoch = [line["terms"] for line in steps[3 * number : 3 * number + 3]]
        for name in ("arcface", "hardest_positive", "hardest_negative", "target_angle_deg"):
            values = [terms[name] for terms in of_epoch if name in terms]
            assert name not in mean if not values else mean[name] == pytest.approx(sum(values) / len(values))


class Messages(Quiet):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, text: str) -> None:
        self.messages.append(text)


def test_stages_restart_with_their_own_loss_and_learning_rate(class_images: Path, tmp_path: Path) -> None:
    values = {"stages": [STAGE, {**STAGE, "loss": "ce+triplet", "lr_scale": 0.1, "cutmix_prob": 0.0}]}
    reporter = Messages()
    run = fit(*begin(class_images, tmp_path / "run", values), reporter)
    first, second = (stage for stage in run.recipe.stages)
    assert (first.batches, first.cutmix_prob, second.batches, second.cutmix_prob) == ("shuffled", 0.5, "pk", 0.0)
    assert reporter.messages[0] == (
        "stage 1 of 2: ce, 2 epochs of 4 batches (4 images, 3.25 on average), peak learning rate 0.0312, that of 4 "
        "images"
    )
    assert (
        "stage 2 of 2: ce+triplet, 2 epochs of 3 batches (2x2 images by class), peak learning rate 0.00313"
        in reporter.messages[1]
    )
    steps = [line for line in log_lines(run.path) if line["kind"] == "step"]
    lrs = [[line["lr"] for line in steps if line["stage"] == stage] for stage in (0, 1)]
    assert lrs[1][0] == 0, "it warms up again"
    assert max(lrs[1]) == pytest.approx(0.1 * max(lrs[0]))
    assert all("triplet" in line["terms"] for line in steps if line["stage"] == 1), "none of its batches is mixed"


class CollapsingLoss(nn.Module):
    """A loss that reports a collapse from the middle of the stage on."""

    batches, trains_head, unmixed_only = "shuffled", True, False

    def forward(
        self, logits: torch.Tensor, features: torch.Tensor, targets: Any
    ) -> tuple[torch.Tensor, dict[str, float]]:
        return logits.square().mean(), {"depth": 3.0}

    def collapse(self, means: Mapping[str, float], first: Mapping[str, float], progress: float) -> str | None:
        assert means == first == {"depth": 3.0}
        return "the depth is 3; reduce it" if progress >= 0.5 else None


def test_collapse_is_reported_once_and_logged(
    class_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.LOSSES, "collapsing", lambda *_: CollapsingLoss())
    reporter = Messages()
    run = fit(*begin(class_images, tmp_path / "run", {}, "stages.0.loss=collapsing", "stages.0.epochs=4"), reporter)
    warnings = [text for text in reporter.messages if "warning" in text]
    assert warnings == ["warning: epoch 2: the depth is 3; reduce it"]
    logged = [line.get("collapse") for line in log_lines(run.path) if line["kind"] == "epoch"]
    assert logged == [None, *["the depth is 3; reduce it"] * 3]
    assert run.finished
    printed = StringIO()
    show_run(run, make_console(printed))
    assert "the loss had collapsed when training ended" in printed.getvalue()


def test_collapse_stops_the_run_with_on_collapse_stop(
    class_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.LOSSES, "collapsing", lambda *_: CollapsingLoss())
    overrides = ("stages.0.loss=collapsing", "stages.0.epochs=4", "run.on_collapse=stop")
    run, images = begin(class_images, tmp_path / "run", {}, *overrides)
    with pytest.raises(RunError, match=r'stopped after epoch 2: the loss has collapsed .*on_collapse is "stop"'):
        fit(run, images, Quiet())
    assert not runs.read_run(run.path).finished
    assert runs.has_state(run.path)


def test_triplet_collapse_is_found_in_a_real_run(class_images: Path, tmp_path: Path) -> None:
    """With a far too high learning rate from scratch, the features contract to one point."""
    reporter = Messages()
    values = {"stages": [{**STAGE, "epochs": 24, "batch_size": 6, "loss": "ce+triplet", "cutmix_prob": 0.0}]}
    run = fit(*begin(class_images, tmp_path / "run", values, "stages.0.optim.base_lr=20.0"), reporter)
    warnings = [text for text in reporter.messages if "collaps" in text]
    assert "the triplet loss" in warnings[0]
    assert "lr_scale = 0.1" in warnings[0]
    collapsed = [line for line in log_lines(run.path) if "collapse" in line]
    assert collapsed[-1]["epoch"] == 24
    assert collapsed[-1]["terms"]["triplet"] == pytest.approx(0.3, rel=0.2), "the loss stays at the margin"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit_of_a_run(
    class_images: Path,
    tmp_path: Path,
    workers: int,
    whole: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    expected = uninterrupted(whole, class_images, "plain", tmp_path_factory)
    fit(*begin(class_images, tmp_path / "run", {}, f"run.workers={workers}"), Quiet())
    assert_finished_alike(tmp_path / "run", expected)


def test_exact_operations_change_no_bit_on_a_cpu(
    class_images: Path, tmp_path: Path, whole: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = "ce, then all losses on classes"
    expected = uninterrupted(whole, class_images, name, tmp_path_factory)
    run, images = begin(class_images, tmp_path / "run", SETTINGS[name], "run.deterministic=true")
    assert_finished_alike(fit(run, images, Quiet()).path, expected)


def test_another_seed_gives_other_bits(
    class_images: Path, tmp_path: Path, whole: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = uninterrupted(whole, class_images, "plain", tmp_path_factory)
    fit(*begin(class_images, tmp_path / "run", {}, "run.seed=1"), Quiet())
    assert outcome(tmp_path / "run")[0] != outcome(expected)[0]


def test_dropout_draws_the_same_after_a_resume(
    class_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's global generator, which timm models use, is seeded for each step."""

    def with_dropout(*args: Any, **kwargs: Any) -> Classifier:
        model = build_model(*args, **kwargs)
        model.backbone.register_forward_hook(lambda module, _, out: nn.functional.dropout(out, 0.3, module.training))
        return model

    monkeypatch.setattr(classifier, "build_model", with_dropout)
    fit(*begin(class_images, tmp_path / "whole"), Quiet())
    run, images = begin(class_images, tmp_path / "run")
    for steps in (3, 2):
        with pytest.raises(Interrupted):
            fit(runs.read_run(run.path), images, SignalAfter(steps=steps))
    torch.rand(7)  # draws outside of training
    again(run.path)
    assert_finished_alike(run.path, tmp_path / "whole")


def test_moved_run_with_stray_files_resumes_to_the_same_bits(
    class_images: Path, tmp_path: Path, whole: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = uninterrupted(whole, class_images, "plain", tmp_path_factory)
    run, images = begin(class_images, tmp_path / "run")
    with pytest.raises(Interrupted):
        fit(run, images, SignalAfter(steps=6))
    moved = Path(shutil.move(run.path, tmp_path / "moved run"))
    for name in ("0123.safetensors", ".state.json.00aa.part", ".run.json.00aa.part"):
        (moved / "state" / name).write_bytes(b"stale")
        (moved / name).write_bytes(b"stale")
    again(moved)
    (moved / "0123.safetensors").unlink()
    assert_finished_alike(moved, expected)


def test_moved_data_resume_to_the_same_bits_and_other_data_are_refused(
    class_images: Path, tmp_path: Path, whole: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    expected = uninterrupted(whole, class_images, "plain", tmp_path_factory)
    run, images = begin(class_images, tmp_path / "run")
    with pytest.raises(Interrupted):
        fit(run, images, SignalAfter(steps=6))
    moved, other = class_images.rename(tmp_path / "moved images"), tmp_path / "other"
    with pytest.raises(RunError, match=f"{re.escape(str(class_images))} does not exist.* train DATA --resume"):
        again(run.path)
    shutil.copytree(moved, other)
    shutil.copy(moved / "train/ant/1.png", other / "train/ant/0.png")
    before, recorded = files_of(run.path), runs.read_run(run.path).data
    with pytest.raises(RunError, match=r"other is not the data that the run began with: 1 changed .*ant/0\.png"):
        resume(run.path, data=other, console=make_console(StringIO()))
    assert files_of(run.path) == before
    assert resume(run.path, data=moved, console=make_console(StringIO())).data.source == str(moved)
    assert runs.read_run(run.path).data == replace(recorded, source=str(moved))
    assert_finished_alike(run.path, expected)


def test_metrics_describe_the_saved_weights(class_images: Path, tmp_path: Path) -> None:
    """With select = "best" the figures of the last epoch are not those of the saved weights."""
    settings = SETTINGS["average, best, accumulated"]
    run, images = begin(class_images, tmp_path / "run", settings, "stages.0.epochs=6", "stages.0.optim.base_lr=8.0")
    run = fit(run, images, Quiet())
    epochs = [line for line in log_lines(run.path) if line["kind"] == "epoch"]
    best = max(epochs, key=lambda line: line["val_top1"])  # the first of ties
    val = json.loads((run.path / "metrics.json").read_text())["val"]
    assert best["epoch"] < 6, "the best epoch must not be the last for this test"
    assert runs.read_run(run.path).info.best_epoch == best["epoch"]
    assert (val["top1"]["value"], val["nll"]) == (best["val_top1"], best["val_nll"])
    assert val["nll"] != epochs[-1]["val_nll"]


def test_best_without_val_is_refused(class_images: Path, tmp_path: Path) -> None:
    shutil.rmtree(class_images / "val")
    with pytest.raises(RecipeError, match="needs a val split"):
        begin(class_images, tmp_path / "run", {}, "run.select=best")
    assert not (tmp_path / "run").exists()


def every_device_asynchronous(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop then reads the losses of a GPU: of several steps at once."""
    plain = loop.build_learner

    def build(*arguments: Any) -> loop.Learner:
        learner = plain(*arguments)
        learner.asynchronous = True
        return learner

    monkeypatch.setattr(loop, "build_learner", build)
    monkeypatch.setattr(loop, "READ_EVERY", 3)


@pytest.mark.parametrize("name", ["average, best, accumulated", "ce, then all losses on classes"])
def test_reading_losses_every_few_steps_changes_no_bit(
    name: str, class_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(*begin(class_images, tmp_path / "whole", SETTINGS[name]), Quiet())
    every_device_asynchronous(monkeypatch)
    with pytest.raises(Death):
        fit(*begin(class_images, tmp_path / "run", SETTINGS[name]), DieAfter(5))
    assert resume(tmp_path / "run").finished
    assert_finished_alike(tmp_path / "run", whole.path)


def test_loss_that_is_read_later_is_named_with_its_step(
    class_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = ["stages.0.optim.base_lr=1e30", "stages.0.optim.warmup_epochs=0.5"]
    with pytest.raises(RunError, match="loss is") as at_once:
        fit(*begin(class_images, tmp_path / "once", {}, *values), Quiet())
    every_device_asynchronous(monkeypatch)
    with pytest.raises(RunError) as later:
        fit(*begin(class_images, tmp_path / "late", {}, *values), Quiet())
    assert str(later.value) == str(at_once.value).replace("/once", "/late")


def test_loss_that_is_not_finite_stops_with_the_step(class_images: Path, tmp_path: Path) -> None:
    run, images = begin(class_images, tmp_path / "run", {}, "stages.0.optim.base_lr=1e30", "stages.0.epochs=3")
    with pytest.raises(RunError, match=r"loss is nan at epoch \d, step \d \(learning rate .*\)\. .*base_lr"):
        fit(run, images, Quiet())
    assert not runs.read_run(run.path).finished
    assert not (run.path / "weights.safetensors").exists()


def test_scores_that_are_not_finite_stop_the_run(
    class_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, images = begin(class_images, tmp_path / "run", {}, "stages.0.epochs=1")
    monkeypatch.setattr(finish, "weights_out", lambda model: pytest.fail("such weights are never saved"))

    def averaged(learner: loop.Learner) -> nn.Module:
        learner.model.head.weight.data.fill_(3e38)
        return learner.model

    monkeypatch.setattr(loop.Learner, "averaged", averaged)
    with pytest.raises(RunError, match=r"scores on val are not finite\. .*base_lr"):
        fit(run, images, Quiet())


def test_last_update_is_checked_where_there_is_no_val(class_images: Path, tmp_path: Path) -> None:
    """The loss of the only step is finite; its update is not."""
    one_step = ["stages.0.epochs=1", "stages.0.batch_size=64", "stages.0.optim.base_lr=1e42"]
    run, images = begin(class_images, tmp_path / "run", {}, "data.merge_val=true", *one_step)
    with pytest.raises(RunError, match=r"training has ended, but its weights are not finite.* \(backbone.*base_lr"):
        fit(run, images, Quiet())
    assert not runs.read_run(run.path).finished
    assert not (run.path / "weights.safetensors").exists()
    with pytest.raises(RunError, match="training has ended, but its weights are not finite"):
        fit(run, images, Quiet())  # a resume says the same


def test_finite_weights_whose_scores_overflow_are_refused_where_there_is_no_val(
    class_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, images = begin(class_images, tmp_path / "run", {}, "data.merge_val=true", "stages.0.epochs=1")
    monkeypatch.setattr(loop.Learner, "finish", lambda learner: learner.model.head.weight.data.fill_(3e38))
    with pytest.raises(RunError, match=r"training has ended, but the model's scores of its training images are not"):
        fit(run, images, Quiet())
    assert not runs.read_run(run.path).finished


def test_stage_of_one_step_trains(class_images: Path, tmp_path: Path) -> None:
    one_step = ["stages.0.epochs=1", "stages.0.batch_size=64", "stages.0.optim.warmup_epochs=1.0"]
    run, images = begin(class_images, tmp_path / "run", {}, *one_step)
    before = weights_out(initial_model(run.recipe, len(run.classes)))
    reporter = Messages()
    after = runs.read_weights(fit(run, images, reporter))
    assert all(not torch.equal(value, after[name]) for name, value in before.items() if name.startswith("head."))
    assert reporter.messages[0].endswith("; the warm-up is cut from 1 to 0.5 epochs, half of the stage")


@pytest.mark.parametrize(("lr_batch", "size"), [("nominal", 12), ("actual", 6.5)])
def test_learning_rate_follows_the_nominal_or_the_actual_batch(
    lr_batch: str, size: float, class_images: Path, tmp_path: Path
) -> None:
    """13 images at batch_size 12 are batches of 6 and 7."""
    values = ["stages.0.batch_size=12", f"stages.0.optim.lr_batch={lr_batch}", "stages.0.optim.warmup_epochs=0.5"]
    run = fit(*begin(class_images, tmp_path / "run", {}, *values), Quiet())
    lrs = [line["lr"] for line in log_lines(run.path) if line["kind"] == "step"]
    assert max(lrs) == pytest.approx(2.0 * size / 256)


def test_val_image_that_fails_later_stops_with_its_name(class_images: Path, tmp_path: Path) -> None:
    run, images = begin(class_images, tmp_path / "run")
    (class_images / "val" / "bee" / "1.png").unlink()
    with pytest.raises(DataError, match=r"val/bee/1\.png.*could be read before training began"):
        fit(run, images, Quiet())


@pytest.fixture
def stopped(class_images: Path, tmp_path: Path) -> Path:
    """A run that was stopped inside its second epoch."""
    run, images = begin(class_images, tmp_path / "run")
    with pytest.raises(Interrupted):
        fit(run, images, SignalAfter(steps=6))
    return run.path


def files_of(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base_lr = 2.0", "base_lr = 1.0", r"stages\.0\.optim\.base_lr: 2\.0 -> 1\.0"),
        ("threads = 1", "threads = 2", r"run\.threads: 1 -> 2"),
        ("holdout = 0.2", "holdout = 0.3", r"data\.holdout: 0\.2 -> 0\.3"),
    ],
)
def test_edited_recipe_is_refused_with_the_difference(stopped: Path, old: str, new: str, message: str) -> None:
    recipe = stopped / "recipe.toml"
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))
    before = files_of(stopped)
    with pytest.raises(RunError, match=message):
        again(stopped)
    assert files_of(stopped) == before


@pytest.mark.parametrize("kind", ["gone", "new", "changed"])
def test_changed_data_is_refused_with_the_difference(stopped: Path, class_images: Path, kind: str) -> None:
    image = class_images / "train" / "bee" / ("new.png" if kind == "new" else "1.png")
    if kind == "gone":
        image.unlink()
    else:
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(image)
    before = files_of(stopped)
    with pytest.raises(
        RunError, match=rf"not the data that the run began with: 1 {kind} \(first: train/bee/{image.name}\)"
    ):
        again(stopped)
    assert files_of(stopped) == before


def test_exchanged_image_of_equal_size_is_refused(stopped: Path, class_images: Path) -> None:
    """Also where its name and modification time are as before."""
    image = class_images / "train" / "bee" / "1.png"
    data, status = image.read_bytes(), image.stat()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(image)
    image.write_bytes(image.read_bytes().ljust(len(data), b"\0"))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(RunError, match=r"not the data that the run began with: 1 changed \(first: train/bee/1.png\)"):
        again(stopped)
    image.write_bytes(data)
    assert again(stopped).finished


def test_missing_data_is_refused(stopped: Path, class_images: Path) -> None:
    class_images.rename(class_images.with_name("elsewhere"))
    with pytest.raises(RunError, match="does not exist; restore it"):
        again(stopped)


def test_other_thread_count_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with pytest.raises(RunError, match=r"did not begin as it would go on \(compute threads 1, here 7\)"):
        again(stopped)


def test_resuming_elsewhere_is_refused_unless_it_is_asked_for(stopped: Path) -> None:
    conditions = json.loads((stopped / "run.json").read_text())["conditions"]
    other = {"processes": 2, "threads": 4, "instructions": "x86_64 AVX", "device": "cuda (A100)", "fewsight": "0.0.9",
             "torch": "2.0.0", "pillow": "9.0.0", "simplejpeg": "1.0.0"}  # fmt: skip
    assert list(other) == list(conditions), "each of them is tried"
    words = {"threads": "compute threads", "instructions": "instruction set"}
    for name, value in other.items():
        run = Path(shutil.copytree(stopped, stopped.with_name(name)))
        runs.update_info(runs.read_run(run), conditions={**conditions, name: value})
        difference = f"{words.get(name, name)} {value}, here {conditions[name]}"
        with pytest.raises(RunError, match=re.escape(f"{run} did not begin as it would go on ({difference})")):
            again(run)
        assert runs.read_info(run).other_conditions == ()
    finished = resume(run, other_machine=True, console=make_console(said := StringIO()))
    assert f"note: {difference}: the run's bits are no longer those of one training" in said.getvalue()
    assert finished.finished
    assert finished.info.other_conditions[0].endswith(f": {difference}")
    assert finished.info.conditions == runs.Conditions(**conditions)


def test_run_without_a_state_begins_again_under_other_conditions(stopped: Path) -> None:
    run = runs.read_run(stopped)
    assert run.info.conditions is not None
    runs.update_info(run, conditions={**asdict(run.info.conditions), "torch": "2.0.0"})
    runs.remove_state(stopped)
    assert again(stopped).info.other_conditions == ()
    assert runs.read_info(stopped).conditions == run.info.conditions


def test_state_is_due_after_minutes_and_after_epochs_unless_saving_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    saver = state.StateSaver(minutes=5.0)
    assert saver.is_due(epoch_ended=True)
    assert not saver.is_due(epoch_ended=False)
    saver.cost = 2.0
    now += 99
    assert not saver.is_due(epoch_ended=True)
    now += 1
    assert saver.is_due(epoch_ended=True)
    assert not saver.is_due(epoch_ended=False)
    now += 201
    assert saver.is_due(epoch_ended=False)


def test_resume_of_a_finished_run_changes_nothing(class_images: Path, tmp_path: Path) -> None:
    fit(*begin(class_images, tmp_path / "run", {}, "stages.0.epochs=1"), Quiet())
    before, printed = files_of(tmp_path / "run"), StringIO()
    assert resume(tmp_path / "run", console=make_console(printed)).finished
    assert "is finished; there is nothing to continue" in printed.getvalue()
    assert files_of(tmp_path / "run") == before


def test_signal_handlers_are_restored_after_a_run(stopped: Path) -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert stopped.exists()


def test_second_ctrl_c_ends_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with signals.signals_that_stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        assert capfd.readouterr().err == "stopping after this step; again to stop at once without saving\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_killed_command_resumes_to_the_same_bits(class_images: Path, tmp_path: Path) -> None:
    overrides = ("stages.0.epochs=10", "run.state_minutes=0.001")
    fit(*begin(class_images, tmp_path / "whole", {}, *overrides), Quiet())
    (tmp_path / "recipe.toml").write_text(recipe_toml(parse_recipe(VALUES, overrides)))
    arguments = ("train", class_images, "--out", tmp_path / "run", "--recipe", tmp_path / "recipe.toml")
    saved, text = tmp_path / "run" / "state" / "state.json", tmp_path / "printed.txt"
    assert killed(text, command(text, *arguments), saved, random.uniform(0, 0.3)), "the run was too short"
    assert "continuing after step" in finished(text, command(text, "train", "--resume", tmp_path / "run"))
    assert_finished_alike(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no process groups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_whole_group_saves_the_state(class_images: Path, tmp_path: Path, number: int) -> None:
    """Signals from Ctrl-C and service managers also reach the loading processes."""
    settings = SETTINGS["worker, sampling, growing"]
    fit(*begin(class_images, tmp_path / "whole", settings, "stages.0.epochs=20"), Quiet())
    begin(class_images, tmp_path / "run", settings, "stages.0.epochs=20")
    text = tmp_path / "printed.txt"
    process = command(text, "train", "--resume", tmp_path / "run")
    wait_for_log(process, tmp_path / "run" / "log.jsonl")
    assert process.pid is not None
    os.killpg(process.pid, number)
    printed = finished(text, process, 128 + number)
    assert f"the state is saved. Continue with: fewsight train --resume {tmp_path / 'run'}" in printed.replace(
        "\n", " "
    )
    assert "continuing after step" in finished(text, command(text, "train", "--resume", tmp_path / "run"))
    assert_finished_alike(tmp_path / "run", tmp_path / "whole")


@pytest.fixture
def photographs(fewsight_data: Path, tmp_path: Path) -> Path:
    """A manifest of 14 full-size photographs in two classes."""
    images = sorted((fewsight_data / "imagenet-256").glob("*.JPEG"))[:14]
    rows = [f"{image},{'left' if number % 2 else 'right'},{'train' if number < 12 else 'val'}"
            for number, image in enumerate(images)]  # fmt: skip
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return tmp_path / "list.csv"


FULL_SIZE = {
    "augment": {"train_px": 224},
    "stages": [{"epochs": 1, "batch_size": 4}],
    "eval": {"test_px": [224]},
    "run": {"device": "cpu", "threads": 1, "workers": 0, "precision": "float32", "state_minutes": 1e-9},
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backbone", ["tresnet_xl", "seresnext101"])
def test_full_size_backbone_takes_real_steps(photographs: Path, tmp_path: Path, backbone: str) -> None:
    run = fit(*begin(photographs, tmp_path / "run", {**FULL_SIZE, "model": {"backbone": backbone}}), Quiet())
    losses = [line["loss"] for line in log_lines(run.path) if line["kind"] == "step"]
    assert len(losses) == 3
    assert len(set(losses)) == 3
    assert sum(weight.numel() for weight in runs.read_weights(run).values()) > 45e6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_full_size_resnest_killed_inside_its_epoch_resumes_to_the_same_bits(photographs: Path, tmp_path: Path) -> None:
    settings = {**FULL_SIZE, "model": {"backbone": "resnest101"}}
    run = fit(*begin(photographs, tmp_path / "whole", settings), Quiet())
    assert len([line for line in log_lines(run.path) if line["kind"] == "step"]) == 3
    begin(photographs, tmp_path / "run", settings)
    text, state = tmp_path / "printed.txt", tmp_path / "run" / "state" / "state.json"
    resumed = ("train", "--resume", tmp_path / "run")
    assert killed(text, command(text, *resumed), state, random.uniform(0, 2)), "the run was too short"
    assert json.loads(state.read_text())["values"]["position"]["step"] in (1, 2)
    assert "continuing after step" in finished(text, command(text, *resumed))
    assert_finished_alike(tmp_path / "run", tmp_path / "whole")

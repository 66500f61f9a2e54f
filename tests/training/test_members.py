"""Members: trained side by side into one ensemble, with bits of their own recipes, and stopped, killed and resumed."""

import io
import json
import os
import re
import shutil
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from conftest import TINY, Command
from fewsight import runs
from fewsight.apps.listing import list_runs
from fewsight.errors import RecipeError, RunError
from fewsight.inference.ensemble import combine
from fewsight.inference.evaluate import evaluate
from fewsight.inference.model import load
from fewsight.machine import locks
from fewsight.recipes import load_recipe
from fewsight.runs import Origin, Run
from fewsight.scores.calibration import read_calibrations
from fewsight.scores.entries import read_entries, read_views
from fewsight.scores.log_probs import weighted_mean
from fewsight.scores.metrics import read_val_figures
from fewsight.scores.store import read_store
from fewsight.terminal import make_console
from fewsight.training import session
from fewsight.training.loop import fit
from fewsight.training.members import side_by_side
from fewsight.training.members.folder import create_members, is_member, member_paths
from fewsight.training.members.progress import MembersProgress, Place, place_of
from fewsight.training.members.recipes import member_recipe, together, variants_of
from fewsight.training.members.side_by_side import check_members, train_members
from fewsight.training.session import resume, train
from fewsight.training.tensorboard import TensorBoard
from trainings import Quiet, assert_finished_alike, begin, finished, outcome, wait_for_log
from trainings import command as started

MEMBERS = ("run.members=2", "run.seed=3")


def quiet() -> Console:
    return make_console(io.StringIO())


@pytest.fixture(scope="module")
def ensemble(enough_val: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members of the recipe digits, two epochs each, on data with 36 val images. Do not change it."""
    out = tmp_path_factory.mktemp("members") / "two"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        (run,) = train(enough_val, out, recipe="digits", overrides=[*TINY, *MEMBERS], console=quiet())
    assert run.finished
    assert run.path == out
    return out


@pytest.fixture
def copied(ensemble: Path, tmp_path: Path) -> Path:
    """A copy whose files may be changed."""
    return Path(shutil.copytree(ensemble, tmp_path / "copied"))


@pytest.fixture
def unfinished(class_images: Path, tmp_path: Path) -> Run:
    """The folder of an ensemble whose members have not begun."""
    return begin(class_images, tmp_path / "unfinished", {}, *MEMBERS)[0]


# Recipes, seeds and bits


def test_members_are_runs_of_the_recipe_with_seeds_of_their_own(ensemble: Path) -> None:
    recipe = load_recipe(ensemble / "recipe.toml")
    assert (recipe.run.members, recipe.run.seed, recipe.run.threads) == (2, 3, 1)
    for number, seed in [(1, 3), (2, 1_000_000_003)]:
        run = runs.read_run(ensemble / "runs" / f"member{number}")
        assert run.finished
        assert (run.recipe.run.members, run.recipe.run.seed) == (1, seed)
        assert run.recipe == recipe.model_copy(update={"run": run.recipe.run})


def test_seeds_of_members_wrap_and_differ(unfinished: Run) -> None:
    last = 2**63 - 1
    recipe = unfinished.recipe
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"seed": last, "members": 32})})
    seeds = [member_recipe(recipe, number).run.seed for number in range(32)]
    assert seeds[:2] == [last, 10**9 - 1]
    assert len(set(seeds)) == 32


def test_member_has_the_bits_of_its_recipe_trained_alone(ensemble: Path, enough_val: Path, tmp_path: Path) -> None:
    """So that the ensemble's own recipe, from which its members' follow, repeats all of it."""
    second = ensemble / "runs" / "member2"
    train(enough_val, tmp_path / "alone", recipe=second / "recipe.toml", console=quiet())
    assert outcome(tmp_path / "alone") == outcome(second)


VARIANTS = 'run.variants=[[], ["augment.train_px=24", "stages.0.epochs=1", "stages.0.optim.decay_efolds=1.0"]]'


def test_members_may_differ_in_values_of_the_recipe(enough_val: Path, tmp_path: Path) -> None:
    overrides = [*TINY, *MEMBERS, VARIANTS, "eval.test_px='auto'"]
    (run,) = train(enough_val, tmp_path / "both", recipe="digits", overrides=overrides, console=quiet())
    first, second = (runs.read_run(path) for path in member_paths(run))
    assert (first.recipe.augment.train_px, second.recipe.augment.train_px) == (32, 24)
    assert second.recipe.stages[0].epochs == 1
    assert second.recipe.eval.test_px[0] == 24, "what follows from a value is the member's own"
    assert second.recipe.stages[0].optim.weight_decay != first.recipe.stages[0].optim.weight_decay
    assert [entry.px for entry in read_entries(run.path)] == [32, 24]
    again = load_recipe(run.path / "recipe.toml")
    assert [member_recipe(again, number) for number in (0, 1)] == [first.recipe, second.recipe], "it repeats the run"
    assert load(run.path).predict([next((enough_val / "val").rglob("*.png"))]).labels


def test_variants_are_used_in_turn(unfinished: Run) -> None:
    run = unfinished.recipe.run.model_copy(update={"members": 3, "variants": [[], ["model.width=0.25"]]})
    recipe = unfinished.recipe.model_copy(update={"run": run})
    assert [member_recipe(recipe, number).model.width for number in range(3)] == [0.125, 0.25, 0.125]
    assert together(variants_of(recipe)) == recipe


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("[\"run.device='cpu'\"]", "members have the same data and run settings, got \"run.device='cpu'\""),
        ('["model.widht=1"]', "unknown key 'model.widht'; did you mean 'model.width'"),
        ("[\"model.backbone='xyz'\"]", "there is no 'xyz'"),
    ],
)
def test_wrong_variant_is_refused_before_the_data_is_read(variant: str, message: str, tmp_path: Path) -> None:
    overrides = [*TINY, *MEMBERS, f"run.variants=[[], {variant}]"]
    with pytest.raises(RecipeError, match=re.escape(message)):
        train(tmp_path, tmp_path / "new", recipe="digits", overrides=overrides, console=quiet())


# What the folder gives


def test_ensemble_has_the_figures_and_the_temperature_of_its_fused_members(ensemble: Path) -> None:
    stores = [read_store(ensemble / "runs" / f"member{number}" / "scores" / "val") for number in (1, 2)]
    fused = weighted_mean([store.results("center-32") for store in stores], np.array([0.5, 0.5]))
    labels = np.array([stores[0].about.classes.index(str(image.label)) for image in stores[0].images])
    val, (calibration,) = read_val_figures(ensemble), read_calibrations(ensemble)
    assert val is not None
    assert val.top1.value == (fused.argmax(1) == labels).mean()
    assert val.nll == pytest.approx(-fused[np.arange(len(labels)), labels].mean())
    assert (calibration.views, calibration.num_images) == (("center-32",), 36)
    assert [(entry.member, entry.px, entry.weight) for entry in read_entries(ensemble)] == [
        ("member1", 32, 0.5), ("member2", 32, 0.5)]  # fmt: skip
    assert read_views(ensemble) == "center"


def test_kept_scores_of_val_are_those_of_evaluate(copied: Path, enough_val: Path) -> None:
    store = copied / "runs" / "member1" / "scores" / "val"
    kept = {file.name: file.read_bytes() for file in store.iterdir()}
    before = (store / "center-32.f32").stat().st_mtime_ns
    evaluation = evaluate(copied, enough_val, split="val", console=quiet())
    assert evaluation.figures == read_val_figures(copied)
    assert evaluation.kept == (f"scores in {copied}/runs/*/scores/val",)
    assert (store / "center-32.f32").stat().st_mtime_ns == before, "nothing is scored again"
    shutil.rmtree(store)
    evaluate(copied, enough_val, split="val", console=quiet())
    for name in ("store.json", "images.jsonl"):
        assert (store / name).read_bytes() == kept[name]
    again = read_store(store).results("center-32")
    np.testing.assert_allclose(np.frombuffer(kept["center-32.f32"], np.float32).reshape(again.shape), again, atol=1e-5)


def test_val_image_that_cannot_be_read_is_kept_as_evaluate_does(class_images: Path, tmp_path: Path) -> None:
    broken = class_images / "val" / "bee" / "broken.png"
    broken.write_bytes(b"no image")
    outer, _ = begin(class_images, tmp_path / "outer", {}, *MEMBERS, "data.max_bad=0.5")
    run, images = begin(class_images, member_paths(outer)[0], {}, "data.max_bad=0.5")
    fit(run, images, Quiet())
    kept = {file.name: file.read_bytes() for file in (run.path / "scores" / "val").iterdir()}
    evaluation = evaluate(run.path, split="val", console=quiet())
    assert (evaluation.unreadable, evaluation.figures.top1.total) == ((evaluation.unreadable[0],), 5)
    assert "broken.png" in evaluation.unreadable[0]
    assert evaluation.kept == (f"scores in {run.path}/scores/val",)
    assert {name: (run.path / "scores" / "val" / name).read_bytes() for name in kept} == kept


@pytest.mark.parametrize("select", ["last", "best"])
def test_kept_scores_say_what_their_images_were_used_for(class_images: Path, tmp_path: Path, select: str) -> None:
    copy = class_images / "train" / "cat" / "copy.png"
    shutil.copy(class_images / "val" / "cat" / "0.png", copy)
    begin(class_images, tmp_path / "outer", {}, *MEMBERS)
    path, overrides = tmp_path / "outer" / "runs" / "member1", ("data.leak=allow", f"run.select={select}")
    fit(*begin(class_images, path, {}, *overrides), Quiet())
    images = read_store(path / "scores" / "val").images
    assert [image.path for image in images if image.trained_on] == ["val/cat/0.png"]
    assert {image.chose_weights for image in images} == {select == "best"}


def test_run_that_is_no_member_keeps_no_scores(tiny_run: Path, tmp_path: Path) -> None:
    assert not (tiny_run / "scores").exists()
    assert not is_member(tmp_path / "runs" / "member1")


def test_commands_take_the_folder_as_an_ensemble(
    copied: Path, enough_val: Path, tmp_path: Path, command: Command
) -> None:
    shown = command("train", "--resume", copied)
    assert shown.out.startswith(f"{copied} is finished; there is nothing to continue\nval top-1 ")
    val = read_val_figures(copied)
    alone = [read_val_figures(copied / "runs" / f"member{number}") for number in (1, 2)]
    assert f"val top-1 {val.top1} on 36 images\n" in shown.out  # type: ignore[union-attr]
    assert "2 members, alone: {:.1f}, {:.1f} %\n".format(*(100 * one.top1.value for one in alone if one)) in shown.out
    assert f"the ensemble is in {copied}\nnext: fewsight evaluate {copied} {enough_val}\n" in shown.out
    (listed,) = list_runs(copied)
    assert (listed.kind, listed.status, listed.val) == ("ensemble", "finished", val and val.top1)
    assert (listed.model, listed.training) == ("resnest14 at 0.125 width, 32 px, 2 members", "2 epochs of ce")
    assert "fusion" in command("scores", "rows", copied, "--split", "val").out
    assert command("predict", copied, enough_val / "test", "--out", tmp_path / "new.csv").code == 0
    assert command("report", copied, "--out", tmp_path / "page.html", "--no-check").code == 0
    probs = load(copied).predict([enough_val / "test" / "one" / "10.png"]).probs
    moved = shutil.move(copied, tmp_path / "moved")
    assert (load(moved).predict([enough_val / "test" / "one" / "10.png"]).probs == probs).all()
    combine([("both", [(Path(moved), ())])], tmp_path / "nested")
    assert (
        "nested is an ensemble of finished runs; there is nothing to continue"
        in command("train", "--resume", tmp_path / "nested").err
    )
    assert (
        "is an ensemble; start from one of its runs, for example --init-from"
        in command("train", enough_val, "--out", tmp_path / "new", "--recipe", "digits", "--init-from", moved).err
    )


def test_member_that_is_better_alone_is_named(copied: Path, command: Command) -> None:
    for number, right in [(1, True), (2, False)]:
        store = read_store(copied / "runs" / f"member{number}" / "scores" / "val")
        labels = [store.about.classes.index(str(image.label)) for image in store.images]
        probs = np.full((len(labels), 3), 0.1 if right else 0.01, np.float32)
        chosen = [label if right else (label + 1) % 3 for label in labels]
        probs[np.arange(len(labels)), chosen] = 0.8 if right else 0.98
        (store.path / "center-32.f32").write_bytes(np.log(probs).tobytes())
    shown = command("train", "--resume", copied)
    assert "note: member1 at 32 px alone has a higher accuracy (100.0 % [" in shown.out


# Unfinished


def test_unfinished_members_are_an_unfinished_training(unfinished: Run, command: Command, class_images: Path) -> None:
    path = unfinished.path
    create_members(unfinished)
    again = f"its training did not finish; finish it with `fewsight train --resume {path}`"
    for words in (["predict", path, class_images], ["evaluate", path], ["scores", "rows", path]):
        assert again in command(*words).err
    (listed,) = list_runs(path)
    assert listed.status == "interrupted before its first step"
    assert listed.model == "resnest14 at 0.125 width, 16 px, 2 members"
    runs.append_log(member_paths(unfinished)[1], {"kind": "epoch", "epoch": 1, "train_loss": 1.0})
    assert list_runs(path)[0].status == "interrupted at epoch 0, 1 of 2"
    with locks.locked(path, "training"):
        assert "a process is training it now" in command("predict", path, class_images).err
        assert list_runs(path)[0].status == "training, epoch 0, 1 of 2"
        with pytest.raises(RunError, match="another process is training there"):
            resume(path, console=quiet())


def test_members_that_are_missing_or_half_made_are_created(unfinished: Run) -> None:
    start = Origin("/elsewhere", "12")
    unfinished = runs.update_info(unfinished, start={"run": start.run, "weights_digest": start.weights_digest})
    first, second = create_members(unfinished)
    (second.path / "run.json").unlink()  # as a kill leaves it
    (second.path / ".run.json.00aa.part").touch()
    kept = (first.path / "run.json").stat().st_mtime_ns
    assert [run.info.start for run in create_members(unfinished)] == [start, start]
    assert (first.path / "run.json").stat().st_mtime_ns == kept
    assert not list(second.path.glob(".*.part"))
    assert runs.read_images(second) == runs.read_images(unfinished)


# Processes


def begun(out: Path, data: Path, text: Path) -> BaseProcess:
    """A command that trains two members of 60 epochs, the first of which has begun to log."""
    sets = [part for value in (*TINY, *MEMBERS, "stages.0.epochs=60") for part in ("--set", value)]
    process = started(text, "train", data, "--out", out, "--recipe", "digits", *sets)
    wait_for_log(process, out / "runs" / "member1" / "log.jsonl")
    return process


def assert_members_as_alone(out: Path, data: Path, alone: Path) -> None:
    """The finished members have the bits of trainings of their recipes."""
    assert runs.read_run(out).finished
    for number in (1, 2):
        member = out / "runs" / f"member{number}"
        train(data, alone / f"{number}", recipe=member / "recipe.toml", console=quiet())
        assert_finished_alike(member, alone / f"{number}")


def test_resume_trains_what_is_missing_and_writes_the_ensemble(copied: Path, ensemble: Path) -> None:
    for name in ("ensemble.json", "metrics.json", "calibration.json"):
        (copied / name).unlink()
    shutil.rmtree(copied / "runs" / "member2")
    runs.update_info(runs.read_run(copied), status="training", finished=None)
    printed = io.StringIO()
    assert resume(copied, console=make_console(printed)).finished
    assert "1 of 2 members to train, 1 at a time with 1 thread each" in printed.getvalue()
    assert_finished_alike(copied / "runs" / "member2", ensemble / "runs" / "member2")
    for name in ("ensemble.json", "metrics.json"):
        assert (copied / name).read_bytes() == (ensemble / name).read_bytes()
    (before,), (after,) = read_calibrations(ensemble), read_calibrations(copied)
    assert (before.temperature, before.views, before.nll) == (after.temperature, after.views, after.nll)


@pytest.mark.slow
def test_killed_command_goes_on_to_the_same_bits(enough_val: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "run", tmp_path / "printed.txt"
    process = begun(out, enough_val, text)
    process.kill()
    process.join()
    assert "val top-1" in finished(text, started(text, "train", "--resume", out))
    assert_members_as_alone(out, enough_val, tmp_path / "alone")


@pytest.mark.slow
def test_interrupt_and_the_death_of_a_member_save_the_others(enough_val: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "run", tmp_path / "printed.txt"
    again = f"fewsight train --resume {out}"
    process = begun(out, enough_val, text)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    printed = finished(text, process, 128 + signal.SIGINT)
    assert f"the states of the members are saved. Continue with: {again}" in printed
    assert not any(locks.is_locked(out / "runs" / f"member{number}") for number in (1, 2))
    process = started(text, "train", "--resume", out)
    wait_for_log(process, out / "runs" / "member1" / "log.jsonl")
    victim = next(
        path.parent for path in Path("/proc").glob("*/cmdline") if f"{out}/runs/member1\0".encode() in read(path)
    )
    os.kill(int(victim.name), signal.SIGKILL)
    printed = finished(text, process, 2)
    assert f"member1 failed (killed by signal 9); its output is in {out}/logs/member1.log" in printed
    assert f"The others have saved their states. To go on: {again}" in printed
    finished(text, started(text, "train", "--resume", out))
    assert_members_as_alone(out, enough_val, tmp_path / "alone")


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # the process has ended
        return b""


def test_member_finds_moved_data_and_gets_the_options(unfinished: Run, class_images: Path, tmp_path: Path) -> None:
    (member, _) = create_members(unfinished)
    words = side_by_side._command(unfinished, member, ["--other-machine"])
    assert words[2:] == ["fewsight", "train", "--resume", str(member.path), "--other-machine"]
    moved = runs.record_source(unfinished, class_images.rename(tmp_path / "moved"))
    assert side_by_side._command(moved, member, [])[3:] == [
        "train", str(tmp_path / "moved"), "--resume", str(member.path)]  # fmt: skip


def test_failed_member_is_named_with_its_log(unfinished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    python = side_by_side.sys.executable
    monkeypatch.setattr(side_by_side, "_command", lambda *_: [python, "-c", "print('fewsight: out of luck'); exit(2)"])
    images = begin(Path(unfinished.data.source), unfinished.path.with_name("other"))[1]
    with pytest.raises(RunError, match=r"member\d failed \(out of luck\); its output is in .*/logs/member\d\.log"):
        train_members(unfinished, images, quiet())
    assert json.loads((unfinished.path / "run.json").read_text())["status"] == "training"


def test_members_refuse_torchrun_and_reporters_of_this_process(unfinished: Run) -> None:
    check_members(unfinished.recipe, 1, [TensorBoard])
    check_members(member_recipe(unfinished.recipe, 0), 2, [lambda run, images: Quiet()])
    with pytest.raises(RecipeError, match=r"start the command without torchrun, or set run\.members = 1"):
        check_members(unfinished.recipe, 2, [])
    with pytest.raises(RecipeError, match="which reporters of this process do not see"):
        resume(unfinished.path, reporters=[lambda run, images: Quiet()], console=quiet())


@pytest.mark.parametrize(("reporters", "alone"), [([], False), ([TensorBoard], False), ([lambda *_: Quiet()], True)])
def test_auto_plans_no_members_that_a_reporter_would_not_see(
    reporters: list[Any], alone: bool, class_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*arguments: Any, **options: Any) -> None:
        raise RunError(f"overrides: {arguments[3]}")

    monkeypatch.setattr(session, "plan_recipe", plan)
    with pytest.raises(RunError, match="overrides: ") as raised:
        train(class_images, tmp_path / "run", reporters=reporters, console=quiet())
    assert ("run.members=1" in str(raised.value)) == alone


def test_member_that_is_a_link_out_of_the_ensemble_is_refused(unfinished: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "recipe.toml").write_text("mine")
    (unfinished.path / "runs").mkdir()
    member_paths(unfinished)[0].symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"member1 is a link to .*elsewhere, outside"):
        create_members(unfinished)
    assert (tmp_path / "elsewhere" / "recipe.toml").read_text() == "mine"


@pytest.mark.slow
def test_each_seed_is_an_ensemble_and_members_start_from_one_run(
    enough_val: Path, ensemble: Path, tmp_path: Path
) -> None:
    source = ensemble / "runs" / "member1"
    overrides = [*TINY, "run.members=2"]
    options = {"recipe": "digits", "overrides": overrides, "seeds": [0, 1], "init_from": source, "console": quiet()}
    found = train(enough_val, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert [run.path.name for run in found] == ["seed0", "seed1"]
    members = [runs.read_run(path) for run in found for path in member_paths(run)]
    assert [run.recipe.run.seed for run in members] == [0, 10**9, 1, 10**9 + 1]
    assert len({run.info.weights_digest for run in members}) == 4
    assert {run.info.start.run for run in members if run.info.start} == {str(source)}
    assert all(load(run.path).classes == ("nought", "one", "two") for run in found)


# Progress


def test_place_is_read_from_the_log(tmp_path: Path) -> None:
    steps = [3, 3, 5]  # two epochs of a stage, one of another
    assert place_of(tmp_path, steps) == Place()
    for line, place in [
        ({"kind": "step", "epoch": 1, "step": 2, "loss": 3.0}, Place(1, 2, None)),
        ({"kind": "epoch", "epoch": 1, "train_loss": 2.5}, Place(1, 3, 2.5)),
        ({"kind": "step", "epoch": 3, "step": 1, "loss": 2.0}, Place(3, 7, 2.5)),
        ({"kind": "epoch", "epoch": 3, "train_loss": 1.5}, Place(3, 11, 1.5)),
    ]:
        runs.append_log(tmp_path, line)
        assert place_of(tmp_path, steps) == place


def test_progress_is_one_line() -> None:
    progress = MembersProgress(quiet(), [Path("a"), Path("b"), Path("c")], [[2] * 80] * 3)
    assert progress.described([Place()] * 3) == "members: starting"
    two = [Place(80, 160, 1.0), Place(12, 23, 1.21), Place(11, 22, 1.25)]
    assert progress.described(two) == (
        "members: 1 of 3 done, 2 at epoch 12 of 80, 3 at 11 of 80 · train loss 1.210, 1.250"
    )
    assert progress.described([Place(1, 1, None), Place(), Place()]) == "members: 1 at epoch 1 of 80"
    assert progress.described([two[0]] * 3) == "members: 3 of 3 done"


def test_time_left_leaves_out_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, console = 0.0, quiet()
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = MembersProgress(console, [tmp_path], [[1] * 60])
    for epoch in range(31):
        if epoch:
            runs.append_log(tmp_path, {"kind": "epoch", "epoch": epoch, "train_loss": 2.0})
        now += 100.0 if epoch < 2 else 2.0
        progress.look()
    assert console.file.getvalue().splitlines()[-1] == (  # type: ignore[attr-defined]
        "members: 1 at epoch 17 of 60 · train loss 2.000 · 1 min 26 s left"
    )

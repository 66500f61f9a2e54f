"""Starting from another run's weights: classes matched by name, a summary, and resumes to the same bits."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch

from conftest import TINY
from fewsight import runs
from fewsight.errors import Interrupted, RecipeError, RunError
from fewsight.models.classifier import initial_model
from fewsight.recipes import shipped_recipes
from fewsight.runs import Run
from fewsight.terminal import make_console
from fewsight.training import session
from fewsight.training.loop import fit
from fewsight.training.session import resume, train
from fewsight.training.start import check_fits, model_values, read_start, weights_from
from trainings import Death, DieAfter

OVERRIDES = [*TINY, "stages.0.epochs=1", "run.seed=7"]


def start(source: Path, data: Path, out: Path, *overrides: str) -> tuple[Run, str]:
    """Train `digits` from a run's weights; returns the run and the printed text."""
    printed = io.StringIO()
    sets = [*OVERRIDES, *overrides]
    (run,) = train(data, out, recipe="digits", overrides=sets, init_from=source, console=make_console(printed))
    return run, printed.getvalue()


def died(source: Path, data: Path, out: Path, step: int, *overrides: str) -> None:
    """Leave a run from `source` that died in step `step`."""

    def fit_and_die(run: Run, *rest: object) -> Run:
        return fit(run, rest[0], DieAfter(step), rest[2])  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "fit", fit_and_die)
        with pytest.raises(Death):
            start(source, data, out, *overrides)


def test_all_weights_are_copied_if_the_classes_are_the_same(tiny_run: Path) -> None:
    source = runs.read_run(tiny_run)
    weights, summary = weights_from(source, source.recipe, source.classes)
    trained = runs.read_weights(source)
    assert weights.keys() == trained.keys()
    assert all(torch.equal(weights[name], trained[name]) for name in trained)
    assert f"starting from {tiny_run}: {len(trained) - 2} tensors of the backbone" in summary
    assert "rows of 3 of 3 classes; new: the optimiser" in summary


def test_head_rows_are_matched_by_class_name(tiny_run: Path) -> None:
    source = runs.read_run(tiny_run)
    classes = ("four", "nought", "two")  # without "one", and with "nought" at another index
    weights, summary = weights_from(source, source.recipe, classes)
    trained, drawn = runs.read_weights(source), initial_model(source.recipe, 3).state_dict()
    for name in ("head.weight", "head.bias"):
        assert torch.equal(weights[name][1], trained[name][source.classes.index("nought")])
        assert torch.equal(weights[name][2], trained[name][source.classes.index("two")])
        assert torch.equal(weights[name][0], drawn[name][0])
    assert "rows of 2 of 3 classes; new: the head's rows of 'four', the optimiser" in summary
    assert summary.endswith("not used: the rows of 'one'")


def test_summary_names_the_losses_own_weights(tiny_run: Path) -> None:
    source = runs.read_run(tiny_run)
    stage = source.recipe.stages[0].model_copy(update={"loss": "ce+arcface"})
    recipe = source.recipe.model_copy(update={"stages": [stage]})
    num_features = runs.read_weights(source)["head.weight"].shape[1]
    _, summary = weights_from(source, recipe, source.classes)
    assert f"new: the loss's own terms.arcface.weight [3, {num_features}], the optimiser" in summary


@pytest.mark.parametrize("override", ["model.width=0.25", "model.stem=large", "model.backbone=resnest26"])
def test_another_backbone_is_refused_before_the_data_is_read(tiny_run: Path, tmp_path: Path, override: str) -> None:
    with pytest.raises(RunError, match=r"has the backbone resnest14 \(stem medium, width 0\.125\), but this recipe"):
        start(tiny_run, tmp_path / "nowhere", tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


def test_stem_auto_is_resolved_before_the_comparison(tiny_run: Path) -> None:
    source = runs.read_run(tiny_run)
    model = source.recipe.model.model_copy(update={"stem": "auto"})  # 32 px: small
    with pytest.raises(RunError, match="stem small"):
        check_fits(source, source.recipe.model_copy(update={"model": model}))
    augment = source.recipe.augment.model_copy(update={"train_px": 64})
    check_fits(source, source.recipe.model_copy(update={"model": model, "augment": augment}))


def test_plan_keeps_the_sources_model(tiny_run: Path, digit_images: Path, tmp_path: Path) -> None:
    assert model_values(runs.read_run(tiny_run)) == [
        "model.backbone=resnest14",
        "model.stem=medium",
        "model.width=0.125",
        "augment.train_px=32",
    ]
    overrides = ["run.precision=float32", "run.threads=1", "run.workers=0", "stages.0.epochs=1"]
    quiet = make_console(io.StringIO())
    (run,) = train(digit_images, tmp_path / "run", hours=0.01, overrides=overrides, init_from=tiny_run, console=quiet)
    assert run.recipe.model == runs.read_run(tiny_run).recipe.model
    assert run.recipe.augment.train_px == 32


def test_run_begins_with_the_sources_weights(tiny_run: Path, digit_images: Path, tmp_path: Path) -> None:
    """With a learning rate near zero the weights stay the source's."""
    frozen = ("stages.0.optim.base_lr=1e-12", "stages.0.optim.weight_decay=0.0")
    run, printed = start(tiny_run, digit_images, tmp_path / "run", *frozen)
    source = runs.read_run(tiny_run)
    before, after = runs.read_weights(source), runs.read_weights(run)
    learnt = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in learnt)
    assert f"starting from {tiny_run}" in printed
    assert run.info.start == runs.Origin(str(tiny_run.resolve()), source.info.weights_digest)


def test_weights_replace_all_stages_but_the_last(tiny_run: Path, digit_images: Path, tmp_path: Path) -> None:
    stage = '[[stages]]\nloss = "ce+triplet"\nepochs = 1\nbatch_size = 6\nbatches = "pk"\n'
    shipped = shipped_recipes()["digits"].read_text()
    (tmp_path / "two.toml").write_text(shipped.replace("[eval]", f"{stage}[eval]"))
    printed = io.StringIO()
    (run,) = train(
        digit_images,
        tmp_path / "run",
        recipe=tmp_path / "two.toml",
        overrides=[*TINY, "stages.1.lr_scale=0.1"],
        init_from=tiny_run,
        console=make_console(printed),
    )
    assert [(stage.loss, stage.lr_scale) for stage in run.recipe.stages] == [("ce+triplet", 0.1)]
    assert "stage 1 (ce, 2 epochs) is skipped: the weights of --init-from replace it" in printed.getvalue()


def test_each_seed_starts_from_the_run_of_the_same_seed(digit_images: Path, tmp_path: Path) -> None:
    def both(out: Path, source: Path | None) -> list[Run]:
        quiet = make_console(io.StringIO())
        sets = [*TINY, "stages.0.epochs=1"]
        return train(digit_images, out, recipe="digits", overrides=sets, seeds=(3, 5), init_from=source, console=quiet)

    both(tmp_path / "ce", None)
    started = both(tmp_path / "next", tmp_path / "ce")
    assert [run.info.start and run.info.start.run for run in started] == [
        str(tmp_path / "ce" / f"seed{seed}") for seed in (3, 5)
    ]
    with pytest.raises(RunError, match=r"runs for several seeds \(seed3, seed5\); there is none for seed 6"):
        train(digit_images, tmp_path / "more", recipe="digits", seeds=(3, 6), init_from=tmp_path / "ce")
    with pytest.raises(RunError, match=r"\(seed3, seed5\); name one of them"):
        read_start(tmp_path / "ce")


def test_interrupt_message_names_the_start_of_the_remaining_seeds(
    digit_images: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted("interrupted", 2)

    monkeypatch.setattr(session, "fit", stopped)
    with pytest.raises(Interrupted, match=rf"run\.seed=1 --out {tmp_path}/out/seed1 --init-from {tiny_run}"):
        train(digit_images, tmp_path / "out", recipe="digits", overrides=TINY, seeds=(0, 1), init_from=tiny_run)


def test_run_that_died_before_its_first_state_begins_with_the_same_weights(
    tiny_run: Path, digit_images: Path, tmp_path: Path
) -> None:
    whole, _ = start(tiny_run, digit_images, tmp_path / "whole")
    died(tiny_run, digit_images, tmp_path / "run", 1)
    assert not runs.has_state(tmp_path / "run")
    resume(tmp_path / "run", console=make_console(io.StringIO()))
    assert (tmp_path / "run" / runs.WEIGHTS).read_bytes() == (whole.path / runs.WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("harm", "message"),
    [("gone", "does not exist"), ("other", "no longer has the weights that the run started from")],
)
def test_source_that_changed_is_refused_on_resume(
    tiny_run: Path, digit_images: Path, tmp_path: Path, harm: str, message: str
) -> None:
    source = Path(shutil.copytree(tiny_run, tmp_path / "source"))
    died(source, digit_images, tmp_path / "run", 1)
    if harm == "gone":
        shutil.rmtree(source)
    else:
        info = json.loads((source / "run.json").read_text())
        (source / "run.json").write_text(json.dumps({**info, "weights_digest": "00"}))
    with pytest.raises(RunError, match=message):
        resume(tmp_path / "run", console=make_console(io.StringIO()))


def test_run_with_a_state_no_longer_needs_the_source(tiny_run: Path, digit_images: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_run, tmp_path / "source"))
    died(source, digit_images, tmp_path / "run", 2, "stages.0.batch_size=6", "run.state_minutes=1e-9")
    shutil.rmtree(source)
    assert resume(tmp_path / "run", console=make_console(io.StringIO())).finished


def test_unfinished_source_is_refused_with_how_to_finish_it(tiny_run: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_run, tmp_path / "source"))
    info = json.loads((source / "run.json").read_text())
    (source / "run.json").write_text(json.dumps({**info, "status": "training"}))
    with pytest.raises(RunError, match=r"no weights to start from.*fewsight train --resume .*source"):
        read_start(source)


def test_accumulation_with_a_mining_loss_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    sets = ["stages.0.loss=ce+triplet", "stages.0.accumulate=2"]
    with pytest.raises(RecipeError, match="cannot be accumulated"):
        train(tmp_path / "nowhere", tmp_path / "out", recipe="digits", overrides=sets)

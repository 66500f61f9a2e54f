"""Training and evaluation as functions: checks before work, previews, runs of another machine."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from conftest import TINY
from fewsight import runs
from fewsight.data import load_image
from fewsight.data.prepare import prepare
from fewsight.errors import DataError, Interrupted, RecipeError, RunError
from fewsight.inference.evaluate import evaluate
from fewsight.inference.score_run import testing_recipe as recipe_for_testing
from fewsight.recipes import Data, load_recipe, shipped_recipes
from fewsight.terminal import make_console
from fewsight.training import session
from fewsight.training.resolve import check_parts, resolve
from fewsight.training.session import train


def quiet() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return make_console(file), file


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.backbone=resnst14", r"^model\.backbone: there is no 'resnst14'; did you mean 'resnest14'\?$"),
        (
            "model.backbone=xyz",
            r"^model\.backbone: there is no 'xyz'; it is one of plain8, resnest101, .*, or timm:NAME$",
        ),
        ("stages.0.loss=cee", r"^loss: there is no 'cee'; did you mean 'ce'\?$"),
        ("augment.policy=autoaugmnt", r"^augment\.policy: there is no 'autoaugmnt'; did you mean 'autoaugment'\?$"),
        ("stages.0.augment.policy=no", r"^stages\.0\.augment\.policy: there is no 'no'; did you mean 'none'\?$"),
        (
            "stages.0.optim.schedule=cosin",
            r"^stages\.0\.optim\.schedule: there is no 'cosin'; did you mean 'cosine'\?$",
        ),
        ("stages.0.optim.optimizer=sdg", r"^stages\.0\.optim\.optimizer: there is no 'sdg'; did you mean 'sgd'\?$"),
        ("model.backbone=timm:resnet18", "has its own stem and width"),
    ],
)
def test_unknown_name_is_refused_before_the_data_is_read(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        train(tmp_path / "nowhere", tmp_path / "run", recipe="digits", overrides=[override])


def test_recompute_of_a_timm_model_is_refused_before_the_data_is_read(tmp_path: Path) -> None:
    sets = ["model.backbone=timm:resnet18", "model.stem=large", "model.width=1.0", "run.recompute=true"]
    with pytest.raises(RecipeError, match=r"run\.recompute is for fewsight's own backbones"):
        train(tmp_path / "nowhere", tmp_path / "run", recipe="digits", overrides=sets)


FIXED = ["model.backbone=timm:vit_tiny_patch16_224", "model.stem=large", "model.width=1.0"]


@pytest.mark.parametrize(
    ("sizes", "px"),
    [
        (["augment.train_px=64"], 64),
        (["augment.train_px=224", "eval.test_px=[224, 320]"], 320),
        (["augment.train_px=224", "stages.0.first_px=112"], 112),
    ],
)
def test_size_that_a_timm_model_does_not_take_is_refused_before_the_data_is_read(
    sizes: list[str], px: int, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    reason = rf"vit_tiny_patch16_224 of timm does not take images of {px} x {px} px \(.*224.*\); it is made for 224 px"
    with pytest.raises(RecipeError, match=reason):
        train(tmp_path / "nowhere", tmp_path / "run", recipe="digits", overrides=[*FIXED, *sizes])


def test_timm_model_of_one_size_is_tested_at_that_size(class_images: Path) -> None:
    pytest.importorskip("timm")
    recipe = load_recipe("digits", [*FIXED, "augment.train_px=224", "eval.test_px=auto"])
    assert resolve(recipe, prepare(class_images, recipe.data)).eval.test_px == [224]
    recipe = load_recipe(
        "digits", ["model.backbone=timm:resnet10t", *FIXED[1:], "augment.train_px=32", "eval.test_px=auto"]
    )
    assert resolve(recipe, prepare(class_images, recipe.data)).eval.test_px == [32, 44, 56, 64]


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipe_has_known_parts(name: str) -> None:
    check_parts(load_recipe(name))


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan"), float("inf")])
def test_hours_must_be_positive_and_finite(hours: float, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--hours .*: expected a number above 0"):
        train(tmp_path, tmp_path / "run", hours=hours)


def test_out_is_checked_before_the_data(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="file is a file, not a folder"):
        train(tmp_path / "nowhere", tmp_path / "file" / "run", recipe="digits")


def test_interrupt_message_names_the_commands_for_the_remaining_seeds(
    digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted("interrupted", 2)

    monkeypatch.setattr(session, "_fit", stopped)
    out = tmp_path / "runs"
    with pytest.raises(Interrupted, match=r"--recipe .*seed0/recipe\.toml --set run\.seed=1 --out .*seed1$"):
        train(digit_images, out, recipe="digits", overrides=TINY, seeds=[0, 1], console=quiet()[0])


def test_seeds_can_be_added_beside_others_but_not_inside_a_run(
    tiny_run: Path, digit_images: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"already exists \(a run\)"):
        train(digit_images, tiny_run, recipe="digits", seeds=[5])
    console, _ = quiet()
    overrides = [*TINY, "stages.0.epochs=1"]
    for seed in (0, 1):
        (run,) = train(digit_images, tmp_path, recipe="digits", overrides=overrides, seeds=[seed], console=console)
        assert run.path == tmp_path / f"seed{seed}"


def test_resolve_leaves_no_auto_values(digit_images: Path) -> None:
    recipe = resolve(load_recipe("resnest101_ce"), prepare(digit_images, Data()))
    assert recipe.model.stem == "large"
    assert recipe.eval.test_px == [224, 320, 380, 448]
    assert recipe.data.mean != "data"
    assert "auto" not in {recipe.run.device, recipe.run.precision, recipe.run.threads, recipe.run.workers}


def test_preview_shows_each_batch(digit_images: Path, tmp_path: Path) -> None:
    console, file = quiet()
    overrides = [*TINY, "stages.0.batch_size=7"]
    assert train(digit_images, tmp_path / "run", recipe="digits", overrides=overrides, preview=4, console=console) == []
    assert "4 batches of 6 images" in file.getvalue()
    with Image.open(tmp_path / "run" / "preview.png") as sheet:
        assert sheet.width > 6 * 96
        assert sheet.height > 4 * 96


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_is_said_with_what_to_do(
    error: Exception, digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: object) -> None:
        raise error

    monkeypatch.setattr(session, "fit", fit)
    with pytest.raises(RunError, match=r"run: the memory is too small for a batch.*stages\.0\.accumulate=2"):
        train(digit_images, tmp_path / "run", recipe="digits", overrides=TINY, console=quiet()[0])


def test_preview_of_a_plan_times_nothing(digit_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewsight.training.planning.plan.probe", lambda *_: pytest.fail("timed"))
    console, file = quiet()
    assert train(digit_images, tmp_path / "run", overrides=TINY[:1], preview=1, console=console) == []
    assert "a preview times nothing: it shows the images of the cheapest net of the plan, " in file.getvalue()
    assert (tmp_path / "run" / "preview.png").is_file()


def test_evaluation_uses_all_of_a_folder_without_splits(tiny_run: Path, digit_images: Path) -> None:
    console, _ = quiet()
    evaluation = evaluate(tiny_run, digit_images / "test", console=console)
    assert (evaluation.split, evaluation.figures.num_images, evaluation.num_trained_on) == ("all", 15, 0)
    named = evaluate(tiny_run, digit_images, console=console)
    assert named.figures.top1 == evaluation.figures.top1


def test_evaluation_needs_one_readable_image(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"none of the 2 images can be read; the first: .*a\.png"):
        evaluate(tiny_run, tmp_path, console=quiet()[0])


def test_run_of_another_device_is_tested_in_the_precision_of_this_one(tiny_run: Path) -> None:
    run = runs.read_run(tiny_run)
    on_gpu = run.recipe.run.model_copy(update={"device": "cuda:3", "precision": "fp16", "workers": 16})
    moved = runs.Run(run.path, run.recipe.model_copy(update={"run": on_gpu}), run.classes, run.data, run.info)
    settings = recipe_for_testing(moved).run
    assert (settings.device, settings.precision) != ("cuda:3", "fp16")
    assert recipe_for_testing(run).run.precision == "float32", "the same kind of device keeps the trained one"


def test_fixture_images_are_real_digits(digit_images: Path) -> None:
    image = load_image(next((digit_images / "train" / "nought").iterdir()))
    assert image.size == (8, 8)

"""The plan: fits the time, explains itself, works around what the user fixed. The probe is replaced: no clock."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fewsight import auto
from fewsight.device import resolve_run
from fewsight.errors import RecipeError
from fewsight.fitting import batch_plan
from fewsight.prepare import Prepared, prepare
from fewsight.recipes import Data, Recipe, Run

QUIET = Console(quiet=True)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 4)):
        for name in ("ash", "oak"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (70, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    return prepare(tmp_path, Data())


def plan(prepared: Prepared, hours: float, *overrides: str) -> tuple[Recipe, list[str]]:
    settings = resolve_run(Run(device="cpu", precision="float32"))
    return auto.plan_recipe(prepared, settings, hours, overrides, QUIET, began=auto.time.monotonic())


def pace_of(seconds: float) -> auto.Pace:
    return auto.Pace(step_seconds=seconds, load_seconds=0.0, score_seconds=0.0, image_bytes=1000)


def by_depth(recipe: Recipe, _: Prepared) -> auto.Pace:
    """A made-up machine: deeper is slower."""
    depth = int(recipe.model.backbone.removeprefix("resnest"))
    return pace_of({14: 1.0, 26: 2.0, 50: 4.0, 101: 8.0}[depth] * (3 if recipe.model.stem != "large" else 1))


def total_seconds(recipe: Recipe, prepared: Prepared) -> float:
    stage = recipe.stages[0]
    steps = batch_plan(recipe, stage, prepared.images).num_steps
    return by_depth(recipe, prepared).step_seconds * steps * stage.epochs


@pytest.mark.parametrize("hours", [0.1, 0.5, 1.0])
def test_plan_fills_the_time(prepared: Prepared, hours: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "probe", by_depth)
    recipe, _ = plan(prepared, hours)
    assert 0.8 * hours * 3600 <= total_seconds(recipe, prepared) <= hours * 3600


def test_more_time_gives_more_model(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "probe", by_depth)
    names = [plan(prepared, hours)[0].model.backbone for hours in (0.05, 1.0, 5.0)]
    assert names[0] == "resnest14"
    assert int(names[2].removeprefix("resnest")) > int(names[0].removeprefix("resnest"))


def test_plan_says_why(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "probe", by_depth)
    recipe, reasons = plan(prepared, 0.1)
    assert "40 training images of 2 classes, median shorter side 64 px" in reasons[0]
    assert reasons[-1].startswith(
        f"chosen: {recipe.model.backbone}, large stem, 64 px, {recipe.stages[0].epochs} epochs"
    )


def test_plan_works_around_what_is_fixed(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "probe", by_depth)
    recipe, _ = plan(prepared, 0.2, "model.backbone=resnest50", "stages.0.epochs=3", "augment.policy=none")
    assert (recipe.model.backbone, recipe.stages[0].epochs, recipe.augment.policy) == ("resnest50", 3, "none")


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_hours_must_be_positive(prepared: Prepared, hours: float) -> None:
    with pytest.raises(RecipeError, match=r"--hours .*: expected a number above 0"):
        plan(prepared, hours)


def test_too_little_time_is_refused_with_the_epochs_length(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "probe", lambda recipe, prepared: pace_of(100.0))
    with pytest.raises(RecipeError, match=r"--hours 0\.01 is not enough for one epoch .* takes about 5 min"):
        plan(prepared, 0.01)


def test_short_memory_cuts_the_batch(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "probe", by_depth)
    monkeypatch.setattr(auto, "free_memory", lambda device: 16 * 1000)
    recipe, _ = plan(prepared, 0.1)
    assert recipe.stages[0].accumulate == 2  # 16 images at 1000 bytes, half of 16,000 bytes


def test_probe_takes_real_steps(prepared: Prepared) -> None:
    settings = resolve_run(Run(device="cpu", precision="float32"))
    values = auto.starting_values()
    values |= {"model": {"backbone": "resnest14", "stem": "large", "width": 0.125}, "augment": {"train_px": 32}}
    values["run"] = settings.model_dump()
    values["stages"][0]["batch_size"] = 4
    pace = auto.probe(Recipe.model_validate(values), prepared)
    assert pace.step_seconds > 0
    assert pace.load_seconds > 0
    assert 10_000 < pace.image_bytes < 10_000_000


@pytest.mark.parametrize("native", [8, 32, 64, 100, 300, 4000])
def test_ladder_climbs_and_stays_in_range(native: int) -> None:
    rungs = auto.ladder(native)
    assert all(16 <= rung.train_px <= 224 for rung in rungs)
    assert len(set(rungs)) == len(rungs) >= 3

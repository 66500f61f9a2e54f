"""The plan: fits the time, explains itself, works around what the user fixed. The probe is replaced: no clock."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fewsight.data.prepare import Prepared, prepare
from fewsight.errors import RecipeError
from fewsight.machine.device import resolve_run
from fewsight.recipes import Data, Recipe, RunSettings
from fewsight.training import planner
from fewsight.training.plans import batch_plan
from fewsight.training.schedule import px_at

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
    settings = resolve_run(RunSettings(device="cpu", precision="float32"))
    return planner.plan_recipe(prepared, settings, hours, overrides, QUIET, began=planner.time.monotonic())


def pace_of(seconds: float) -> planner.Pace:
    return planner.Pace(step_seconds=seconds, load_seconds=0.0, score_seconds=0.0, image_bytes=1000)


def by_depth(recipe: Recipe, *_: object) -> planner.Pace:
    """A made-up machine: deeper is slower."""
    depth = int(recipe.model.backbone.removeprefix("resnest"))
    return pace_of({14: 1.0, 26: 2.0, 50: 4.0, 101: 8.0}[depth] * (3 if recipe.model.stem != "large" else 1))


def total_seconds(recipe: Recipe, prepared: Prepared) -> float:
    stage = recipe.stages[0]
    steps = batch_plan(recipe, stage, prepared.images).num_steps
    sides = [px_at(recipe, epoch) / recipe.augment.train_px for epoch in range(stage.epochs)]
    return by_depth(recipe).step_seconds * steps * sum(side**2 for side in sides)


@pytest.mark.parametrize("hours", [0.1, 0.5, 1.0])
def test_plan_fills_the_time(prepared: Prepared, hours: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe", by_depth)
    recipe, _ = plan(prepared, hours)
    assert 0.8 * hours * 3600 <= total_seconds(recipe, prepared) <= hours * 3600


def test_more_time_gives_more_model(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe", by_depth)
    names = [plan(prepared, hours)[0].model.backbone for hours in (0.05, 1.0, 5.0)]
    assert names[0] == "resnest14"
    assert int(names[2].removeprefix("resnest")) > int(names[0].removeprefix("resnest"))


def test_plan_says_why(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe", by_depth)
    recipe, reasons = plan(prepared, 0.1)
    assert "40 training images of 2 classes, median shorter side 64 px" in reasons[0]
    assert reasons[-1].startswith(
        f"chosen: {recipe.model.backbone}, large stem, 64 px, {recipe.stages[0].epochs} epochs"
    )


def test_plan_works_around_what_is_fixed(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe", by_depth)
    recipe, _ = plan(prepared, 0.2, "model.backbone=resnest50", "stages.0.epochs=3", "augment.policy=none")
    assert (recipe.model.backbone, recipe.stages[0].epochs, recipe.augment.policy) == ("resnest50", 3, "none")


@pytest.mark.parametrize(
    ("overrides", "first_px"),
    [
        ((), 32),
        (("stages.0.first_px=train",), "train"),
        (("stages.0.first_px=40",), 40),
        (("augment.train_px=100",), 48),
        (("augment.train_px=32",), "train"),
    ],
)
def test_images_grow_unless_the_user_says_other(
    prepared: Prepared, overrides: tuple[str, ...], first_px: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "probe", by_depth)
    assert plan(prepared, 0.1, *overrides)[0].stages[0].first_px == first_px


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_hours_must_be_positive(prepared: Prepared, hours: float) -> None:
    with pytest.raises(RecipeError, match=r"--hours .*: expected a number above 0"):
        plan(prepared, hours)


def test_too_little_time_is_refused_with_the_epochs_length(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe", lambda *_: pace_of(100.0))
    with pytest.raises(RecipeError, match=r"--hours 0\.01 is not enough for one epoch .* takes about 5 min") as refusal:
        plan(prepared, 0.01)
    asked = re.search(r"Give --hours ([\d.]+) or more for one epoch", str(refusal.value))
    assert asked is not None
    assert plan(prepared, float(asked[1]))[0].stages[0].epochs == 1
    assert "scoring val" in str(refusal.value)


def test_few_epochs_are_warned_of_with_the_time_that_is_wanted(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "probe", by_depth)
    recipe, reasons = plan(prepared, 0.01)
    warned = re.fullmatch(
        r"warning: (\d+) epochs in the time, of about (\d+) .* Give --hours ([\d.]+), or .* augment.train_px=32",
        reasons[-1],
    )
    assert warned is not None
    assert int(warned[1]) == recipe.stages[0].epochs
    enough, told = plan(prepared, float(warned[3]))
    assert enough.stages[0].epochs >= int(warned[2])
    assert not any(line.startswith("warning") for line in told)
    assert plan(prepared, 0.01, "stages.0.epochs=2")[1][-1].startswith("chosen"), "the user named them"


def test_measuring_takes_a_share_of_the_time_and_never_long(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def slow(recipe: Recipe, _: Prepared, seconds: float) -> planner.Pace:
        asked.append(seconds)
        clock[0] += seconds  # all that it may take
        return pace_of(0.001)

    clock = [0.0]
    monkeypatch.setattr(planner, "probe", slow)
    monkeypatch.setattr(planner.time, "monotonic", lambda: clock[0])
    for hours, most in ((0.03, 0.06 * 108), (0.1, 0.06 * 360), (1000.0, 60.0)):
        asked.clear()
        plan(prepared, hours)
        assert 0 < sum(asked) <= most + 1e-9
        assert all(one > 0 for one in asked)


def test_probe_ends_with_a_step_that_takes_too_long(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        model, steps = None, 0

        def step(self, *_: object) -> None:
            self.steps += 1
            clock[0] += 30.0

    clock, learner = [0.0], Slow()
    monkeypatch.setattr(planner.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(planner, "build_learner", lambda *_: learner)
    monkeypatch.setattr(planner, "_bytes_kept", lambda *_: 0)
    (recipe, *_) = planner._candidates(
        planner.ladder(32), 40, resolve_run(RunSettings(device="cpu", precision="float32")), ()
    )
    assert planner.probe(recipe, prepared, 6.5).step_seconds == 30.0
    assert learner.steps == 1


def test_step_that_others_made_longer_does_not_count() -> None:
    assert planner._quiet([9.0, 1.0, 1.1, 1.0, 7.0, 1.0, 8.0]) == 1.0
    assert planner._quiet([9.0]) == 9.0


def test_short_memory_cuts_the_batch(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe", by_depth)
    monkeypatch.setattr(planner, "free_memory", lambda device: 16 * 1000)
    recipe, _ = plan(prepared, 0.1)
    assert recipe.stages[0].accumulate == 2  # 16 images at 1000 bytes, half of 16,000 bytes


def test_probe_takes_real_steps(prepared: Prepared) -> None:
    settings = resolve_run(RunSettings(device="cpu", precision="float32"))
    values = planner.starting_values()
    values |= {"model": {"backbone": "resnest14", "stem": "large", "width": 0.125}, "augment": {"train_px": 32}}
    values["run"] = settings.model_dump()
    values["stages"][0]["batch_size"] = 4
    pace = planner.probe(Recipe.model_validate(values), prepared)
    assert pace.step_seconds > 0
    assert pace.load_seconds > 0
    assert 10_000 < pace.image_bytes < 10_000_000


@pytest.mark.parametrize("native", [8, 32, 64, 100, 300, 4000])
def test_ladder_climbs_and_stays_in_range(native: int) -> None:
    rungs = planner.ladder(native)
    assert all(16 <= rung.train_px <= 224 for rung in rungs)
    assert len(set(rungs)) == len(rungs) >= 3

"""Plans fill the time, give reasons and keep what the user fixed. Most tests replace the probe by fixed times."""

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
    """A simulated machine on which deeper models are slower."""
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


def test_plan_gives_reasons(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe", by_depth)
    recipe, reasons = plan(prepared, 0.1)
    assert "40 training images of 2 classes, median shorter side 64 px" in reasons[0]
    assert reasons[-1].startswith(
        f"chosen: {recipe.model.backbone}, large stem, 64 px, {recipe.stages[0].epochs} epochs"
    )


def test_plan_keeps_what_the_user_fixed(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_images_grow_unless_the_user_fixed_their_size(
    prepared: Prepared, overrides: tuple[str, ...], first_px: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "probe", by_depth)
    assert plan(prepared, 0.1, *overrides)[0].stages[0].first_px == first_px


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_hours_must_be_positive(prepared: Prepared, hours: float) -> None:
    with pytest.raises(RecipeError, match=r"--hours .*: expected a number above 0"):
        plan(prepared, hours)


def test_too_little_time_is_refused_with_the_time_of_an_epoch(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "probe", lambda *_: pace_of(100.0))
    with pytest.raises(RecipeError, match=r"--hours 0\.01 is not enough for one epoch .* takes about 5 min") as refusal:
        plan(prepared, 0.01)
    hours = re.search(r"Give --hours ([\d.]+) or more for one epoch", str(refusal.value))
    assert hours is not None
    assert plan(prepared, float(hours[1]))[0].stages[0].epochs == 1
    assert "scoring val" in str(refusal.value)


def test_warning_about_few_epochs_names_the_time_for_enough(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "probe", by_depth)
    recipe, reasons = plan(prepared, 0.01)
    warning = re.fullmatch(
        r"warning: time for (\d+) epochs, but this data needs about (\d+): .* Give --hours ([\d.]+), or .*"
        r"augment\.train_px=32",
        reasons[-1],
    )
    assert warning is not None
    assert int(warning[1]) == recipe.stages[0].epochs
    enough, new_reasons = plan(prepared, float(warning[3]))
    assert enough.stages[0].epochs >= int(warning[2])
    assert not any(line.startswith("warning") for line in new_reasons)
    assert plan(prepared, 0.01, "stages.0.epochs=2")[1][-1].startswith("chosen"), "the user fixed them"


def test_probing_takes_a_fraction_of_the_time_and_at_most_a_minute(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def slow(recipe: Recipe, _: Prepared, seconds: float) -> planner.Pace:
        limits.append(seconds)
        clock[0] += seconds  # the whole limit
        return pace_of(0.001)

    clock = [0.0]
    monkeypatch.setattr(planner, "probe", slow)
    monkeypatch.setattr(planner.time, "monotonic", lambda: clock[0])
    for hours, max_seconds in ((0.03, 0.06 * 108), (0.1, 0.06 * 360), (1000.0, 60.0)):
        limits.clear()
        plan(prepared, hours)
        assert 0 < sum(limits) <= max_seconds + 1e-9
        assert all(limit > 0 for limit in limits)


def test_probe_ends_after_a_step_that_takes_too_long(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        model, steps = None, 0

        def step(self, *_: object) -> None:
            self.steps += 1
            clock[0] += 30.0

    clock, learner = [0.0], Slow()
    monkeypatch.setattr(planner.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(planner, "build_learner", lambda *_: learner)
    monkeypatch.setattr(planner, "_bytes_kept", lambda *_: 0)
    (recipe, *_) = planner._candidate_recipes(
        planner.ladder(32), 40, resolve_run(RunSettings(device="cpu", precision="float32")), ()
    )
    assert planner.probe(recipe, prepared, 6.5).step_seconds == 30.0
    assert learner.steps == 1


def test_steps_slowed_by_other_programs_do_not_count() -> None:
    assert planner._undisturbed([9.0, 1.0, 1.1, 1.0, 7.0, 1.0, 8.0]) == 1.0
    assert planner._undisturbed([9.0]) == 9.0


def test_short_memory_raises_accumulation(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_ladder_has_different_candidates_in_range(native: int) -> None:
    candidates = planner.ladder(native)
    assert all(16 <= candidate.train_px <= 224 for candidate in candidates)
    assert len(set(candidates)) == len(candidates) >= 3

"""Plans fill the time, give reasons and keep what the user fixed. Most tests replace the probe by fixed times."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fewsight.data.prepare import Prepared, prepare
from fewsight.errors import RecipeError
from fewsight.machine.device import resolve_run
from fewsight.recipes import Data, Recipe, RunSettings, Stage, parse_recipe
from fewsight.training.planning import candidates, clock, probe
from fewsight.training.planning import plan as planner
from fewsight.training.planning.probe import Pace, TooLargeError
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


def pace_of(seconds: float) -> Pace:
    return Pace(step_seconds=seconds, load_seconds=0.0, score_seconds=0.0, image_bytes=1000)


def by_depth(recipe: Recipe, *_: object) -> Pace:
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


def quick(_recipe: Recipe, *_: object) -> Pace:
    """A simulated machine on which any number of epochs fits."""
    return pace_of(1e-3)


def test_everything_follows_the_epochs_that_the_user_fixed(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe", quick)
    monkeypatch.setattr(planner, "time_loading", lambda *_: 0.0)
    recipe, reasons = plan(prepared, 0.2, "stages.0.epochs=5")
    stage = recipe.stages[0]
    assert (stage.epochs, stage.optim.warmup_epochs, stage.ema_half_life_epochs) == (5, 0.5, 0.2)
    assert (recipe.model.backbone, recipe.augment.policy, stage.first_px) == ("resnest14", "none", "train")
    assert not any("warning" in reason for reason in reasons)
    many = plan(prepared, 0.2, "stages.0.epochs=400")[0]
    assert (many.stages[0].epochs, many.augment.policy, many.stages[0].ema_half_life_epochs) == (
        400,
        planner.POLICY,
        16,
    )


def test_fixed_epochs_that_do_not_fit_are_warned_about(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe", by_depth)
    recipe, reasons = plan(prepared, 0.05, "stages.0.epochs=200")
    assert recipe.model.backbone == "resnest14", "the cheapest"
    warned = re.fullmatch(
        r"warning: the 200 epochs that you fixed take about --hours ([\d.]+), .* for \d+ epochs", reasons[-1]
    )
    assert warned is not None
    assert float(warned[1]) > 0.05


def test_evaluations_between_epochs_take_their_time(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(pace_of(1.0), score_seconds=1.0)
    monkeypatch.setattr(planner, "probe", lambda *_: slow)
    seldom, often = (plan(prepared, 0.2, f"eval.every_epochs={every}")[0] for every in (0, 1))
    assert often.stages[0].epochs < 0.5 * seldom.stages[0].epochs, "8 s of scoring for each 3 s of training"


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

    def slow(recipe: Recipe, _: Prepared, seconds: float, __: float) -> Pace:
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
    learner = simulated_steps(30.0, monkeypatch)
    assert probe.probe(small_recipe(), prepared, 6.5).step_seconds == 30.0
    assert learner.steps == 1


def test_probe_ends_with_the_first_timed_step_where_an_epoch_is_hopeless(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 steps of 1 s against 4 s for an epoch; the first step also chooses kernels and does not count."""
    learner = simulated_steps(1.0, monkeypatch)
    assert probe.probe(small_recipe(), prepared, 60.0, 4.0).step_seconds == 1.0
    assert learner.steps == 2
    assert probe.probe(small_recipe(), prepared, 60.0, 10.0).step_seconds == 1.0
    assert learner.steps == 2 + 9


class Learner:
    """A simulated learner that counts its steps."""

    model, steps, accumulate = None, 0, 1


def simulated_steps(seconds: float, monkeypatch: pytest.MonkeyPatch) -> Learner:
    """Replace real steps by ones of a fixed time."""
    now, learner = [0.0], Learner()

    def step(*_: object) -> tuple[torch.Tensor, dict[str, float]]:
        learner.steps += 1
        now[0] += seconds
        return torch.zeros(()), {}

    def build(model: object, recipe: object, stage: Stage, *_: object) -> Learner:
        learner.accumulate = stage.accumulate
        return learner

    learner.step = step  # type: ignore[attr-defined]
    monkeypatch.setattr(probe.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(probe, "build_learner", build)
    return learner


def small_recipe(*overrides: str) -> Recipe:
    values = candidates.starting_values()
    values |= {"model": {"backbone": "resnest14", "stem": "large", "width": 0.125}, "augment": {"train_px": 32}}
    values["run"] = resolve_run(RunSettings(device="cpu", precision="float32")).model_dump()
    values["stages"][0]["batch_size"] = 4
    return parse_recipe(values, overrides)


def test_steps_slowed_by_other_programs_do_not_count() -> None:
    assert probe._undisturbed([9.0, 1.0, 1.1, 1.0, 7.0, 1.0, 8.0]) == 1.0
    assert probe._undisturbed([9.0]) == 9.0


def test_short_memory_raises_accumulation(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(recipe: Recipe, *_: object) -> Pace:
        return replace(by_depth(recipe), parts=probe.parts_that_fit(1000, recipe))

    monkeypatch.setattr(planner, "probe", measured)
    monkeypatch.setattr(probe, "free_memory", lambda device: 16 * 1000)
    recipe, _ = plan(prepared, 0.1)
    assert recipe.stages[0].accumulate == 2  # 16 images at 1000 bytes, half of 16,000 bytes


def test_probe_takes_real_steps(prepared: Prepared) -> None:
    pace = probe.probe(small_recipe(), prepared)
    assert pace.step_seconds > 0
    assert pace.load_seconds > 0
    assert 10_000 < pace.image_bytes < 10_000_000


def test_probe_cuts_a_batch_that_is_too_large_for_the_memory(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = probe.probe(small_recipe(), prepared).image_bytes
    learner = simulated_steps(1.0, monkeypatch)
    monkeypatch.setattr(probe, "_check_weights_fit", lambda *_: None)
    monkeypatch.setattr(probe, "free_memory", lambda device: 5 * kept)
    probe.probe(small_recipe(), prepared)
    assert learner.accumulate == 2  # two images at a time in half of the memory of five


@pytest.mark.parametrize(
    ("free_images", "overrides", "reason"),
    [
        (3, (), "a step on 2 images keeps"),
        (5, ("stages.0.batches=pk", "stages.0.images_per_class=2"), "a step on 4 images keeps"),
    ],
)
def test_probe_refuses_what_does_not_fit_before_the_first_step(
    free_images: int, overrides: tuple[str, ...], reason: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = probe.probe(small_recipe(), prepared).image_bytes
    learner = simulated_steps(1.0, monkeypatch)
    monkeypatch.setattr(probe, "_check_weights_fit", lambda *_: None)
    monkeypatch.setattr(probe, "free_memory", lambda device: free_images * kept)
    with pytest.raises(TooLargeError, match=reason):
        probe.probe(small_recipe(*overrides), prepared)
    assert learner.steps == 0


def test_weights_that_do_not_fit_are_never_allocated(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "free_memory", lambda device: 10**6)
    monkeypatch.setattr(probe, "initial_model", lambda *_: pytest.fail("allocated"))
    with pytest.raises(TooLargeError, match=r"its weights, gradients, .* take \d\.\d GB, and 0\.001 GB are free"):
        probe.probe(small_recipe("model.width=4.0", "model.backbone=resnest50"), prepared)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_ends_within_a_step_is_a_reason(
    error: Exception, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object) -> None:
        raise error

    monkeypatch.setattr(probe, "build_learner", build)
    with pytest.raises(TooLargeError, match="the free memory is too small for a step"):
        probe.probe(small_recipe(), prepared)


def test_candidate_that_does_not_fit_is_skipped_with_the_reason(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fits_in_part(recipe: Recipe, *_: object) -> Pace:
        if recipe.model.backbone == "resnest26":
            raise TooLargeError("it is large")
        return by_depth(recipe)

    monkeypatch.setattr(planner, "probe", fits_in_part)
    recipe, reasons = plan(prepared, 1.0)
    assert recipe.model.backbone == "resnest50"
    assert "resnest26, large stem, 64 px: skipped, it is large" in reasons


def test_plan_without_memory_for_any_model_is_refused(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "free_memory", lambda device: 10**6)
    with pytest.raises(RecipeError, match=r"no model of the plan fits into the free memory: .*skipped, its weights"):
        plan(prepared, 1.0)


@pytest.mark.parametrize(("load_seconds", "policy"), [(0.1, "trivialaugment"), (1e3, "none")])
def test_loading_is_timed_with_the_policy_that_the_plan_sets(
    load_seconds: float, policy: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []

    def loading(recipe: Recipe, _: Prepared) -> float:
        timed.append(recipe.augment.policy)
        return load_seconds

    monkeypatch.setattr(planner, "probe", lambda *_: pace_of(1.0))
    monkeypatch.setattr(planner, "time_loading", loading)
    recipe, _ = plan(prepared, 0.5, "model.backbone=resnest14", "run.workers=0")
    assert timed == ["trivialaugment"]
    assert recipe.augment.policy == policy
    assert recipe.stages[0].epochs >= planner.MIN_POLICY_EPOCHS


def test_policy_that_the_user_fixed_is_timed_once(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "probe", lambda *_: pace_of(1.0))
    monkeypatch.setattr(planner, "time_loading", lambda *_: pytest.fail("timed again"))
    recipe, _ = plan(prepared, 0.5, "model.backbone=resnest14", "augment.policy=none")
    assert recipe.augment.policy == "none"


def test_policy_takes_time_to_load(prepared: Prepared) -> None:
    assert 0 < probe.time_loading(small_recipe("augment.policy=trivialaugment"), prepared) < 5


def test_time_that_is_over_before_a_step_is_refused_without_one(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "probe", lambda *_: pytest.fail("probed"))
    monkeypatch.setattr(clock, "START_SECONDS", 40.0)
    with pytest.raises(RecipeError, match=r"--hours 0\.01 is over before the training begins.*at least --hours 0\.03"):
        plan(prepared, 0.01)


@pytest.mark.parametrize("native", [8, 32, 64, 100, 300, 4000])
def test_ladder_has_different_candidates_in_range(native: int) -> None:
    listed = candidates.ladder(native)
    assert all(16 <= candidate.train_px <= 224 for candidate in listed)
    assert len(set(listed)) == len(listed) >= 3

"""Plans fill the time, give reasons and keep what the user fixed. Most tests replace the timed steps by fixed times."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fewsight.data.prepare import Prepared, prepare
from fewsight.errors import RecipeError
from fewsight.machine import device
from fewsight.machine.device import resolve_run
from fewsight.recipes import Data, Recipe, RunSettings, Stage, parse_recipe
from fewsight.training.members.recipes import variants_of
from fewsight.training.planning import candidates, clock, levels, pilot, probe
from fewsight.training.planning import plan as planner
from fewsight.training.planning.pilot import Steps
from fewsight.training.planning.probe import Pace, TooLargeError
from fewsight.training.plans import batch_plan

QUIET = Console(quiet=True)
CORES = 2
Paces = Callable[[Recipe], Pace]


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
    settings = RunSettings(device="cpu", precision="float32")
    return planner.plan_recipe(prepared, settings, hours, overrides, QUIET, began=time.monotonic())


def pace_of(seconds: float) -> Pace:
    return Pace(step_seconds=seconds, load_seconds=0.0, score_seconds=0.0, image_bytes=1000)


def by_size(recipe: Recipe) -> Pace:
    """A simulated core on which a step takes 1 s with plain8 at half its width and 64 px."""
    pixels = (recipe.augment.train_px / 64) ** 2 * {"large": 1, "medium": 4, "small": 16}[recipe.model.stem]
    return pace_of(pixels * (recipe.model.width / 0.5) ** 2)


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Simulates a machine of two cores; `slowdown` is what other programs do to the training's steps."""

    def install(paces: Paces, slowdown: float = 1.0, core_proportion: float = 1.0) -> None:
        def steps(recipes: Sequence[Recipe], *_: object) -> Steps:
            threads = recipes[0].run.threads
            assert threads != "auto"
            alone = [paces(recipe) for recipe in recipes]
            seconds = [(pace.step_seconds + pace.load_seconds) * slowdown / threads for pace in alone]
            return Steps(tuple(seconds), core_proportion)

        monkeypatch.setattr(planner, "probe", lambda recipe, *_: paces(recipe))
        monkeypatch.setattr(planner, "pilot", steps)
        monkeypatch.setattr(clock, "START_SECONDS", 0.0)
        monkeypatch.setattr(device, "num_cores", lambda: CORES)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    return install


def total_seconds(recipe: Recipe, prepared: Prepared, paces: Paces = by_size) -> float:
    """Of all members on two cores, which have equal parts of the time."""
    seconds = 0.0
    for each in variants_of(recipe):
        steps = each.stages[0].epochs * batch_plan(each, each.stages[0], prepared.images).num_steps
        seconds += steps * paces(each).step_seconds
    return seconds / CORES


@pytest.mark.parametrize("hours", [0.05, 0.5, 5.0, 500.0])
def test_plan_fills_the_time(prepared: Prepared, hours: float, simulate: Callable[..., None]) -> None:
    simulate(by_size)
    recipe, _ = plan(prepared, hours)
    assert 0.8 * hours * 3600 <= total_seconds(recipe, prepared) <= hours * 3600


def test_more_time_gives_members_then_larger_nets(prepared: Prepared, simulate: Callable[..., None]) -> None:
    simulate(by_size)
    plans = [plan(prepared, hours)[0] for hours in (0.05, 1.0, 4.0, 100.0)]
    members = [recipe.run.members for recipe in plans]
    largest = [max(by_size(each).step_seconds for each in variants_of(recipe)) for recipe in plans]
    assert members == [1, 2, 4, 8]
    assert largest == sorted(largest)
    assert largest[3] > largest[1]


def test_members_have_equal_parts_of_the_time(prepared: Prepared, simulate: Callable[..., None]) -> None:
    simulate(by_size)
    recipe, _ = plan(prepared, 2.0)
    seconds = [each.stages[0].epochs * by_size(each).step_seconds for each in variants_of(recipe)]
    assert any(recipe.run.variants), "the members differ"
    assert min(seconds) > 0.9 * max(seconds)


def test_time_is_never_left_over(prepared: Prepared, simulate: Callable[..., None]) -> None:
    """A device a hundred times as fast: epochs have no limit of their own."""
    simulate(lambda recipe: pace_of(by_size(recipe).step_seconds / 1000))
    recipe, _ = plan(prepared, 8.0)
    assert recipe.stages[0].epochs > 10_000
    assert total_seconds(recipe, prepared) / 1000 >= 0.8 * 8 * 3600


def test_plan_gives_reasons(prepared: Prepared, simulate: Callable[..., None]) -> None:
    simulate(by_size)
    recipe, reasons = plan(prepared, 1.0)
    text = "\n".join(reasons)
    assert reasons[0].startswith("for 40 training images of 2 classes, median shorter side 64 px; cpu, float32")
    assert f"chosen: {recipe.run.members} nets, 2 at a time, whose probabilities are averaged:" in text
    assert f"  {candidates.described(recipe)}: every image {recipe.stages[0].epochs:,} times, in " in text
    assert "with more time: " in text
    assert "a prediction takes about" in text
    assert "other programs" not in text


def test_plan_keeps_what_the_user_fixed(prepared: Prepared, simulate: Callable[..., None]) -> None:
    simulate(by_size)
    fixed = ("model.width=1.5", "stages.0.epochs=3", "augment.policy=trivialaugment", "run.members=3")
    recipe, _ = plan(prepared, 1.0, *fixed)
    assert (recipe.model.width, recipe.stages[0].epochs) == (1.5, 3)
    assert (recipe.augment.policy, recipe.run.members) == ("trivialaugment", 3)


def test_everything_follows_the_epochs_that_the_user_fixed(prepared: Prepared, simulate: Callable[..., None]) -> None:
    simulate(lambda _: pace_of(1e-3))
    recipe, reasons = plan(prepared, 0.2, "stages.0.epochs=50")
    stage = recipe.stages[0]
    assert (stage.epochs, stage.optim.warmup_epochs, stage.ema_half_life_epochs) == (50, 5.0, 2.0)
    assert not any("warning" in reason for reason in reasons)


def test_fixed_epochs_that_do_not_fit_are_warned_about(prepared: Prepared, simulate: Callable[..., None]) -> None:
    simulate(by_size)
    recipe, reasons = plan(prepared, 0.05, "stages.0.epochs=2000")
    assert recipe.run.members == 1
    warned = re.fullmatch(
        r"warning: the 2,000 epochs that you fixed take about --hours ([\d.]+), .* for [\d,]+ epochs", reasons[-1]
    )
    assert warned is not None
    assert float(warned[1]) > 0.05


def test_evaluations_between_epochs_take_their_time(prepared: Prepared, simulate: Callable[..., None]) -> None:
    simulate(lambda _: replace(pace_of(1.0), score_seconds=1.0))
    seldom, often = (plan(prepared, 0.2, "run.members=1", f"eval.every_epochs={every}")[0] for every in (0, 1))
    assert often.stages[0].epochs < 0.5 * seldom.stages[0].epochs, "8 s of scoring for each 3 s of training"


def test_steps_are_planned_as_slow_as_other_programs_make_them(
    prepared: Prepared, simulate: Callable[..., None]
) -> None:
    simulate(by_size)
    idle, _ = plan(prepared, 1.0)
    simulate(by_size, slowdown=3.0, core_proportion=0.33)
    busy, reasons = plan(prepared, 1.0)
    assert 3 * total_seconds(busy, prepared) <= 3600
    assert total_seconds(busy, prepared) < 0.4 * total_seconds(idle, prepared)
    assert "other programs take 67 % of the cores" in "\n".join(reasons)


def test_cheaper_plan_is_taken_where_other_programs_leave_too_few_steps(
    prepared: Prepared, simulate: Callable[..., None]
) -> None:
    simulate(by_size)
    idle, _ = plan(prepared, 1.0)
    simulate(by_size, slowdown=20.0)
    busy, _ = plan(prepared, 1.0)
    assert busy.run.members < idle.run.members
    enough = levels.enough_images(40) / 40
    assert busy.stages[0].epochs >= 0.25 * enough


def test_variants_of_the_user_are_refused_not_dropped(prepared: Prepared) -> None:
    settings = RunSettings(device="cpu", variants=[[], ["model.width=1.0"]])
    with pytest.raises(RecipeError, match=r"run\.variants: a plan chooses how its members differ"):
        planner.plan_recipe(prepared, settings, 1.0, (), QUIET, began=time.monotonic())


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_hours_must_be_positive(prepared: Prepared, hours: float) -> None:
    with pytest.raises(RecipeError, match=r"--hours .*: expected a number above 0"):
        plan(prepared, hours)


def test_too_little_time_is_refused_with_the_time_of_an_epoch(
    prepared: Prepared, simulate: Callable[..., None]
) -> None:
    simulate(lambda _: pace_of(100.0))
    with pytest.raises(
        RecipeError, match=r"--hours 0\.01 is not enough for one epoch .* takes about 2 min 30 s"
    ) as refusal:
        plan(prepared, 0.01)
    hours = re.search(r"Give --hours ([\d.]+) or more for one epoch", str(refusal.value))
    assert hours is not None
    assert plan(prepared, float(hours[1]))[0].stages[0].epochs == 1
    assert "scoring val" in str(refusal.value)


def test_warning_about_few_epochs_names_the_time_for_enough(prepared: Prepared, simulate: Callable[..., None]) -> None:
    simulate(lambda recipe: pace_of(10 * by_size(recipe).step_seconds))
    recipe, reasons = plan(prepared, 0.01)
    warning = re.fullmatch(
        r"warning: time for (\d+) epochs?, but this data needs about (\d+): .* Give --hours ([\d.]+), or .*"
        r"augment\.train_px=32",
        reasons[-1],
    )
    assert warning is not None
    assert int(warning[1]) == recipe.stages[0].epochs
    enough, new_reasons = plan(prepared, float(warning[3]))
    assert by_size(enough).step_seconds > by_size(recipe).step_seconds, "a net that is worth the time"
    assert not any(line.startswith("warning") for line in new_reasons)
    assert "warning" not in plan(prepared, 0.01, "stages.0.epochs=1")[1][-1], "the user fixed them"


def test_probing_takes_a_fraction_of_the_time_and_at_most_a_minute(
    prepared: Prepared, simulate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []

    def slow(recipe: Recipe, _: Prepared, seconds: float, __: float) -> Pace:
        limits.append(seconds)
        now[0] += seconds  # the whole limit
        return pace_of(0.001)

    now = [0.0]
    simulate(by_size)
    monkeypatch.setattr(planner, "probe", slow)
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    for hours, max_seconds in ((0.03, 0.03 * 108), (0.1, 0.03 * 360), (1000.0, 60.0)):
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
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(probe.time, name, lambda: now[0])
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


def test_short_memory_raises_accumulation(
    prepared: Prepared, simulate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(by_size)
    monkeypatch.setattr(probe, "free_memory", lambda device: 16 * 1000)
    recipe, _ = plan(prepared, 0.1, "run.members=1")
    assert recipe.stages[0].accumulate == 2  # 16 images at 1000 bytes, half of 16,000 bytes
    recipe, _ = plan(prepared, 0.1, "run.members=2")
    assert recipe.stages[0].accumulate == 4, "two members share the memory"


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


def test_level_that_does_not_fit_is_left_out_with_the_reason(prepared: Prepared, simulate: Callable[..., None]) -> None:
    def fits_in_part(recipe: Recipe) -> Pace:
        if recipe.augment.train_px == 96:
            raise TooLargeError("it is large")
        return by_size(recipe)

    simulate(fits_in_part)
    recipe, reasons = plan(prepared, 100.0)
    assert all(each.augment.train_px != 96 for each in variants_of(recipe))
    assert "plain8 at 0.5 of its width, large stem, 96 px, trivialaugment: left out, it is large" in "\n".join(reasons)


def test_plan_without_memory_for_any_model_is_refused(
    prepared: Prepared, simulate: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(by_size)
    monkeypatch.setattr(planner, "probe", probe.probe)
    monkeypatch.setattr(probe, "free_memory", lambda device: 10**6)
    with pytest.raises(RecipeError, match=r"no model of the plan fits into the free memory: .*left out, its weights"):
        plan(prepared, 1.0)


def test_time_that_is_over_before_a_step_is_refused_without_one(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "probe", lambda *_: pytest.fail("probed"))
    monkeypatch.setattr(clock, "START_SECONDS", 40.0)
    with pytest.raises(RecipeError, match=r"--hours 0\.01 is over before the training begins.*at least --hours 0\.03"):
        plan(prepared, 0.01)


@pytest.mark.parametrize("native", [8, 32, 64, 100, 300, 4000])
@pytest.mark.parametrize("num_images", [4, 300, 50_000])
def test_levels_are_different_and_in_range(native: int, num_images: int) -> None:
    listed = levels.levels(native, num_images)
    assert all(16 <= net.train_px <= 224 for level in listed for net in level.nets)
    assert len(set(listed)) == len(listed)
    assert [len(level.nets) for level in listed] == sorted(len(level.nets) for level in listed)
    assert [level.share for level in listed] == sorted(level.share for level in listed)


def test_more_images_are_seen_more_often_in_all_and_less_often_each() -> None:
    counts = [2, 200, 1_000, 50_000]
    enough = [levels.enough_images(count) for count in counts]
    assert enough == sorted(enough)
    each = [number / count for number, count in zip(enough, counts, strict=True)]
    assert each == sorted(each, reverse=True)


def test_level_too_slow_or_too_large_is_not_chosen() -> None:
    listed = levels.levels(64, 1000)
    enough = levels.enough_images(1000)
    assert levels.chosen(listed, [enough] * 3, 1000) == 2, "the others were not timed"
    assert levels.chosen(listed, [enough, enough, None], 1000) == 1
    assert levels.chosen(listed, [None, 0.05 * enough, 0.0], 1000) == 1, "the cheapest that fits"


def test_members_are_timed_side_by_side_in_processes_of_their_own(prepared: Prepared) -> None:
    one, larger = (small_recipe("run.threads=1", f"augment.train_px={px}") for px in (16, 48))
    steps = pilot.pilot([one, larger], prepared, 0.1)
    assert len(steps.seconds) == 2
    assert min(steps.seconds) > 0
    assert 0 < steps.core_proportion <= 1
    assert len(pilot.pilot([one], prepared, 0.1).seconds) == 1

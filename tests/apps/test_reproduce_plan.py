"""The plan of a reproduction: the paper's recipes or small ones, fitted to the time. Nothing is timed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewsight.apps.reproduce import plan
from fewsight.apps.reproduce.plan import (
    Job,
    job_name,
    makespan,
    mapped_px,
    plan_full,
    plan_small,
    recipes_for,
    small_px,
)
from fewsight.apps.reproduce.published import TRAININGS, Training
from fewsight.data.prepare import Prepared, prepare
from fewsight.errors import RecipeError
from fewsight.recipes import Data, Recipe, load_recipe, recipe_differences
from fewsight.training.planning.probe import Pace

BY_RECIPE = {training.recipe: training for training in TRAININGS}
RECIPE_NAMES = list(BY_RECIPE)
RESOLVED = {  # keys whose values depend on the data and the machine
    "data.mean", "data.std", "run.device", "run.precision", "run.threads", "run.workers",
    *(f"stages.{number}.{name}" for number in (0, 1) for name in ("batches", "cutmix_prob")),
}  # fmt: skip
EPOCHS = 50  # of the first stage of small recipes


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    """Train + val of two classes, 24 images of 64 px."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ash", "oak"):
            (folder / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 255, (70, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield prepare(folder, Data(merge_val=True))


@pytest.fixture(scope="module")
def small(prepared: Prepared) -> dict[str, Recipe]:
    return recipes_for("small", prepared, merge_val=True, epochs=EPOCHS, cores=1, device="cpu")


def of_size(prepared: Prepared, *shorter: int) -> Prepared:
    """As if the images were of these sizes."""
    return replace(prepared, sizes=tuple((px + 10, px) for px in shorter))


def changed(before: Recipe, after: Recipe) -> dict[str, tuple[str, str]]:
    """Key -> values before and after, as text."""
    differences = dict(line.split(": ", 1) for line in recipe_differences(before, after))
    return {key: tuple(values.split(" -> ")) for key, values in differences.items()}  # type: ignore[misc]


# Recipes


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_small_recipe_changes_only_these_values(name: str, small: dict[str, Recipe]) -> None:
    """Augmentation, losses, stages, learning rates, the order of batches and the selection stay as in the paper."""
    training, shipped = BY_RECIPE[name], load_recipe(name)
    changes = changed(shipped, small[name])
    expected = {
        "model.backbone": {"ResNeSt": "resnest14", "TResNet": "tresnet_s", "SE-ResNeXt": "seresnext26d"}[
            training.family
        ],
        "model.width": "0.5",
        "augment.train_px": "64" if training.large else "32",
        **({"model.stem": "medium"} if training.family == "TResNet" else {}),
        "eval.test_px": "[64]" if training.large else "[32, 48, 56, 64]",
    }
    for number in range(len(shipped.stages)):
        expected |= {
            f"stages.{number}.epochs": str(EPOCHS if number == 0 else EPOCHS * 200 // 250),
            f"stages.{number}.batch_size": "48",
            f"stages.{number}.optim.weight_decay": "0.0005",
            f"stages.{number}.optim.warmup_epochs": "3.0",
            f"stages.{number}.losses.triplet.normalise": "True",
            f"stages.{number}.losses.weights.arcface": "0.1",
        }
    assert {key: after for key, (_, after) in changes.items() if key not in RESOLVED} == expected


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_small_recipe_keeps_the_papers_augmentation_losses_and_stages(name: str, small: dict[str, Recipe]) -> None:
    recipe, shipped = small[name], load_recipe(name)
    assert recipe.augment == shipped.augment.model_copy(update={"train_px": recipe.augment.train_px})
    assert (recipe.augment.policy, recipe.augment.crop_area, recipe.augment.cutmix_alpha) == (
        "autoaugment", (0.08, 1.0), 1.0)  # fmt: skip
    assert [stage.loss for stage in recipe.stages] == [stage.loss for stage in shipped.stages]
    for stage, theirs in zip(recipe.stages, shipped.stages, strict=True):
        assert (stage.optim.base_lr, stage.optim.momentum, stage.lr_scale) == (0.1, 0.9, 1.0)
        assert stage.losses.smoothing == 0.1
        assert stage.losses.triplet.margin == theirs.losses.triplet.margin
        assert (stage.losses.arcface, stage.images_per_class) == (theirs.losses.arcface, theirs.images_per_class)
        assert stage.batches == ("pk" if stage.loss == "ce+triplet" else "shuffled")
    assert recipe.run.select == "last"


def test_short_plans_warm_up_for_a_tenth_and_train_each_stage_at_least_once(prepared: Prepared) -> None:
    recipes = recipes_for("small", prepared, merge_val=True, epochs=1, cores=1, device="cpu")
    for recipe in recipes.values():
        assert [stage.epochs for stage in recipe.stages] == [1] * len(recipe.stages)
        assert {stage.optim.warmup_epochs for stage in recipe.stages} == {0.1}
    longer = recipes_for("small", prepared, merge_val=True, epochs=12, cores=1, device="cpu")
    assert [stage.epochs for stage in longer["resnest101_ce_triplet"].stages] == [12, 10]


@pytest.mark.parametrize("scale", ["small", "full"])
def test_val_is_merged_unless_it_is_tested(scale: str, prepared: Prepared) -> None:
    for merge_val in (True, False):
        recipes = recipes_for(scale, prepared, merge_val=merge_val, epochs=EPOCHS, cores=1, device="cpu")
        assert {recipe.data.merge_val for recipe in recipes.values()} == {merge_val}


def test_names_of_the_splits_are_in_every_recipe(prepared: Prepared) -> None:
    named = replace(prepared, splits="val=held")
    recipes = recipes_for("small", named, merge_val=True, epochs=EPOCHS, cores=1, device="cpu")
    assert {recipe.data.splits for recipe in recipes.values()} == {"val=held"}


@pytest.mark.parametrize(
    ("native", "train_px", "test_px", "stems"),
    [
        (64, 32, [32, 48, 56, 64], ("large", "medium")),
        (32, 16, [16, 24, 28, 32], ("medium", "small")),
        (
            8,
            16,
            [16, 24, 28, 32],
            ("medium", "small"),
        ),  # the minimum: at a smaller size the last stage would have a single position
        (50, 24, [24, 32, 40, 48], ("large", "medium")),
        (500, 64, [64, 96, 112, 128], ("large", "medium")),  # the maximum: it must run on 2 cores
    ],
)
def test_small_sizes_are_half_the_images_with_the_papers_ratios(
    native: int, train_px: int, test_px: list[int], stems: tuple[str, str], prepared: Prepared
) -> None:
    sized = of_size(prepared, native - 2, native, native + 40)
    assert small_px(sized) == train_px
    recipes = recipes_for("small", sized, merge_val=True, epochs=EPOCHS, cores=1, device="cpu")
    for name, recipe in recipes.items():
        large = BY_RECIPE[name].large
        assert recipe.augment.train_px == (2 * train_px if large else train_px)
        assert recipe.eval.test_px == ([2 * train_px] if large else test_px)
        assert recipe.model.stem == stems[BY_RECIPE[name].family == "TResNet"]


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_full_recipe_is_the_shipped_one_except_resolved_values(name: str, prepared: Prepared) -> None:
    recipes = recipes_for("full", prepared, merge_val=True, epochs=None, cores=1, device="cpu")
    assert list(recipes) == RECIPE_NAMES
    assert changed(load_recipe(name), recipes[name]).keys() <= RESOLVED
    assert recipes[name].data.mean == pytest.approx(prepared.facts.mean)
    assert (recipes[name].run.device, recipes[name].run.threads) == ("cpu", 1)
    assert [stage.cutmix_prob for stage in recipes[name].stages] == [0.5] * len(recipes[name].stages)


def test_unavailable_device_is_refused(prepared: Prepared) -> None:
    with pytest.raises(RecipeError, match="'cuda:77' is not available"):
        recipes_for("full", prepared, merge_val=True, epochs=None, cores=1, device="cuda:77")


@pytest.mark.parametrize(
    ("kind", "cores", "expected"), [("cpu", 4, (4, 0)), ("cpu", 1, (1, 0)), ("cuda", 4, (1, 3)), ("cuda", 1, (1, 0))]
)
def test_training_divides_its_part_of_the_cores(
    kind: str, cores: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "resolve_device", torch.device)
    assert plan.divide_cores(cores, kind) == dict(zip(("threads", "workers"), expected, strict=True))


# Names and rows


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("resnest101_ce", "resnest14_ce"),
        ("tresnet_xl_ce", "tresnet_s_ce"),
        ("seresnext101_ce", "seresnext26d_ce"),
        ("resnest101_ce_448", "resnest14_ce_2x"),
        ("resnest101_ce_triplet", "resnest14_ce_triplet"),
        ("resnest101_ce_arcface", "resnest14_ce_arcface"),
        ("tresnet_xl_ce_triplet", "tresnet_s_ce_triplet"),
        ("seresnext101_ce_arcface", "seresnext26d_ce_arcface"),
    ],
)
def test_job_has_the_name_of_its_backbone(recipe: str, name: str) -> None:
    assert job_name(BY_RECIPE[recipe], "small") == name
    assert job_name(BY_RECIPE[recipe], "full") == recipe


def test_test_sizes_are_mapped_by_index(small: dict[str, Recipe]) -> None:
    for name, recipe in small.items():
        sizes = [64] * 4 if BY_RECIPE[name].large else [32, 48, 56, 64]
        assert [mapped_px(recipe, index) for index in range(4)] == sizes
    assert mapped_px(load_recipe("resnest101_ce_448"), 3) == 448
    assert [mapped_px(load_recipe("resnest101_ce"), index) for index in range(4)] == [224, 320, 380, 448]


# How long it takes


def job(name: str, seconds: float, start: str | None = None) -> Job:
    return Job(Training(name, "", ""), name, start, load_recipe("digits"), seconds, 0, 0)


@pytest.mark.parametrize(
    ("jobs", "alone", "two"),
    [
        ([], 0, 0),
        ([job("a", 3), job("b", 2), job("c", 2)], 7, 4),  # c follows b
        ([job("a", 4), job("b", 1), job("c", 2, "a"), job("d", 3, "b")], 10, 6),  # d follows b, c follows a
        ([job("a", 4), job("b", 1, "a")], 5, 5),  # nothing can run in parallel with a
        ([job("a", 1), job("b", 5), job("c", 2, "a"), job("d", 2, "a")], 10, 5),  # all in parallel with b
        ([job("a", 2), job("b", 2, "a"), job("c", 2, "b"), job("d", 1)], 7, 6),  # the chain determines the time
    ],
)
def test_makespan_by_hand(jobs: Sequence[Job], alone: float, two: float) -> None:
    assert makespan(jobs, 1) == alone
    assert makespan(jobs, 2) == two
    assert makespan(jobs, 9) <= two


def ended_tick_by_tick(jobs: Sequence[Job], num_slots: int) -> int:
    """When all are done, if each starts, in order, as soon as the job it starts from is done and a slot is free."""
    now, waiting = 0, list(jobs)
    ends: dict[str, int] = {}
    while waiting or max(ends.values(), default=0) > now:
        for waiting_job in list(waiting):
            running = sum(end > now for end in ends.values())
            ready = waiting_job.start is None or ends.get(waiting_job.start, now + 1) <= now
            if ready and running < num_slots:
                ends[waiting_job.name] = now + int(waiting_job.seconds)
                waiting.remove(waiting_job)
        now += 1
    return now


@st.composite
def some_jobs(draw: st.DrawFn) -> list[Job]:
    jobs: list[Job] = []
    for number in range(draw(st.integers(0, 8))):
        start = draw(st.sampled_from([None, *(earlier.name for earlier in jobs)]))
        jobs.append(job(str(number), draw(st.integers(1, 9)), start))
    return jobs


@settings(max_examples=50)
@given(some_jobs(), st.integers(1, 4))
def test_makespan_is_when_the_last_task_ends(jobs: list[Job], num_slots: int) -> None:
    assert makespan(jobs, num_slots) == ended_tick_by_tick(jobs, num_slots)


# Fitted to the time

TEN_SECONDS = Pace(step_seconds=10.0, load_seconds=0.0, score_seconds=0.0, image_bytes=1000)


@pytest.fixture
def made_up_machine(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Every step takes 10 s, and the maximum is 12 epochs; returns the recipes that were timed, in order."""
    timed: list[Recipe] = []

    def probe(recipe: Recipe, prepared: Prepared) -> Pace:
        timed.append(recipe)
        return TEN_SECONDS

    monkeypatch.setattr(plan, "probe", probe)
    monkeypatch.setattr(plan, "MAX_EPOCHS", 12)
    return timed


def small_plan(prepared: Prepared, seconds: float, num_slots: int = 1, num_test: int = 0) -> list[Job]:
    """A plan for a time of which `seconds` are usable."""
    hours = seconds / plan.USABLE_TIME / 3600
    return plan_small(prepared, hours, num_slots, num_test, merge_val=True, cores=1, device="cpu")


@pytest.mark.usefixtures("made_up_machine")
@pytest.mark.parametrize(
    ("seconds", "num_slots", "epochs"),
    [  # e epochs are e steps of 10 s, then 0.8 e, rounded, for the second stage; each job starts for 15 s
        (1001, 1, 12),  # 4 x (120 + 15) + 4 x (100 + 15) = 1000
        (999, 1, 11),  # 4 x (110 + 15) + 4 x (90 + 15) = 920
        (500, 1, 5),  # 4 x (50 + 15) + 4 x (40 + 15) = 480; with 6: 4 x (60 + 15) + 4 x (50 + 15) = 560
        (201, 1, 1),  # 8 x (10 + 15) = 200
        (501, 2, 12),  # half the time of the first
        (499, 2, 11),
    ],
)
def test_epochs_shrink_to_the_time(seconds: float, num_slots: int, epochs: int, prepared: Prepared) -> None:
    jobs = small_plan(prepared, seconds, num_slots)
    assert {planned.recipe.stages[0].epochs for planned in jobs} == {epochs}
    assert {planned.recipe.stages[-1].epochs for planned in jobs if planned.start} == {max(1, round(0.8 * epochs))}
    assert makespan(jobs, num_slots) <= seconds


@pytest.mark.usefixtures("made_up_machine")
@pytest.mark.parametrize("hours", [199 / plan.USABLE_TIME / 3600, 0.0001, 0.0, -1.0, float("nan")])
def test_too_little_time_is_refused(hours: float, prepared: Prepared) -> None:
    with pytest.raises(RecipeError, match=r"--hours .* is not enough for one epoch of each of the eight trainings"):
        plan_small(prepared, hours, 1, 0, merge_val=True, cores=1, device="cpu")


@pytest.mark.usefixtures("made_up_machine")
def test_jobs_come_in_their_order_of_dependence(prepared: Prepared) -> None:
    jobs = small_plan(prepared, 2000)
    assert [planned.training for planned in jobs] == list(TRAININGS)
    before: list[str] = []
    for planned in jobs:
        start = planned.training.start
        assert planned.start == (None if start is None else job_name(BY_RECIPE[start], "small"))
        assert planned.start is None or planned.start in before
        before.append(planned.name)


def test_only_trainings_from_random_weights_are_timed(prepared: Prepared, made_up_machine: list[Recipe]) -> None:
    """A training that starts from another run has the same model, size and batch."""
    small_plan(prepared, 2000)
    timed = [(recipe.model.backbone, recipe.augment.train_px, len(recipe.stages)) for recipe in made_up_machine]
    assert timed == [("resnest14", 32, 1), ("tresnet_s", 32, 1), ("seresnext26d", 32, 1), ("resnest14", 64, 1)]


@pytest.mark.usefixtures("made_up_machine")
def test_testing_takes_time_and_disk(prepared: Prepared) -> None:
    """At each size two crops with two sides, and for each image a third of a step's time, scaled with the area."""
    without, tested = small_plan(prepared, 2000), small_plan(prepared, 9e9, num_test=480)
    assert {planned.recipe.stages[0].epochs for planned in (*without, *tested)} == {12}
    for before, after in zip(without, tested, strict=True):
        large = before.training.large
        area = 1 if large else (32**2 + 48**2 + 56**2 + 64**2) / 32**2
        assert after.seconds - before.seconds == pytest.approx(480 * 4 * area * 10 / 48 / 3)
        num_views = 4 if large else 16  # two crops with and without flips
        assert after.disk_bytes - before.disk_bytes == 480 * num_views * 2 * 4
        assert after.memory_bytes == before.memory_bytes > 0


def test_full_plan_times_the_paper_as_written(prepared: Prepared, made_up_machine: list[Recipe]) -> None:
    jobs = plan_full(prepared, 0, merge_val=True, cores=1, device="cpu")
    assert [(planned.name, planned.start) for planned in jobs] == [
        (training.recipe, training.start) for training in TRAININGS
    ]
    assert [recipe.stages[0].batch_size for recipe in made_up_machine] == [8] * 4, (
        "a whole batch takes minutes on a CPU"
    )
    for planned in jobs:  # 24 images: one step per epoch; a batch of 8 was timed
        stage = planned.recipe.stages[-1]
        assert planned.seconds == pytest.approx(15 + stage.epochs * 10 * stage.batch_size / 8)

"""Warm-up, cosine and growing images against values by hand."""

import math

import pytest

from fewsight.errors import RecipeError
from fewsight.recipes import Optim, Stage, load_recipe, parse_recipe, shipped_recipes
from fewsight.training.schedule import lr_at, mean_cost, peak_lr, px_at


def test_learning_rate_follows_the_paper() -> None:
    values = [lr_at(step, peak=0.4, warmup_steps=4, total_steps=12) for step in range(12)]
    assert values[:5] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert values[8] == pytest.approx(0.2)  # half way down
    assert values[11] == pytest.approx(0.2 * (1 + math.cos(math.pi * 7 / 8)))
    assert lr_at(12, peak=0.4, warmup_steps=4, total_steps=12) == pytest.approx(0)


def test_learning_rate_without_warmup_starts_at_the_peak() -> None:
    assert lr_at(0, peak=0.3, warmup_steps=0, total_steps=5) == pytest.approx(0.3)


def test_learning_rate_rises_when_the_stage_is_all_warmup() -> None:
    values = [lr_at(step, peak=1.0, warmup_steps=5, total_steps=5) for step in range(5)]
    assert values == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_peak_scales_with_the_batch_size() -> None:
    assert peak_lr(Stage(epochs=1, batch_size=128), 128) == pytest.approx(0.05)
    assert peak_lr(Stage(epochs=1, batch_size=64, optim=Optim(base_lr=0.2)), 64) == pytest.approx(0.05)


def test_images_grow_within_each_stage_with_first_px() -> None:
    stages = [
        {"epochs": 8, "batch_size": 4, "first_px": 32, "grow_share": 0.5},
        {"epochs": 2, "batch_size": 4},
        {"epochs": 4, "batch_size": 4, "first_px": 52, "grow_share": 1.0},
    ]
    recipe = parse_recipe({"model": {"backbone": "resnest14"}, "augment": {"train_px": 64}, "stages": stages})
    sides = [px_at(recipe, epoch) for epoch in range(14)]
    assert sides == [32, 40, 48, 56, 64, 64, 64, 64, 64, 64, 52, 52, 60, 64]


def test_shipped_recipes_train_at_one_size() -> None:
    for name in shipped_recipes():
        recipe = load_recipe(name)
        assert {px_at(recipe, epoch) for epoch in (0, 1, 249, 449)} == {recipe.augment.train_px}


def test_images_that_would_shrink_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"stages\.0\.first_px .* at most augment\.train_px \(224\), got 256"):
        load_recipe("resnest101_ce", ["stages.0.first_px=256"])


def test_mean_cost_is_proportional_to_pixels() -> None:
    stages = [{"epochs": 400, "batch_size": 4, "first_px": 64, "grow_share": 0.5}, {"epochs": 2, "batch_size": 4}]
    recipe = parse_recipe({"model": {"backbone": "resnest14"}, "augment": {"train_px": 256}, "stages": stages})
    costs = [(px_at(recipe, epoch) / 256) ** 2 for epoch in range(400)]
    assert mean_cost(recipe, recipe.stages[0]) == pytest.approx(sum(costs) / 400, abs=0.02)
    assert mean_cost(recipe, recipe.stages[1]) == 1

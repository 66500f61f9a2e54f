"""Warm-up, cosine and growing images against values by hand."""

import tomllib

import pytest

from fewsight.errors import RecipeError
from fewsight.recipes import load_recipe, parse_recipe, recipe_toml, shipped_recipes
from fewsight.training.schedule import augment_at, mean_cost, px_at


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


def test_stage_changes_what_it_names_of_the_augmentation() -> None:
    stages = [
        {"epochs": 2, "batch_size": 4, "augment": {"policy": "none", "crop_area": [0.5, 1.0]}},
        {"epochs": 2, "batch_size": 4, "first_px": 48, "grow_share": 1.0},
    ]
    augment = {"train_px": 64, "flip_prob": 0.25}
    recipe = parse_recipe({"model": {"backbone": "resnest14"}, "augment": augment, "stages": stages})
    first, last = augment_at(recipe, 1), augment_at(recipe, 3)
    assert (first.policy, first.crop_area, first.flip_prob, first.train_px) == ("none", (0.5, 1.0), 0.25, 64)
    assert last == recipe.augment
    assert augment_at(recipe, 2) == recipe.augment.model_copy(update={"train_px": 48})


def test_wrong_augmentation_of_a_stage_is_refused() -> None:
    with pytest.raises(RecipeError, match="crop_area goes from low to high"):
        load_recipe("resnest101_ce", ["stages.0.augment.crop_area=[0.9, 0.1]"])


def test_stage_augmentation_goes_through_toml() -> None:
    recipe = load_recipe("resnest101_ce_arcface", ["stages.1.augment.policy=none"])
    text = recipe_toml(recipe)
    assert "[stages.augment]" in text
    assert parse_recipe(tomllib.loads(text)) == recipe

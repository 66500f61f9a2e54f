"""Recipes: the schema, the strict loader and the shipped TOML files."""

from fewsight.recipes.load import (
    changes,
    check_keys,
    keys_named,
    load_recipe,
    parse_recipe,
    recipe_differences,
    recipe_toml,
    shipped_recipes,
)
from fewsight.recipes.schema import Augment, Data, Eval, Losses, ModelSettings, Optim, Recipe, RunSettings, Stage

__all__ = [
    "Augment", "Data", "Eval", "Losses", "ModelSettings", "Optim", "Recipe", "RunSettings", "Stage",
    "changes", "check_keys", "keys_named", "load_recipe", "parse_recipe", "recipe_differences", "recipe_toml",
    "shipped_recipes",
]  # fmt: skip

"""The recipes of an ensemble's members: one recipe, with the values in which each member differs (`run.variants`)."""

from collections.abc import Sequence

from fewsight.recipes import Recipe, changes, parse_recipe

SEED_STEP = 10**9  # between the seeds of two members; the seeds of `--seeds` are closer to each other
NUM_SEEDS = 2**63


def variants_of(recipe: Recipe) -> list[Recipe]:
    """The different recipes of the members, which still say how many members there are; one where they are the same.

    Raises:
        RecipeError: a change is none of a recipe.
    """
    used = recipe.run.variants[: recipe.run.members] or [[]]
    plain = recipe.model_copy(update={"run": recipe.run.model_copy(update={"variants": []})})
    return [parse_recipe(plain.model_dump(), each, "run.variants") if each else plain for each in used]


def together(recipes: Sequence[Recipe]) -> Recipe:
    """The recipe of members with these recipes, which differ outside of data and run only."""
    variants = [changes(recipes[0], recipe) for recipe in recipes]
    run = recipes[0].run.model_copy(update={"variants": variants if any(variants) else []})
    return recipes[0].model_copy(update={"run": run})


def member_recipe(recipe: Recipe, number: int) -> Recipe:
    """The recipe of member `number`, from 0; the first has the recipe's own seed."""
    variants = variants_of(recipe)
    own = variants[number % len(variants)]
    seed = (recipe.run.seed + number * SEED_STEP) % NUM_SEEDS
    return own.model_copy(update={"run": own.run.model_copy(update={"members": 1, "seed": seed})})

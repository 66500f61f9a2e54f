"""The levels of a plan as recipes, with the values that do not depend on the level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewsight.data.prepare import Prepared
from fewsight.machine.device import resolve_run
from fewsight.models.classifier import with_stem
from fewsight.recipes import Recipe, RunSettings, parse_recipe
from fewsight.training.planning.levels import Level, levels
from fewsight.wording import counted

EMA_PART = 25  # of a training: the half-life of the moving average of the weights
WARMUP_PART = 10  # of a training: the warm-up


@dataclass(frozen=True)
class Candidate:
    """A level with its recipe."""

    level: Level
    recipe: Recipe


def native_px(prepared: Prepared) -> int:
    """The median of the images' shorter sides, in pixels."""
    return int(np.median([min(size) for size in prepared.sizes]))


def starting_values() -> dict[str, Any]:
    """The recipe that the plan completes; the values are our choice, measured on val of several sets (NOTES.md)."""
    return {
        "model": {"backbone": "plain8", "stem": "large", "width": 0.5},
        "augment": {"train_px": 64, "crop_area": [0.25, 1.0], "policy": "none"},
        "stages": [
            {
                "epochs": 1,
                "batch_size": 50,
                "optim": {"base_lr": 0.12, "lr_batch": "actual", "nesterov": True, "decay_efolds": 1.0},
            }
        ],
        "eval": {"every_epochs": 0},
    }


def fixed(read: Callable[[Recipe], Any], overrides: Sequence[str]) -> Any:
    """A value that the user fixed, None where they did not: every choice that depends on it uses this value."""
    values = starting_values()
    values["stages"][0]["epochs"] = 2
    values["run"] = {"members": 2}
    other = parse_recipe(values, overrides, "auto")
    ours = parse_recipe(starting_values(), overrides, "auto")
    return read(ours) if read(ours) == read(other) else None


def candidates(prepared: Prepared, settings: RunSettings, overrides: Sequence[str]) -> list[Candidate]:
    """The levels whose recipes differ, in order of cost: those with what the user fixed, a single one if that is all.

    Args:
        settings: the [run] section, with what the user fixed.
        overrides: values that the user fixed, as `key.path=value`.
    """
    num_images = len(prepared.images.paths)
    found: list[Candidate] = []
    for level in levels(native_px(prepared), num_images):
        recipe = _recipe(level, num_images, settings, overrides)
        if recipe not in [candidate.recipe for candidate in found]:
            found.append(Candidate(level, recipe))
    return found


def _recipe(level: Level, num_images: int, settings: RunSettings, overrides: Sequence[str]) -> Recipe:
    values = starting_values()
    values["model"] = {"backbone": level.backbone, "stem": level.stem, "width": level.width}
    values["augment"]["train_px"] = level.train_px
    values["stages"][0]["batch_size"] = max(16, min(128, round(num_images / 20)))
    values["run"] = settings.model_dump() | {"members": level.members}
    recipe = with_stem(parse_recipe(values, overrides, "auto"))
    return recipe.model_copy(update={"run": resolve_run(recipe.run)})


def with_epochs(recipe: Recipe, overrides: Sequence[str], epochs: int, parts: int) -> Recipe:
    """The recipe with its length, and the values that follow from it."""
    values = recipe.model_dump()
    stage = values["stages"][0]
    stage["epochs"] = epochs
    stage["ema_half_life_epochs"] = round(epochs / EMA_PART, 2)
    stage["optim"]["warmup_epochs"] = round(epochs / WARMUP_PART, 2)
    stage["accumulate"] = parts
    return with_stem(parse_recipe(values, overrides, "auto"))


def described(recipe: Recipe) -> str:
    """The model, its stem and the size of its images: `2 x plain8 at 0.5 of its width, large stem, 64 px`."""
    model = recipe.model
    width = "" if model.width == 1 else f" at {model.width:g} of its width"
    members = "" if recipe.run.members == 1 else f"{counted(recipe.run.members, 'member')} of "
    return f"{members}{model.backbone}{width}, {model.stem} stem, {recipe.augment.train_px} px"

"""The levels of a plan as recipes, with the values that do not depend on the level."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewsight.data.prepare import Prepared
from fewsight.machine.device import resolve_run
from fewsight.models.classifier import with_stem
from fewsight.recipes import Recipe, RunSettings, parse_recipe
from fewsight.training.planning.levels import Level, Net, levels

EMA_PART = 25  # of a training: the half-life of the moving average of the weights
WARMUP_PART = 10  # of a training: the warm-up


@dataclass(frozen=True)
class Candidate:
    """A level with the recipe of each of its members."""

    level: Level
    recipes: tuple[Recipe, ...]


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
    members = fixed(lambda recipe: recipe.run.members, overrides)
    found: list[Candidate] = []
    for level in levels(native_px(prepared), num_images):
        nets = level.nets if members is None else tuple(itertools.islice(itertools.cycle(level.nets[::-1]), members))
        run = resolve_run(settings.model_copy(update={"members": len(nets)}))
        recipes = tuple(_recipe(net, num_images, run, overrides) for net in nets)
        if recipes not in [candidate.recipes for candidate in found]:
            found.append(Candidate(level, recipes))
    return found


def _recipe(net: Net, num_images: int, run: RunSettings, overrides: Sequence[str]) -> Recipe:
    values = starting_values()
    values["model"] = {"backbone": net.backbone, "stem": net.stem, "width": net.width}
    values["augment"] |= {"train_px": net.train_px, "policy": net.policy}
    values["stages"][0]["batch_size"] = max(16, min(128, round(num_images / 20)))
    return with_stem(parse_recipe(values, overrides, "auto")).model_copy(update={"run": run})


def with_epochs(recipe: Recipe, overrides: Sequence[str], epochs: int, parts: int) -> Recipe:
    """The recipe with its length, and the values that follow from it."""
    values = recipe.model_dump()
    stage = values["stages"][0]
    stage["epochs"] = epochs
    stage["ema_half_life_epochs"] = round(epochs / EMA_PART, 2)
    stage["optim"]["warmup_epochs"] = round(epochs / WARMUP_PART, 2)
    stage["accumulate"] = parts
    return with_stem(parse_recipe(values, overrides, "auto")).model_copy(update={"run": recipe.run})


def described(recipe: Recipe) -> str:
    """The net and the size of its images: `plain8 at 0.5 of its width, large stem, 64 px`."""
    model = recipe.model
    width = "" if model.width == 1 else f" at {model.width:g} of its width"
    policy = "" if recipe.augment.policy == "none" else f", {recipe.augment.policy}"
    return f"{model.backbone}{width}, {model.stem} stem, {recipe.augment.train_px} px{policy}"

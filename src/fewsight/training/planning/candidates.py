"""What a plan chooses from: models and image sizes in order of cost, as recipes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewsight.data.prepare import Prepared
from fewsight.models.classifier import with_stem
from fewsight.recipes import Recipe, RunSettings, parse_recipe
from fewsight.training.schedule import PX_STEP

MIN_GROWING_PX = 64  # for images that grow over a run; smaller images were not tried (NOTES.md)


@dataclass(frozen=True)
class Candidate:
    """A model and the size of its training images."""

    backbone: str
    stem: str
    width: float
    train_px: int


def ladder(native_px: int) -> list[Candidate]:
    """Candidates in order of cost, for images whose shorter side is about `native_px` pixels."""
    if native_px < 48:
        px = max(16, 4 * round(native_px / 4))
        models = [("resnest14", "medium", 0.5), ("resnest14", "small", 0.5), ("resnest14", "small", 1.0)]
        models += [("resnest26", "small", 1.0), ("resnest50", "small", 1.0)]
        return [Candidate(*model, px) for model in models]
    if native_px < 112:
        px = min(96, 16 * round(native_px / 16))
        models = [("resnest14", "large", 1.0), ("resnest26", "large", 1.0), ("resnest50", "large", 1.0)]
        models += [("resnest26", "medium", 1.0), ("resnest50", "medium", 1.0), ("resnest101", "medium", 1.0)]
        return [Candidate(*model, px) for model in models]
    sizes = [("resnest14", 0.5, 64), ("resnest14", 1.0, 64), ("resnest14", 1.0, 96), ("resnest14", 1.0, 128)]
    sizes += [("resnest26", 1.0, 128), ("resnest26", 1.0, 160), ("resnest50", 1.0, 160), ("resnest50", 1.0, 192)]
    sizes += [("resnest50", 1.0, 224), ("resnest101", 1.0, 224)]
    return [Candidate(name, "large", width, px) for name, width, px in sizes if px <= max(128, native_px)]


def native_px(prepared: Prepared) -> int:
    """The median of the images' shorter sides, in pixels."""
    return int(np.median([min(size) for size in prepared.sizes]))


def target_epochs(num_images: int) -> int:
    """Epochs after which a larger model is worth more than more epochs; fewer images need more epochs."""
    return round(25 + 45 * math.sqrt(1000 / max(250, num_images)))


def starting_values() -> dict[str, Any]:
    """The recipe that the plan completes; the values are our choice, measured on the val split of tiny20 (NOTES.md)."""
    return {
        "model": {"backbone": "resnest14", "stem": "large"},
        "augment": {"train_px": 64, "crop_area": [0.25, 1.0], "policy": "none"},
        "stages": [
            {
                "epochs": 1,
                "batch_size": 50,
                "ema_half_life_epochs": 1.0,
                "optim": {
                    "base_lr": 0.12,
                    "lr_batch": "actual",
                    "nesterov": True,
                    "weight_decay": 5e-4,
                    "warmup_epochs": 3.0,
                },
            }
        ],
        "eval": {"every_epochs": 0},
    }


def fixed_epochs(overrides: Sequence[str]) -> int | None:
    """The number of epochs that the user fixed, if they did: every choice that depends on it uses this number."""
    read = []
    for epochs in (1, 2):
        values = starting_values()
        values["stages"][0]["epochs"] = epochs
        read.append(parse_recipe(values, overrides, "auto").stages[0].epochs)
    return read[0] if read[0] == read[1] else None


def candidate_recipes(prepared: Prepared, settings: RunSettings, overrides: Sequence[str]) -> list[Recipe]:
    """The different recipes of the candidates: a single one if the user fixed all that they differ in.

    Args:
        settings: the resolved [run] section.
        overrides: values that the user fixed, as `key.path=value`.
    """
    num_images = len(prepared.images.paths)
    recipes = [_recipe(candidate, num_images, settings, overrides) for candidate in ladder(native_px(prepared))]
    return [recipe for number, recipe in enumerate(recipes) if recipe not in recipes[:number]]


def _recipe(candidate: Candidate, num_images: int, settings: RunSettings, overrides: Sequence[str]) -> Recipe:
    """A candidate's recipe; its images grow from half their size, where that was measured to help."""
    values = starting_values()
    values["model"] = {"backbone": candidate.backbone, "stem": candidate.stem, "width": candidate.width}
    values["augment"]["train_px"] = candidate.train_px
    values["stages"][0]["batch_size"] = max(16, min(128, round(num_images / 20)))
    values["run"] = settings.model_dump()
    recipe = parse_recipe(values, overrides, "auto")
    px = recipe.augment.train_px
    if px >= MIN_GROWING_PX:
        values["stages"][0]["first_px"] = PX_STEP * (px // PX_STEP // 2)
        recipe = parse_recipe(values, overrides, "auto")
    return with_stem(recipe)


def with_one_size(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with images that do not grow, unless the user fixed that they do."""
    values = recipe.model_dump()
    values["stages"][0]["first_px"] = "train"
    return parse_recipe(values, overrides, "auto")


def described(recipe: Recipe) -> str:
    """The model, its stem and the size of its images: `resnest14, large stem, 64 px`."""
    model = recipe.model
    width = "" if model.width == 1 else f" at {model.width:g} of its width"
    return f"{model.backbone}{width}, {model.stem} stem, {recipe.augment.train_px} px"

"""Every "auto" value of a recipe as a number or a name, and checks before the images are read."""

from fewsight.data.prepare import Prepared
from fewsight.errors import RecipeError
from fewsight.losses import batch_kind, check_loss
from fewsight.machine.device import resolve_run
from fewsight.models import TIMM_PREFIX
from fewsight.models.classifier import build_without_memory, resolve_stem, with_stem
from fewsight.recipes import Recipe
from fewsight.training.mix import cutmix_prob

TEST_RATIOS = (1.0, 320 / 224, 380 / 224, 2.0)  # the report's test sizes over its train size


def check_parts(recipe: Recipe) -> None:
    """Build the backbone and the losses without memory, so that a wrong name fails before the images are read.

    Raises:
        RecipeError: there is no such backbone or loss, the backbone has no such stem or width, or a loss could not do
            its work in its stage.
    """
    name, asked = recipe.model.backbone, recipe.model.stem
    stem = resolve_stem(recipe.augment.train_px, name) if asked == "auto" else asked
    if recipe.run.recompute and name.startswith(TIMM_PREFIX):
        raise RecipeError(f"run.recompute is for fewsight's own backbones, not for {name}; set run.recompute = false")
    build_without_memory(name, 2, stem=stem, width=recipe.model.width)
    for stage in recipe.stages:
        check_loss(stage, cutmix_prob(recipe, stage))


def resolve(recipe: Recipe, prepared: Prepared) -> Recipe:
    """Every "auto" value as a number or name, by the data and this device.

    Raises:
        RecipeError: the recipe asks for what the data or the device lacks.
    """
    if recipe.run.select == "best" and not prepared.images.val_paths:
        raise RecipeError('run.select = "best" needs a val split, but the data has none; use "last"')
    values = with_stem(recipe).model_dump()
    if recipe.eval.test_px == "auto":
        values["eval"]["test_px"] = [4 * round(ratio * recipe.augment.train_px / 4) for ratio in TEST_RATIOS]
    for stage, resolved in zip(recipe.stages, values["stages"], strict=True):
        resolved |= {"batches": batch_kind(stage), "cutmix_prob": cutmix_prob(recipe, stage)}
    values["data"] |= {"mean": prepared.facts.mean, "std": prepared.facts.std}
    values["run"] = resolve_run(recipe.run).model_dump()
    return Recipe.model_validate(values)

"""Resolves every "auto" value of a recipe, and checks a recipe before the images are read."""

from fewsight.augment import POLICIES
from fewsight.data.prepare import Prepared
from fewsight.errors import RecipeError
from fewsight.losses import batch_kind, check_loss
from fewsight.machine.device import resolve_run
from fewsight.models import TIMM_PREFIX, TimmBackbone
from fewsight.models.classifier import build_without_memory, resolve_stem, with_stem
from fewsight.optim import SCHEDULES, check_optimizer, weight_decay_for
from fewsight.recipes import Recipe
from fewsight.recipes.options import check_name
from fewsight.training.members.recipes import together, variants_of
from fewsight.training.mix import cutmix_prob
from fewsight.training.plans import batch_plan, lr_batch_size

TEST_RATIOS = (1.0, 320 / 224, 380 / 224, 2.0)  # the paper's test sizes relative to its training size


def check_parts(recipe: Recipe) -> None:
    """Build the backbone and the losses on the meta device, so that a wrong name fails before the images are read.

    Raises:
        RecipeError: there is no such backbone or loss, the backbone has no such stem or width or does not take images
            of a size that the recipe names, or a loss cannot train with the settings of its stage; of any member.
    """
    for variant in variants_of(recipe):
        _check_parts(variant)


def _check_parts(recipe: Recipe) -> None:
    name = recipe.model.backbone
    stem = resolve_stem(recipe.augment.train_px, name) if recipe.model.stem == "auto" else recipe.model.stem
    if recipe.run.recompute and name.startswith(TIMM_PREFIX):
        raise RecipeError(f"run.recompute is for fewsight's own backbones, not for {name}; set run.recompute = false")
    check_name(recipe.augment.policy, POLICIES, "augment.policy")
    backbone = build_without_memory(name, 2, stem=stem, width=recipe.model.width).backbone
    if isinstance(backbone, TimmBackbone):
        for px in _sizes(recipe):
            backbone.check_size(px)
    for number, stage in enumerate(recipe.stages):
        check_loss(stage, cutmix_prob(recipe, stage))
        check_optimizer(stage.optim, f"stages.{number}.optim")
        check_name(stage.optim.schedule, SCHEDULES, f"stages.{number}.optim.schedule")
        if stage.augment.policy is not None:
            check_name(stage.augment.policy, POLICIES, f"stages.{number}.augment.policy")


def _sizes(recipe: Recipe) -> list[int]:
    """The sizes of images in pixels that a recipe names, each once."""
    first = [stage.first_px for stage in recipe.stages if stage.first_px != "train"]
    test = [] if recipe.eval.test_px == "auto" else recipe.eval.test_px
    return list(dict.fromkeys([recipe.augment.train_px, *first, *test]))


def _test_sizes(recipe: Recipe) -> list[int]:
    """The sizes that `eval.test_px = "auto"` stands for: of the paper's, those that the backbone takes."""
    sizes = [4 * round(ratio * recipe.augment.train_px / 4) for ratio in TEST_RATIOS]
    if not recipe.model.backbone.startswith(TIMM_PREFIX):
        return sizes
    backbone = build_without_memory(recipe.model.backbone, 2).backbone
    assert isinstance(backbone, TimmBackbone)
    return [recipe.augment.train_px, *filter(backbone.takes, sizes[1:])]


def resolve(recipe: Recipe, prepared: Prepared) -> Recipe:
    """Replace every "auto" value by the one for this data and device, in the values of each member too.

    Raises:
        RecipeError: the recipe needs a val split that the data lacks, or a device or precision that the machine lacks.
    """
    return together([_resolve(variant, prepared) for variant in variants_of(recipe)])


def _resolve(recipe: Recipe, prepared: Prepared) -> Recipe:
    if recipe.run.select == "best" and not prepared.images.val_paths:
        raise RecipeError('run.select = "best" needs a val split, but the data has none; use "last"')
    values = with_stem(recipe).model_dump()
    if recipe.eval.test_px == "auto":
        values["eval"]["test_px"] = _test_sizes(recipe)
    for stage, resolved in zip(recipe.stages, values["stages"], strict=True):
        resolved |= {"batches": batch_kind(stage), "cutmix_prob": cutmix_prob(recipe, stage)}
        if stage.optim.decay_efolds is not None:
            plan = batch_plan(recipe, stage, prepared.images)
            decay = weight_decay_for(stage.optim.decay_efolds, stage, plan.num_steps, lr_batch_size(stage, plan))
            resolved["optim"] |= {"weight_decay": decay, "decay_efolds": None}
    values["data"] |= {"mean": prepared.facts.mean, "std": prepared.facts.std}
    values["run"] = resolve_run(recipe.run).model_dump()
    return Recipe.model_validate(values)

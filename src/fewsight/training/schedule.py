"""Schedules as pure functions: step -> learning rate, epoch -> image size."""

from fewsight.recipes import Augment, Recipe, Stage

PX_STEP = 8  # by which images grow: a multiple of all strides, and large enough that a run has few sizes


def px_at(recipe: Recipe, epoch: int) -> int:
    """The side of the training images in `epoch`, in pixels; epochs count on across stages.

    A stage's first epoch has `first_px`; the side grows in steps of `PX_STEP` and reaches `train_px` after the
    proportion `grow_share` of the stage's epochs, at the latest in its last epoch. Small images take less time.

    Source: Tan and Le, arXiv 2104.00298, section 4, which also raises the regularisation; here it stays constant.
    """
    full = recipe.augment.train_px
    for stage in recipe.stages:
        if epoch < stage.epochs:
            break
        epoch -= stage.epochs
    growing = min(stage.grow_share * stage.epochs, stage.epochs - 1)  # epochs
    if stage.first_px == "train" or epoch >= growing:
        return full
    grown = (full - stage.first_px) * epoch / growing
    return stage.first_px + PX_STEP * int(grown / PX_STEP)


def mean_cost(recipe: Recipe, stage: Stage) -> float:
    """Pixels per image, averaged over the epochs of a long stage, relative to images of side `train_px`."""
    if stage.first_px == "train":
        return 1.0
    full = recipe.augment.train_px
    grown = [(px / full) ** 2 for px in range(stage.first_px, full, PX_STEP)] or [1.0]
    return 1 - stage.grow_share + stage.grow_share * sum(grown) / len(grown)


def augment_at(recipe: Recipe, epoch: int) -> Augment:
    """The augmentation of `epoch`, counted across stages: that of its stage, at the size of the epoch's images."""
    stage, first_epoch = recipe.stages[-1], 0
    for candidate in recipe.stages:
        if epoch < first_epoch + candidate.epochs:
            stage = candidate
            break
        first_epoch += candidate.epochs
    return recipe.augment_of(stage).model_copy(update={"train_px": px_at(recipe, epoch)})

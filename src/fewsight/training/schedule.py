"""Schedules as pure functions: step -> learning rate, epoch -> image size."""

import math

from fewsight.recipes import Recipe, Stage

PX_STEP = 8  # by which images grow: a multiple of all strides, and large enough that a run has few sizes


def peak_lr(stage: Stage, batch_size: int) -> float:
    """The learning rate after warm-up: lr_scale * base_lr * batch_size / 256.

    Args:
        batch_size: nominal, of the stage's plan: P x K for class batches.

    Source: Goyal et al., arXiv 1706.02677.
    """
    return stage.lr_scale * stage.optim.base_lr * batch_size / 256


def lr_at(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of `step` (from 0): linear from 0 over the warm-up, then a cosine to 0 over the rest.

    Step `warmup_steps` has the peak; a step `total_steps` would have 0. If the warm-up is as long as the stage, the
    learning rate rises throughout.

    Source: Loshchilov and Hutter, arXiv 1608.03983; warm-up as Goyal et al., arXiv 1706.02677.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


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

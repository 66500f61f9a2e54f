"""What changes over a training, as pure functions: step -> learning rate, epoch -> size of the images."""

import math

from fewsight.recipes import Recipe, Stage

PX_STEP = 8  # by which images grow: all strides divide it, and a training meets few sizes


def peak_lr(stage: Stage, batch_size: int) -> float:
    """The rate after warm-up: lr_scale * base_lr * batch_size / 256 (Goyal et al., arXiv 1706.02677).

    Args:
        batch_size: nominal, of the stage's plan: P x K where batches are made of classes.
    """
    return stage.lr_scale * stage.optim.base_lr * batch_size / 256


def lr_at(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The rate of `step` (from 0): linear from 0 over the warm-up, then a cosine to 0 over the rest.

    Step `warmup_steps` has the peak rate; a step `total_steps` would have 0. Where the warm-up is as long as
    the run, the rate rises throughout.

    Source: Loshchilov and Hutter, arXiv 1608.03983; warm-up as Goyal et al., arXiv 1706.02677.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def px_at(recipe: Recipe, epoch: int) -> int:
    """The side of the images in `epoch`, which counts on across stages.

    A stage's first epoch has `first_px`; the side grows with the epochs, in steps of `PX_STEP`, and is `train_px` once
    `grow_share` of them are done, at the latest in the last. Small images cost less, and what a model sees in them it
    need not learn again.

    Source: Tan and Le, arXiv 2104.00298, section 4, where regularisation grows too; here it does not.
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
    """What an epoch of a stage with many costs on average where one of `train_px` costs 1, as pixels go."""
    if stage.first_px == "train":
        return 1.0
    full = recipe.augment.train_px
    grown = [(px / full) ** 2 for px in range(stage.first_px, full, PX_STEP)] or [1.0]
    return 1 - stage.grow_share + stage.grow_share * sum(grown) / len(grown)

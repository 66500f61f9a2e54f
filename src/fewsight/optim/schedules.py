"""The learning rate of each step: a linear warm-up, then a schedule by name.

A schedule is a function `progress -> fraction of the peak`, with progress from 0 after the warm-up to 1 at the end.
"""

import math
from collections.abc import Callable

from fewsight.recipes import Stage


def cosine(progress: float) -> float:
    """Half a cosine, from 1 to 0 (Loshchilov and Hutter, arXiv 1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": cosine,
}


MAX_WARMUP = 0.5  # of a stage; a longer warm-up is cut


def peak_lr(stage: Stage, batch_size: float) -> float:
    """The learning rate after warm-up: lr_scale * base_lr * batch_size / 256 (Goyal et al., arXiv 1706.02677).

    Args:
        batch_size: that `optim.lr_batch` names; P x K where batches are made of classes.
    """
    return stage.lr_scale * stage.optim.base_lr * batch_size / 256


def is_warmup_cut(stage: Stage) -> bool:
    """Whether the recipe's warm-up is too long for the stage, whose learning rate would then never fall."""
    return stage.optim.warmup_epochs > MAX_WARMUP * stage.epochs


def warmup_epochs(stage: Stage) -> float:
    """The stage's warm-up, cut to half of it where the recipe asks for more."""
    return min(stage.optim.warmup_epochs, MAX_WARMUP * stage.epochs)


def stage_lr(stage: Stage, step: int, num_steps: int, peak: float) -> float:
    """The learning rate of a stage's step, from 0.

    Where the warm-up is cut, the curve starts one step in, so that the first step learns something: a stage of a single
    step has the peak.

    Args:
        num_steps: per epoch.
    """
    total, cut = stage.epochs * num_steps, is_warmup_cut(stage)
    warmup = total // 2 if cut else round(stage.optim.warmup_epochs * num_steps)
    return lr_at(
        step + cut, peak=peak, warmup_steps=warmup + cut, total_steps=total + cut, schedule=stage.optim.schedule
    )


def lr_at(step: int, *, peak: float, warmup_steps: int, total_steps: int, schedule: str = "cosine") -> float:
    """The learning rate of `step` (from 0): linear from 0 over the warm-up, then the schedule over the rest.

    Step `warmup_steps` has the peak; a step `total_steps` would have what the schedule ends with. Where the warm-up
    is as long as the stage, the learning rate rises throughout.

    Source: warm-up as Goyal et al., arXiv 1706.02677.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * SCHEDULES[schedule](progress)

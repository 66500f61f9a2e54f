"""Warm-up and cosine: step -> learning rate, pure."""

import math

from fewsight.recipes import Stage


def peak_rate(stage: Stage, batch_size: int) -> float:
    """The rate after warm-up: lr_scale * base_lr * batch_size / 256 (Goyal et al., arXiv 1706.02677).

    Args:
        batch_size: nominal, of the stage's plan: P x K where batches are made of classes.
    """
    return stage.lr_scale * stage.optim.base_lr * batch_size / 256


def rate_at(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The rate of `step` (from 0): linear from 0 over the warm-up, then a cosine to 0 over the rest.

    Step `warmup_steps` has the peak rate; a step `total_steps` would have 0. Where the warm-up is as long as
    the run, the rate rises throughout.

    Source: Loshchilov and Hutter, arXiv 1608.03983; warm-up as Goyal et al., arXiv 1706.02677.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))

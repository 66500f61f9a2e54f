"""An exponential moving average of a model's weights and statistics."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def moving_average(model: nn.Module, half_life: float) -> AveragedModel:
    """An average whose memory halves every `half_life` steps.

    At step n (from 0) it moves towards the weights by `1 - min(decay, (1 + n) / (10 + n))`, so that a short run is not
    held back by its first weights.
    """
    decay = 0.5 ** (1 / half_life)

    def update(averages: Any, weights: Any, num_averaged: Any) -> None:
        count = int(num_averaged)
        fraction = 1 - min(decay, (1 + count) / (10 + count))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, weights, fraction)
        else:
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)

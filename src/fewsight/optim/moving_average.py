"""An exponential moving average of a model's weights and statistics."""

import itertools

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """An average of the model after each step, whose memory in the long run halves every `half_life` steps.

    The first step is copied. At step n (from 0) the average then moves towards the model by
    `1 - min(decay, (1 + n) / (10 + n))`: until n is about 9 / (1 - decay), that is about 13 half-lives, this is
    9 / (10 + n), which holds about the last tenth of all steps: the numbers 1 to 100 average to 90.0.

    Running statistics are averaged as the weights are, each number by itself. They are those of the models on the way,
    not of the averaged weights, and the running variance misses how far the means have drifted; exact ones
    made no difference to the accuracy (docs/notes/accuracy.md). Counts of batches are copied.
    """

    def __init__(self, model: nn.Module, half_life: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = 0.5 ** (1 / half_life)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards the model. `n_averaged` is on the CPU, where torch's own update would wait for the device."""
        count = int(self.n_averaged)
        own = itertools.chain(self.module.parameters(), self.module.buffers())
        pairs = list(zip(own, itertools.chain(model.parameters(), model.buffers()), strict=True))
        fraction = 1 - min(self.decay, (1 + count) / (10 + count))
        moved = [pair for pair in pairs if count and pair[0].is_floating_point()]
        for average, value in pairs:
            if not count or not average.is_floating_point():
                average.copy_(value)
        if moved:
            torch._foreach_lerp_([average for average, _ in moved], [value for _, value in moved], fraction)
        self.n_averaged += 1

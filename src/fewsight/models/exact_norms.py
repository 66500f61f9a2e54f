"""Exact statistics of a model's batch norms, instead of averages over the models of the way."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewsight.machine.processes import SINGLE_PROCESS, ProcessGroup


class _Moments:
    """Count, mean and sum of squared deviations of the inputs of a norm, per channel, in float64."""

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None, "it tracks its statistics"
        self.count = torch.zeros((), dtype=torch.float64, device=norm.running_mean.device)
        self.mean = torch.zeros_like(norm.running_mean, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)

    def add(self, x: Tensor) -> None:
        """Add inputs [B, C, ...].

        Source: Chan et al., Updating formulae and a pairwise algorithm for computing sample variances, 1979.
        """
        dims = (0, *range(2, x.ndim))
        count = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), dims, correction=0)
        total, difference = self.count + count, mean.double() - self.mean
        self.squares += count * variance.double() + difference.square() * self.count * count / total
        self.mean += difference * count / total
        self.count = total

    def of_all(self, group: ProcessGroup) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance over the rows of all processes."""
        count, sums = group.sum_(self.count.clone()), group.sum_(self.count * self.mean)
        mean = sums / count
        squares = group.sum_(self.squares + self.count * (self.mean - mean).square())
        return mean, squares / (count - 1)


@torch.no_grad()
def set_exact_statistics(model: nn.Module, inputs: Iterable[Tensor], group: ProcessGroup = SINGLE_PROCESS) -> None:
    """Set the running statistics of all batch norms to those of their inputs over all batches, with these weights.

    The model is in training mode while it sees the batches, as it was when the weights were trained: each norm's inputs
    come from layers that are normalised by their batch. The mean is that over all inputs, and the variance has the
    drift of the batches' means in it, which an average of their variances lacks.

    Args:
        inputs: batches [B, 3, H, W], normalised.
        group: the processes that share each batch.
    """
    norms = [norm for norm in model.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    moments = [_Moments(norm) for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms if norm.num_batches_tracked is not None]
    hooks = [
        norm.register_forward_pre_hook(partial(_add_input, kept)) for norm, kept in zip(norms, moments, strict=True)
    ]
    model.train()
    try:
        for batch in inputs:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for norm, kept, count in zip(norms, moments, counts, strict=True):
        assert norm.running_mean is not None, "it tracks its statistics"
        assert norm.running_var is not None, "it tracks its statistics"
        assert norm.num_batches_tracked is not None, "it tracks its statistics"
        mean, variance = kept.of_all(group)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.num_batches_tracked.copy_(count)


def _add_input(moments: _Moments, norm: nn.Module, arguments: tuple[Tensor]) -> None:
    moments.add(arguments[0])

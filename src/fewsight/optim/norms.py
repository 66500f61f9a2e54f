"""Norms of a step: of the gradient, of the weights and of what the step changed in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Norms:
    """Euclidean norms over all trained weights together, of one step."""

    gradient: float  # of the whole batch, without a loss scale
    weights: float  # before the step
    update: float  # of the difference that the step made


def measured_norms(named: Mapping[str, nn.Parameter], loss_scale: float, take_step: Callable[[], object]) -> Norms:
    """Take an optimiser step and measure it; the step itself is the same to the bit.

    Args:
        loss_scale: by which the gradients are too large (fp16), else 1.
        take_step: changes the weights in place; their gradients are complete.
    """
    weights = list(named.values())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    gradient = _norm(gradients) / loss_scale
    before = [weight.detach().clone() for weight in weights]
    take_step()
    update = [weight.detach() - earlier for weight, earlier in zip(weights, before, strict=True)]
    return Norms(gradient, _norm(before), _norm(update))


def _norm(tensors: list[Tensor]) -> float:
    """Of all tensors as one vector."""
    if not tensors:
        return 0.0
    return float(
        torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor.float()) for tensor in tensors]))
    )

"""Batch normalisation with its activation, which keeps one tensor for the backward pass instead of two."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fewsight.models.recompute import is_recomputing, recompute_of, set_recompute

MIN_WEIGHT = 1e-3  # smallest |weight| of a channel for which a norm is inverted in float32 or better
MIN_WEIGHT_16 = 0.05  # the same in 16 bits, times max(1, |bias|) because the inversion subtracts the bias


def norm_act(norm: nn.Module, x: Tensor, slope: float | None) -> Tensor:
    """Batch norm, then leaky ReLU (ReLU at slope 0, nothing at None): [B, C, H, W] -> the same shape.

    The plain path is `activate(norm(x), slope)`. In training, a norm with a leaky ReLU keeps only its output, from
    which the backward pass recovers its input (see `_InPlace`). Others keep their input, and inside `recomputation`
    nothing else.
    """
    if type(norm) is nn.BatchNorm2d and norm.training and torch.is_grad_enabled():
        if slope and invertible(norm, x.dtype):
            y: Tensor = _InPlace.apply(x, norm.weight, norm.bias, norm, slope)
            return y
        if is_recomputing():
            return _recomputed(norm, x, slope)
    return activate(norm(x), slope)


def activate(x: Tensor, slope: float | None = 0.0) -> Tensor:
    """Leaky ReLU in place (ReLU at slope 0, nothing at None), for values that the backward pass does not need."""
    if slope is None:
        return x
    return F.leaky_relu_(x, slope) if slope else F.relu_(x)


def invertible(norm: nn.BatchNorm2d, dtype: torch.dtype) -> bool:
    """Whether a norm's input can be recovered from its output: the inversion divides by the weight, in `dtype`."""
    decided: bool | None = getattr(norm, "decided", None)
    if decided is None:
        norm.asks = True  # type: ignore[assignment]  # from now on `inversions_decided` knows it
        decided = bool(_can_be_inverted(norm, dtype))
    return decided


@contextlib.contextmanager
def inversions_decided(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Decide for all norms of a model at once which are inverted inside the block, where no weight may change.

    On a GPU this waits once, before the block, where each norm would wait in it.
    """
    norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d) and getattr(norm, "asks", False)]
    decisions = torch.stack([_can_be_inverted(norm, dtype) for norm in norms]).tolist() if norms else []
    for norm, decision in zip(norms, decisions, strict=True):
        norm.decided = decision
    try:
        yield
    finally:
        for norm in norms:
            norm.decided = None  # type: ignore[assignment]


def _can_be_inverted(norm: nn.BatchNorm2d, dtype: torch.dtype) -> Tensor:
    """bool []: as `invertible`, on the norm's device."""
    weight, bias = norm.weight.detach(), norm.bias.detach()
    if dtype in (torch.float16, torch.bfloat16):
        return (weight.abs() >= MIN_WEIGHT_16 * bias.abs().clamp(min=1)).all()
    return (weight.abs() >= MIN_WEIGHT).all()


class _InPlace(torch.autograd.Function):
    """Batch norm and leaky ReLU that keep only their output y = leaky(weight * x^ + bias), x^ the normalised input.

    The backward pass computes z = weight * x^ + bias from y, and passes z to torch's batch-norm kernel as the input of
    a norm with mean `bias` and standard deviation `weight`. With weight^2 / std(x) in place of the norm's weight, the
    kernel returns the gradients of the original norm.

    Source: Rota Bulo et al., In-Place Activated BatchNorm, arXiv:1712.02616, the variant that keeps y.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, slope: float) -> Tensor:
        y, _, inverse_std = batch_norm(norm, x)
        y = activate(y, slope)
        ctx.slope = slope
        ctx.save_for_backward(y, weight, bias, inverse_std)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        y, weight, bias, inverse_std = ctx.saved_tensors
        z = F.leaky_relu(y, 1 / ctx.slope)
        gradient = torch.ops.aten.leaky_relu_backward(gradient, y, ctx.slope, True)
        scale = weight.square() * inverse_std
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, z, scale, None, None, bias, 1 / weight, True, 0.0, ctx.needs_input_grad[:3]
        )
        return *gradients, None, None


def _recomputed(norm: nn.BatchNorm2d, x: Tensor, slope: float | None) -> Tensor:
    """The plain path, whose output the backward pass recomputes from the input, which is kept or recomputed itself."""
    y, mean, inverse_std = batch_norm(norm, x)
    recompute_x = recompute_of(x)

    def recompute() -> Tensor:
        variance = inverse_std**-2 - norm.eps
        return activate(F.batch_norm(recompute_x(), mean, variance, norm.weight, norm.bias, eps=norm.eps), slope)

    set_recompute(y, recompute)  # before the activation, whose result autograd saves
    return activate(y, slope)


def batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise in training mode, which updates the running statistics: (output, batch mean, 1 / batch std)."""
    assert norm.num_batches_tracked is not None, "the norm tracks running statistics"
    assert norm.momentum is not None, "the running statistics are exponential averages"
    norm.num_batches_tracked += 1
    return torch.native_batch_norm(
        x, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
    )

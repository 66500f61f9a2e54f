"""Batch normalisation with its activation, keeping one tensor for the backward pass where two are usual."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fewsight.models.recompute import is_remaking, maker_of, remember

LEAST_WEIGHT = 1e-3  # |weight| of a channel below which a norm is not inverted, in float32 or better
LEAST_WEIGHT_16 = 0.05  # the same in 16 bits, times max(1, |bias|): the inversion subtracts the bias


def norm_act(norm: nn.Module, x: Tensor, slope: float | None) -> Tensor:
    """Batch norm, then leaky ReLU (ReLU at slope 0, nothing at None): [B, C, H, W] -> the same shape.

    The plain path is `activate(norm(x), slope)`. In training a leaky one keeps its output alone, from which the
    backward pass has its input back; see `_InPlace`. Others keep their input, and inside `remaking` nothing else.
    """
    if type(norm) is nn.BatchNorm2d and norm.training and torch.is_grad_enabled():
        if slope and invertible(norm, x.dtype):
            y: Tensor = _InPlace.apply(x, norm.weight, norm.bias, norm, slope)
            return y
        if is_remaking():
            return _remade(norm, x, slope)
    return activate(norm(x), slope)


def activate(x: Tensor, slope: float | None = 0.0) -> Tensor:
    """Leaky ReLU in place (ReLU at slope 0, nothing at None); only for values that no backward pass needs."""
    if slope is None:
        return x
    return F.leaky_relu_(x, slope) if slope else F.relu_(x)


def invertible(norm: nn.BatchNorm2d, dtype: torch.dtype) -> bool:
    """Whether a norm's input can be had from its output in this precision: the inversion divides by its weight."""
    weight, bias = norm.weight.detach(), norm.bias.detach()
    if dtype in (torch.float16, torch.bfloat16):
        return bool((weight.abs() >= LEAST_WEIGHT_16 * bias.abs().clamp(min=1)).all())
    return bool((weight.abs() >= LEAST_WEIGHT).all())


class _InPlace(torch.autograd.Function):
    """Batch norm and leaky ReLU that keep their output alone: y = leaky(weight * x^ + bias), x^ the normalised input.

    Backward has z = weight * x^ + bias from y. torch's own kernel then takes z for the input of a norm of mean `bias`
    and deviation `weight`, and what it gives has the scale weight / deviation of x once weight^2 / deviation stands in
    for the weight.

    Source: Rota Bulo et al., In-Place Activated BatchNorm, arXiv:1712.02616, the variant that keeps y.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, slope: float) -> Tensor:
        y, _, inverse_deviation = batch_norm(norm, x)
        y = activate(y, slope)
        ctx.slope = slope
        ctx.save_for_backward(y, weight, bias, inverse_deviation)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        y, weight, bias, inverse_deviation = ctx.saved_tensors
        z = F.leaky_relu(y, 1 / ctx.slope)
        gradient = torch.ops.aten.leaky_relu_backward(gradient, y, ctx.slope, True)
        scale = weight.square() * inverse_deviation
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient, z, scale, None, None, bias, 1 / weight, True, 0.0, ctx.needs_input_grad[:3]
        )
        return *gradients, None, None


def _remade(norm: nn.BatchNorm2d, x: Tensor, slope: float | None) -> Tensor:
    """As the plain path; the backward pass has the input kept, or remade, and makes the output again from it."""
    y, mean, inverse_deviation = batch_norm(norm, x)
    source = maker_of(x)

    def make() -> Tensor:
        variance = inverse_deviation**-2 - norm.eps
        return activate(F.batch_norm(source(), mean, variance, norm.weight, norm.bias, eps=norm.eps), slope)

    remember(y, make)  # before the activation, which keeps its result
    return activate(y, slope)


def batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the norm gives in training, the batch's mean and 1 / its deviation; running statistics move."""
    assert norm.num_batches_tracked is not None, "it tracks its statistics"
    assert norm.momentum is not None, "its average is an exponential one"
    norm.num_batches_tracked += 1
    return torch.native_batch_norm(
        x, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
    )

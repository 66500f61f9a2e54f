"""Convolutions whose gradients are matrix products where those are faster: `convolve` chooses, by shape alone.

oneDNN's kernels for CPUs without AVX-512 are slow at the weights' gradient in channels-last order (half the rate of
a matrix product, a third on small maps), and at everything where a map has few positions. The figures are in NOTES.md.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEW_POSITIONS = 2048  # of a batch: up to here a 1x1 convolution is a product in all its parts
POINTWISE = 128  # positions a channel: up to here its weights' gradient is
# a 3x3 convolution's weights' gradient is, where a group has so many outputs on maps of at least such a side
UNFOLDED = ((64, 48), (128, 24), (160, 1))
TINY_PX = 2  # and up to here for the first number of outputs
UNFOLDED_BYTES = 16 * 2**20  # of neighbourhoods that lie side by side at a time


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv(x)`, by matrix products in training where they are faster: [B, C, H, W] -> [B, C', H', W']."""
    y: Tensor
    may = _products_may_be_faster(conv, x)
    if may and _is_pointwise(conv, x):
        y = PointwiseConv.apply(x, conv.weight)
    elif may and _is_wide_deep_or_tiny(conv, x):
        y = UnfoldedConv.apply(x, conv.weight, conv.groups)
    else:
        y = conv(x)
    return y


def _is_pointwise(conv: nn.Conv2d, x: Tensor) -> bool:
    least = min(conv.in_channels, conv.out_channels)
    plain = (conv.kernel_size, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)
    return plain and _num_positions(x) <= POINTWISE * least


def _is_wide_deep_or_tiny(conv: nn.Conv2d, x: Tensor) -> bool:
    outputs, side = conv.out_channels // conv.groups, min(x.shape[2:])
    enough = any(outputs >= least and (side >= least_px or side <= TINY_PX) for least, least_px in UNFOLDED)
    return (conv.kernel_size, conv.padding) == ((3, 3), (1, 1)) and enough


def _products_may_be_faster(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether this is training in float32, in channels-last order, on a CPU with AVX2 and no more."""
    return (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
        and (conv.stride, conv.bias) == ((1, 1), None)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class PointwiseConv(torch.autograd.Function):
    """A 1x1 convolution of stride 1: a row of channels for each position, times the weights [C', C, 1, 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        if _num_positions(x) > FEW_POSITIONS:
            return torch.conv2d(x, weight)
        return _maps(_rows(x) @ weight.flatten(1).T, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        rows, of_x, of_weight = _rows(gradient), None, None
        if ctx.needs_input_grad[0]:
            few = _num_positions(x) <= FEW_POSITIONS
            of_x = _maps(rows @ weight.flatten(1), x) if few else _input_gradient(gradient, x, weight)
        if ctx.needs_input_grad[1]:
            of_weight = (rows.T @ _rows(x)).as_strided(weight.shape, weight.stride())  # momentum takes its layout
        return of_x, of_weight


class UnfoldedConv(torch.autograd.Function):
    """A 3x3 convolution of stride 1 and padding 1, whose weights' gradient is one matrix product a group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return torch.conv2d(x, weight, padding=1, groups=groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient, groups = gradient.contiguous(memory_format=torch.channels_last), ctx.groups
        of_x = _input_gradient(gradient, x, weight, groups) if ctx.needs_input_grad[0] else None
        return of_x, _unfolded_gradient(gradient, x, groups) if ctx.needs_input_grad[1] else None, None


def _unfolded_gradient(gradient: Tensor, x: Tensor, groups: int) -> Tensor:
    """[B, C', H, W], [B, C, H, W] -> [C', C / groups, 3, 3]: outputs by positions, times positions by neighbours.

    A few images at a time, as each value stands in nine neighbourhoods.
    """
    _, channels, height, width = x.shape
    inputs, outputs = channels // groups, gradient.shape[1] // groups
    result = gradient.new_zeros(groups, outputs, 9 * inputs)
    few = max(1, UNFOLDED_BYTES // (9 * inputs * height * width * x.element_size()))
    for start in range(0, len(x), few):
        part, rows = x[start : start + few], _rows(gradient[start : start + few])
        padded = part.new_zeros(len(part), height + 2, width + 2, channels)
        padded[:, 1:-1, 1:-1] = part.permute(0, 2, 3, 1)
        image, down, across, _ = padded.stride()
        shape, strides = (len(part), height, width, 3, 3, inputs), (image, down, across, down, across, 1)
        for group in range(groups):
            neighbours = padded.as_strided(shape, strides, group * inputs).reshape(len(rows), -1)
            result[group].addmm_(rows[:, group * outputs : (group + 1) * outputs].T, neighbours)
    return result.view(-1, 3, 3, inputs).permute(0, 3, 1, 2)


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    padding = [weight.shape[2] // 2] * 2
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], groups, [True, False, False]
    )[0]
    return found


def _num_positions(maps: Tensor) -> int:
    return maps.shape[0] * maps.shape[2] * maps.shape[3]


def _rows(maps: Tensor) -> Tensor:
    """[B, C, H, W] in channels-last order -> [B*H*W, C], a view."""
    return maps.permute(0, 2, 3, 1).view(-1, maps.shape[1])


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """[B*H*W, C] -> [B, C, H, W] in channels-last order, a view."""
    return rows.view(like.shape[0], like.shape[2], like.shape[3], -1).permute(0, 3, 1, 2)

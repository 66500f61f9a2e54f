"""Convolutions that use matrix products where those are faster; `convolve` chooses by shape alone.

On CPUs without AVX-512, oneDNN's kernels are slow at the gradient of the weights in channels-last order (half the speed
of a matrix product, a third on small maps), and at all three passes over maps with few positions. The measurements are
in NOTES.md.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# positions of a batch up to which the output and the input gradient of a 1x1 convolution are matrix products too
FEW_POSITIONS = 2048
POINTWISE = 128  # positions per channel up to which the weight gradient of a 1x1 convolution is a matrix product
# the weight gradient of a 3x3 convolution is one for (at least so many outputs per group, maps of at least such a side)
UNFOLDED = ((64, 48), (128, 24), (160, 1))
TINY_PX = 2  # and, with the first number of outputs, for maps up to this side
UNFOLDED_BYTES = 16 * 2**20  # of unfolded neighbourhoods in memory at a time


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv(x)`, by matrix products in training where they are faster: [B, C, H, W] -> [B, C', H', W']."""
    y: Tensor
    supported = _products_may_be_faster(conv, x)
    if supported and _is_pointwise(conv, x):
        y = PointwiseConv.apply(x, conv.weight)
    elif supported and _is_wide_deep_or_tiny(conv, x):
        y = UnfoldedConv.apply(x, conv.weight, conv.groups)
    else:
        y = conv(x)
    return y


def _is_pointwise(conv: nn.Conv2d, x: Tensor) -> bool:
    pointwise = (conv.kernel_size, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)
    return pointwise and _num_positions(x) <= POINTWISE * min(conv.in_channels, conv.out_channels)


def _is_wide_deep_or_tiny(conv: nn.Conv2d, x: Tensor) -> bool:
    outputs, side = conv.out_channels // conv.groups, min(x.shape[2:])
    faster = any(outputs >= min_outputs and (side >= min_px or side <= TINY_PX) for min_outputs, min_px in UNFOLDED)
    return (conv.kernel_size, conv.padding) == ((3, 3), (1, 1)) and faster


def _products_may_be_faster(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether this is float32 training in channels-last order on a CPU whose best instruction set is AVX2."""
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
    """A 1x1 convolution of stride 1: positions by channels, [B*H*W, C], times the weights [C', C, 1, 1]."""

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
        rows, x_gradient, weight_gradient = _rows(gradient), None, None
        if ctx.needs_input_grad[0]:
            few = _num_positions(x) <= FEW_POSITIONS
            x_gradient = _maps(rows @ weight.flatten(1), x) if few else _input_gradient(gradient, x, weight)
        if ctx.needs_input_grad[1]:
            product = rows.T @ _rows(x)
            weight_gradient = product.as_strided(weight.shape, weight.stride())  # momentum buffers copy this layout
        return x_gradient, weight_gradient


class UnfoldedConv(torch.autograd.Function):
    """A 3x3 convolution of stride 1 and padding 1 whose weight gradient is one matrix product per group."""

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
        x_gradient = _input_gradient(gradient, x, weight, groups) if ctx.needs_input_grad[0] else None
        return x_gradient, _weight_gradient(gradient, x, groups) if ctx.needs_input_grad[1] else None, None


def _weight_gradient(gradient: Tensor, x: Tensor, groups: int) -> Tensor:
    """Outputs by positions, times positions by neighbours: [B, C', H, W], [B, C, H, W] -> [C', C / groups, 3, 3].

    A few images at a time, because unfolding copies each value into nine neighbourhoods.
    """
    _, channels, height, width = x.shape
    inputs, outputs = channels // groups, gradient.shape[1] // groups
    result = gradient.new_zeros(groups, outputs, 9 * inputs)
    size = max(1, UNFOLDED_BYTES // (9 * inputs * height * width * x.element_size()))
    for start in range(0, len(x), size):
        chunk, rows = x[start : start + size], _rows(gradient[start : start + size])
        padded = chunk.new_zeros(len(chunk), height + 2, width + 2, channels)
        padded[:, 1:-1, 1:-1] = chunk.permute(0, 2, 3, 1)
        image, down, across, _ = padded.stride()
        shape, strides = (len(chunk), height, width, 3, 3, inputs), (image, down, across, down, across, 1)
        for group in range(groups):
            neighbours = padded.as_strided(shape, strides, group * inputs).reshape(len(rows), -1)
            result[group].addmm_(rows[:, group * outputs : (group + 1) * outputs].T, neighbours)
    return result.view(-1, 3, 3, inputs).permute(0, 3, 1, 2)


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    padding = [weight.shape[2] // 2] * 2
    x_gradient: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], groups, [True, False, False]
    )[0]
    return x_gradient


def _num_positions(maps: Tensor) -> int:
    return maps.shape[0] * maps.shape[2] * maps.shape[3]


def _rows(maps: Tensor) -> Tensor:
    """[B, C, H, W] in channels-last order -> [B*H*W, C], a view."""
    return maps.permute(0, 2, 3, 1).view(-1, maps.shape[1])


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """[B*H*W, C] -> [B, C, H, W] in channels-last order, a view."""
    return rows.view(like.shape[0], like.shape[2], like.shape[3], -1).permute(0, 3, 1, 2)

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
WIDE_PX, WIDE_CHANNELS = 80, 64  # a 3x3 convolution's is from here on
DEEP_CHANNELS, DEEP = 160, 64  # and from here on, up to so many positions a channel,
TINY_PX, DEEP_PX = 2, 7  # on maps of the first side, and from the second on


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv(x)`, by matrix products in training where they are faster: [B, C, H, W] -> [B, C', H', W']."""
    y: Tensor
    if _products_may_be_faster(conv, x) and _is_pointwise(conv, x):
        y = PointwiseConv.apply(x, conv.weight)
    elif _products_may_be_faster(conv, x) and _is_wide_or_deep(conv, x):
        y = TapsConv.apply(x, conv.weight)
    else:
        y = conv(x)
    return y


def _is_pointwise(conv: nn.Conv2d, x: Tensor) -> bool:
    return conv.kernel_size == (1, 1) and _num_positions(x) <= POINTWISE * _least_channels(conv)


def _is_wide_or_deep(conv: nn.Conv2d, x: Tensor) -> bool:
    side, channels = min(x.shape[2:]), _least_channels(conv)
    wide = side >= WIDE_PX and channels >= WIDE_CHANNELS
    deep = channels >= DEEP_CHANNELS and _num_positions(x) <= DEEP * channels
    deep = deep and (side == TINY_PX or side >= DEEP_PX)  # between them the zeros beside the maps cost too much
    return conv.kernel_size == (3, 3) and (wide or deep)


def _least_channels(conv: nn.Conv2d) -> int:
    return min(conv.in_channels, conv.out_channels)


def _products_may_be_faster(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether this is training in float32, in channels-last order, on a CPU with AVX2 and no more."""
    return (
        torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
        and (conv.stride, conv.groups, conv.bias) == ((1, 1), 1, None)
        and conv.padding in ((0, 0), (1, 1))
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


class TapsConv(torch.autograd.Function):
    """A 3x3 convolution of stride 1 and padding 1, whose weights' gradient is a matrix product for each tap.

    Behind each row of positions, and below the last of an image, stand zeros: a tap is then a shift of all positions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.conv2d(x, weight, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = _input_gradient(gradient, x, weight) if ctx.needs_input_grad[0] else None
        return of_x, _tap_gradients(gradient, x) if ctx.needs_input_grad[1] else None


def _tap_gradients(gradient: Tensor, x: Tensor) -> Tensor:
    """[B, C', H, W], [B, C, H, W] -> [C', C, 3, 3]."""
    batch, _, height, width = x.shape
    count, step = batch * (height + 1) * (width + 1), width + 1
    margin = step + 1  # the farthest tap

    def spaced(maps: Tensor) -> Tensor:
        """[B, C, H, W] -> [count + 2 * margin, C], zeros between rows, between images and at both ends."""
        rows = maps.new_zeros(count + 2 * margin, maps.shape[1])
        rows[margin : margin + count].view(batch, height + 1, step, -1)[:, :height, :width] = maps.permute(0, 2, 3, 1)
        return rows

    columns, rows = spaced(gradient)[margin : margin + count].T, spaced(x)
    taps = gradient.new_empty(3, 3, gradient.shape[1], x.shape[1])
    for down in range(3):
        for across in range(3):
            start = margin + (down - 1) * step + across - 1
            torch.mm(columns, rows[start : start + count], out=taps[down, across])
    return taps.permute(2, 3, 0, 1)  # [3, 3, C', C] -> [C', C, 3, 3]


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    padding = [weight.shape[2] // 2] * 2
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [True, False, False]
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

"""Layers that the families share, and `Backbone`, which runs a stem and four stages."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewsight.errors import RecipeError, RunError
from fewsight.models.activated_norm import norm_act
from fewsight.models.convolution import convolve
from fewsight.models.recompute import recomputation, recomputed

STEM_STRIDES: dict[str, int] = {"large": 4, "medium": 2, "small": 1}


def stem_stride(stem: str) -> int:
    """Total stride of a stem by its name: large 4 (as published), medium 2, small 1.

    Raises:
        RecipeError: there is no such stem.
    """
    if stem not in STEM_STRIDES:
        raise RecipeError(f"model.stem: {stem!r} is not a stem; it must be one of {', '.join(STEM_STRIDES)}")
    return STEM_STRIDES[stem]


def scaled(channels: float, width: float, divisor: int = 8) -> int:
    """`channels * width`, rounded to a multiple of `divisor`, at least `divisor`; unchanged at width 1."""
    if width <= 0:
        raise RecipeError(f"model.width: {width} must be above 0")
    if width == 1.0:
        return int(channels)
    return max(1, round(channels * width / divisor)) * divisor


def channel_means(maps: Tensor) -> Tensor:
    """Mean over positions, in the precision of the maps: [B, C, H, W] -> [B, C].

    A scaled sum, whose gradient is a broadcast view. The gradient of torch's mean is written out in full and in
    contiguous order, which takes four to six times as long on a CPU. Partial sums are in float32 or better.
    """
    dtype = torch.float32 if maps.dtype == torch.float16 else None  # the sum could exceed 65,504
    means = maps.sum((2, 3), dtype=dtype) * (1.0 / (maps.shape[2] * maps.shape[3]))
    return means.to(maps.dtype)


def global_average_pool(maps: Tensor) -> Tensor:
    """Mean over positions in float32 or better, since losses compare features: [B, D, h, w] -> [B, D]."""
    positions = maps.permute(0, 2, 3, 1).flatten(1, 2)  # [B, D, h, w] -> [B, h*w, D], a view if channels-last
    return positions.mean(1, dtype=torch.promote_types(maps.dtype, torch.float32))


class ConvNormAct(nn.Module):
    """Convolution without bias, batch normalisation, leaky ReLU: [B, C, H, W] -> [B, C', H', W'].

    Args:
        slope: slope of the activation below zero; 0 is ReLU, None omits the activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        slope: float | None = 0.0,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return norm_act(self.norm, self.convolved(x), self.slope)

    def convolved(self, x: Tensor) -> Tensor:
        """The convolution alone; a 1x1 convolution without an activation is cheap enough to be recomputed."""
        cheap = self.slope is None and self.conv.kernel_size == (1, 1)
        return recomputed(partial(convolve, self.conv), x) if cheap else convolve(self.conv, x)

    def fold(self) -> None:
        """Fold the norm's weights and running statistics into the convolution: one pass less at inference."""
        if self.conv.bias is not None:
            return  # already folded
        norm = self.norm
        assert norm.running_mean is not None, "the norm tracks running statistics"
        assert norm.running_var is not None, "the norm tracks running statistics"
        with torch.no_grad():
            scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
            weight = self.conv.weight.double() * scale.view(-1, 1, 1, 1)
            bias = norm.bias.double() - norm.running_mean.double() * scale
            self.conv.weight.copy_(weight)
            self.conv.bias = nn.Parameter(bias.to(self.conv.weight.dtype))
        self.register_module("norm", nn.Identity())


class Blocks(nn.Sequential):
    """Blocks in sequence; with `recompute` the backward pass recomputes each block's cheap tensors."""

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            with recomputation(self.recompute):
                x = block(x)
        return x


def pooled_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Identity where shapes agree; otherwise a 1x1 convolution, after an average pool if strided."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    project = ConvNormAct(in_channels, out_channels, slope=None)
    if stride == 1:
        return project
    return nn.Sequential(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False), project)


def deep_stem(channels: int, stride: int) -> nn.Sequential:
    """Three 3x3 convolutions, the first with stride 2 (1 for a small stem), and a max pool at a total stride of 4."""
    stem = nn.Sequential(
        ConvNormAct(3, channels, 3, stride=min(stride, 2)),
        ConvNormAct(channels, channels, 3),
        ConvNormAct(channels, channels * 2, 3),
    )
    if stride == 4:
        stem.append(nn.MaxPool2d(3, 2, padding=1))
    return stem


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from all channels' means: x * sigmoid(W2 relu(W1 mean(x))).

    Source: Hu et al., Squeeze-and-Excitation Networks, arXiv:1709.01507.
    """

    def __init__(self, channels: int, squeezed_channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed_channels)
        self.excite = nn.Linear(squeezed_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu_(self.squeeze(channel_means(x)))))
        return recomputed(torch.mul, x, gate[:, :, None, None])  # [B, C] -> [B, C, 1, 1]


def blur_matrix(size: int, like: Tensor) -> Tensor:
    """Matrix that blurs by (1/4, 1/2, 1/4) around every second position: [ceil(size / 2), size].

    Positions beyond a border are reflected about the last position (torch's "reflect" padding).
    """
    identity = torch.eye(size, dtype=like.dtype, device=like.device)
    reflected = F.pad(identity, (1, 1), mode="reflect" if size > 1 else "replicate")  # [size, size + 2]
    rows = 0.25 * reflected[:, :-2:2] + 0.5 * reflected[:, 1:-1:2] + 0.25 * reflected[:, 2::2]
    return rows.T


class BlurPool(nn.Module):
    """Halve the sides after a 3x3 binomial blur with reflected borders: [B, C, H, W] -> [B, C, H/2, W/2].

    Two small matrix products, one per axis. A depthwise convolution gives the same values, but takes 5 to 60 times as
    long in bfloat16 on a CPU. The result is in channels-last order.

    Source: Zhang, Making Convolutional Networks Shift-Invariant Again, arXiv:1904.11486.
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        rows = blur_matrix(height, x) @ rows  # [B, H, W*C] -> [B, H/2, W*C]
        columns = blur_matrix(width, x) @ rows.view(batch, -1, width, channels)  # -> [B, H/2, W/2, C]
        return columns.permute(0, 3, 1, 2)


class SpaceToDepth(nn.Module):
    """Move each block of pixels into channels: [B, C, H, W] -> [B, block * block * C, H/block, W/block].

    The channel index is (row * block + column) * C + c. The result is in channels-last order.
    """

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        size = self.block
        if height % size or width % size:
            raise RunError(
                f"this backbone takes images whose sides are multiples of {size} px, got {height}x{width}; "
                f"set train_px and test_px to multiples of {size}"
            )
        x = x.reshape(batch, channels, height // size, size, width // size, size)
        x = x.permute(0, 2, 4, 3, 5, 1)  # [B, C, h, s, w, s] -> [B, h, w, s, s, C]
        x = x.reshape(batch, height // size, width // size, size * size * channels)
        return x.permute(0, 3, 1, 2)  # [B, h, w, s*s*C] -> [B, s*s*C, h, w]


class Backbone(nn.Module):
    """A stem, then stages, then the mean over positions: images [B, 3, H, W] -> features [B, D].

    Features are in float32, also under autocast.

    Attributes:
        num_features: D.
        stem: images -> [B, C, H/s, W/s] with s = 4, 2 or 1.
        stages: sequences of blocks; every stage but the first halves the sides.
        recompute: whether cheap tensors are recomputed in the backward pass.
    """

    num_fit_images = 0  # how many training images `fit_to_images` takes before the first step

    def __init__(self, stem: nn.Module, stages: Sequence[Blocks], num_features: int) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.num_features = num_features
        self.recompute = False
        init_weights(self)

    def enable_recomputation(self, recompute: bool = True) -> None:
        """Set whether the backward pass recomputes cheap tensors instead of keeping them."""
        self.recompute = recompute
        for module in self.stages:
            if isinstance(module, Blocks):
                module.recompute = recompute

    def fit_to_images(self, images: Tensor) -> None:
        """Set the weights that are computed from normalised training images and not trained: here none."""

    def fold(self) -> None:
        """Fold every norm into the convolution before it, for inference; see `ConvNormAct.fold`."""
        for module in self.modules():
            if isinstance(module, ConvNormAct):
                module.fold()

    def feature_map(self, images: Tensor) -> Tensor:
        """The last stage's output: [B, 3, H, W] -> [B, D, h, w]."""
        with recomputation(self.recompute):
            stem: Tensor = self.stem(images)
        maps: Tensor = self.stages(stem)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        return global_average_pool(self.feature_map(images))


def init_weights(backbone: nn.Module) -> None:
    """Kaiming-normal weights by fan-out and zero biases in every convolution and linear layer.

    Norms keep torch's weight 1 and bias 0, except the last norm of a residual block, whose weight the block sets to 0.
    Weights on the meta device are left: torch loads its compiler, for four seconds, to draw numbers there.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

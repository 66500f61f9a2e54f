"""TResNet: a space-to-depth stem, blurred downsampling, basic blocks, then bottlenecks.

Source: Ridnik et al., TResNet: High Performance GPU-Dedicated Architecture, arXiv:2003.13630.
"""

from torch import Tensor, nn

from fewsight.models.activated_norm import activate
from fewsight.models.layers import (
    Backbone,
    Blocks,
    BlurPool,
    ConvNormAct,
    SpaceToDepth,
    SqueezeExcitation,
    pooled_shortcut,
    scaled,
    stem_stride,
)

# size -> (number of blocks in each stage, width factor); "s" is ours, for small images, the others are published
SIZES: dict[str, tuple[tuple[int, int, int, int], float]] = {
    "s": ((1, 1, 1, 1), 1.0),
    "m": ((3, 4, 11, 3), 1.0),
    "l": ((4, 5, 18, 3), 1.2),
    "xl": ((4, 5, 24, 3), 1.3),
}
SLOPE = 1e-3  # of the leaky ReLUs inside blocks, below zero
STEM_SLOPE = 1e-2
EXPANSION = 4


def strided_conv(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """3x3 convolution, norm and leaky ReLU, followed by a blur pool at a stride of 2."""
    conv = ConvNormAct(in_channels, out_channels, 3, slope=SLOPE)
    return conv if stride == 1 else nn.Sequential(conv, BlurPool())


class BasicBlock(nn.Module):
    """3x3, 3x3, squeeze-excitation, added to the shortcut: [B, C, H, W] -> [B, channels, H', W']."""

    def __init__(self, in_channels: int, channels: int, stride: int, min_squeezed: int) -> None:
        super().__init__()
        self.conv1 = strided_conv(in_channels, channels, stride)
        self.conv2 = ConvNormAct(channels, channels, 3, slope=None)
        self.gate = SqueezeExcitation(channels, max(channels // 4, min_squeezed))
        self.shortcut = pooled_shortcut(in_channels, channels, stride)
        nn.init.zeros_(self.conv2.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return activate(self.gate(self.conv2(self.conv1(x))) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, squeeze-excitation, 1x1, added to the shortcut: [B, C, H, W] -> [B, 4 * channels, H', W'].

    Args:
        min_squeezed: minimum number of channels inside the squeeze-excitation; 0 omits it (in the last stage).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, min_squeezed: int) -> None:
        super().__init__()
        out_channels = channels * EXPANSION
        self.reduce = ConvNormAct(in_channels, channels, slope=SLOPE)
        self.conv = strided_conv(channels, channels, stride)
        self.gate = SqueezeExcitation(channels, max(out_channels // 8, min_squeezed)) if min_squeezed else nn.Identity()
        self.expand = ConvNormAct(channels, out_channels, slope=None)
        self.shortcut = pooled_shortcut(in_channels, out_channels, stride)
        nn.init.zeros_(self.expand.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return activate(self.expand(self.gate(self.conv(self.reduce(x)))) + self.shortcut(x))


def space_to_depth_stem(channels: int, stride: int) -> nn.Sequential:
    """Space to depth by the stride (nothing at stride 1), then a 3x3 convolution."""
    conv = ConvNormAct(3 * stride * stride, channels, 3, slope=STEM_SLOPE)
    return nn.Sequential(conv) if stride == 1 else nn.Sequential(SpaceToDepth(stride), conv)


def build_tresnet(size: str, *, stem: str = "large", width: float = 1.0) -> Backbone:
    """Build a TResNet: images [B, 3, H, W] -> features [B, 2048 * width factor * width].

    Args:
        size: a key of `SIZES`.
        stem: "large" (stride 4, as published), "medium" (2) or "small" (1).
        width: multiplies the width factor of the size; unless it is 1, channels are rounded to multiples of 8.
    """
    num_blocks, width_factor = SIZES[size]
    base_channels = scaled(int(64 * width_factor), width)
    min_squeezed = scaled(64, width)
    in_channels = base_channels
    stages = []
    for stage, count in enumerate(num_blocks):
        channels = base_channels * 2**stage
        blocks = Blocks()
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            if stage < 2:
                blocks.append(BasicBlock(in_channels, channels, stride, min_squeezed))
                in_channels = channels
            else:
                gated = min_squeezed if stage == 2 else 0
                blocks.append(Bottleneck(in_channels, channels, stride, gated))
                in_channels = channels * EXPANSION
        stages.append(blocks)
    return Backbone(space_to_depth_stem(base_channels, stem_stride(stem)), stages, in_channels)

"""ResNeSt: bottleneck blocks whose 3x3 convolution has two attended splits.

Source: Zhang et al., ResNeSt: Split-Attention Networks, arXiv:2004.08955.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewsight.models.activated_norm import activate
from fewsight.models.layers import (
    Backbone,
    Blocks,
    ConvNormAct,
    channel_means,
    deep_stem,
    pooled_shortcut,
    scaled,
    stem_stride,
)
from fewsight.models.recompute import recomputed

# depth -> (number of blocks in each stage, channels of the stem's first two convolutions)
DEPTHS: dict[int, tuple[tuple[int, int, int, int], int]] = {
    14: ((1, 1, 1, 1), 32),
    26: ((2, 2, 2, 2), 32),
    50: ((3, 4, 6, 3), 32),
    101: ((3, 4, 23, 3), 64),
}
EXPANSION = 4
RADIX = 2


class SplitAttention(nn.Module):
    """3x3 convolution into two splits, which are added with weights per channel: [B, C, H, W] -> [B, C, H, W].

    With splits u_0, u_1 and z = W2 relu(norm(W1 mean(u_0 + u_1))), the result is a_0 u_0 + a_1 u_1, where
    (a_0, a_1) is the softmax of (z_0, z_1). For two values a_0 = sigmoid(z_0 - z_1) and a_1 = 1 - a_0.
    The splits are 4-D slices, which stay in channels-last order; a 5-D view of them would not.

    Source: arXiv:2004.08955, section 3.1, with radix 2 and cardinality 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        attention_channels = max(32, round(channels * RADIX / 4 / 8) * 8)
        self.splits = ConvNormAct(channels, channels * RADIX, 3, groups=RADIX)
        self.squeeze = nn.Linear(channels, attention_channels)
        self.norm = nn.BatchNorm1d(attention_channels)
        self.attend = nn.Linear(attention_channels, channels * RADIX)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.splits(x).chunk(RADIX, dim=1)  # [B, 2C, H, W] -> 2 x [B, C, H, W]
        pooled = channel_means(first) + channel_means(second)
        z_first, z_second = self.attend(F.relu_(self.norm(self.squeeze(pooled)))).chunk(RADIX, dim=1)
        weight = torch.sigmoid(z_first - z_second)[:, :, None, None]  # [B, C] -> [B, C, 1, 1]
        return recomputed(torch.lerp, second, first, weight.to(first.dtype))  # second + weight * (first - second)


class Bottleneck(nn.Module):
    """1x1, split attention, 1x1, added to the shortcut; a stride is an average pool on both paths."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * EXPANSION
        self.reduce = ConvNormAct(in_channels, channels)
        self.attention = SplitAttention(channels)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.expand = ConvNormAct(channels, out_channels, slope=None)
        self.shortcut = pooled_shortcut(in_channels, out_channels, stride)
        nn.init.zeros_(self.expand.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.expand(self.pool(self.attention(self.reduce(x))))
        return activate(residual + self.shortcut(x))


def build_resnest(depth: int, *, stem: str = "large", width: float = 1.0) -> Backbone:
    """Build a ResNeSt: images [B, 3, H, W] -> features [B, 2048 * width].

    Args:
        depth: a key of `DEPTHS`.
        stem: "large" (stride 4, as published), "medium" (2) or "small" (1).
        width: factor on all channel counts, which are rounded to multiples of 8.
    """
    num_blocks, stem_channels = DEPTHS[depth]
    stem_channels = scaled(stem_channels, width)
    in_channels = stem_channels * 2
    stages = []
    for stage, count in enumerate(num_blocks):
        channels = scaled(64, width) * 2**stage
        blocks = Blocks()
        for block in range(count):
            blocks.append(Bottleneck(in_channels, channels, stride=2 if stage > 0 and block == 0 else 1))
            in_channels = channels * EXPANSION
        stages.append(blocks)
    return Backbone(deep_stem(stem_channels, stem_stride(stem)), stages, in_channels)

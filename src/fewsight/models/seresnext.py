"""SE-ResNeXt 32x4d: bottlenecks with a grouped 3x3 convolution and squeeze-excitation.

Sources: Xie et al., Aggregated Residual Transformations, arXiv:1611.05431; Hu et al., arXiv:1709.01507; the
"d" variants: He et al., Bag of Tricks for Image Classification, arXiv:1812.01187, ResNet-D.
"""

from torch import Tensor, nn

from fewsight.models.activated_norm import activate
from fewsight.models.layers import (
    Backbone,
    Blocks,
    ConvNormAct,
    SqueezeExcitation,
    deep_stem,
    pooled_shortcut,
    scaled,
    stem_stride,
)

# depth -> number of blocks in each stage
DEPTHS: dict[int, tuple[int, int, int, int]] = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}
CARDINALITY = 32
GROUP_CHANNELS = 4


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 with the stride, 1x1, squeeze-excitation, added to the shortcut."""

    def __init__(self, in_channels: int, channels: int, groups: int, stride: int, *, pooled: bool) -> None:
        super().__init__()
        out_channels = channels * 2
        self.reduce = ConvNormAct(in_channels, channels)
        self.grouped = ConvNormAct(channels, channels, 3, stride, groups=groups)
        self.expand = ConvNormAct(channels, out_channels, slope=None)
        self.gate = SqueezeExcitation(out_channels, max(8, round(out_channels / 16 / 8) * 8))
        shortcut = pooled_shortcut if pooled else strided_shortcut
        self.shortcut = shortcut(in_channels, out_channels, stride)
        nn.init.zeros_(self.expand.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.gate(self.expand(self.grouped(self.reduce(x))))
        return activate(residual + self.shortcut(x))


def strided_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Identity where shapes agree; otherwise a strided 1x1 convolution, which skips positions (unlike a pool)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvNormAct(in_channels, out_channels, stride=stride, slope=None)


def conv_stem(channels: int, stride: int) -> nn.Sequential:
    """A 7x7 convolution with stride 2, followed by a max pool at a total stride of 4; a 3x3 convolution at stride 1."""
    if stride == 1:
        return nn.Sequential(ConvNormAct(3, channels, 3))
    stem = nn.Sequential(ConvNormAct(3, channels, 7, stride=2))
    if stride == 4:
        stem.append(nn.MaxPool2d(3, 2, padding=1))
    return stem


def build_seresnext(depth: int, deep: bool = False, *, stem: str = "large", width: float = 1.0) -> Backbone:
    """Build an SE-ResNeXt: images [B, 3, H, W] -> features [B, 2048 * width].

    Args:
        depth: a key of `DEPTHS`.
        deep: the "d" variant: a stem of three 3x3 convolutions, and an average pool before a strided shortcut. On small
            images it learns far faster (NOTES.md).
        stem: "large" (stride 4, as published), "medium" (2) or "small" (1).
        width: factor on the number of groups; a group keeps its number of channels.
    """
    groups = scaled(CARDINALITY, width, divisor=1)
    in_channels = stem_channels = scaled(64, width)
    stages = []
    for stage, count in enumerate(DEPTHS[depth]):
        channels = groups * GROUP_CHANNELS * 2**stage
        blocks = Blocks()
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(Bottleneck(in_channels, channels, groups, stride, pooled=deep))
            in_channels = channels * 2
        stages.append(blocks)
    first = deep_stem(stem_channels // 2, stem_stride(stem)) if deep else conv_stem(stem_channels, stem_stride(stem))
    return Backbone(first, stages, in_channels)

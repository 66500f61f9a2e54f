"""Plain nets of dense 3x3 convolutions behind a fixed whitening convolution, for small images and short trainings.

Source: Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, arXiv:2404.00498. Unlike there, there are four stages,
the stem has 3x3 patches, norms scale, and features are means of the last maps, not maxima, so that maps explain them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewsight.models.convolution import convolve
from fewsight.models.layers import Backbone, Blocks, ConvNormAct, scaled, stem_stride

# number of 3x3 convolutions -> channels of each stage, which has two of them
DEPTHS: dict[int, tuple[int, ...]] = {8: (64, 128, 256, 512)}
NUM_COMPONENTS = 12  # of 3x3 patches, each with both signs
MIN_VARIANCE = 5e-3  # added to the variance of each component, for images scaled to variance 1


class Whitening(nn.Module):
    """Principal components of 3x3 patches, scaled to variance 1, with both signs, then GELU.

    [B, 3, H, W] -> [B, 2 * NUM_COMPONENTS, H/stride, W/stride]. The weights are not trained; `fit` sets them.
    """

    weight: Tensor

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("weight", torch.empty(2 * NUM_COMPONENTS, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(2 * NUM_COMPONENTS))
        if not self.weight.is_meta:
            nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return F.gelu(F.conv2d(images, self.weight, self.bias, self.stride, padding=1))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set the weights from normalised images: [B, 3, H, W]; the same bits for the same images on one machine."""
        patches = F.unfold(images.double(), 3, stride=2).transpose(1, 2).reshape(-1, 27)
        variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))  # in rising order
        variances, components = variances.flip(0)[:NUM_COMPONENTS], components.flip(1)[:, :NUM_COMPONENTS]
        largest = components.gather(0, components.abs().argmax(0, keepdim=True))
        components = components * largest.sign() * (variances + MIN_VARIANCE).rsqrt()
        filters = components.T.reshape(NUM_COMPONENTS, 3, 3, 3)
        self.weight.copy_(torch.cat([filters, -filters]))


class PooledConv(nn.Module):
    """3x3 convolution, max pool by 2 (sides rounded up), norm, GELU; the norm stays, since it may flip signs."""

    def __init__(self, in_channels: int, out_channels: int, *, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if pool else nn.Identity()
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.pool(convolve(self.conv, x))))


class Conv(nn.Module):
    """3x3 convolution, norm, GELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.normed = ConvNormAct(channels, channels, 3, slope=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.normed(x))


class PlainNet(Backbone):
    """Convolutions without shortcuts that start as near to the identity as their shape allows."""

    num_fit_images = 256

    def __init__(self, stem: Whitening, stages: list[Blocks], num_features: int) -> None:
        super().__init__(stem, stages, num_features)
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                with torch.no_grad():
                    nn.init.dirac_(module.weight[: module.in_channels])

    def fit_to_images(self, images: Tensor) -> None:
        assert isinstance(self.stem, Whitening)
        self.stem.fit(images)


def build_plain(depth: int, *, stem: str = "large", width: float = 1.0) -> PlainNet:
    """Build a plain net: images [B, 3, H, W] -> features [B, 512 * width].

    Args:
        depth: a key of `DEPTHS`.
        stem: "large" (whitening with stride 2, a pool in the first stage), "medium" (stride 1) or "small" (stride 1, no
            pool in the first stage).
        width: factor on the channel counts.
    """
    total = stem_stride(stem)
    in_channels, stages = 2 * NUM_COMPONENTS, []
    for number, base in enumerate(DEPTHS[depth]):
        channels = scaled(base, width)
        stages.append(Blocks(PooledConv(in_channels, channels, pool=number > 0 or total > 1), Conv(channels)))
        in_channels = channels
    return PlainNet(Whitening(2 if total == 4 else 1), stages, in_channels)

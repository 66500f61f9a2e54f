"""The test crops as graph operations, pixel for pixel as Pillow's bilinear resampling, for images of any size.

Pillow 13 resizes some tall images vertically first; there a pixel of the graph differs by at most one level.
"""

import torch
from torch import Tensor, nn

PRECISION_BITS = 22  # of Pillow's weights, which are fixed-point integers


class CenterBox(nn.Module):
    """The box of the centre crop of images of one shape, as `augment.center_view` takes it: float64 [1, 4].

    Args:
        px: side of the view in pixels.
        ratio: the proportion of the short side that the view shows.
    """

    def __init__(self, px: int, ratio: float) -> None:
        super().__init__()
        self.px, self.resized = px, max(px, round(px / ratio))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> boxes (left, top, right, bottom) in pixels, float64 [1, 4]."""
        height, width = (torch.full((1,), side, dtype=torch.float64) for side in images.shape[2:])
        short = torch.minimum(height, width)
        starts, stops = [], []
        for side in (width, height):
            side_resized = torch.floor(self.resized * side / short)
            offset = torch.round((side_resized - self.px) / 2)  # half to even, as Python's
            starts.append(offset * side / side_resized)
            stops.append(torch.minimum((offset + self.px) * side / side_resized, side))
        return torch.stack([*starts, *stops], dim=1)


def resample(images: Tensor, boxes: Tensor, px: int) -> Tensor:
    """Resize a box of each image to a square, bilinear with antialiasing, to Pillow's pixels.

    Two products with weight matrices, columns first, each rounded to whole levels as in Pillow. The weights are
    fixed-point numbers of 22 bits, so that products and sums in float64 are exact.

    Args:
        images: float64 [B, 3, H, W], integers from 0 to 255.
        boxes: [B, 4] or [1, 4]: (left, top, right, bottom) in pixels.
        px: side of the result in pixels.

    Returns:
        float64 [B, 3, px, px], integers from 0 to 255.
    """
    left, top, right, bottom = boxes.to(torch.float32).unbind(1)  # Pillow takes a box in float32
    columns = _weights(left, right, images.shape[3], px)  # [B, W, px]
    rows = _weights(top, bottom, images.shape[2], px)
    narrow = _level(images @ columns[:, None])  # [B, 3, H, W] @ [B, 1, W, px]
    return _level(rows.transpose(1, 2)[:, None] @ narrow)  # [B, 1, px, H] @ [B, 3, H, px]


def _weights(start: Tensor, stop: Tensor, size: int, px: int) -> Tensor:
    """The weight of each of `size` input pixels in each of `px` output pixels, in 2 ** -22: float64 [B, size, px].

    A triangle filter around each output pixel's centre, two input pixels wide, or two output pixels if that is wider.
    """
    start, scale = start.double()[:, None, None], (stop - start).double()[:, None, None] / px
    centers = start + (torch.arange(px, dtype=torch.float64) + 0.5) * scale  # [B, 1, px]
    positions = torch.arange(size, dtype=torch.float64)[:, None] + 0.5  # [size, 1]
    weights = torch.clamp(1 - ((positions - centers) / torch.clamp(scale, min=1)).abs(), min=0)
    return torch.floor(weights / weights.sum(1, keepdim=True) * 2.0**PRECISION_BITS + 0.5)


def _level(sums: Tensor) -> Tensor:
    """Sums of fixed-point weights times levels -> levels 0 to 255, rounded half up."""
    return torch.clamp(torch.floor(sums * 2.0**-PRECISION_BITS + 0.5), 0, 255)

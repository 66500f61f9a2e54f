"""CutMix: step 5 of the paper's augmentation, drawn once per batch and applied after normalisation."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # test-time views do not need torch
    from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """A CutMix draw for a whole batch.

    Attributes:
        permutation: int64 [B]; image i receives the box from image permutation[i].
        box: (top, left, height, width) in pixels, within the image; it may be empty.
        lam: λ, the proportion of each image that is kept: 1 - height * width / (H * W).
    """

    permutation: np.ndarray
    box: tuple[int, int, int, int]
    lam: float


def draw_cutmix(
    rng: np.random.Generator,
    batch_size: int,
    height: int,
    width: int,
    *,
    prob: float = 0.5,
    alpha: float = 1.0,
) -> Mix | None:
    """Draw, with probability `prob`, one box and one pairing for the whole batch.

    λ ~ Beta(alpha, alpha); the box has sides sqrt(1 - λ) of the image's (whole pixels, rounded down), its centre is
    uniform over the pixels, and it is clipped to the image. λ is then recomputed from the clipped box.

    Args:
        rng: the batch's random stream, `batch_stream(seed, epoch, step)`.
        batch_size: size of the global batch, before it is split among processes.
        height: height of the images in pixels.
        width: width of the images in pixels.
        prob: probability that the batch is mixed.
        alpha: both parameters of the Beta distribution, above 0.

    Returns:
        A `Mix`, or None for a batch that is left as it is.

    Source: Yun et al., arXiv 1905.04899, algorithm A1.
    """
    if rng.random() >= prob:
        return None
    side = math.sqrt(1.0 - rng.beta(alpha, alpha))
    box_height, box_width = int(height * side), int(width * side)
    top = int(rng.integers(height)) - box_height // 2
    left = int(rng.integers(width)) - box_width // 2
    bottom, right = min(top + box_height, height), min(left + box_width, width)
    top, left = max(top, 0), max(left, 0)
    box = (top, left, bottom - top, right - left)
    lam = 1.0 - (box[2] * box[3]) / (height * width)
    return Mix(rng.permutation(batch_size), box, lam)


def paste(images: "Tensor", others: "Tensor", partners: np.ndarray, box: tuple[int, int, int, int]) -> "Tensor":
    """Copy the box of `others[partners[i]]` into image i.

    Args:
        images: [B, C, H, W], any dtype and memory format, on any device; not changed.
        others: [N, C, H, W], the images that `partners` indexes: `images` themselves, or the global batch.
        partners: int64 [B], for each image the index of its partner in `others`.
        box: (top, left, height, width) in pixels.

    Returns:
        [B, C, H, W] in the memory format of `images`.

    Raises:
        ValueError: `partners` does not have one index for each image.
    """
    if len(partners) != len(images):
        raise ValueError(f"CutMix drawn for {len(partners)} images, got a batch of {len(images)}")
    top, left, height, width = box
    region = (..., slice(top, top + height), slice(left, left + width))
    mixed = images.clone()
    import torch

    from fewsight.machine.device import to_device

    mixed[region] = others[region].index_select(0, to_device(torch.from_numpy(partners), others.device))
    return mixed

"""Augmentation of training images, in the paper's order, and test-time views.

The random numbers of an image come from its own stream (`fewsight.machine.rng.image_stream`) and those of CutMix from
the batch's (`fewsight.machine.rng.batch_stream`), so the results depend neither on the number of workers nor on the
order of work.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from fewsight.augment.crop import draw_crop, flip, resize_boxes
from fewsight.augment.cutmix import Mix, draw_cutmix, paste
from fewsight.augment.operations import apply_steps
from fewsight.augment.policies import POLICIES, PolicySettings
from fewsight.augment.preview import contact_sheet
from fewsight.augment.views import View, center_view, cut_view, is_view_name, named_views, random_box

__all__ = [
    "POLICIES",
    "AugmentSettings",
    "Mix",
    "View",
    "apply_steps",
    "augment_images",
    "center_view",
    "contact_sheet",
    "cut_view",
    "draw_crop",
    "draw_cutmix",
    "flip",
    "is_view_name",
    "named_views",
    "paste",
    "random_box",
    "resize_boxes",
]


class AugmentSettings(PolicySettings, Protocol):
    """The settings in a recipe's `[augment]` that `augment_images` reads."""

    @property
    def train_px(self) -> int: ...
    @property
    def crop_area(self) -> tuple[float, float]: ...
    @property
    def crop_aspect(self) -> tuple[float, float]: ...
    @property
    def flip_prob(self) -> float: ...
    @property
    def policy(self) -> str: ...


def augment_images(
    images: Iterable[np.ndarray], augment: AugmentSettings, streams: Iterable[np.random.Generator]
) -> np.ndarray:
    """Random resized crop, flip, policy: steps 1 to 3 in section III.A of the paper.

    The result for an image does not depend on the other images.

    Args:
        images: uint8 [H, W, 3] each, any sizes; they are not changed.
        augment: the recipe's `[augment]`; `policy` is a key of `POLICIES`.
        streams: the random stream of each image, `image_stream(seed, epoch, index, draw)`.

    Returns:
        uint8 [n, 3, train_px, train_px], not normalised.

    Raises:
        KeyError: `policy` is not in `POLICIES`.
    """
    sources, generators, policy = list(images), list(streams), POLICIES[augment.policy]
    # one step for the whole batch, then the next: calling the same code repeatedly is faster than alternating
    boxes = [
        draw_crop(rng, image.shape[1], image.shape[0], area=augment.crop_area, aspect=augment.crop_aspect)
        for image, rng in zip(sources, generators, strict=True)
    ]
    mirrored = [rng.random() < augment.flip_prob for rng in generators]
    steps = [policy(rng, augment) for rng in generators]
    batch = resize_boxes(sources, boxes, augment.train_px)
    flip(batch, np.array(mirrored))
    apply_steps(batch, steps, augment.fill)
    return batch

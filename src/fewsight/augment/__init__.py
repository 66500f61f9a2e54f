"""What happens to an image between decoding and the model, in the report's order.

Everything that happens to one image draws from its own stream (`fewsight.rng.image_stream`), CutMix from the
batch's (`fewsight.rng.batch_stream`), so the number of workers and the order of work change nothing.
"""

from typing import Protocol

import numpy as np
from PIL import Image

from fewsight.augment.crop import draw_crop, random_flip, random_resized_crop
from fewsight.augment.cutmix import Mix, draw_cutmix, paste
from fewsight.augment.policy import POLICIES, SUB_POLICIES, PolicySettings, autoaugment, trivialaugment
from fewsight.augment.preview import contact_sheet
from fewsight.augment.views import View, center_view, cut_view, is_view_name, named_views, random_box

__all__ = [
    "POLICIES",
    "SUB_POLICIES",
    "AugmentSettings",
    "Mix",
    "View",
    "augment_image",
    "autoaugment",
    "center_view",
    "contact_sheet",
    "cut_view",
    "draw_crop",
    "draw_cutmix",
    "is_view_name",
    "named_views",
    "paste",
    "random_box",
    "random_flip",
    "random_resized_crop",
    "trivialaugment",
]


class AugmentSettings(PolicySettings, Protocol):
    """What `augment_image` reads from a recipe's `[augment]`."""

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


def augment_image(image: Image.Image, augment: AugmentSettings, rng: np.random.Generator) -> np.ndarray:
    """Random resized crop, flip, policy: steps 1 to 3 of the report, section III.A.

    Args:
        image: RGB, any size; it is not changed.
        augment: the recipe's `[augment]`; `policy` is a key of `POLICIES`.
        rng: the image's own stream, `image_stream(seed, epoch, index)`.

    Returns:
        uint8 [train_px, train_px, 3], not normalised.

    Raises:
        ValueError: the image is not RGB.
        KeyError: `policy` is not in `POLICIES`.
    """
    if image.mode != "RGB":
        raise ValueError(f"augment_image needs an RGB image, got mode {image.mode}")
    image = random_resized_crop(image, augment.train_px, rng, area=augment.crop_area, aspect=augment.crop_aspect)
    image = random_flip(image, rng, augment.flip_prob)
    # np.array: np.asarray of a PIL image is read-only, about which torch.from_numpy warns
    return np.array(POLICIES[augment.policy](image, rng, augment))

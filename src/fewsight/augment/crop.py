"""Random resized crop and horizontal flip: steps 1 and 2 of the report's augmentation."""

import math

import numpy as np
from PIL import Image

CROP_TRIES = 10
SMALL_PX = 48  # a side below which whole pixels would be too coarse for a box to begin at


def draw_crop(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[float, float, float, float]:
    """Draw a crop box: area uniform, aspect log-uniform, position uniform.

    Up to ten draws of (area, aspect); one whose box does not fit is dropped. After ten, the largest central
    box whose aspect is allowed. The box keeps its fractions of a pixel (the usual code rounds it): in an
    image of 64 or of 8 pixels the rounding would distort both distributions and leave few distinct boxes.

    Args:
        rng: the image's own stream.
        width: of the image, in pixels.
        height: of the image, in pixels.
        area: range of the box's share of the image.
        aspect: range of width / height of the box.

    Returns:
        (left, top, right, bottom) in pixels, within the image.

    Source: Szegedy et al., arXiv 1409.4842, section 6; the report, section III.A, step 1.
    """
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(CROP_TRIES):
        box_area = width * height * (area[0] + (area[1] - area[0]) * rng.random())
        ratio = math.exp(log_low + (log_high - log_low) * rng.random())
        box_width, box_height = math.sqrt(box_area * ratio), math.sqrt(box_area / ratio)
        if box_width <= width and box_height <= height:
            left = rng.random() * (width - box_width)
            top = rng.random() * (height - box_height)
            # min: left + box_width may pass the edge by one rounding error, which PIL refuses
            return left, top, min(left + box_width, width), min(top + box_height, height)
    box_width = min(width, height * aspect[1])
    box_height = min(height, width / aspect[0])
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def resize_box(pixels: np.ndarray, box: tuple[float, float, float, float], px: int) -> np.ndarray:
    """Cut a box out of an image and resize it to a square, bilinear with antialiasing.

    Args:
        pixels: uint8 [H, W, 3], any size from 1x1 up; it is not changed.
        box: (left, top, right, bottom) in pixels, as drawn. Its sides keep their fractions; in an image that is not
            below `SMALL_PX` it begins at the nearest whole pixel.
        px: side of the result in pixels.

    Returns:
        uint8 [3, px, px], with the channels of a pixel side by side in memory.
    """
    import torch  # here: the views of an image need none

    left, top, right, bottom = box
    if min(pixels.shape[:2]) < SMALL_PX:
        return _by_pillow(pixels, box, px)
    width, height = right - left, bottom - top
    across, down = min(round(left), int(pixels.shape[1] - width)), min(round(top), int(pixels.shape[0] - height))
    cut = pixels[down : math.ceil(down + height), across : math.ceil(across + width)]
    if px in cut.shape[:2]:  # torch would leave that side as it is, fractions and all
        return _by_pillow(np.ascontiguousarray(cut), (0, 0, width, height), px)
    # the batch's axis first: with the step that it then has, torch knows channels-last order, and copies nothing
    planes = torch.from_numpy(cut)[None].permute(0, 3, 1, 2)
    # torch's kernel for bytes: on x86 four times as fast as Pillow's, from which it differs by a level at most
    resize = torch.ops.aten._upsample_bilinear2d_aa.default
    resized: np.ndarray = resize(planes, [px, px], False, px / height, px / width).numpy()
    return np.asarray(resized[0])


def _by_pillow(pixels: np.ndarray, box: tuple[float, float, float, float], px: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((px, px), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)


def flip(images: np.ndarray, those: np.ndarray) -> None:
    """Mirror those of the images [n, 3, H, W] left and right, in place; `those` are n truth values."""
    import torch

    mirrored = torch.from_numpy(images[those]).flip(3)  # NumPy would go through them byte by byte
    images[those] = mirrored.numpy()

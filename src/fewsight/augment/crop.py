"""Random resized crop and horizontal flip: steps 1 and 2 of the report's augmentation."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

CROP_TRIES = 10
SMALL_PX = 48  # a side below which whole pixels would be too coarse for a box to begin at
Box = tuple[float, float, float, float]  # left, top, right, bottom


def draw_crop(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
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


def resize_boxes(images: Sequence[np.ndarray], boxes: Sequence[Box], px: int) -> np.ndarray:
    """Cut a box out of each image and resize it to a square, bilinear with antialiasing.

    Args:
        images: uint8 [H, W, 3] each, any sizes from 1x1 up; they are not changed.
        boxes: (left, top, right, bottom) in pixels, as drawn. The sides keep their fractions; in an image that is not
            below `SMALL_PX` a box begins at the nearest whole pixel.
        px: side of the results in pixels.

    Returns:
        uint8 [n, 3, px, px].
    """
    import torch  # here: the views of an image need none

    # one kind of work after the other: code that runs again and again is faster than code in turns
    cuts = [_cut(pixels, box, px) for pixels, box in zip(images, boxes, strict=True)]
    places = [place for place, (_, _, by_torch) in enumerate(cuts) if by_torch]
    # the batch's axis first: with the step that it then has, torch knows channels-last order, and copies nothing
    tensors = [torch.from_numpy(cuts[place][0])[None].permute(0, 3, 1, 2) for place in places]
    sides = [cuts[place][1][2:] for place in places]
    # torch's kernel for bytes: on x86 four times as fast as Pillow's, from which it differs by a level at most
    resize = torch.ops.aten._upsample_bilinear2d_aa.default
    resized = [
        resize(tensor, [px, px], False, px / height, px / width)
        for tensor, (width, height) in zip(tensors, sides, strict=True)
    ]
    result = np.empty((len(cuts), 3, px, px), np.uint8)
    for place, one in zip(places, resized, strict=True):
        result[place] = one.numpy()[0]
    for place, (pixels, box, by_torch) in enumerate(cuts):
        if not by_torch:
            image = Image.fromarray(np.ascontiguousarray(pixels))
            result[place] = np.asarray(image.resize((px, px), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
    return result


def _cut(pixels: np.ndarray, box: Box, px: int) -> tuple[np.ndarray, Box, bool]:
    """Whole pixels around a box, the box in them, and whether torch can resize it: it takes no offset with fractions,
    and leaves a side alone that has `px` whole pixels."""
    if min(pixels.shape[:2]) < SMALL_PX:
        return pixels, box, False
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    across, down = min(round(left), int(pixels.shape[1] - width)), min(round(top), int(pixels.shape[0] - height))
    cut = pixels[down : math.ceil(down + height), across : math.ceil(across + width)]
    return cut, (0.0, 0.0, width, height), px not in cut.shape[:2]


def flip(images: np.ndarray, those: np.ndarray) -> None:
    """Mirror those of the images [n, 3, H, W] left and right, in place; `those` are n truth values."""
    import torch

    mirrored = torch.from_numpy(images[those]).flip(3)  # NumPy would go through them byte by byte
    images[those] = mirrored.numpy()

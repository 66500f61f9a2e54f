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


_TIFF_CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # photometric interpretation -> colour channels
_TIFF_JPEG = (6, 7)  # values of Compression
_TIFF_DEPTH = 32997  # the tag of a volume's number of planes


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


def check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse a TIFF that Pillow would read wrongly without a word.

    Channels that it drops, a fourth that it takes for alpha, and the layouts in which its pixels differ from those of
    tifffile; all others that tifffile writes were found to be equal, or not to be read (Pillow 13.0).

    Raises:
        RefusedError: it is such a TIFF.
    """
    tags = image.tag_v2
    channels = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, -1)
    colours = _TIFF_CHANNELS.get(photometric, channels)
    declared_alpha = tuple(tags.get(TiffImagePlugin.EXTRASAMPLES, ()))[:1] in ((1,), (2,))
    if channels > colours + (declared_alpha and colours < 4):
        raise RefusedError(too_many_channels(channels))
    if (planes := int(tags.get(_TIFF_DEPTH, 1))) > 1:
        raise RefusedError(f"a volume of {planes} planes: save each as an image")
    bits, sample_format = (
        max(tags.get(tag, (1,))) for tag in (TiffImagePlugin.BITSPERSAMPLE, TiffImagePlugin.SAMPLEFORMAT)
    )
    compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
    if sample_format == 2:
        raise RefusedError("signed integers have no agreed range: save it with 8 or 16 bits without sign")
    if compression in _TIFF_JPEG and bits > 8:
        raise RefusedError(f"JPEG with {bits} bits a channel: save it with another compression")
    if sample_format == 3 and compression != 1 and image.tag_v2.prefix == b"MM":
        raise RefusedError("compressed floating-point values in big-endian order: save it with 8 or 16 bits")
    planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2 and channels > 1
    if planar and (
        channels == 2 or (bits > 8 and compression == 1) or (compression in _TIFF_JPEG and photometric == 6)
    ):
        raise RefusedError("its channels are stored one after another in a way that is not read: interleave them")


def too_many_channels(channels: int) -> str:
    """Why an image with these channels is refused."""
    return f"{channels} channels: only grey, RGB or CMYK, optionally with declared transparency, can be used"


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
        if image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] == 12:
            grey = (grey * 65535 + 2047) // 4095
        if _zero_is_white(image):
            grey = 65535 - grey
    elif isinstance(clear := image.info.get("transparency"), int):
        grey[grey == clear] = 65535  # the one transparent grey value of a PNG, over white
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")


def _float_to_rgb(image: Image.Image) -> Image.Image:
    grey = np.asarray(image)  # [H, W]
    if not (grey.min() >= 0 and grey.max() <= 1):  # false for NaN too
        raise RefusedError("floating-point values outside 0 to 1 have no agreed range: save it with 8 or 16 bits")
    grey = 1 - grey if _zero_is_white(image) else grey
    return Image.fromarray(np.rint(grey * 255).astype(np.uint8)).convert("RGB")


def _zero_is_white(image: Image.Image) -> bool:
    """Whether a TIFF says so; Pillow inverts it for 8 bits and less only."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    return bool(image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0)

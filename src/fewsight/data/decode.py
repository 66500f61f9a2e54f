"""Decode an image file to an upright RGB image, or raise an error with a one-line reason.

The result is what an image viewer shows: EXIF orientation applied, transparency over white, 16 bits scaled
to 8, the first frame or page. Nothing is guessed or filled in: a file with missing pixels is an error, never
an image with a grey part. Colour profiles are ignored.
"""

import functools
import hashlib
import io
import math
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from fewsight.data.rgb import RefusedError, check_tiff, orientation_of, to_rgb, too_many_channels, turned_upright
from fewsight.errors import DataError

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".avif",
    ]
)  # compared in lower case
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")  # read by Pillow, whatever the file's suffix
MAX_BYTES = 2**30  # of a file: no image of MAX_PIXELS needs more
MAX_PIXELS = 178_956_970  # twice Pillow's warning threshold, which is where Pillow itself refuses

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0")
_LOST_PIXELS = ("premature end", "bad huffman code")  # libjpeg fills the missing pixels in and only warns
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


class ImageError(DataError):
    """One image cannot be used. `reason` is the message without the file's name."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, " ".join(reason.split())
        super().__init__(f"{name}: {self.reason}")

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str]]:
        return type(self), (self.name, self.reason)  # so that a loading process can send it


class LargeImageError(ImageError):
    """An image has more pixels than the limit."""


class UnknownKindError(ImageError):
    """A file is not an image of a supported format, whatever its name."""


def load_image(path: Path) -> Image.Image:
    """Decode the image file `path`: upright, in mode RGB.

    Raises:
        ImageError: the file cannot be read or decoded; one line with its path and the reason.
    """
    return decode_bytes(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The contents of the image file `path`.

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        status = path.stat()  # before opening it: reading a pipe would block, and a device never ends
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(str(path), "a folder, not an image")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(str(path), "a device or a pipe, not a file")
        if status.st_size > MAX_BYTES:
            raise ImageError(str(path), f"too large: {status.st_size:,} bytes, at most {MAX_BYTES:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(str(path), f"cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # a name that holds a zero byte
        raise ImageError(str(path), f"cannot be read ({error})") from None


def decode_bytes(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the contents of an image file: upright, in mode RGB.

    Args:
        data: the file's contents.
        name: the file's name for the error message.
        max_pixels: the largest image to decode, at most `MAX_PIXELS`.

    Raises:
        UnknownKindError: not an image.
        LargeImageError: more pixels than `max_pixels`.
        ImageError: damaged, or of a kind that has no agreed meaning as RGB.
    """
    decoded = _decoded(data, name, max_pixels)
    return Image.fromarray(decoded) if isinstance(decoded, np.ndarray) else decoded


def decode_pixels(data: bytes, name: str, *, px: int = 0, area_fraction: float = 1.0) -> np.ndarray:
    """Decode the contents of an image file to uint8 [H, W, 3], a JPEG without an extra copy.

    Args:
        data: the file's contents.
        name: the file's name for the error message.
        px: unless 0, a JPEG may be decoded at a half, a quarter or an eighth of its size, which costs less time and
            memory, as long as a square crop of `area_fraction` of its area is at least `px` pixels wide.
        area_fraction: the smallest crop that will be taken, as a fraction of the image's area.

    Raises:
        ImageError: as `decode_bytes`.
    """
    decoded = _decoded(data, name, MAX_PIXELS, px, area_fraction)
    return decoded if isinstance(decoded, np.ndarray) else np.array(decoded)  # asarray's would be read-only


def _decoded(
    data: bytes, name: str, max_pixels: int, px: int = 0, area_fraction: float = 1.0
) -> Image.Image | np.ndarray:
    if not data:
        raise ImageError(name, "empty file (0 bytes)")
    try:
        return _decode(data, min(max_pixels, MAX_PIXELS), px, area_fraction)
    except _TooLargeError as refusal:
        raise LargeImageError(name, str(refusal)) from None
    except RefusedError as refusal:
        raise ImageError(name, str(refusal)) from None
    except UnidentifiedImageError:
        with _pillow_is_silent():
            raise UnknownKindError(name, _why_unidentified(data)) from None
    except Image.DecompressionBombError:
        raise LargeImageError(name, f"too large: more than {min(max_pixels, MAX_PIXELS):,} pixels") from None
    except MemoryError:
        raise ImageError(name, "not enough memory to decode it") from None
    except Exception as error:  # on damaged files decoders raise nearly every exception type
        raise ImageError(name, f"cannot be decoded ({error or type(error).__name__})") from None


def take_image(image: "Image.Image | np.ndarray", name: str) -> tuple[Image.Image, str]:
    """Convert an image in memory to an upright image in mode RGB.

    Args:
        image: a Pillow image in any mode, or an array, uint8 [H, W, 3] or [H, W].
        name: the image's name for the error message.

    Returns:
        The image, and 64 bits of BLAKE2b over its pixels in hexadecimal.

    Raises:
        ImageError: of another type, or of a kind that has no agreed meaning as RGB.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or not image.size:
            raise ImageError(name, f"expected uint8 [H, W, 3] or [H, W], got {image.dtype} {list(image.shape)}")
        image = Image.fromarray(np.ascontiguousarray(image))
    elif not isinstance(image, Image.Image):
        raise ImageError(name, f"expected a path, a Pillow image or an array, got {type(image).__name__}")
    try:
        with _pillow_is_silent():
            _check_size(*image.size, MAX_PIXELS)
            upright = turned_upright(to_rgb(image), orientation_of(image))
    except RefusedError as refusal:
        raise ImageError(name, str(refusal)) from None
    except Exception as error:  # Pillow reads an opened file only now
        raise ImageError(name, f"cannot be decoded ({error or type(error).__name__})") from None
    return upright, pixel_digest(upright, 8)


def pixel_digest(image: Image.Image, size: int = 16) -> str:
    """BLAKE2b over an image's width, height and pixels, in hexadecimal; `size` is the digest's number of bytes."""
    result = hashlib.blake2b(f"{image.width} {image.height} ".encode(), digest_size=size)
    result.update(image.tobytes())
    return result.hexdigest()


@dataclass(frozen=True)
class Header:
    """The metadata of a readable image file."""

    kind: str  # the format of its contents, whatever its suffix: "JPEG", "PNG"; "" if unknown
    animated: bool = False  # several frames or pages, of which only the first is used
    orientation: int = 1  # EXIF orientation, 1 to 8


UNKNOWN = Header("")


def read_header(data: bytes) -> Header:
    """Read the metadata of an image file from its contents; no pixels are decoded and no frames are counted."""
    try:
        with _pillow_is_silent():
            if data[:3] == b"\xff\xd8\xff" and b"Exif\0\0" not in data[: 1 << 18]:
                return Header("JPEG")
            if _is_heic(data):
                return Header("HEIF")
            with _open(data) as image:
                kind = "JPEG" if image.format == "MPO" else image.format or ""  # MPO: a camera's JPEG with a preview
                animated = kind != "JPEG" and bool(getattr(image, "is_animated", False))
                return Header(kind, animated, orientation_of(image))
    except Exception:  # damaged metadata do not make an image unusable
        return UNKNOWN


class _TooLargeError(RefusedError):
    """An image has more pixels than the limit."""


def _decode(data: bytes, max_pixels: int, px: int, area_fraction: float) -> Image.Image | np.ndarray:
    if data[:3] == b"\xff\xd8\xff":
        pixels = _decode_jpeg(data, max_pixels, px, area_fraction)
        if pixels is not None:
            return pixels
    with _pillow_is_silent():
        return to_rgb(_open_heic(data, max_pixels)) if _is_heic(data) else _decode_by_pillow(data, max_pixels)


def _decode_by_pillow(data: bytes, max_pixels: int) -> Image.Image:
    with _open(data) as image:
        _check_size(*image.size, max_pixels)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            check_tiff(image)
        image.load()
        orientation = orientation_of(image)  # after load(): PNG may store its EXIF behind the pixels
        return turned_upright(to_rgb(image), orientation)


def _open(data: bytes) -> Image.Image:
    """Open with Pillow as one of `FORMATS` only: others run programs (EPS is PostScript) or read other files."""
    return Image.open(io.BytesIO(data), formats=_formats())


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # an old Pillow lacks AVIF


def _decode_jpeg(data: bytes, max_pixels: int, px: int, area_fraction: float) -> np.ndarray | None:
    """Decode with simplejpeg; None where Pillow should try: an unusual kind, or damage that loses no pixels."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_size(int(width), int(height), max_pixels)
    try:
        factor = _reduction(int(width), int(height), px, area_fraction)
        # strict by default: libjpeg's warnings are errors
        pixels = simplejpeg.decode_jpeg(
            data, min_height=-(-height // factor), min_width=-(-width // factor), min_factor=1
        )
    except ValueError as error:
        if any(text in str(error).lower() for text in _LOST_PIXELS):
            raise RefusedError(f"truncated or damaged JPEG ({error})") from None
        return None
    orientation = 1
    if b"Exif\0\0" in data[: 1 << 18] or b"tiff:Orientation" in data[: 1 << 18]:
        with _pillow_is_silent(), _open(data) as header:
            orientation = orientation_of(header)
    return pixels if orientation == 1 else np.array(turned_upright(Image.fromarray(pixels), orientation))


def _reduction(width: int, height: int, px: int, area_fraction: float) -> int:
    """The factor 1, 2, 4 or 8 by which the sides may shrink; libjpeg decodes directly at these reductions."""
    side = math.sqrt(area_fraction * width * height)
    return next((factor for factor in (8, 4, 2) if px and side >= factor * px), 1)


def _is_heic(data: bytes) -> bool:
    if data[4:8] != b"ftyp":
        return False
    listed = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    brands = {listed[i : i + 4] for i in range(0, len(listed), 4)}
    return bool(brands & _HEIC_BRANDS) and not brands & {b"avif", b"avis"}


def _open_heic(data: bytes, max_pixels: int) -> Image.Image:
    try:
        import pillow_heif
    except ImportError:
        raise RefusedError("HEIC needs the extra 'heic': pip install 'fewsight[heic]'") from None
    heif = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
    width, height = heif.size
    _check_size(width, height, max_pixels)
    image: Image.Image = heif.to_pillow()  # libheif has already turned it upright
    return image


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _TooLargeError(f"too large: {width} x {height} is more than {max_pixels:,} pixels")


def _why_unidentified(data: bytes) -> str:
    if data[:4] == b"MM\0+":
        return "a BigTIFF in big-endian order, which cannot be read: save it as TIFF"
    if data[:4] in _TIFF_MAGIC:
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])  # 43: BigTIFF
            stream = io.BytesIO(data)
            stream.seek(tags.next)
            tags.load(stream)
            channels = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
        except Exception:  # a damaged directory
            return "a TIFF whose directory is damaged"
        if channels > 4 or (channels > 1 and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) in (0, 1)):
            return too_many_channels(channels)
        return "a TIFF of a kind that cannot be read (save it with 8 or 16 bits a channel)"
    if data[4:8] == b"ftyp" and b"avif" in data[8:64]:
        return "a damaged AVIF, or this Pillow cannot read AVIF (pip install -U pillow)"
    return f"not an image of a supported format ({', '.join(FORMATS)}, HEIC), or damaged at its start"


_silence_lock = threading.Lock()
_silence_depth = 0
_silence = warnings.catch_warnings()


@contextmanager
def _pillow_is_silent() -> Iterator[None]:
    """Suppress Pillow's warnings while any thread decodes.

    Their causes are either checked here (size, palette) or harmless (metadata). `catch_warnings` replaces
    the filters of the whole process, so overlapping threads must share one.
    """
    global _silence_depth, _silence
    with _silence_lock:
        if _silence_depth == 0:
            _silence = warnings.catch_warnings()
            _silence.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        _silence_depth += 1
    try:
        yield
    finally:
        with _silence_lock:
            _silence_depth -= 1
            if _silence_depth == 0:
                _silence.__exit__(None, None, None)

"""Images embedded in a page as data URLs, so that the page makes no request."""

import base64
import io
from typing import Any

from PIL import Image


def thumbnail(image: Image.Image, px: int) -> str:
    """A JPEG of the image, at most `px` a side, as a data URL; `image` itself is shrunk."""
    image.thumbnail((px, px), Image.Resampling.BILINEAR)
    return data_url(image, "JPEG", quality=80)


def data_url(image: Image.Image, kind: str, **options: Any) -> str:
    """The image in a file format as a data URL.

    Args:
        image: any image that the format can hold.
        kind: the name of the format in Pillow, such as "PNG".
        options: passed to Pillow's writer.
    """
    handle = io.BytesIO()
    image.save(handle, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(handle.getvalue()).decode()

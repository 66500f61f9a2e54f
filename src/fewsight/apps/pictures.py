"""Pictures within a page, as addresses that hold them: the page then asks for nothing."""

import base64
import io
from typing import Any

from PIL import Image


def thumbnail(image: Image.Image, px: int) -> str:
    """A JPEG of the image, at most `px` a side, as a data address; the image itself is made small."""
    image.thumbnail((px, px), Image.Resampling.BILINEAR)
    return address(image, "JPEG", quality=80)


def address(image: Image.Image, kind: str, **options: Any) -> str:
    """The image as a file of a kind of Pillow's, in a data address.

    Args:
        options: of Pillow's writer.
    """
    handle = io.BytesIO()
    image.save(handle, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(handle.getvalue()).decode()

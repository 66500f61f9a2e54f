"""Test-time views of one image, each cut from the original: four scales x two crops in the report."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fewsight.augment.crop import draw_crop
from fewsight.errors import RecipeError
from fewsight.machine.rng import VIEW, stream

RANDOM_AREA = (0.8, 1.0)  # share of the image that a random view shows (the report, section III.B)
RANDOM_ASPECT = (3 / 4, 4 / 3)
PLAIN = "-noflip"  # ends the name of a view without its flipped twin
NAME = re.compile(rf"([a-z]+)-([0-9]{{1,4}})({PLAIN})?")


@dataclass(frozen=True)
class View:
    """One way to look at an image; the flipped twin is averaged in where the recipe flips."""

    crop: str  # a name in CROPS
    px: int
    scale: int  # place of `px` among the test sizes: it, not the size, draws the random crop
    flip: bool = True

    @property
    def name(self) -> str:
        """`center-224`, `random-320`, `center-224-noflip`."""
        return f"{self.cut}{'' if self.flip else PLAIN}"

    @property
    def cut(self) -> str:
        """What is cut from the image, flipped or not: `center-224`."""
        return f"{self.crop}-{self.px}"


def named_views(text: str, test_px: Sequence[int]) -> tuple[View, ...]:
    """The views that `--views` asks for.

    Args:
        text: "center" (the first test size alone), "report" (every test size, both crops) or names such as
            "center-64,random-92,center-64-noflip". A centre view may have any size; random ones those of `test_px`.
        test_px: the recipe's test sizes.

    Raises:
        RecipeError: a name that is no view, or one twice.
    """
    if text == "center":
        return (View("center", test_px[0], 0),)
    if text == "report":
        return tuple(View(crop, px, scale) for scale, px in enumerate(test_px) for crop in ("center", "random"))
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names):
        raise RecipeError(f"--views {text}: a view stands there twice")
    return tuple(_named_view(name, test_px) for name in names)


def is_view_name(name: str) -> bool:
    """Whether a view could be called so: a crop of `CROPS` and a size, such as `center-64-noflip`."""
    found = NAME.fullmatch(name)
    return found is not None and found[1] in CROPS


def _named_view(name: str, test_px: Sequence[int]) -> View:
    known = ", ".join(view.name for view in named_views("report", test_px))
    found = NAME.fullmatch(name) if is_view_name(name) else None
    if found is None or not 8 <= int(found[2]) <= 4096:
        raise RecipeError(f"--views {name}: expected center, report, or names: {known}")
    px, flip = int(found[2]), found[3] is None
    if found[1] == "center":
        return View("center", px, test_px.index(px) if px in test_px else -1, flip)
    if px not in test_px:
        raise RecipeError(f"--views {name}: a {found[1]} crop belongs to one of the run's test sizes: {known}")
    return View(found[1], px, test_px.index(px), flip)


def cut_view(image: Image.Image, view: View, digest: str, *, view_seed: int, ratio: float = 0.875) -> np.ndarray:
    """Cut a view out of the original image; uint8 [px, px, 3].

    Args:
        image: RGB and upright, any size; it is not changed.
        digest: 64 bits of the file's BLAKE2b in hexadecimal: every model and every batch size sees the same box.
        ratio: of the centre crop.
    """
    return CROPS[view.crop](image, view, digest, view_seed, ratio)


def _center(image: Image.Image, view: View, digest: str, view_seed: int, ratio: float) -> np.ndarray:
    return center_view(image, view.px, ratio=ratio)


def _random(image: Image.Image, view: View, digest: str, view_seed: int, ratio: float) -> np.ndarray:
    box = random_box(image.width, image.height, digest, view.scale, view_seed)
    return np.array(image.resize((view.px, view.px), Image.Resampling.BILINEAR, box=box))


Crop = Callable[[Image.Image, View, str, int, float], np.ndarray]  # (image, view, digest, view_seed, ratio)
CROPS: dict[str, Crop] = {"center": _center, "random": _random}


def random_box(width: int, height: int, digest: str, scale: int, view_seed: int) -> tuple[float, float, float, float]:
    """The random crop of a file at a scale, (left, top, right, bottom) in pixels: area 80-100 %, aspect 3/4 to 4/3.

    A function of (view seed, digest, scale) and the image's shape: in fractions of the image it is the same at
    every size.

    Source: the report, section III.B; the range of aspects is our choice.
    """
    rng = stream(view_seed, VIEW, scale, int(digest, 16))
    return draw_crop(rng, width, height, area=RANDOM_AREA, aspect=RANDOM_ASPECT)


def center_view(image: Image.Image, px: int, *, ratio: float = 0.875) -> np.ndarray:
    """Resize the short side to round(px / ratio), then cut out the central px x px.

    Both in one resampling of the central box (bilinear, antialiased), so that a 1 x 500 image never becomes
    a long strip. Sizes and offsets are rounded as in the two steps; values differ by one level in up to a fifth of
    the places (of upright images; of wide ones in 1 %), and by two, where two roundings meet, in one in a million.
    At the default ratio 224, 320, 380 and 448 come from 256, 366, 434 and 512 pixels.

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

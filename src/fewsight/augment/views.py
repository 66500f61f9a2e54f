"""Test-time views of an image, each cut from the original: in the paper, two crops at four scales."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fewsight.augment.crop import draw_crop
from fewsight.errors import RecipeError
from fewsight.machine.rng import VIEW, stream

RANDOM_AREA = (0.8, 1.0)  # proportion of the image that a random view shows (the paper, section III.B)
RANDOM_ASPECT = (3 / 4, 4 / 3)
NO_FLIP = "-noflip"  # ends the name of a view whose mirrored view is not averaged in
NAME = re.compile(rf"([a-z]+)-([0-9]{{1,4}})({NO_FLIP})?")
PAPER = ("paper", "report")  # names of the paper's views; "report" is an alias
MIN_PX, MAX_PX = 8, 4096  # side of a view


@dataclass(frozen=True)
class View:
    """One way to cut an image.

    Attributes:
        crop: a name in `CROPS`.
        px: side of the view in pixels.
        scale: index of `px` among the run's test sizes, -1 if it is none of them. The box of a random crop depends on
            the scale, not on `px`.
        flip: whether the mirrored view's probabilities are averaged in; a run whose recipe never flips ignores it.
    """

    crop: str
    px: int
    scale: int
    flip: bool = True

    @property
    def name(self) -> str:
        """`center-224`, `random-320`, `center-224-noflip`."""
        return f"{self.cut}{'' if self.flip else NO_FLIP}"

    @property
    def cut(self) -> str:
        """The pixels that are cut from the image, mirrored or not: `center-224`."""
        return f"{self.crop}-{self.px}"


def named_views(text: str, test_px: Sequence[int]) -> tuple[View, ...]:
    """Parse the value of `--views`.

    Args:
        text: "center" (the first test size alone), "paper" (every test size, both crops; "report" means the same) or
            names such as "center-64,random-92,center-64-noflip". A centre view may have any size; a random view has
            one of `test_px`.
        test_px: the run's test sizes.

    Raises:
        RecipeError: a name is not the name of a view, or is given twice.
    """
    if text == "center":
        return (View("center", test_px[0], 0),)
    if text in PAPER:
        return tuple(View(crop, px, scale) for scale, px in enumerate(test_px) for crop in ("center", "random"))
    names = [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names):
        raise RecipeError(f"--views {text}: a view is given twice")
    return tuple(_named_view(name, test_px) for name in names)


def is_view_name(name: str) -> bool:
    """Whether `name` has the form of a view's name: a crop of `CROPS` and a size, such as `center-64-noflip`."""
    match = NAME.fullmatch(name)
    return match is not None and match[1] in CROPS


def _named_view(name: str, test_px: Sequence[int]) -> View:
    valid_names = ", ".join(view.name for view in named_views("paper", test_px))
    match = NAME.fullmatch(name) if is_view_name(name) else None
    if match is None or not MIN_PX <= int(match[2]) <= MAX_PX:
        raise RecipeError(f"--views {name}: expected center, paper, or names: {valid_names}")
    crop, px, flip = match[1], int(match[2]), match[3] is None
    if crop == "center":
        return View("center", px, test_px.index(px) if px in test_px else -1, flip)
    if px not in test_px:
        raise RecipeError(f"--views {name}: a {crop} crop must have one of the run's test sizes: {valid_names}")
    return View(crop, px, test_px.index(px), flip)


def cut_view(image: Image.Image, view: View, digest: str, *, view_seed: int, ratio: float = 0.875) -> np.ndarray:
    """Cut a view out of the original image; uint8 [px, px, 3].

    Args:
        image: RGB and upright, any size; it is not changed.
        digest: 64 bits of the file's BLAKE2b in hexadecimal. The random crop depends on it, so that every model sees
            the same box, at every batch size.
        view_seed: seed of the random crops.
        ratio: proportion of the short side that the centre crop shows.
    """
    return CROPS[view.crop](image, view, digest, view_seed, ratio)


def _center(image: Image.Image, view: View, digest: str, view_seed: int, ratio: float) -> np.ndarray:
    return center_view(image, view.px, ratio=ratio)


def _random(image: Image.Image, view: View, digest: str, view_seed: int, ratio: float) -> np.ndarray:
    box = random_box(image.width, image.height, digest, view.scale, view_seed)
    return np.array(image.resize((view.px, view.px), Image.Resampling.BILINEAR, box=box))


Crop = Callable[[Image.Image, View, str, int, float], np.ndarray]  # (image, view, digest, view_seed, ratio)
CROPS: dict[str, Crop] = {
    "center": _center,
    "random": _random,
}


def random_box(width: int, height: int, digest: str, scale: int, view_seed: int) -> tuple[float, float, float, float]:
    """The random crop of a file at a scale, (left, top, right, bottom) in pixels: area 80-100 %, aspect 3/4 to 4/3.

    A function of the view seed, the digest, the scale and the image's aspect ratio: in fractions of the sides, the box
    is the same at every resolution of an image.

    Source: the paper, section III.B; the range of aspects is our choice.
    """
    rng = stream(view_seed, VIEW, scale, int(digest, 16))
    return draw_crop(rng, width, height, area=RANDOM_AREA, aspect=RANDOM_ASPECT)


def center_view(image: Image.Image, px: int, *, ratio: float = 0.875) -> np.ndarray:
    """Resize the short side to round(px / ratio), then cut out the central px x px.

    Both steps are one resampling of the central box (bilinear, antialiased), so that a 1 x 500 image is never
    enlarged to a long strip. Sizes and offsets are rounded as in the two steps. Compared with them, up to a fifth of
    the values of upright images (1 % of wide ones) differ by one level, and one in a million by two, where both passes
    round up. At the default ratio 224, 320, 380 and 448 px come from 256, 366, 434 and 512 px.

    Args:
        image: RGB, any size from 1x1 up; it is not changed.
        px: side of the view in pixels.
        ratio: proportion of the short side that the view shows.

    Returns:
        uint8 [px, px, 3].

    Source: He et al., arXiv 1512.03385, section 3.4 (256 to 224); the paper, section III.B.
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

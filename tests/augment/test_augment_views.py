import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewsight.augment import center_view, cut_view, named_views, random_box
from fewsight.augment.views import CROPS
from fewsight.errors import RecipeError


def noise_image(width: int, height: int) -> Image.Image:
    """Coarse noise, enlarged: edges and flat parts."""
    levels = np.random.default_rng(0).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def two_steps(image: Image.Image, px: int, ratio: float = 0.875) -> np.ndarray:
    """Resize the short side, then cut out the centre."""
    short = round(px / ratio)
    width, height = (short * side // min(image.size) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - px) / 2), round((height - px) / 2)
    return np.asarray(resized.crop((left, top, left + px, top + px))).astype(int)


def assert_equal_within_a_level(view: np.ndarray, expected: np.ndarray, beyond: float = 1e-4) -> None:
    """Two levels only where both passes' roundings fall on ties, in a proportion of values below `beyond`."""
    difference = abs(view.astype(int) - expected)
    assert difference.max() <= 2
    assert (difference > 1).mean() < beyond


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (64, 64), (257, 256), (1000, 223), (8, 8)])
@pytest.mark.parametrize("px", [1, 8, 64, 224, 320, 380, 448])
def test_center_view_equals_resize_then_crop(size: tuple[int, int], px: int) -> None:
    image = noise_image(*size)
    assert_equal_within_a_level(center_view(image, px), two_steps(image, px))


@pytest.mark.parametrize("ratio", [0.5, 0.95, 1.0])
def test_center_view_follows_its_ratio(ratio: float) -> None:
    image = noise_image(120, 90)
    assert_equal_within_a_level(center_view(image, 64, ratio=ratio), two_steps(image, 64, ratio))


@pytest.mark.parametrize(("px", "resized"), [(224, 256), (320, 366), (380, 434), (448, 512)])
def test_center_view_resizes_to_the_papers_sizes(px: int, resized: int) -> None:
    """An image whose short side already has that size is only cut."""
    image = noise_image(resized + 40, resized)
    left, top = 20 + (resized - px) // 2, (resized - px) // 2
    expected = np.asarray(image)[top : top + px, left : left + px]
    assert np.array_equal(center_view(image, px), expected)


def test_center_view_equals_torchvision_on_real_images(fewsight_data: Path) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    paths = sorted((fewsight_data / "tiny20" / "val").glob("*/*"))[::100]
    assert paths
    for path in paths:
        image = Image.open(path).convert("RGB")
        for px in (64, 224):
            resized = functional.resize(functional.pil_to_tensor(image), [round(px / 0.875)], antialias=True)
            oracle = functional.center_crop(resized, [px, px]).permute(1, 2, 0).numpy().astype(int)
            assert_equal_within_a_level(center_view(image, px), oracle, beyond=1e-3)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 96))
def test_center_view_works_for_any_size(width: int, height: int, px: int) -> None:
    image = Image.new("RGB", (width, height), (10, 20, 30))
    view = center_view(image, px)
    assert (view.shape, view.dtype) == ((px, px, 3), np.uint8)
    assert (view == (10, 20, 30)).all()


@pytest.mark.parametrize("crop", sorted(CROPS))
@pytest.mark.parametrize("size", [(90, 70), (7, 500), (1, 1)])
def test_every_view_has_its_size_and_depends_on_the_digest_alone(crop: str, size: tuple[int, int]) -> None:
    image = noise_image(*size)
    before = image.tobytes()
    for view in named_views(f"{crop}-24,{crop}-32", [24, 32]):
        first, second = (cut_view(image, view, "00000000000000ab", view_seed=3) for _ in range(2))
        assert (first.shape, first.dtype) == ((view.px, view.px, 3), np.uint8)
        assert np.array_equal(first, second)
    assert image.tobytes() == before


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1), (20_000, 2)])
def test_center_view_shows_the_centre_of_extreme_images(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 255, 0), (size[0] // 2 - 3, size[1] // 2 - 3, size[0] // 2 + 3, size[1] // 2 + 3))
    view = center_view(image, 224)
    assert view.shape == (224, 224, 3)
    assert (view == (0, 255, 0)).all()


def test_center_view_leaves_the_image_alone_and_can_become_a_tensor() -> None:
    image = noise_image(70, 50)
    before = image.tobytes()
    view = center_view(image, 32)
    torch.from_numpy(view)  # would warn, and so fail here, if the array were read-only
    view[:] = 0
    assert image.tobytes() == before


@pytest.mark.parametrize("name", ["paper", "report"])
def test_paper_has_eight_views(name: str) -> None:
    views = named_views(name, [224, 320, 380, 448])
    assert [view.name for view in views] == [
        f"{crop}-{px}" for px in (224, 320, 380, 448) for crop in ("center", "random")
    ]
    assert [view.scale for view in views] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_named_views_are_those_of_their_names() -> None:
    assert [view.name for view in named_views("center", [64, 92])] == ["center-64"]
    assert [view.name for view in named_views("random-92, center-70", [64, 92])] == ["random-92", "center-70"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("reprot", "expected center, paper, or names: center-64, random-64"),
        ("random-70", "must have one of the run's test sizes: center-64, random-64, center-92, random-92"),
        ("center-4", "expected center, paper"),
        ("center-64,center-64", "is given twice"),
        ("", "expected center, paper"),
    ],
)
def test_wrong_view_is_refused(names: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        named_views(names, [64, 92])


@given(st.integers(8, 600), st.integers(8, 600), st.integers(0, 2**64 - 1), st.integers(0, 3))
def test_random_box_is_a_function_of_file_scale_and_seed(width: int, height: int, number: int, scale: int) -> None:
    digest = f"{number:016x}"
    box = random_box(width, height, digest, scale, 0)
    assert box == random_box(width, height, digest, scale, 0)
    left, top, right, bottom = box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    larger = random_box(3 * width, 3 * height, digest, scale, 0)
    assert larger == pytest.approx([3 * side for side in box]), "the same box in fractions of the sides"


def test_random_boxes_show_80_to_100_percent_and_differ() -> None:
    boxes = [
        random_box(90, 80, f"{number:016x}", scale, seed)
        for number in range(50)
        for scale in range(4)
        for seed in (0, 1)
    ]
    areas = [(right - left) * (bottom - top) / 7200 for left, top, right, bottom in boxes]
    assert 0.8 <= min(areas) < 0.81
    assert 0.97 < max(areas) <= 1.0
    assert len(set(boxes)) > 390, "each file, scale and seed draws another box"


def test_random_view_is_cut_from_the_original() -> None:
    image = noise_image(90, 70)
    (view,) = named_views("random-92", [64, 92])
    cut = cut_view(image, view, "00000000000000ab", view_seed=3)
    box = random_box(90, 70, "00000000000000ab", 1, 3)
    assert np.array_equal(cut, np.asarray(image.resize((92, 92), Image.Resampling.BILINEAR, box=box)))


def test_random_views_equal_torchvision_on_real_photographs(fewsight_data: Path) -> None:
    """Cropped, then resized, at whole pixels. At the edge of the box ours may read the pixels beside it."""
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    for path in sorted((fewsight_data / "imagenet-256").glob("*.JPEG"))[::50]:
        image = Image.open(path).convert("RGB")
        for view in named_views("paper", [224, 320, 380, 448])[1::2]:
            box = random_box(*image.size, "0123456789abcdef", view.scale, 0)
            left, top, right, bottom = (round(side) for side in box)
            ours = np.asarray(
                image.resize((view.px, view.px), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
            )
            tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            theirs = functional.resized_crop(
                tensor, top, left, bottom - top, right - left, [view.px, view.px], antialias=True
            )
            difference = abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy())
            assert difference[3:-3, 3:-3].max() <= 2
            assert difference.mean() < 0.3

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import kstest

from fewsight.augment import draw_crop, flip, resize_boxes
from fewsight.augment.crop import SMALL_PX


def cropped_by_pil(image: Image.Image, px: int, seed: int) -> np.ndarray:
    """The same box cut out, then resized: left and top are rounded to whole pixels, width and height are not."""
    left, top, right, bottom = box = draw_crop(np.random.default_rng(seed), *image.size)
    if min(image.size) < SMALL_PX:
        return np.asarray(image.resize((px, px), Image.Resampling.BILINEAR, box=box), int)
    width, height = right - left, bottom - top
    across, down = min(round(left), int(image.width - width)), min(round(top), int(image.height - height))
    cut = image.crop((across, down, math.ceil(across + width), math.ceil(down + height)))
    return np.asarray(cut.resize((px, px), Image.Resampling.BILINEAR, box=(0, 0, width, height)), int)


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def drawn_boxes(width: int, height: int, count: int, **ranges: tuple[float, float]) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([draw_crop(rng, width, height, **ranges) for _ in range(count)])


def test_draw_crop_is_uniform_in_area_log_aspect_and_position() -> None:
    # up to half the area every aspect fits into a square, so no draw is rejected and the distributions are exact
    left, top, right, bottom = drawn_boxes(500, 500, 20_000, area=(0.08, 0.5)).T
    area = (right - left) * (bottom - top) / 500**2
    log_aspect = np.log((right - left) / (bottom - top))
    assert kstest(area, "uniform", (0.08, 0.42)).pvalue > 1e-3
    assert kstest(log_aspect, "uniform", (math.log(3 / 4), math.log(16 / 9))).pvalue > 1e-3
    assert kstest(left / (500 - (right - left)), "uniform").pvalue > 1e-3
    assert kstest(top / (500 - (bottom - top)), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef([area, log_aspect, left / (500 - (right - left))]) - np.eye(3)).max() < 0.03


def test_draw_crop_at_the_papers_ranges_equals_rejection_by_definition() -> None:
    """Rejected draws make large boxes rarer: the distribution is that of a plain vectorised rejection."""
    left, top, right, bottom = drawn_boxes(500, 375, 5_000).T
    area = (right - left) * (bottom - top) / (500 * 375)
    rng = np.random.default_rng(1)
    proportion, aspect = (
        rng.uniform(0.08, 1, 20_000),
        np.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3), 20_000)),
    )
    fits = (np.sqrt(proportion * 500 * 375 * aspect) <= 500) & (np.sqrt(proportion * 500 * 375 / aspect) <= 375)
    assert kstest(area, proportion[fits]).pvalue > 1e-3
    assert area.min() >= 0.08 - 1e-9


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**32), st.floats(0.01, 1), st.floats(0.1, 1))
def test_draw_crop_stays_inside_the_image(width: int, height: int, seed: int, low: float, aspect: float) -> None:
    box = draw_crop(np.random.default_rng(seed), width, height, area=(low, 1), aspect=(aspect, 1 / aspect))
    left, top, right, bottom = box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert aspect * (1 - 1e-6) <= (right - left) / (bottom - top) <= 1 / aspect * (1 + 1e-6)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(1, 500, (0, 250 - 2 / 3, 1, 250 + 2 / 3)), (500, 1, (250 - 2 / 3, 0, 250 + 2 / 3, 1))],
)
def test_draw_crop_falls_back_to_the_central_box(width: int, height: int, box: tuple[float, ...]) -> None:
    assert draw_crop(np.random.default_rng(0), width, height, area=(0.9, 1)) == pytest.approx(box)


@pytest.mark.parametrize("size", [(64, 64), (500, 375), (48, 70), (1, 500), (8, 8), (1, 1)])
def test_box_equals_pils_crop_and_resize(size: tuple[int, int]) -> None:
    """They differ by at most one level, in few values."""
    image = noise_image(*size)
    pixels = np.array(image)
    differences = []
    for seed in range(60):
        expected = cropped_by_pil(image, 48, seed)
        cropped = resize_boxes([pixels], [draw_crop(np.random.default_rng(seed), *size)], 48)[0]
        assert (cropped.shape, cropped.dtype) == ((3, 48, 48), np.uint8)
        differences.append(abs(cropped.transpose(1, 2, 0) - expected))
    assert np.max(differences) <= 1
    assert np.mean(differences) < 0.06
    assert np.array_equal(pixels, np.asarray(image))


def test_box_equals_pils_on_photographs(fewsight_data: Path) -> None:
    for path in sorted((fewsight_data / "imagenet-256").iterdir())[::16]:
        image = Image.open(path).convert("RGB")
        cropped = resize_boxes([np.array(image)], [draw_crop(np.random.default_rng(3), *image.size)], 224)[0]
        assert abs(cropped.transpose(1, 2, 0) - cropped_by_pil(image, 224, 3)).max() <= 1


@pytest.mark.parametrize("px", [32, 64, 160])
def test_box_of_everything_equals_torchvisions_resize(px: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    image = noise_image(64, 64)
    ours = resize_boxes([np.array(image)], [(0, 0, 64, 64)], px)[0]
    oracle = functional.resize(functional.pil_to_tensor(image), [px, px], antialias=True)
    assert abs(ours.astype(int) - oracle.numpy()).max() <= 1


def test_flip_mirrors_the_images_of_its_mask() -> None:
    images = np.stack([np.array(noise_image(5, 4, seed)).transpose(2, 0, 1) for seed in range(4)])
    before = images.copy()
    flip(images, np.array([True, False, True, False]))
    assert np.array_equal(images[0::2], before[0::2, :, :, ::-1])
    assert np.array_equal(images[1::2], before[1::2])
    flip(images, np.zeros(4, bool))
    assert np.array_equal(images[1::2], before[1::2])


@pytest.mark.parametrize("side", [8, 32, 48, 64])
def test_boxes_are_cut_where_they_were_drawn(side: int) -> None:
    """The mean of the crops of a ramp is its middle: rounding corners down would move it to the left and the top."""
    ramp = np.tile(np.linspace(0, 255, side).astype(np.uint8)[None, :, None], (side, 1, 3))
    rng = np.random.default_rng(0)
    means = [resize_boxes([ramp], [draw_crop(rng, side, side, area=(0.1, 0.6))], 16).mean() for _ in range(3000)]
    assert abs(np.mean(means) - ramp.mean()) < 4 * np.std(means) / 3000**0.5

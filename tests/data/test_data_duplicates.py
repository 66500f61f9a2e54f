"""Near-duplicate search: copies are found, other images are not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from fewsight.data import candidates, confirmed, duplicates


def image(number: int, px: int = 64) -> Image.Image:
    """A smooth random picture, as photographs are."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
    return Image.fromarray(pixels).resize((px, px), Image.Resampling.BICUBIC)


def thumbnail(picture: Image.Image) -> bytes:
    return picture.convert("L").resize((16, 16), Image.Resampling.BOX).tobytes()


def compared(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB").resize((32, 32), Image.Resampling.BOX))


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    handle = io.BytesIO()
    picture.save(handle, "JPEG", quality=quality)
    return Image.open(handle).convert("RGB")


COPIES = {
    "encoded": lambda picture: jpeg(picture, 30),
    "smaller": lambda picture: picture.resize((40, 40), Image.Resampling.BILINEAR),
    "larger": lambda picture: picture.resize((150, 150), Image.Resampling.BICUBIC),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.15),
    "less contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(0.7),
    "mirrored": ImageOps.mirror,
    "mirrored and encoded": lambda picture: jpeg(ImageOps.mirror(picture), 50),
    "grey": lambda picture: picture.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copy_is_found(kind: str) -> None:
    images = [image(number) for number in range(60)]
    images += [COPIES[kind](images[number]) for number in range(20)]
    pairs = candidates([thumbnail(picture) for picture in images])
    copies = [(picture, copy) for picture, copy, _ in confirmed(pairs, lambda index: compared(images[index]))]
    assert copies == [(number, 60 + number) for number in range(20)]


def test_different_images_are_not_reported() -> None:
    assert candidates([thumbnail(image(number)) for number in range(400)]) == []


def drawing(number: int, colour: tuple[int, int, int]) -> Image.Image:
    """Stripes with noise: the same layout, drawn again."""
    rng = np.random.default_rng(number)
    pixels = np.full((96, 96, 3), 225.0)
    pixels[np.arange(96) // 16 % 2 == 1] = colour
    return Image.fromarray((pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8))


def test_same_layout_in_other_colours_is_not_a_copy() -> None:
    images = [drawing(1, (160, 30, 30)), drawing(2, (30, 60, 230)), drawing(3, (20, 110, 20))]
    images += [jpeg(picture, 60) for picture in images]
    pairs = candidates([thumbnail(picture) for picture in images])
    assert {(0, 1), (0, 2), (1, 2)} < {pair[:2] for pair in pairs}, "they look alike in grey"
    assert [pair[:2] for pair in confirmed(pairs, lambda index: compared(images[index]))] == [(0, 3), (1, 4), (2, 5)]


def test_flat_images_are_ignored() -> None:
    flat = [Image.new("RGB", (64, 64), (grey, grey, grey)) for grey in range(0, 200, 20)]
    assert candidates([thumbnail(picture) for picture in flat]) == []
    assert candidates([]) == []


def test_pairs_equal_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    base = [np.frombuffer(thumbnail(image(number)), np.uint8).astype(float) for number in range(40)]
    noisy = [first + rng.normal(0, scale, first.shape) for first in base for scale in (3, 8, 14)]
    thumbnails = [np.clip(first, 0, 255).astype(np.uint8).tobytes() for first in noisy]
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    monkeypatch.setattr(duplicates, "NUM_BANDS", 40)  # so that none of these is missed
    found = {(first, second): correlation for first, second, correlation in candidates(thumbnails)}

    def correlation(first: np.ndarray, second: np.ndarray) -> float:
        sides = (first.reshape(16, 16), first.reshape(16, 16)[:, ::-1])
        return max(float(np.corrcoef(side.ravel(), second)[0, 1]) for side in sides)

    values = [np.frombuffer(first, np.uint8).astype(float) for first in thumbnails]
    expected = {
        (first, second): correlation(values[first], values[second])
        for first in range(len(values))
        for second in range(first + 1, len(values))
    }
    expected = {pair: value for pair, value in expected.items() if value >= duplicates.MIN_CORRELATION}
    assert len(expected) > 30
    assert found == pytest.approx(expected, abs=1e-5)

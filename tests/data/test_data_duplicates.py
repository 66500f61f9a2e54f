"""Near duplicates: copies are found, other images are not, and time does not grow with all pairs."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from fewsight.data import candidates, confirmed, duplicates


def image(number: int, px: int = 64) -> Image.Image:
    """A smooth random picture, as photographs are."""
    pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
    return Image.fromarray(pixels).resize((px, px), Image.Resampling.BICUBIC)


def thumbnail(one: Image.Image) -> bytes:
    return one.convert("L").resize((16, 16), Image.Resampling.BOX).tobytes()


def compared(one: Image.Image) -> np.ndarray:
    return np.asarray(one.convert("RGB").resize((32, 32), Image.Resampling.BOX))


def jpeg(one: Image.Image, quality: int) -> Image.Image:
    handle = io.BytesIO()
    one.save(handle, "JPEG", quality=quality)
    return Image.open(handle).convert("RGB")


COPIES = {
    "encoded": lambda one: jpeg(one, 30),
    "smaller": lambda one: one.resize((40, 40), Image.Resampling.BILINEAR),
    "larger": lambda one: one.resize((150, 150), Image.Resampling.BICUBIC),
    "brighter": lambda one: ImageEnhance.Brightness(one).enhance(1.15),
    "less contrast": lambda one: ImageEnhance.Contrast(one).enhance(0.7),
    "mirrored": ImageOps.mirror,
    "mirrored and encoded": lambda one: jpeg(ImageOps.mirror(one), 50),
    "grey": lambda one: one.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copy_is_found(kind: str) -> None:
    images = [image(number) for number in range(60)]
    images += [COPIES[kind](images[number]) for number in range(20)]
    pairs = candidates([thumbnail(one) for one in images])
    found = [(one, other) for one, other, _ in confirmed(pairs, lambda place: compared(images[place]))]
    assert found == [(number, 60 + number) for number in range(20)]


def test_other_images_are_not_taken_for_copies() -> None:
    assert candidates([thumbnail(image(number)) for number in range(400)]) == []


def drawing(number: int, colour: tuple[int, int, int]) -> Image.Image:
    """Stripes with noise: one layout, drawn anew."""
    rng = np.random.default_rng(number)
    pixels = np.full((96, 96, 3), 225.0)
    pixels[np.arange(96) // 16 % 2 == 1] = colour
    return Image.fromarray((pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8))


def test_one_layout_in_other_colours_is_no_copy() -> None:
    images = [drawing(1, (160, 30, 30)), drawing(2, (30, 60, 230)), drawing(3, (20, 110, 20))]
    images += [jpeg(one, 60) for one in images]
    pairs = candidates([thumbnail(one) for one in images])
    assert {(0, 1), (0, 2), (1, 2)} < {pair[:2] for pair in pairs}, "grey, they look alike"
    assert [pair[:2] for pair in confirmed(pairs, lambda place: compared(images[place]))] == [(0, 3), (1, 4), (2, 5)]


def test_flat_images_are_left_alone() -> None:
    flat = [Image.new("RGB", (64, 64), (grey, grey, grey)) for grey in range(0, 200, 20)]
    assert candidates([thumbnail(one) for one in flat]) == []
    assert candidates([]) == []


def test_pairs_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    base = [np.frombuffer(thumbnail(image(number)), np.uint8).astype(float) for number in range(40)]
    noisy = [one + rng.normal(0, scale, one.shape) for one in base for scale in (3, 8, 14)]
    thumbnails = [np.clip(one, 0, 255).astype(np.uint8).tobytes() for one in noisy]
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    monkeypatch.setattr(duplicates, "NUM_BANDS", 40)  # so that none of these is missed
    found = {(one, other): correlation for one, other, correlation in candidates(thumbnails)}

    def correlation(one: np.ndarray, other: np.ndarray) -> float:
        sides = (one.reshape(16, 16), one.reshape(16, 16)[:, ::-1])
        return max(float(np.corrcoef(side.ravel(), other)[0, 1]) for side in sides)

    values = [np.frombuffer(one, np.uint8).astype(float) for one in thumbnails]
    expected = {
        (one, other): correlation(values[one], values[other])
        for one in range(len(values))
        for other in range(one + 1, len(values))
    }
    expected = {pair: value for pair, value in expected.items() if value >= duplicates.LEAST_CORRELATION}
    assert len(expected) > 30
    assert found == pytest.approx(expected, abs=1e-5)

import math
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import chisquare
from sklearn.datasets import load_digits

from fewsight.augment import POLICIES, apply_steps
from fewsight.augment.operations import OPERATIONS, TABLES, Step
from fewsight.augment.policies.autoaugment import AUTOAUGMENT_MAGNITUDES, SUB_POLICIES, draw_autoaugment
from fewsight.augment.policies.magnitudes import SIGNED
from fewsight.augment.policies.trivialaugment import TRIVIALAUGMENT_MAGNITUDES, draw_trivialaugment
from fewsight.recipes import Augment

ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
    "brightness": ImageEnhance.Brightness,
}


def digit_images() -> list[Image.Image]:
    """Real digits, enlarged and tinted, so that the three channels differ; one is not square."""
    pixels = load_digits().images[:6] / 16
    tints = np.random.default_rng(0).uniform(0.2, 1, (6, 2, 3))
    images = []
    for index, (grey, (ink, paper)) in enumerate(zip(pixels, tints, strict=True)):
        blended = grey[..., None] * ink + (1 - grey[..., None]) * paper
        image = Image.fromarray((255 * blended).astype(np.uint8))
        images.append(image.resize((64, 64 - 15 * (index % 2)), Image.Resampling.BICUBIC))
    return images


def real_images(fewsight_data: Path) -> list[Image.Image]:
    paths = sorted((fewsight_data / "tiny20" / "train").glob("*/*"))[::67]
    assert paths, f"no image below {fewsight_data / 'tiny20' / 'train'}"
    return [Image.open(path).convert("RGB") for path in paths]


def planes(image: Image.Image) -> np.ndarray:
    """uint8 [3, H, W]."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def applied(image: Image.Image, operation: str, magnitude: float, fill: int = 128) -> np.ndarray:
    batch = planes(image)[None].copy()
    apply_steps(batch, [[(operation, magnitude)]], fill)
    return batch[0].transpose(1, 2, 0).astype(int)


# ---- the tables


def test_sub_policies_are_torchvisions_imagenet_policy() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.AutoAugment(transforms.AutoAugmentPolicy.IMAGENET).policies
    names = {"ShearX": "shear_x"}
    unscaled = ("autocontrast", "equalize", "invert")
    for ours, oracle in zip(SUB_POLICIES, theirs, strict=True):
        for (operation, prob, index), (name, oracle_prob, oracle_index) in zip(ours, oracle, strict=True):
            assert operation == names.get(name, name.lower())
            assert prob == oracle_prob
            assert oracle_index is None if operation in unscaled else index == oracle_index


def test_sub_policies_hold_25_entries_of_which_the_last_repeats_the_third() -> None:
    without_idle_index = {
        tuple((op, prob, None if op in ("equalize", "invert", "autocontrast") else index) for op, prob, index in entry)
        for entry in SUB_POLICIES
    }
    assert (len(SUB_POLICIES), len(without_idle_index)) == (25, 20)
    assert SUB_POLICIES[24] == SUB_POLICIES[2]


def test_magnitudes_are_ten_even_steps() -> None:
    for operation, low, high in [
        ("shear_x", 0, 0.3),
        ("shear_y", 0, 0.3),
        ("rotate", 0, 30),
        ("color", 0, 0.9),
        ("contrast", 0, 0.9),
        ("sharpness", 0, 0.9),
        ("brightness", 0, 0.9),
        ("solarize", 256, 0),
    ]:
        assert AUTOAUGMENT_MAGNITUDES[operation] == pytest.approx([low + (high - low) * k / 9 for k in range(10)])
    assert AUTOAUGMENT_MAGNITUDES["posterize"] == (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)


def test_trivialaugment_magnitudes_are_torchvisions() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.TrivialAugmentWide()._augmentation_space(31)
    assert {name.replace("_", "") for name in TRIVIALAUGMENT_MAGNITUDES} == {name.lower() for name in theirs}
    for name, (magnitudes, signed) in theirs.items():
        ours = name.lower().removesuffix("x").removesuffix("y")
        ours = f"{ours}_{name[-1].lower()}" if name[-1] in "XY" else ours
        assert signed == (ours in SIGNED)
        if magnitudes.ndim:
            # in float32 their 16 is just below 16
            oracle = (magnitudes + 1e-4).trunc() if ours.startswith("translate") else magnitudes
            # for solarize the paper's scale starts at 256 and torchvision's at 255
            tolerance = 1 if ours == "solarize" else 1e-5
            assert TRIVIALAUGMENT_MAGNITUDES[ours] == pytest.approx(oracle.tolist(), abs=tolerance)


# ---- the operations


@pytest.mark.parametrize("magnitude", [-0.9, -0.4, 0.0, 0.2, 0.9])
@pytest.mark.parametrize("operation", sorted(ENHANCERS))
def test_enhancements_have_factor_one_plus_magnitude(operation: str, magnitude: float) -> None:
    for image in digit_images():
        expected = np.asarray(ENHANCERS[operation](image).enhance(1 + magnitude))
        assert np.array_equal(applied(image, operation, magnitude), expected)
        if magnitude == 0:
            assert np.array_equal(expected, np.asarray(image))


@pytest.mark.parametrize("magnitude", [-0.9, 0.2, 0.8])
def test_enhancements_equal_their_definition_within_a_level(magnitude: float) -> None:
    for image in digit_images():
        pixels = np.asarray(image).astype(float)
        grey = pixels @ (0.299, 0.587, 0.114)
        origins = {"color": grey[..., None], "contrast": grey.mean(), "brightness": 0.0}
        for operation, origin in origins.items():
            expected = np.clip(origin + (1 + magnitude) * (pixels - origin), 0, 255)
            assert abs(applied(image, operation, magnitude) - expected).max() <= 2


def test_tables_equal_their_definition_and_pil() -> None:
    for image in digit_images():
        pixels = np.asarray(image).astype(int)
        for bits in (2, 4, 5, 8):
            step = 2 ** (8 - bits)
            assert np.array_equal(applied(image, "posterize", bits), pixels // step * step)
            assert np.array_equal(applied(image, "posterize", bits), np.asarray(ImageOps.posterize(image, bits)))
        for threshold in AUTOAUGMENT_MAGNITUDES["solarize"]:
            expected = np.where(pixels < threshold, pixels, 255 - pixels)
            assert np.array_equal(applied(image, "solarize", threshold), expected)
            pil = ImageOps.solarize(image, threshold)
            assert np.array_equal(applied(image, "solarize", threshold), np.asarray(pil))
        assert np.array_equal(applied(image, "invert", 0), 255 - pixels)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255), st.integers(1, 256))
def test_equalize_and_autocontrast_equal_pil_bit_for_bit(
    seed: int, width: int, height: int, low: int, span: int
) -> None:
    levels = np.random.default_rng(seed).integers(low, min(low + span, 256), (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(levels)
    assert np.array_equal(applied(image, "equalize", 0), np.asarray(ImageOps.equalize(image)))
    assert np.array_equal(applied(image, "autocontrast", 0), np.asarray(ImageOps.autocontrast(image)))


@pytest.mark.parametrize("fill", [0, 128])
@pytest.mark.parametrize(
    ("operation", "magnitude"),
    [("shear_x", 0.1667), ("shear_x", -0.3), ("shear_y", 0.29), ("translate_x", -7), ("translate_y", 12)],
)
def test_shear_and_translate_read_the_nearest_pixel_from_the_corner(
    operation: str, magnitude: float, fill: int
) -> None:
    """Output (x, y) is read at (x + m y, y), pixel centres at half integers, `fill` outside."""
    for image in digit_images():
        pixels = np.asarray(image)
        y, x = np.mgrid[: image.height, : image.width] + 0.5
        source_x, source_y = {
            "shear_x": (x + magnitude * y, y),
            "shear_y": (x, y + magnitude * x),
            "translate_x": (x + magnitude, y),
            "translate_y": (x, y + magnitude),
        }[operation]
        column, row = np.floor(source_x).astype(int), np.floor(source_y).astype(int)
        inside = (column >= 0) & (column < image.width) & (row >= 0) & (row < image.height)
        expected = np.full_like(pixels, fill)
        expected[inside] = pixels[row[inside], column[inside]]
        differing = (applied(image, operation, magnitude, fill) != expected).any(axis=2)
        assert differing.mean() <= 0.003  # PIL steps through a row in 16.16 fixed point


@pytest.mark.parametrize("degrees", [-30.0, 10.0, 26.67, 90.0, 134.0])
def test_rotate_turns_counterclockwise_about_the_centre(degrees: float) -> None:
    for image in digit_images():
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        y, x = np.mgrid[: image.height, : image.width] + 0.5
        x, y = x - image.width / 2, y - image.height / 2
        column = np.floor(cos * x - sin * y + image.width / 2 + 1e-9).astype(int)
        row = np.floor(sin * x + cos * y + image.height / 2 + 1e-9).astype(int)
        inside = (column >= 0) & (column < image.width) & (row >= 0) & (row < image.height)
        expected = np.full((image.height, image.width, 3), 128)
        expected[inside] = np.asarray(image)[row[inside], column[inside]]
        assert (applied(image, "rotate", degrees) != expected).any(axis=2).mean() <= 0.003


def assert_close_to_torchvision(image: Image.Image) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    tensor = functional.pil_to_tensor(image)

    def difference(operation: str, magnitude: float, oracle: object) -> np.ndarray:
        return abs(applied(image, operation, magnitude) - oracle.permute(1, 2, 0).numpy().astype(int))

    assert difference("autocontrast", 0, functional.autocontrast(tensor)).max() <= 1
    assert difference("equalize", 0, functional.equalize(tensor)).max() == 0
    assert difference("invert", 0, functional.invert(tensor)).max() == 0
    assert difference("posterize", 5, functional.posterize(tensor, 5)).max() == 0
    assert difference("solarize", 114, functional.solarize(tensor, 114)).max() == 0
    for magnitude in (-0.8, 0.2, 0.8):
        assert difference("color", magnitude, functional.adjust_saturation(tensor, 1 + magnitude)).max() <= 1
        assert difference("contrast", magnitude, functional.adjust_contrast(tensor, 1 + magnitude)).max() <= 1
        oracle = functional.adjust_brightness(tensor, 1 + magnitude)
        assert difference("brightness", magnitude, oracle).max() <= 1
        oracle = functional.adjust_sharpness(tensor, 1 + magnitude)
        assert difference("sharpness", magnitude, oracle).max() <= 2
    for degrees in (-30.0, 10.0, 26.67):
        oracle = functional.rotate(tensor, degrees, fill=[128, 128, 128])
        assert difference("rotate", degrees, oracle).any(axis=2).mean() <= 0.003
    for slope in (-0.3, 0.1667):
        angle = math.degrees(math.atan(slope))
        oracle = functional.affine(tensor, 0, [0, 0], 1, [angle, 0], fill=[128] * 3, center=[0, 0])
        assert difference("shear_x", slope, oracle).any(axis=2).mean() <= 0.003


def test_operations_match_torchvision_on_digits() -> None:
    for image in digit_images():
        assert_close_to_torchvision(image)


def test_operations_match_torchvision_on_real_images(fewsight_data: Path) -> None:
    for image in real_images(fewsight_data):
        assert_close_to_torchvision(image)


def test_operations_match_pil_on_real_images(fewsight_data: Path) -> None:
    for image in real_images(fewsight_data):
        assert np.array_equal(applied(image, "equalize", 0), np.asarray(ImageOps.equalize(image)))
        assert np.array_equal(applied(image, "autocontrast", 0), np.asarray(ImageOps.autocontrast(image)))
        for degrees in AUTOAUGMENT_MAGNITUDES["rotate"]:
            rotated = image.rotate(-degrees, fillcolor=(128, 128, 128))
            assert np.array_equal(applied(image, "rotate", -degrees), np.asarray(rotated))
        for threshold in AUTOAUGMENT_MAGNITUDES["solarize"]:
            solarized = ImageOps.solarize(image, threshold)
            assert np.array_equal(applied(image, "solarize", threshold), np.asarray(solarized))


# ---- the draws


def outcomes(num_policies: int, rotate_signed: bool) -> Iterator[tuple[tuple[Step, ...], float]]:
    """Every list of steps that can be drawn, with its probability, from the definition of the policy."""
    for entries in SUB_POLICIES[:num_policies]:
        alternatives = []
        for operation, prob, index in entries:
            magnitude = AUTOAUGMENT_MAGNITUDES[operation][index]
            signed = operation in SIGNED - {"rotate"} or (operation == "rotate" and rotate_signed)
            signs = [(-1, 0.5), (1, 0.5)] if signed else [(1, 1.0)]
            choices = [(((operation, sign * magnitude),), prob * sign_prob) for sign, sign_prob in signs]
            alternatives.append([((), 1 - prob), *choices])
        for (first, first_prob), (second, second_prob) in product(*alternatives):
            yield first + second, first_prob * second_prob / num_policies


@pytest.mark.parametrize(("num_policies", "rotate_signed"), [(24, True), (25, True), (24, False)])
def test_draw_autoaugment_follows_the_exact_distribution(num_policies: int, rotate_signed: bool) -> None:
    """Uniform sub-policies, probabilities, signs and magnitudes at once: all outcomes, chi-square."""
    expected: Counter[tuple[Step, ...]] = Counter()
    for steps, prob in outcomes(num_policies, rotate_signed):
        expected[steps] += prob
    rng = np.random.default_rng(1)
    drawn = Counter(
        tuple(draw_autoaugment(rng, num_policies=num_policies, rotate_signed=rotate_signed)) for _ in range(20_000)
    )
    possible = [steps for steps, prob in expected.items() if prob > 1e-12]
    assert set(drawn) <= set(possible)
    counts, means = [drawn[steps] for steps in possible], [20_000 * expected[steps] for steps in possible]
    assert min(means) > 5
    assert chisquare(counts, means).pvalue > 1e-3


def test_draw_autoaugment_picks_sub_policies_uniformly(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = tuple((("rotate", 1.0, 0), (f"entry{index}", 1.0, 0)) for index in range(25))
    module = sys.modules[draw_autoaugment.__module__]  # the package has the policy itself under the module's name
    monkeypatch.setattr(module, "SUB_POLICIES", marked)
    names = {f"entry{index}": (0.0,) for index in range(25)}
    monkeypatch.setattr(module, "AUTOAUGMENT_MAGNITUDES", {"rotate": (0.0,), **names})
    rng = np.random.default_rng(2)
    drawn = Counter(draw_autoaugment(rng)[1][0] for _ in range(24_000))
    assert set(drawn) == {f"entry{index}" for index in range(24)}
    assert chisquare(list(drawn.values())).pvalue > 1e-3


def test_draw_trivialaugment_is_uniform_over_operations_strengths_and_signs() -> None:
    rng = np.random.default_rng(3)
    drawn = Counter(draw_trivialaugment(rng) for _ in range(40_000))
    expected: Counter[Step] = Counter()
    for operation, magnitudes in TRIVIALAUGMENT_MAGNITUDES.items():
        for magnitude in magnitudes:
            for sign in (-1, 1) if operation in SIGNED else (1, 1):
                expected[operation, sign * magnitude] += 40_000 / (14 * 31 * 2)
    assert set(drawn) <= set(expected)
    assert chisquare([drawn[step] for step in expected], list(expected.values())).pvalue > 1e-3


@pytest.mark.parametrize("num_policies", [0, 26])
def test_autoaugment_refuses_a_number_of_policies_outside_the_list(num_policies: int) -> None:
    with pytest.raises(ValueError, match=f"num_policies is {num_policies}; it must be 1 to 25"):
        draw_autoaugment(np.random.default_rng(0), num_policies=num_policies)


# ---- a whole batch


def by_pil(image: Image.Image, operation: str, magnitude: float, fill: int) -> Image.Image:
    """An operation as PIL computes it."""
    if operation in ENHANCERS:
        return ENHANCERS[operation](image).enhance(1 + magnitude)
    plain = {
        "identity": lambda: image,
        "posterize": lambda: ImageOps.posterize(image, int(magnitude)),
        "solarize": lambda: ImageOps.solarize(image, magnitude),
        "invert": lambda: ImageOps.invert(image),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "rotate": lambda: image.rotate(magnitude, fillcolor=(fill,) * 3),
    }
    if operation in plain:
        return plain[operation]()
    matrix = {
        "shear_x": (1, magnitude, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, magnitude, 1, 0),
        "translate_x": (1, 0, magnitude, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, magnitude),
    }[operation]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=(fill,) * 3)


def check_batch(images: list[Image.Image], steps: list[list[Step]], fill: int = 128) -> None:
    """The whole batch, each image alone and PIL agree bit for bit."""
    batch = np.stack([planes(image) for image in images])
    together = batch.copy()
    apply_steps(together, steps, fill)
    for image, own, result in zip(images, steps, together, strict=True):
        alone = planes(image)[None].copy()
        apply_steps(alone, [own], fill)
        assert np.array_equal(alone[0], result), own
        for operation, magnitude in own:
            image = by_pil(image, operation, magnitude, fill)
        assert np.array_equal(planes(image), result), own


@pytest.mark.parametrize("policy", POLICIES)
def test_batch_equals_pil_one_by_one(policy: str) -> None:
    """Steps as each policy draws them: most images of AutoAugment have two."""
    recipe = Augment(train_px=64)
    images = [image for image in digit_images() if image.height == 64] * 60
    rng = np.random.default_rng(5)
    check_batch(images, [POLICIES[policy](rng, recipe) for _ in images])


@pytest.mark.parametrize("policy", POLICIES)
def test_batch_equals_pil_on_real_images(policy: str, fewsight_data: Path) -> None:
    images = real_images(fewsight_data) * 8
    rng = np.random.default_rng(6)
    check_batch(images, [POLICIES[policy](rng, Augment(train_px=64)) for _ in images], fill=7)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32),
    st.integers(1, 24),
    st.integers(1, 24),
    st.lists(st.lists(st.sampled_from(sorted(TABLES | OPERATIONS)), max_size=4), min_size=1, max_size=5),
)
def test_any_steps_on_any_size_equal_pil(seed: int, width: int, height: int, names: list[list[str]]) -> None:
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(rng.integers(0, rng.integers(1, 257), (height, width, 3), dtype=np.uint8)) for _ in names]
    steps = [[(name, float(rng.choice(TRIVIALAUGMENT_MAGNITUDES.get(name, (0.0,))))) for name in own] for own in names]
    check_batch(images, steps)


def test_batch_of_nothing_and_no_steps_stay_as_they_are() -> None:
    batch = np.stack([planes(image) for image in digit_images()[::2]])
    before = batch.copy()
    apply_steps(batch, [[] for _ in batch])
    assert np.array_equal(batch, before)
    apply_steps(batch[:0], [])

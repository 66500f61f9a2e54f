import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fewsight.augment import (
    POLICIES,
    augment_image,
    autoaugment,
    random_flip,
    random_resized_crop,
    trivialaugment,
)
from fewsight.rng import image_stream


def augment_settings(**changes: object) -> SimpleNamespace:
    values = {
        "train_px": 32,
        "crop_area": (0.08, 1.0),
        "crop_aspect": (3 / 4, 4 / 3),
        "flip_prob": 0.5,
        "policy": "autoaugment",
        "num_policies": 24,
        "fill": 128,
        "rotate_signed": True,
    }
    return SimpleNamespace(**(values | changes))


def noise_image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def digest(epoch: int, index: int) -> str:
    array = augment_image(noise_image(index), augment_settings(), image_stream(5, epoch, index))
    return hashlib.sha256(array.tobytes()).hexdigest()


@pytest.mark.parametrize("policy", ["autoaugment", "trivialaugment", "none"])
def test_augment_image_runs_crop_flip_and_policy_in_this_order(policy: str) -> None:
    settings = augment_settings(policy=policy, flip_prob=0.4, crop_area=(0.2, 0.9), fill=7, num_policies=20)
    image = noise_image()
    for index in range(40):
        rng = image_stream(0, 1, index)
        expected = random_resized_crop(image, 32, rng, area=(0.2, 0.9))
        expected = random_flip(expected, rng, 0.4)
        if policy == "autoaugment":
            expected = autoaugment(expected, rng, num_policies=20, fill=7)
        elif policy == "trivialaugment":
            expected = trivialaugment(expected, rng, fill=7)
        result = augment_image(image, settings, image_stream(0, 1, index))
        assert np.array_equal(result, np.asarray(expected))


def test_augment_image_leaves_the_image_alone_and_gives_a_writable_array() -> None:
    image = noise_image()
    before = image.tobytes()
    for policy in POLICIES:
        for index in range(30):
            settings = augment_settings(policy=policy, flip_prob=0.0, crop_area=(1, 1), train_px=64)
            array = augment_image(image, settings, image_stream(0, 0, index))
            assert (array.shape, array.dtype, array.flags.c_contiguous) == ((64, 64, 3), np.uint8, True)
            torch.from_numpy(array).zero_()  # would warn, and so fail here, if the array were read-only
    assert image.tobytes() == before


def test_augment_image_gives_the_same_bits_in_any_order() -> None:
    keys = [(epoch, index) for epoch in range(2) for index in range(10)]
    forward = [digest(*key) for key in keys]
    assert forward == [digest(*key) for key in reversed(keys)][::-1]
    assert len(set(forward)) == len(keys)


def test_augment_image_gives_the_same_bits_in_another_process() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_augment_image import digest\n"
        "print(' '.join(digest(1, index) for index in (9, 2, 5)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [digest(1, index) for index in (9, 2, 5)]


def test_augment_image_refuses_other_modes_and_unknown_policies() -> None:
    with pytest.raises(ValueError, match="RGB image, got mode L"):
        augment_image(noise_image().convert("L"), augment_settings(), image_stream(0, 0, 0))
    with pytest.raises(KeyError, match="randaugment"):
        augment_image(noise_image(), augment_settings(policy="randaugment"), image_stream(0, 0, 0))

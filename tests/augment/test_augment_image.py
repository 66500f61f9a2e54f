import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fewsight.augment import POLICIES, apply_steps, augment_images, draw_crop, flip, resize_boxes
from fewsight.machine.rng import image_stream


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


def noise_image(seed: int = 0, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, width, 3), dtype=np.uint8)


def augmented(keys: list[tuple[int, int]]) -> list[str]:
    """Digests of images, each a function of its (epoch, index), augmented as one batch."""
    images = (noise_image(index, 64 + index) for _, index in keys)
    streams = (image_stream(5, epoch, index) for epoch, index in keys)
    return [
        hashlib.sha256(image.tobytes()).hexdigest() for image in augment_images(images, augment_settings(), streams)
    ]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_augment_images_runs_crop_flip_and_policy_in_this_order(policy: str) -> None:
    settings = augment_settings(policy=policy, flip_prob=0.4, crop_area=(0.2, 0.9), fill=7, num_policies=20)
    image, count = noise_image(), 40
    results = augment_images([image] * count, settings, (image_stream(0, 1, index) for index in range(count)))
    assert (results.shape, results.dtype) == ((count, 3, 32, 32), np.uint8)
    for index, result in enumerate(results):
        rng = image_stream(0, 1, index)
        expected = resize_boxes([image], [draw_crop(rng, 64, 48, area=(0.2, 0.9))], 32)
        flip(expected, np.array([rng.random() < 0.4]))
        apply_steps(expected, [POLICIES[policy](rng, settings)], 7)
        assert np.array_equal(result, expected[0])


def test_augment_images_leaves_the_images_alone() -> None:
    images = [noise_image(index) for index in range(8)]
    before = [image.copy() for image in images]
    for policy in POLICIES:
        settings = augment_settings(policy=policy, flip_prob=0.0, crop_area=(1, 1), train_px=64)
        batch = augment_images(images, settings, (image_stream(0, 0, index) for index in range(8)))
        torch.from_numpy(batch).zero_()
    assert all(np.array_equal(image, copy) for image, copy in zip(images, before, strict=True))


def test_a_batch_gives_each_image_the_bits_that_it_has_alone_and_in_any_order() -> None:
    keys = [(epoch, index) for epoch in range(2) for index in range(20)]
    together = augmented(keys)
    assert together == [augmented([key])[0] for key in keys]
    assert together == augmented(keys[::-1])[::-1]
    assert len(set(together)) == len(keys)


def test_augment_images_gives_the_same_bits_in_another_process() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_augment_image import augmented\n"
        "print(' '.join(augmented([(1, 9), (1, 2), (1, 5)])))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == augmented([(1, 9), (1, 2), (1, 5)])


def test_unknown_policy_is_refused() -> None:
    with pytest.raises(KeyError, match="no-such-policy"):
        augment_images([noise_image()], augment_settings(policy="no-such-policy"), [image_stream(0, 0, 0)])


def test_images_are_mirrored_at_their_rate() -> None:
    image = np.tile(np.arange(32, dtype=np.uint8)[:, None], (32, 1, 3))  # brighter to the right
    settings = augment_settings(policy="none", crop_area=(0.9, 1.0), flip_prob=0.3)
    batch = augment_images([image] * 2000, settings, (image_stream(1, 0, index) for index in range(2000)))
    mirrored = (batch[:, 0, 16, 0] > batch[:, 0, 16, -1]).mean()
    assert abs(mirrored - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5

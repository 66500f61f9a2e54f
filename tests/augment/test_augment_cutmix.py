import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fewsight.augment import draw_cutmix, paste
from fewsight.machine.rng import batch_stream


def numbered_images(batch_size: int, height: int, width: int) -> torch.Tensor:
    """Every value identifies its image, channel and position."""
    return torch.arange(batch_size * 3 * height * width, dtype=torch.float32).view(batch_size, 3, height, width)


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(1, 70),
    st.floats(0.05, 5),
)
def test_draw_cutmix_box_is_inside_and_lam_is_its_complement(
    seed: int, batch_size: int, height: int, width: int, alpha: float
) -> None:
    mix = draw_cutmix(np.random.default_rng(seed), batch_size, height, width, prob=1.0, alpha=alpha)
    assert mix is not None
    top, left, box_height, box_width = mix.box
    assert 0 <= top <= top + box_height <= height
    assert 0 <= left <= left + box_width <= width
    assert mix.lam == 1 - box_height * box_width / (height * width)
    assert sorted(mix.permutation.tolist()) == list(range(batch_size))


def test_draw_cutmix_mixes_a_batch_with_its_probability() -> None:
    for prob in (0.0, 0.3, 0.5, 1.0):
        mixed = [draw_cutmix(batch_stream(0, 0, step), 4, 8, 8, prob=prob) is not None for step in range(2_000)]
        assert abs(np.mean(mixed) - prob) <= 4 * math.sqrt(prob * (1 - prob) / 2_000)


def test_draw_cutmix_lam_has_the_exact_mean() -> None:
    """λ is uniform, so a side of k of 16 pixels has probability ((k + 1)² - k²) / 16²; the centres are uniform too."""
    areas = np.zeros(17)
    for side in range(16):
        lows = np.arange(16) - side // 2
        visible = np.minimum(lows + side, 16) - np.maximum(lows, 0)
        areas[side] = visible.mean() ** 2 / 256
    expected = 1 - sum(((k + 1) ** 2 - k**2) / 256 * areas[k] for k in range(16))
    rng = np.random.default_rng(0)
    mixes = [draw_cutmix(rng, 2, 16, 16, prob=1.0) for _ in range(10_000)]
    lams = np.array([mix.lam for mix in mixes if mix is not None])
    assert len(lams) == 10_000
    assert abs(lams.mean() - expected) < 4 * lams.std() / 100


def test_draw_cutmix_box_follows_beta_before_it_is_clipped() -> None:
    """With a large alpha λ is near 1/2, so a box that is not clipped has sides near sqrt(1/2) of the image's."""
    rng = np.random.default_rng(0)
    sides = [draw_cutmix(rng, 2, 100, 50, prob=1.0, alpha=1e6).box[2:] for _ in range(300)]
    assert max(side[0] for side in sides) == 70
    assert max(side[1] for side in sides) == 35


def test_draw_cutmix_permutations_are_uniform() -> None:
    rng = np.random.default_rng(0)
    mixes = [draw_cutmix(rng, 3, 8, 8, prob=1.0) for _ in range(6_000)]
    _, counts = np.unique([mix.permutation for mix in mixes if mix is not None], axis=0, return_counts=True)
    assert len(counts) == 6
    assert chisquare(counts).pvalue > 1e-3


def test_draw_cutmix_is_a_function_of_seed_epoch_and_step() -> None:
    def draw(epoch: int, step: int) -> tuple[object, ...]:
        mix = draw_cutmix(batch_stream(7, epoch, step), 8, 32, 32, prob=1.0)
        assert mix is not None
        return (*mix.box, mix.lam, *mix.permutation.tolist())

    forward = [draw(epoch, step) for epoch in range(2) for step in range(5)]
    backward = [draw(epoch, step) for epoch in (1, 0) for step in range(4, -1, -1)]
    assert forward == backward[::-1]
    assert len(set(forward)) == 10


@pytest.mark.parametrize("box", [(2, 3, 4, 5), (0, 0, 8, 10), (0, 9, 1, 1), (5, 5, 0, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_paste_copies_the_box_from_the_partner(
    box: tuple[int, int, int, int], memory_format: torch.memory_format
) -> None:
    images = numbered_images(5, 8, 10).contiguous(memory_format=memory_format)
    before = images.clone()
    permutation = np.array([3, 0, 2, 4, 1])
    mixed = paste(images, images, permutation, box)
    top, left, height, width = box
    inside = torch.zeros(8, 10, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    for index, partner in enumerate(permutation):
        assert torch.equal(mixed[index], torch.where(inside, before[partner], before[index]))
    assert torch.equal(images, before)
    assert mixed.is_contiguous(memory_format=memory_format)


def test_paste_keeps_the_type_of_the_images() -> None:
    for dtype in (torch.uint8, torch.bfloat16):
        images = torch.arange(2 * 3 * 16).view(2, 3, 4, 4).to(dtype)
        mixed = paste(images, images, np.array([1, 0]), (0, 0, 2, 2))
        assert mixed.dtype == dtype
        assert torch.equal(mixed[0, :, :2, :2], images[1, :, :2, :2])


def test_paste_refuses_partners_of_another_batch_size() -> None:
    with pytest.raises(ValueError, match="CutMix drawn for 2 images, got a batch of 3"):
        paste(numbered_images(3, 4, 4), numbered_images(3, 4, 4), np.array([1, 0]), (0, 0, 2, 2))

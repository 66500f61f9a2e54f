"""Batch plans: every image once and no batch of one image, or P classes x K images; a function of (seed, epoch)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fewsight.training.plans import ClassBatches, ShuffledBatches, class_counts, draws_before

COUNTS = st.integers(2, 400)
SIZES = st.integers(2, 130)
LABELS = st.lists(st.integers(0, 6), min_size=2, max_size=150).filter(lambda labels: len(set(labels)) >= 2)

# a batch of 2 x 4 often has a class's last image of one pass and the first ones of the next
UNEVEN = [0] * 30 + [1] * 5 + [2] * 5


@given(COUNTS, SIZES, st.integers(0, 50))
def test_epoch_has_every_image_once_and_no_batch_of_one(count: int, batch_size: int, epoch: int) -> None:
    plan = ShuffledBatches((0,) * count, batch_size, seed=1)
    drawn = plan.epoch(epoch)
    sizes = [len(batch) for batch in drawn]
    assert len(drawn) == plan.num_steps >= 1
    assert sorted(np.concatenate(drawn).tolist()) == list(range(count))
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3)


@given(COUNTS, SIZES, st.integers(0, 2**63 - 1))
def test_epoch_is_a_function_of_seed_and_number(count: int, batch_size: int, seed: int) -> None:
    plan = ShuffledBatches((0,) * count, batch_size, seed)
    order, again = (
        np.concatenate(plan.epoch(3)),
        np.concatenate(ShuffledBatches((0,) * count, batch_size, seed).epoch(3)),
    )
    assert np.array_equal(order, again)
    if count >= 20:
        assert not np.array_equal(order, np.concatenate(plan.epoch(4)))
        assert not np.array_equal(order, np.concatenate(ShuffledBatches((0,) * count, batch_size, seed + 1).epoch(3)))


def test_sampling_draws_classes_equally_often() -> None:
    labels = (0,) * 900 + (1,) * 90 + (2,) * 10
    plan = ShuffledBatches(labels, 50, seed=0, sampling=True)
    drawn = np.concatenate([np.concatenate(plan.epoch(epoch)) for epoch in range(20)])
    proportions = np.bincount(np.asarray(labels)[drawn], minlength=3) / len(drawn)
    assert len(drawn) == 20 * 1000, "an epoch is as long as without"
    assert proportions == pytest.approx([1 / 3] * 3, abs=0.015)  # 4.5 standard deviations of 20,000 draws
    assert len(np.unique(drawn)) > 990, "images within a class are drawn alike"


@pytest.mark.parametrize(
    ("max_images", "num_classes", "shape"),
    [
        (128, 1000, (32, 4)),
        (256, 1000, (64, 4)),
        (128, 10, (10, 12)),
        (48, 20, (12, 4)),
        (4, 2, (2, 2)),
        (7, 5, (2, 3)),
    ],
)
def test_class_batches_have_that_shape(max_images: int, num_classes: int, shape: tuple[int, int]) -> None:
    plan = ClassBatches(tuple(range(num_classes)) * 12, max_images, seed=0)
    assert plan.shape == shape
    assert plan.batch_size == shape[0] * shape[1]


def passes(draws: list[int], members: list[int]) -> bool:
    """Whether every member is drawn before any is drawn again, and so on to the last, partial pass."""
    size = len(members)
    whole = [sorted(draws[start : start + size]) for start in range(0, len(draws) - size + 1, size)]
    rest = draws[len(whole) * size :]
    return (
        all(drawn == sorted(members) for drawn in whole) and len(set(rest)) == len(rest) and set(rest) <= set(members)
    )


@given(LABELS, st.integers(4, 60), st.integers(2, 6), st.integers(0, 9))
@example(UNEVEN, 8, 4, 0)
def test_class_batches_hold_p_classes_of_k_images_each(labels: list[int], max_images: int, k: int, epoch: int) -> None:
    plan = ClassBatches(tuple(labels), max_images, seed=2, images_per_class=k)
    num_classes, num_images = plan.shape
    drawn = plan.epoch(epoch)
    sizes = Counter(labels)
    assert len(drawn) == plan.num_steps == max(1, len(labels) // (num_classes * num_images))
    assert num_classes >= 2
    assert num_images >= 2
    assert num_classes * num_images <= max_images
    for batch in drawn:
        rows = batch.reshape(num_classes, num_images).tolist()
        each = [{labels[index] for index in row} for row in rows]
        assert all(len(classes) == 1 for classes in each), "the images of a class are adjacent"
        assert len(set.union(*each)) == num_classes
        assert all(len(set(row)) == min(num_images, sizes[labels[row[0]]]) for row in rows)


@given(LABELS, st.integers(4, 60), st.integers(2, 6), st.integers(0, 9))
@example(UNEVEN, 8, 4, 0)
def test_class_batches_draw_classes_and_their_images_in_turn(
    labels: list[int], max_images: int, k: int, epoch: int
) -> None:
    plan = ClassBatches(tuple(labels), max_images, seed=3, images_per_class=k)
    drawn = np.concatenate(plan.epoch(epoch)).tolist()
    classes = [labels[index] for index in drawn[:: plan.shape[1]]]
    counts = Counter(classes)
    times = [counts[label] for label in set(labels)]
    assert max(times) - min(times) <= 1
    assert len(classes) == plan.num_steps * plan.shape[0]
    for label in set(labels):
        members = [index for index, other in enumerate(labels) if other == label]
        draws = [index for index in drawn if labels[index] == label]
        draw_counts = [Counter(draws)[index] for index in members]
        assert max(draw_counts) - min(draw_counts) <= 1
        assert passes(draws, members)


@given(st.integers(0, 2**63 - 2), st.integers(0, 1000))
def test_class_batches_are_a_function_of_seed_and_epoch(seed: int, epoch: int) -> None:
    labels = tuple(range(8)) * 6
    plan = ClassBatches(labels, 16, seed)
    batches = plan.epoch(epoch)
    plan.epoch(epoch + 1)
    for again in (plan, ClassBatches(labels, 16, seed)):
        assert np.array_equal(np.concatenate(batches), np.concatenate(again.epoch(epoch)))
    for other in (plan.epoch(epoch + 1), ClassBatches(labels, 16, seed + 1).epoch(epoch)):
        assert not np.array_equal(np.concatenate(batches), np.concatenate(other))


def test_class_batches_give_a_lone_image_k_times() -> None:
    plan = ClassBatches((0,) * 9 + (1,), 8, seed=0)
    assert plan.shape == (2, 4)
    for epoch in range(5):
        (batch,) = plan.epoch(epoch)
        assert Counter(batch.tolist())[9] == 4
        assert len(set(batch.tolist())) == 5


def test_class_batches_reach_every_image_over_epochs() -> None:
    plan = ClassBatches(tuple(range(5)) * 11, 16, seed=0)
    drawn = np.concatenate([np.concatenate(plan.epoch(epoch)) for epoch in range(30)])
    assert len(np.unique(drawn)) == 55


def test_class_counts_include_absent_classes() -> None:
    assert class_counts([0, 2, 2], 4) == [1, 0, 2, 0]


def test_draws_are_counted_through_an_epoch() -> None:
    batches = [np.array([3, 1, 3]), np.array([1, 2]), np.array([3])]
    assert [draws.tolist() for draws in draws_before(batches)] == [[0, 0, 1], [1, 0], [2]]
    shuffled = ShuffledBatches((0,) * 20, 6, 0).epoch(3)
    assert not np.concatenate(draws_before(shuffled)).any(), "each image once: its stream is that of draw 0"

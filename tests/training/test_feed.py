"""The feed: the same bits from any number of processes and any start, and errors that name the image."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fewsight.data.samples import sample_indices
from fewsight.errors import DataError, RunError
from fewsight.recipes import Augment
from fewsight.training.feed import AugmentedImages, batches, explain_lost_workers
from fewsight.training.plans import ClassBatches, Plan, ShuffledBatches


def augmented(folder: Path, seed: int = 0, cache: int = 0) -> AugmentedImages:
    paths = sorted(str(path.relative_to(folder)) for path in (folder / "train").rglob("*.png"))
    return AugmentedImages(folder, paths, Augment(train_px=16), seed, cache=cache)


def collected(
    images: AugmentedImages, *, first: tuple[int, int] = (0, 0), workers: int = 0, batch_size: int = 4
) -> list[tuple[int, int, Tensor, list[int]]]:
    plan = ShuffledBatches((0,) * len(images), batch_size, images.seed)
    feed = batches(images, plan, first_epoch=first[0], first_step=first[1], num_epochs=2, workers=workers)
    return [(epoch, step, batch, indices.tolist()) for epoch, step, batch, indices in feed]


def assert_same(
    result: list[tuple[int, int, Tensor, list[int]]], expected: list[tuple[int, int, Tensor, list[int]]]
) -> None:
    assert [(epoch, step, indices) for epoch, step, _, indices in result] == [
        (epoch, step, indices) for epoch, step, _, indices in expected
    ]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(result, expected, strict=True))


def test_workers_change_no_bit(class_images: Path) -> None:
    images = augmented(class_images)
    alone = collected(images)
    assert len(alone) == 8
    assert [tuple(batch.shape) for _, _, batch, _ in alone[:4]] == [(4, 3, 16, 16)] + [(3, 3, 16, 16)] * 3
    for workers in (1, 2):
        assert_same(collected(images, workers=workers), alone)


def test_epochs_and_seeds_augment_differently(class_images: Path) -> None:
    images = augmented(class_images)
    other = augmented(class_images, seed=1)
    assert np.array_equal(images.__getitems__([(0, 5, 0)]), images.__getitems__([(0, 5, 0)]))
    assert not np.array_equal(images.__getitems__([(0, 5, 0)]), images.__getitems__([(1, 5, 0)]))
    assert not np.array_equal(images.__getitems__([(0, 5, 0)]), images.__getitems__([(0, 5, 1)]))
    assert not np.array_equal(images.__getitems__([(0, 5, 0)]), other.__getitems__([(0, 5, 0)]))


LABELS = (0,) * 11 + (1,) * 2  # of the 13 images: a class of two


@pytest.mark.parametrize(
    "plan",
    [ShuffledBatches(LABELS, 4, 0, sampling=True), ClassBatches(LABELS, 8, 0, images_per_class=4)],
    ids=["sampling", "pk"],
)
def test_image_that_an_epoch_repeats_never_looks_the_same(class_images: Path, plan: Plan) -> None:
    """For any number of workers and any start within the epoch."""
    images = augmented(class_images)

    def shown(first_step: int, workers: int) -> list[tuple[int, bytes]]:
        feed = batches(images, plan, first_epoch=0, first_step=first_step, num_epochs=1, workers=workers)
        return [
            (index, bytes(image.numpy()))
            for _, _, batch, indices in feed
            for index, image in zip(indices.tolist(), batch, strict=True)
        ]

    every = shown(0, 0)
    assert len({index for index, _ in every}) < len(every), "some image is drawn several times"
    assert len(set(every)) == len(every)
    assert shown(0, 2) == every
    assert shown(1, 1) == every[len(plan.epoch(0)[0]) :]


def test_images_have_the_size_of_their_epoch(class_images: Path) -> None:
    images = augmented(class_images)
    images.augment_at = (Augment(train_px=12), Augment(train_px=16)).__getitem__
    collected_batches = collected(images, workers=1)
    assert [{tuple(batch.shape[1:]) for e, _, batch, _ in collected_batches if e == epoch} for epoch in (0, 1)] == [
        {(3, 12, 12)}, {(3, 16, 16)}
    ]  # fmt: skip
    assert torch.equal(collected_batches[4][2], collected(augmented(class_images))[4][2])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", [5000, 10**6])
def test_cached_images_change_no_bit(class_images: Path, workers: int, cache: int) -> None:
    images = augmented(class_images, cache=cache)
    assert_same(collected(images, workers=workers), collected(augmented(class_images)))
    assert 0 < len(images.cache) <= len(images)
    assert (len(images.cache) == len(images)) == (cache == 10**6)
    assert_same(collected(images, workers=workers), collected(augmented(class_images)))


@pytest.mark.parametrize("workers", [0, 1])
def test_start_inside_an_epoch_yields_the_rest(class_images: Path, workers: int) -> None:
    images = augmented(class_images)
    whole = collected(images)
    assert_same(collected(images, first=(0, 3), workers=workers), whole[3:])
    assert_same(collected(images, first=(1, 1), workers=workers), whole[5:])
    assert collected(images, first=(2, 0), workers=workers) == [], "a finished stage has no batches left"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("harm", ["gone", "broken"])
def test_image_that_fails_later_stops_with_its_name(class_images: Path, workers: int, harm: str) -> None:
    images = augmented(class_images)
    lost = class_images / "train" / "bee" / "2.png"
    lost.unlink()
    if harm == "broken":
        lost.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"bee/2\.png.*epoch 1, step \d.*could be read before"):
        collected(images, workers=workers)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_lost_worker_stops_with_what_to_do(class_images: Path) -> None:
    images = augmented(class_images)
    plan = ShuffledBatches((0,) * len(images), 2, 0)
    before = children()
    feed = batches(images, plan, first_epoch=0, first_step=0, num_epochs=500, workers=1)
    next(feed)
    (worker,) = children() - before
    os.kill(worker, signal.SIGKILL)
    with (
        pytest.raises(RunError, match=r"process that loads images has ended.*memory.*--resume"),
        explain_lost_workers(),
    ):
        list(feed)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_workers_ignore_signals_and_end_with_the_feed(class_images: Path) -> None:
    images = augmented(class_images)
    plan = ShuffledBatches((0,) * len(images), 2, 0)
    before = children()
    feed = batches(images, plan, first_epoch=0, first_step=0, num_epochs=50, workers=1)
    next(feed)
    (worker,) = children() - before
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker, number)
    for _ in range(20):
        next(feed)
    feed.close()
    assert not Path(f"/proc/{worker}").exists()


def children() -> set[int]:
    """The processes of this one, without Python's own helper; earlier tests may have left some."""
    own = os.getpid()
    (listed,) = [path.read_text() for path in Path("/proc/self/task").glob(f"{own}/children")]
    return {int(number) for number in listed.split() if is_loader(int(number))}


def is_loader(pid: int) -> bool:
    return "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()


def test_sample_indices_are_few_ordered_and_fixed() -> None:
    assert sample_indices(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    drawn = sample_indices(1000, 50, 3)
    assert len(set(drawn.tolist())) == 50
    assert np.array_equal(drawn, np.sort(drawn))
    assert np.array_equal(drawn, sample_indices(1000, 50, 3))
    assert not np.array_equal(drawn, sample_indices(1000, 50, 4))

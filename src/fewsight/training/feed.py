"""The batches of a plan: loaded and augmented, the same for any number of workers."""

import contextlib
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fewsight.augment import augment_images
from fewsight.data import PixelCache
from fewsight.errors import DataError, RunError
from fewsight.machine.rng import image_stream
from fewsight.recipes import Augment
from fewsight.training.plans import Plan


class AugmentedImages(Dataset[Any]):
    """Training images, augmented; a key is (epoch, index) and alone decides what happens to the image.

    Args:
        numbers: what stands for the index there, so that images which were left out change nothing for the others;
            none: the index itself.
        cache: bytes of memory for decoded images.
        px_at: the side of an epoch's images; none: `augment.train_px`.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        augment: Augment,
        seed: int,
        numbers: Sequence[int] = (),
        cache: int = 0,
        px_at: Callable[[int], int] | None = None,
    ) -> None:
        self.files, self.augment, self.seed = [str(root / path) for path in paths], augment, seed
        self.numbers, self.px_at = numbers or range(len(paths)), px_at
        # a crop of the least area and of the least even sides still has a pixel for each of its own
        share = augment.crop_area[0] * min(augment.crop_aspect[0], 1 / augment.crop_aspect[1])
        self.cache = PixelCache(len(paths), cache, px=augment.train_px, share=share)

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, keys: list[tuple[int, int]]) -> "np.ndarray | DataError":
        """uint8 [n, 3, px, px], after crop, flip and policy; an image that fails comes back as the error, which the
        loop raises. The images of a batch are of one epoch."""
        augment = self.augment
        if self.px_at is not None:
            augment = augment.model_copy(update={"train_px": self.px_at(keys[0][0])})
        streams = (image_stream(self.seed, epoch, self.numbers[index]) for epoch, index in keys)
        images = (self.cache.load(index, self.files[index]) for _, index in keys)
        try:
            return augment_images(images, augment, streams)
        except DataError as error:
            return error


Rows = Callable[[int, int, int], np.ndarray]  # (epoch, step, images of the batch) -> places in it


def all_rows(epoch: int, step: int, count: int) -> np.ndarray:
    """Every image of a batch."""
    return np.arange(count)


def batches(
    images: AugmentedImages,
    plan: Plan,
    *,
    first_epoch: int,
    first_step: int,
    num_epochs: int,
    workers: int,
    pin: bool = False,
    rows: Rows = all_rows,
) -> Generator[tuple[int, int, Tensor, np.ndarray]]:
    """Every batch from (first_epoch, first_step) on: (epoch, step, uint8 [n, 3, px, px], indices [B]).

    Args:
        rows: which of a batch's B images are loaded, n of them in that order: a process's share and its partners.

    Raises:
        DataError: an image that could be read before training can no longer be; it is named.
    """

    def positions() -> Iterator[tuple[int, int, np.ndarray]]:
        for epoch in range(first_epoch, num_epochs):
            for step, indices in enumerate(plan.epoch(epoch)):
                if epoch > first_epoch or step >= first_step:
                    yield epoch, step, indices

    keys = (
        [(epoch, int(index)) for index in indices[rows(epoch, step, len(indices))]]
        for epoch, step, indices in positions()
    )
    loaded = map(images.__getitems__, keys) if workers == 0 else _load_beside(images, keys, workers)
    for (epoch, step, indices), batch in zip(positions(), loaded, strict=True):
        if isinstance(batch, DataError):
            raise DataError(f"{batch} (epoch {epoch + 1}, step {step + 1}; it could be read before training began)")
        tensor = torch.from_numpy(batch)
        yield epoch, step, tensor.pin_memory() if pin else tensor, indices


@contextlib.contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Inside the block, the end of a loading process stops the run with what to do; it can surface anywhere.

    Raises:
        RunError: the system ended a loading process.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"a process that loads images has ended ({str(error).splitlines()[0]}); often memory ran out: close other "
            "programs, then continue from the last saved state with --resume, or train anew with --set run.workers=0"
        ) from error


def _load_beside(
    images: AugmentedImages, keys: Iterator[list[tuple[int, int]]], workers: int
) -> Iterator["np.ndarray | DataError"]:
    context = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    loader = DataLoader(
        images,
        batch_sampler=keys,  # drawn as the training goes: all epochs' keys together would be large
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_quiet_worker,
        multiprocessing_context=context,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        loaded = iter(loader)
    yield from loaded


def _as_is(batch: Any) -> Any:
    return batch


def _quiet_worker(_: int) -> None:
    """Ctrl-C, and SIGTERM from a service manager, reach the whole process group; only the main process answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)

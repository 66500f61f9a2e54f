"""Loads and augments the batches of a plan, with the same bits for any number of workers."""

import contextlib
import itertools
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from fewsight.augment import augment_images
from fewsight.data import PixelCache
from fewsight.errors import DataError, RunError
from fewsight.machine.loading import loading_context, may_start_processes
from fewsight.machine.rng import image_stream
from fewsight.recipes import Augment
from fewsight.training.plans import Plan, draws_before

Key = tuple[int, int, int]  # (epoch, index of the image, how often the epoch has drawn it before)


def keys_of(epoch: int, indices: np.ndarray, draws: np.ndarray) -> list[Key]:
    """The keys of a batch's images, or of some rows of it."""
    return [(epoch, index, draw) for index, draw in zip(indices.tolist(), draws.tolist(), strict=True)]


class AugmentedImages(Dataset[Any]):
    """Augmented training images; the key (epoch, index, draw) alone determines the augmentation.

    `draw` is how often the epoch has drawn the image before, so that an image that comes again looks different.

    Args:
        root: folder of the images.
        paths: of the images, relative to `root`.
        numbers: each image's number in its random streams, so that images left out of the data change nothing for the
            others; empty: the image's index.
        cache: bytes of memory for decoded images.
        augment_at: epoch -> its augmentation, where that is not always `augment`.
        stages: every augmentation that `augment_at` may return, for the size of the cached images.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        augment: Augment,
        seed: int,
        numbers: Sequence[int] = (),
        cache: int = 0,
        augment_at: Callable[[int], Augment] | None = None,
        stages: Sequence[Augment] = (),
    ) -> None:
        self.files, self.augment, self.seed = [str(root / path) for path in paths], augment, seed
        self.numbers, self.augment_at = numbers or range(len(paths)), augment_at
        # even the smallest, most elongated crop of a cached image has a pixel for each pixel of the training image
        fraction = min(
            each.crop_area[0] * min(each.crop_aspect[0], 1 / each.crop_aspect[1]) for each in (augment, *stages)
        )
        self.cache = PixelCache(len(paths), cache, px=augment.train_px, area_fraction=fraction)

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, keys: list[Key]) -> "np.ndarray | DataError":
        """Images after crop, flip and policy.

        Args:
            keys: of each image; all of one epoch.

        Returns:
            uint8 [n, 3, px, px]; or, if an image cannot be read, the error, which `batches` raises.
        """
        augment = self.augment if self.augment_at is None else self.augment_at(keys[0][0])
        streams = (image_stream(self.seed, epoch, self.numbers[index], draw) for epoch, index, draw in keys)
        images = (self.cache.load(index, self.files[index]) for _, index, _ in keys)
        try:
            return augment_images(images, augment, streams)
        except DataError as error:
            return error


Rows = Callable[[int, int, int], np.ndarray]  # (epoch, step, batch size) -> rows of the batch


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
        workers: loading processes; 0, or where this process may start none: load in this process.
        pin: copy batches to pinned memory, for faster transfers to a GPU.
        rows: which n of a batch's B images are loaded, in that order: a process's own rows and their CutMix partners.

    Raises:
        DataError: an image that could be read before training no longer can; the message names it.
    """

    def positions() -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        for epoch in range(first_epoch, num_epochs):
            in_epoch = plan.epoch(epoch)
            for step, (indices, draws) in enumerate(zip(in_epoch, draws_before(in_epoch), strict=True)):
                if epoch > first_epoch or step >= first_step:
                    yield epoch, step, indices, draws

    def keys_of_step(epoch: int, step: int, indices: np.ndarray, draws: np.ndarray) -> list[Key]:
        loaded = rows(epoch, step, len(indices))
        return keys_of(epoch, indices[loaded], draws[loaded])

    keys = itertools.starmap(keys_of_step, positions())
    in_process = workers == 0 or not may_start_processes()
    loaded = map(images.__getitems__, keys) if in_process else _load_in_workers(images, keys, workers)
    for (epoch, step, indices, _), batch in zip(positions(), loaded, strict=True):
        if isinstance(batch, DataError):
            raise DataError(f"{batch} (epoch {epoch + 1}, step {step + 1}; it could be read before training began)")
        tensor = torch.from_numpy(batch)
        yield epoch, step, tensor.pin_memory() if pin else tensor, indices


@contextlib.contextmanager
def explain_lost_workers() -> Iterator[None]:
    """Turn torch's error about a killed loading process, which can surface anywhere in the block, into a RunError.

    Raises:
        RunError: the system killed a loading process.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            f"a process that loads images has ended ({str(error).splitlines()[0]}); often memory ran out: close other "
            "programs, then continue from the last saved state with --resume, or start a new run with "
            "--set run.workers=0"
        ) from error


def _load_in_workers(
    images: AugmentedImages, keys: Iterator[list[Key]], workers: int
) -> Iterator["np.ndarray | DataError"]:
    loader = DataLoader(
        images,
        batch_sampler=keys,  # a generator: the keys of all epochs at once would take much memory
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_quiet_worker,
        multiprocessing_context=loading_context(),
    )
    with _child_signal_kept():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            loaded = iter(loader)
        yield from loaded


@contextlib.contextmanager
def _child_signal_kept() -> Iterator[None]:
    """Put the handler of SIGCHLD back, which torch replaces for good when it starts its first loading process."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield  # torch replaces none either
        return
    handler, is_set = signal.getsignal(signal.SIGCHLD), signal_handling._SIGCHLD_handler_set
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
            signal_handling._SIGCHLD_handler_set = is_set


def _identity(batch: Any) -> Any:
    return batch


def _quiet_worker(_: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach the whole process group: only the main process handles them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)

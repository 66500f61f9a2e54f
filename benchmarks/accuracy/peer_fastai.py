"""The peer: fastai's learner from scratch, as its imagenette recipe of January 2020 has it.

xse_resnext50 with self-attention, Mish and max pooling (or another net of --arch), Ranger (momentum 0.95, squares 0.99,
epsilon 1e-6) at 8e-3 with decay 1e-2, flat then cosine, label smoothing, batch 64, crops of 35 to 100 % and flips,
MixUp from 80 epochs on. float32 at --px, as many epochs as fit the budget; it is measured with the mirrored view too,
as the other peers. It runs in an environment of its own, see peer_fastai.txt.

Source: 2020-01-train.md of fastai's imagenette, and nbs/examples/train_imagenette.py of fastai.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.vision.all import (
    Callback,
    CancelFitException,
    CancelValidException,
    CategoryBlock,
    DataBlock,
    DataLoaders,
    FlipItem,
    ImageBlock,
    LabelSmoothingCrossEntropy,
    Learner,
    MaxPool,
    Mish,
    MixUp,
    Normalize,
    RandomResizedCrop,
    get_image_files,
    imagenet_stats,
    models,
    parent_label,
    ranger,
    set_seed,
)

from benchmarks.accuracy.rows import write_rows

MIXUP_EPOCHS = 80
NUM_TIMED = 3  # steps, and one before them


class NoValidation(Callback):  # type: ignore[misc]
    """An epoch is training alone."""

    def before_validate(self) -> None:
        raise CancelValidException


class Pace(Callback):  # type: ignore[misc]
    """The core-seconds of the first steps; ends the fit after them."""

    def before_fit(self) -> None:
        self.times: list[float] = []

    def after_batch(self) -> None:
        self.times.append(time.process_time())
        if len(self.times) > NUM_TIMED:
            raise CancelFitException


def main() -> None:
    """Train, score, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--arch", default="xse_resnext50")
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, required=True, help="core-seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=8e-3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    set_seed(args.seed)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=get_image_files,
        get_y=parent_label,
        splitter=lambda items: (list(range(len(items))), []),  # all of them train
        item_tfms=[RandomResizedCrop(args.px, min_scale=0.35), FlipItem(0.5)],
        batch_tfms=[Normalize.from_stats(*imagenet_stats)],
    )
    dls = block.dataloaders(args.data / "train", bs=64, num_workers=0, device=torch.device("cpu"))
    images = sorted(path for path in args.test.glob("*/*") if path.is_file())
    pace = Pace()
    new_learner(dls, args.arch).fit(2 + NUM_TIMED // len(dls.train), 0.0, cbs=pace)
    epoch = len(dls.train) * statistics.median(np.diff(pace.times))
    scoring = epoch * len(images) / len(dls.train_ds)
    epochs = max(1, int((args.budget - time.process_time() - scoring) / epoch))
    set_seed(args.seed)
    learner = new_learner(dls, args.arch)
    print(f"{epochs} epochs of {epoch:.1f} core-seconds", flush=True)
    learner.fit_flat_cos(epochs, args.lr, wd=1e-2, cbs=[MixUp()] if epochs >= MIXUP_EPOCHS else [])
    write_rows(args.out, images, list(dls.vocab), probabilities(learner, images))


def new_learner(dls: DataLoaders, arch: str) -> Learner:
    """An untrained net with the recipe's optimiser and loss."""
    net = getattr(models.xresnet, arch)(n_out=dls.c, act_cls=Mish, sa=True, pool=MaxPool)
    optimizer = partial(ranger, mom=0.95, sqr_mom=0.99, eps=1e-6)
    learner = Learner(dls, net, opt_func=optimizer, loss_func=LabelSmoothingCrossEntropy(), cbs=NoValidation())
    learner.remove_cbs([one for one in learner.cbs if type(one).__name__ in ("ProgressCallback", "Recorder")])
    return learner


def probabilities(learner: Any, images: list[Path]) -> np.ndarray:
    """[n, K], the mean with the mirrored view."""
    learner.model.eval()
    parts = []
    with torch.inference_mode():
        for (x,) in learner.dls.test_dl(images):
            x = x.as_subclass(torch.Tensor)
            parts.append((learner.model(x).softmax(1) + learner.model(x.flip(3)).softmax(1)) / 2)
    return torch.cat(parts).numpy()


if __name__ == "__main__":
    main()

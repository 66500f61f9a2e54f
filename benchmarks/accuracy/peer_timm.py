"""The peer: a plain training over timm's own API, as its train script does it.

It trains on DATA/train for as many epochs as fit the budget and scores the images of --test. Settings are those that
did best here for timm at 64 px: batch 50, SGD 0.05 with Nesterov momentum, cosine with 5 warm-up epochs, its `original`
AutoAugment, CutMix at 0.5, smoothing 0.1; `--light` has no AutoAugment, no CutMix and crops of 35 to 100 %. float32.
Needs timm.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from benchmarks.accuracy.rows import write_rows


def epochs_that_fit(args: argparse.Namespace, classes: int, feed: DataLoader[Any]) -> int:
    """Epochs that end within the budget, counted from the start of this process, by the pace of one epoch's batches."""
    model = create_model(args.model, num_classes=classes).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1e-6, momentum=0.9)
    seconds = []
    then = time.process_time()
    for images, labels in feed:
        loss = torch.nn.functional.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(time.process_time() - then)
        then = time.process_time()
    epoch = statistics.median(seconds) * len(feed)
    left = args.budget - time.process_time()
    return max(1, int((left - epoch) / epoch))  # one epoch's time for scoring


def main() -> None:
    """Train, score, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--budget", type=float, required=True, help="core-seconds")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--test", required=True, help="a folder of class folders to score")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ema", type=float, default=0.0, help="decay of timm's moving average; 0: none")
    parser.add_argument("--light", action="store_true", help="crops of 35 to 100 %% and flips alone")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    train = create_dataset("", args.data, split="train")
    test = create_dataset("", args.test, split="")
    classes = len(train.reader.class_to_idx)
    assert train.reader.class_to_idx == test.reader.class_to_idx, "timm indexes each split by itself"
    mixup = Mixup(
        mixup_alpha=0.0,
        cutmix_alpha=1.0,
        prob=0.0 if args.light else 0.5,
        switch_prob=1.0,
        label_smoothing=0.1,
        num_classes=classes,
    )
    shared = {
        "input_size": (3, args.px, args.px),
        "batch_size": args.batch,
        "use_prefetcher": False,
        "num_workers": 0,
    }
    feed = create_loader(
        train,
        is_training=True,
        auto_augment=None if args.light else "original",
        scale=(0.35, 1.0) if args.light else (0.08, 1.0),
        interpolation="bilinear",
        color_jitter=None,
        **shared,
    )
    scored = create_loader(test, is_training=False, interpolation="bilinear", crop_pct=0.875, **shared)
    model = create_model(args.model, num_classes=classes).to(memory_format=torch.channels_last)
    average = ModelEmaV3(model, decay=args.ema, use_warmup=True) if args.ema else None
    optimizer = create_optimizer_v2(model, opt="sgd", lr=args.lr, momentum=0.9, weight_decay=1e-4)
    epochs = epochs_that_fit(args, classes, feed)
    schedule = CosineLRScheduler(optimizer, t_initial=epochs, warmup_t=5, warmup_lr_init=1e-5, warmup_prefix=True)
    loss_of = SoftTargetCrossEntropy()
    for epoch in range(epochs):
        model.train()
        for images, labels in feed:
            images, targets = mixup(images, labels)
            loss = loss_of(model(images.contiguous(memory_format=torch.channels_last)), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if average is not None:
                average.update(model)
        schedule.step(epoch + 1)
    tested = average.module if average is not None else model
    tested.eval()
    parts = []
    with torch.inference_mode():
        for images, _ in scored:
            images = images.contiguous(memory_format=torch.channels_last)
            parts.append((tested(images).float().softmax(1) + tested(images.flip(3)).float().softmax(1)) / 2)
    names = [Path(args.test) / test.filename(index) for index in range(len(test))]
    write_rows(args.out, names, sorted(train.reader.class_to_idx), torch.cat(parts).numpy())


if __name__ == "__main__":
    main()

"""The peer that a newcomer writes in 40 lines: a plain ResNet-18.

64 px, a random crop of 40 to 100 % of the area and a flip, AdamW 2e-3 with weight decay 0.05, one cycle, label
smoothing 0.1. Needs timm for the network; it takes as many steps as fit the budget.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import create_model
from torch import Tensor

from benchmarks.accuracy.rows import write_rows

BATCH = 64


def images_of(folder: Path, px: int) -> tuple[Tensor, list[Path], list[str]]:
    """uint8 [n, 3, px', px'] at 5/4 of the size, the middle square of each image; its path and class."""
    side = px * 5 // 4
    paths = sorted(path for path in folder.glob("*/*") if path.is_file())
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        square = image.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + short, top + short))
        images.append(torch.from_numpy(np.array(square)).permute(2, 0, 1))
    return torch.stack(images), paths, [path.parent.name for path in paths]


def augmented(images: Tensor, px: int) -> Tensor:
    """Random crops of 40 to 100 % of the area, mirrored half the time, at `px`; float [n, 3, px, px]."""
    count = len(images)
    scale = (0.4 + 0.6 * torch.rand(count)).sqrt()
    shift = (2 * torch.rand(count, 2) - 1) * (1 - scale[:, None])
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = scale * torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [count, 3, px, px], align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False)


def main() -> None:
    """Train, score, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, required=True, help="core-seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    images, _, names = images_of(args.data / "train", args.px)
    classes = sorted(set(names))
    labels = torch.tensor([classes.index(name) for name in names])
    mean, std = images.float().mean((0, 2, 3)).view(3, 1, 1), images.float().std((0, 2, 3)).view(3, 1, 1)
    model = create_model("resnet18", num_classes=len(classes)).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    steps = count = 0
    schedule = None
    began = time.process_time()
    while schedule is None or count < steps:
        for batch in torch.split(torch.randperm(len(images)), BATCH):
            if len(batch) < 2 or (schedule is not None and count == steps):
                continue
            x = ((augmented(images[batch], args.px) - mean) / std).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(x), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            count += 1
            if schedule is not None:
                schedule.step()
            elif count == 6:  # the pace of the first steps decides how many there are
                pace = (time.process_time() - began) / count
                left = args.budget * 0.97 - time.process_time()
                steps = count + max(1, int(left / pace))
                schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps - count + 1)
    write_rows(args.out, *scored(model.eval(), args, classes, mean, std))


def scored(
    model: torch.nn.Module, args: argparse.Namespace, classes: list[str], mean: Tensor, std: Tensor
) -> tuple[list[Path], list[str], np.ndarray]:
    """The test images' probabilities, the mean with their mirrored view."""
    images, paths, _ = images_of(args.test, args.px)
    parts = []
    with torch.inference_mode():
        for batch in torch.split(images, 256):
            x = F.interpolate(batch.float(), (args.px, args.px), mode="bilinear", antialias=True)
            x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
            parts.append((model(x).softmax(1) + model(x.flip(3)).softmax(1)) / 2)
    return paths, classes, torch.cat(parts).numpy()


if __name__ == "__main__":
    main()

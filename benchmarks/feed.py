"""From image files to augmented, normalised batches in one process: ours, timm's and torchvision's, alternating.

    python -m benchmarks.feed DATA [--repeats 5]

DATA is the folder of real images: its `imagenet-256` (photographs of some 500 x 375) feeds batches of 224 px, its
`tiny20` batches of 64 px. Each side crops, flips, applies AutoAugment's ImageNet policy and normalises, in one thread
without other processes, at the better of the ways that it has. Ours three times: cold (nothing kept), warm (the second
epoch on, decoded images in memory) and with a tenth of the memory that all images need. No CutMix on any side.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.machine import about, busy_unless, device_name, keep
from fewsight.augment.normalise import Normalise
from fewsight.data import decode_pixels, read_bytes
from fewsight.machine.allocator import keep_freed_memory
from fewsight.recipes import Augment
from fewsight.training.feed import AugmentedImages

BATCH = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_IMAGES = 1000

Epoch = Callable[[int], Iterable[Tensor]]  # number -> float32 [B, 3, px, px] batches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--force", action="store_true", help="start though another process uses a core")
    args = parser.parse_args()
    busy = busy_unless(args.force)
    torch.set_num_threads(1)
    keep_freed_memory()
    setting = about(
        "feed",
        busy,
        ("torch", "timm", "torchvision"),
        device=f"{device_name('cpu')}, one thread",
    )
    lines = [f"- {key}: {value}" for key, value in setting.items()]
    lines += ["", "Images a second, median (least to most) of epochs in turns; ratio: to timm's in the same turn.", ""]
    lines += ["| Images | Side | Images/s | Ratio to timm |", "|---|---|---|---|"]
    values: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, root, px in (
            ("imagenet-256 at 224 px", as_classes(args.data / "imagenet-256", Path(folder)), 224),
            ("tiny20 at 64 px", args.data / "tiny20" / "train", 64),
        ):
            for row in compare(name, root, px, args.repeats):
                lines.append(row_of(name, row))
                values.append({"images": name, **row})
                print(lines[-1], flush=True)
    keep("feed", "From files to batches", lines, {**setting, "rows": values})
    return 0


def as_classes(images: Path, folder: Path) -> Path:
    """A folder with each image in a class of its own, as links."""
    for path in sorted(images.iterdir()):
        if path.suffix.lower() in (".jpeg", ".jpg"):
            (folder / path.stem).mkdir()
            (folder / path.stem / path.name).symlink_to(path.resolve())
    return folder


def compare(name: str, root: Path, px: int, repeats: int) -> list[dict[str, Any]]:
    """Rates of every side, in turns."""
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())[:MAX_IMAGES]
    sizes = [decode_pixels(read_bytes(root / path), path).size for path in paths]
    print(f"{name}: {len(paths)} images, {sum(sizes) / len(sizes) / 1e3:.0f} KB an image once decoded", flush=True)
    warm = ours(root, paths, px, sum(sizes))
    consume(warm(0), len(paths))
    tenth = ours(root, paths, px, sum(sizes) // 10)
    consume(tenth(0), len(paths))
    sides: dict[str, Epoch] = {
        "fewsight, cold": ours(root, paths, px, 0),
        "fewsight, warm": warm,
        "fewsight, a tenth kept": tenth,
        "timm": best([with_timm(root, px, prefetch) for prefetch in (False, True)], len(paths)),
        "torchvision v2": with_torchvision(root, px),
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in list(sides) if repeat % 2 == 0 else reversed(sides):
            rates[side].append(consume(sides[side](repeat + 1), len(paths)))
    theirs = rates["timm"]
    return [
        {
            "side": side,
            "rates": found,
            "ratios": [one / other for one, other in zip(found, theirs, strict=True)],
            "bytes_an_image": sum(sizes) / len(sizes),
        }
        for side, found in rates.items()
    ]


def consume(batches: Iterable[Tensor], count: int) -> float:
    """Images a second of the first `count`."""
    began, seen = time.perf_counter(), 0
    for batch in batches:
        assert batch.dtype == torch.float32
        seen += len(batch)
        if seen >= count:
            break
    return seen / (time.perf_counter() - began)


def best(epochs: list[Epoch], count: int) -> Epoch:
    """The faster of several ways."""
    return max(epochs, key=lambda epoch: consume(epoch(0), count))


def ours(root: Path, paths: list[str], px: int, cache: int) -> Epoch:
    images = AugmentedImages(root, paths, Augment(train_px=px), 0, cache=cache)
    normalise = Normalise(MEAN, STD)

    def epoch(number: int) -> Iterable[Tensor]:
        for start in range(0, len(paths), BATCH):
            keys = [(number, index, 0) for index in range(start, min(start + BATCH, len(paths)))]
            batch = images.__getitems__(keys)
            assert not isinstance(batch, Exception)
            yield normalise.of_bytes(torch.from_numpy(batch))

    return epoch


def with_timm(root: Path, px: int, prefetch: bool) -> Epoch:
    """timm's loader with its `original` AutoAugment, bilinear; `prefetch` normalises after collating."""
    loader = create_loader(
        create_dataset("", str(root)),
        input_size=(3, px, px),
        batch_size=BATCH,
        is_training=True,
        auto_augment="original",
        interpolation="bilinear",
        color_jitter=None,
        mean=MEAN,
        std=STD,
        num_workers=0,
        use_prefetcher=prefetch,
        **({"device": torch.device("cpu")} if prefetch else {}),
    )
    return lambda number: (batch for batch, _ in loader)


def with_torchvision(root: Path, px: int) -> Epoch:
    """torchvision's v2 transforms on tensors of bytes."""
    steps = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(px, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, fill=128),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    loader = DataLoader(ImageFolder(root, steps), BATCH, shuffle=True)
    return lambda number: (batch for batch, _ in loader)


def row_of(name: str, row: dict[str, Any]) -> str:
    cells = [spread(row["rates"], 0), spread(row["ratios"], 2)]
    return f"| {name} | {row['side']} | {' | '.join(cells)} |"


def spread(values: list[float], digits: int) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())

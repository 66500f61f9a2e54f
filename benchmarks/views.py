"""The report's 16 views of photographs by ResNeSt50 at full size: ours and a script over timm, in turns.

    python -m benchmarks.views DATA [--images 4] [--repeats 3]

DATA is the folder of real images; its `imagenet-256` holds the photographs. The peer does what a careful user would
write: Pillow decodes, torchvision resizes and crops, the four images of a scale (centre, random crop, their flips) are
one batch in the model's faster layout, softmax, mean. Ours is `score_images`, as predict runs it. Both in float32 or
bf16, whichever is the faster here. The rate is that of multiply-adds against a large matrix product of the same turn.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from benchmarks.machine import about, busy_unless, device_name, keep
from benchmarks.step.speed import TIMM_NAMES
from fewsight.augment import named_views
from fewsight.augment.normalise import Normalise
from fewsight.machine.allocator import keep_freed_memory
from fewsight.machine.cores import num_cores
from fewsight.machine.device import autocast, best_precision
from fewsight.models import Backbone
from fewsight.models.classifier import build_model
from fewsight.recipes import load_recipe
from fewsight.scores.scoring import Scorer, score_images

NAME, NUM_CLASSES = "resnest50", 1000
SIZES = (224, 320, 380, 448)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--force", action="store_true", help="start though another process uses a core")
    args = parser.parse_args()
    busy = busy_unless(args.force)
    torch.set_num_threads(num_cores())
    keep_freed_memory()
    precision = best_precision(torch.device("cpu"))
    paths = sorted((args.data / "imagenet-256").glob("*.JPEG"))[: args.images]
    work = flops_an_image()
    layouts = {
        "channels-last": peer(paths, torch.channels_last, precision),
        "contiguous": peer(paths, torch.contiguous_format, precision),
    }
    trials = {layout: side() for layout, side in layouts.items()}
    layout = min(trials, key=trials.__getitem__)
    sides = {"fewsight": ours(paths, precision), f"timm, {layout}": layouts[layout]}
    sides["fewsight"]()
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    matrix: list[float] = []
    for repeat in range(args.repeats):
        for side in list(sides) if repeat % 2 == 0 else reversed(sides):
            seconds[side].append(sides[side]())
        matrix.append(matrix_rate(precision))
    ratios = [theirs / own for own, theirs in zip(seconds["fewsight"], seconds[f"timm, {layout}"], strict=True)]
    rate = statistics.median(matrix)
    setting = about(
        "views",
        busy,
        ("torch", "timm", "torchvision"),
        device=f"{device_name('cpu')}, {num_cores()} threads, {precision}",
        work=f"{work / 1e9:.0f} GFLOP an image (a multiply-add counts as two); matrix product {rate:.0f} GFLOP/s",
    )
    lines = [f"- {key}: {value}" for key, value in setting.items()]
    lines += ["", "| Side | Images/s | Share of the matrix rate |", "|---|---|---|"]
    for side, found in seconds.items():
        rates = [len(paths) / one for one in found]
        shares = [work * one / 1e9 / rate for one in rates]
        lines.append(f"| {side} | {spread(rates)} | {spread(shares)} |")
    lines += ["", f"Ratio, timm's time over ours in a turn: {spread(ratios)}."]
    print("\n".join(lines))
    keep("views", "The report's 16 views", lines, {**setting, "seconds": seconds, "ratios": ratios, "matrix": matrix})
    return 0


def flops_an_image() -> float:
    """Of the forward passes over four images of each size."""
    model, total = build_model(NAME, NUM_CLASSES).eval(), 0
    with torch.inference_mode():
        for px in SIZES:
            with FlopCounterMode(display=False) as counter:
                model(torch.zeros(1, 3, px, px))
            total += 4 * counter.get_total_flops()
    return float(total)


def matrix_rate(precision: str, size: int = 2048) -> float:
    """GFLOP/s of the fastest of five matrix products."""
    left = torch.randn(size, size, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(left, left)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds) / 1e9


def ours(paths: list[Path], precision: str) -> Callable[[], float]:
    recipe = load_recipe("resnest101_ce")
    settings = recipe.run.model_copy(update={"device": "cpu", "precision": precision, "workers": 1})
    recipe = recipe.model_copy(update={"run": settings})
    model = build_model(NAME, NUM_CLASSES).to(memory_format=torch.channels_last).eval()
    assert isinstance(model.backbone, Backbone)
    model.backbone.fold()
    views, normalise = named_views("report", list(SIZES)), Normalise(MEAN, STD)

    def run() -> float:
        began = time.perf_counter()
        (scores,) = score_images(Scorer(model, normalise, recipe), paths, views=views)
        assert scores.results.shape == (2 * len(SIZES), len(paths), NUM_CLASSES)
        return time.perf_counter() - began

    return run


def peer(paths: list[Path], layout: torch.memory_format, precision: str) -> Callable[[], float]:
    model = (
        timm.create_model(TIMM_NAMES[NAME], pretrained=False, num_classes=NUM_CLASSES).to(memory_format=layout).eval()
    )
    prepare = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    @torch.inference_mode()
    def run() -> float:
        began = time.perf_counter()
        for path in paths:
            image, total = Image.open(path).convert("RGB"), torch.zeros(NUM_CLASSES)
            for px in SIZES:
                center = functional.center_crop(functional.resize(image, round(px / 0.875)), [px, px])
                other = v2.RandomResizedCrop(px, scale=(0.8, 1.0))(image)
                pair = torch.stack([prepare(center), prepare(other)])
                batch = torch.cat([pair, pair.flip(3)]).contiguous(memory_format=layout)
                with autocast(torch.device("cpu"), precision):
                    total += model(batch).float().softmax(1).mean(0)
            assert abs(float(total.sum()) / len(SIZES) - 1) < 1e-3
        return time.perf_counter() - began

    return run


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    sys.exit(main())

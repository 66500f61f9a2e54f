"""What a training step keeps, and how much memory it takes: ours plain, in-place and recomputing, and timm's.

    python -m benchmarks.step memory [--px 224] [--batch 32] [--repeats 5]

Kept: memory that a forward pass in float32 leaves allocated, an image of two; the profiler counts it. Peak: resident
memory of a process of its own that does two steps with SGD and momentum, at --batch, and what a process without a
batch takes. Largest batch: of which the two say that it takes 8 GiB. Cost: seconds of a step at --step-batch over those
of the plain path in the same turn.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.machine import about, busy_unless, keep
from benchmarks.step.speed import NUM_CLASSES, TIMM_NAMES
from fewsight.models import Backbone, activated_norm
from fewsight.models.classifier import build_model

WAYS = ("timm", "plain", "default", "recompute")  # default: in-place norms where a leaky activation follows
MODELS = list(TIMM_NAMES)[:3]
LIMIT = 8 * 2**30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--step-batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--force", action="store_true", help="start though another process uses a core")
    parser.add_argument("--peak", nargs=3, metavar=("MODEL", "WAY", "BATCH"), help="one process's peak memory, as JSON")
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(peak(args.peak[0], args.peak[1], int(args.peak[2]), args.px)))
        return 0
    busy = busy_unless(args.force)
    setting = about(
        "step memory",
        busy,
        ("torch", "timm"),
        setting=f"{args.px} px, float32, {NUM_CLASSES} classes, channels-last, peak at batch {args.batch}",
    )
    lines = [f"- {key}: {value}" for key, value in setting.items()]
    lines += [
        "",
        f"| Model | Way | Kept, MiB an image | of timm's | Peak at {args.batch}, GiB | Largest batch in 8 GiB | ",
    ]
    lines[-1] += "Step over the plain one's |"
    lines += ["|---|---|---|---|---|---|---|"]
    values = []
    for name in MODELS:
        kept = {way: kept_by(name, way, args.px) for way in WAYS}
        costs = step_costs(name, args)
        for way in WAYS:
            low, high = (run_apart(name, way, batch, args.px) for batch in (0, args.batch))
            largest = int((LIMIT - low) / (high - low) * args.batch)
            row = {"model": name, "way": way, "kept": kept[way], "share": kept[way] / kept["timm"]}
            row |= {"idle": low, "peak": high, "largest": largest, "costs": costs.get(way)}
            values.append(row)
            cost = spread(costs[way]) if way in costs else "-"
            cells = [
                name,
                way,
                f"{kept[way] / 2**20:.1f}",
                f"{row['share']:.1%}",
                f"{high / 2**30:.2f}",
                str(largest),
                cost,
            ]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    keep("memory", "Memory of a training step", lines, {**setting, "rows": values})
    return 0


def build(name: str, way: str) -> nn.Module:
    """The model in channels-last layout, for training."""
    if way == "timm":
        model: nn.Module = timm.create_model(TIMM_NAMES[name], pretrained=False, num_classes=NUM_CLASSES)
    else:
        model = build_model(name, NUM_CLASSES)
        set_way(model, way)
    return model.to(memory_format=torch.channels_last).train()


INVERTIBLE = activated_norm.invertible


def set_way(model: nn.Module, way: str) -> None:
    """Plain: no norm is inverted. It holds for every model of the process."""
    activated_norm.invertible = (lambda norm, dtype: False) if way == "plain" else INVERTIBLE
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    backbone.enable_recomputation(way == "recompute")


def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    output = model(images)
    logits: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return logits


def kept_by(name: str, way: str, px: int, batch: int = 2) -> float:
    """Bytes an image that a forward pass leaves allocated."""
    model, images = build(name, way), torch.randn(batch, 3, px, px).contiguous(memory_format=torch.channels_last)
    logits_of(model, images)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        logits = logits_of(model, images)
    assert logits.requires_grad
    return float(sum(event.self_cpu_memory_usage for event in profile.key_averages())) / batch


def peak(name: str, way: str, batch: int, px: int) -> float:
    """Bytes that this process has taken at most."""
    model = build(name, way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        images = torch.randn(max(batch, 2), 3, px if batch else 32, px if batch else 32)
        labels = torch.randint(NUM_CLASSES, (len(images),))
        optimizer.zero_grad()
        F.cross_entropy(logits_of(model, images.contiguous(memory_format=torch.channels_last)), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def run_apart(name: str, way: str, batch: int, px: int) -> float:
    """`peak` of a process of its own; without a batch: of two images of 32 px."""
    command = [sys.executable, "-m", "benchmarks.step", "memory", "--px", str(px), "--peak", name, way, str(batch)]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def step_costs(name: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a forward and backward pass over the plain path's in the same turn; our three ways share a model."""
    model = build(name, "plain")
    images = torch.randn(args.step_batch, 3, args.px, args.px).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(NUM_CLASSES, (args.step_batch,))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
    for repeat in range(args.repeats + 1):
        for way in seconds if repeat % 2 else reversed(seconds):
            set_way(model, way)
            began = time.perf_counter()
            model.zero_grad()
            F.cross_entropy(logits_of(model, images), labels).backward()  # type: ignore[no-untyped-call]
            if repeat:
                seconds[way].append(time.perf_counter() - began)
    return {
        way: [one / other for one, other in zip(found, seconds["plain"], strict=True)] for way, found in seconds.items()
    }


def spread(values: list[Any]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    sys.exit(main())

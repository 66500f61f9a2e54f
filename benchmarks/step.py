"""One training step of our backbones and of timm's, side by side, alternating.

    python -m benchmarks.step [--batch 8] [--repeats 10] [--px 224] [--precision bf16|float32] [--threads 2]

A step is forward, backward and an SGD update with cross-entropy over 1,000 classes, on random images, in
training mode. A short trial picks each side's better memory layout at the precision asked for. The sides then
take turns, so that what else the machine does meets both; each pair of turns gives a ratio.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import RESULTS, busy_unless, commit, device_name
from fewsight.model import build_model

TIMM_NAMES = {
    "resnest101": "resnest101e",
    "tresnet_xl": "tresnet_xl",
    "seresnext101": "seresnext101_32x4d",
    "resnest50": "resnest50d",
    "resnest26": "resnest26d",
    "resnest14": "resnest14d",
    "tresnet_l": "tresnet_l",
    "tresnet_m": "tresnet_m",
    "seresnext50": "seresnext50_32x4d",
    "seresnext26d": "seresnext26d_32x4d",
}
NUM_CLASSES = 1000
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
TRIAL_STEPS = 3
WARM_UP_STEPS = 2

Step = Callable[[], float]


@dataclass(frozen=True)
class Comparison:
    """Seconds a step of both sides, in the order taken; a ratio above 1 means that ours is faster."""

    model: str
    timm_model: str
    our_layout: str
    timm_layout: str
    our_seconds: list[float]
    timm_seconds: list[float]

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.our_seconds, self.timm_seconds, strict=True)]


def main() -> int:
    args = parse_arguments()
    busy = busy_unless(args.force)
    torch.set_num_threads(args.threads)
    setting = describe(args, busy)
    print("\n".join(f"{key}: {value}" for key, value in setting.items()), flush=True)
    comparisons = []
    for name in args.models:
        comparisons.append(compare(name, args))
        print(row(comparisons[-1]), flush=True)
    write_results(args, setting, comparisons)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10, help="pairs of steps that are measured")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16", help="bf16 is autocast")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", choices=TIMM_NAMES, default=list(TIMM_NAMES)[:3])
    parser.add_argument("--force", action="store_true", help="start though another process uses a core")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the .md and the .json")
    return parser.parse_args()


# --- measuring ----------------------------------------------------------------------------------------------


def compare(name: str, args: argparse.Namespace) -> Comparison:
    """Picks each side's layout, warms both up, then takes turns."""
    our_layout, ours = best_layout(lambda: build_model(name, NUM_CLASSES), args)
    timm_layout, theirs = best_layout(
        lambda: timm.create_model(TIMM_NAMES[name], pretrained=False, num_classes=NUM_CLASSES), args
    )
    for _ in range(WARM_UP_STEPS):
        ours()
        theirs()
    our_seconds: list[float] = []
    timm_seconds: list[float] = []
    sides = ((ours, our_seconds), (theirs, timm_seconds))
    for repeat in range(args.repeats):
        for step, seconds in sides if repeat % 2 == 0 else reversed(sides):
            seconds.append(step())
    return Comparison(name, TIMM_NAMES[name], our_layout, timm_layout, our_seconds, timm_seconds)


def best_layout(build: Callable[[], nn.Module], args: argparse.Namespace) -> tuple[str, Step]:
    """The layout whose fastest trial step is the shorter, and a step in it."""
    fastest: dict[str, float] = {}
    for layout in LAYOUTS:
        step = training_step(build(), layout, args)
        step()
        fastest[layout] = min(step() for _ in range(TRIAL_STEPS))
        del step
    layout = min(fastest, key=fastest.__getitem__)
    return layout, training_step(build(), layout, args)


def training_step(model: nn.Module, layout: str, args: argparse.Namespace) -> Step:
    """A function that does one step and returns its seconds."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = model.to(device).to(memory_format=LAYOUTS[layout]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(args.batch, 3, args.px, args.px).to(device, memory_format=LAYOUTS[layout])
    labels = torch.randint(NUM_CLASSES, (args.batch,), device=device)

    def step() -> float:
        synchronize(device)
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            output = model(images)
            logits: Tensor = output[0] if isinstance(output, tuple) else output
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        synchronize(device)
        return time.perf_counter() - start

    return step


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- the machine --------------------------------------------------------------------------------------------


def describe(args: argparse.Namespace, busy: list[str]) -> dict[str, str]:
    return {
        "command": f"python -m benchmarks.step {' '.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(args.device),
        "threads": str(args.threads),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}",
        "setting": f"{args.px} px, batch {args.batch}, {args.precision}, {args.repeats} pairs of steps",
        "other load": "; ".join(busy) or "none",
    }


# --- results ------------------------------------------------------------------------------------------------


def spread(values: list[float], unit: str = "") -> str:
    return f"{statistics.median(values):.3g}{unit} ({min(values):.3g} to {max(values):.3g})"


def row(comparison: Comparison) -> str:
    cells = [
        comparison.model,
        f"{spread(comparison.our_seconds, ' s')}, {comparison.our_layout}",
        f"{spread(comparison.timm_seconds, ' s')}, {comparison.timm_layout}",
        spread(comparison.ratios),
    ]
    return f"| {' | '.join(cells)} |"


def write_results(args: argparse.Namespace, setting: dict[str, str], comparisons: list[Comparison]) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    stem = args.out / f"step-{torch.device(args.device).type}-{args.px}px-{args.precision}"
    lines = [
        "# One training step, ours and timm's",
        "",
        *(f"- {key}: {value}" for key, value in setting.items()),
        "",
        "Median (least to most). Ratio: timm's time over ours in a pair of turns; above 1 ours is faster.",
        "",
        "| Model | Ours | timm | Ratio |",
        "|---|---|---|---|",
        *map(row, comparisons),
    ]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [{**asdict(comparison), "ratios": comparison.ratios} for comparison in comparisons]
    stem.with_suffix(".json").write_text(json.dumps({**setting, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {stem}.md, {stem}.json")


if __name__ == "__main__":
    sys.exit(main())

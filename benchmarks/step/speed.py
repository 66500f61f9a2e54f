"""One training step of our backbones and of timm's, side by side, alternating.

    python -m benchmarks.step speed [--batch 8] [--repeats 10] [--px 224] [--precision bf16|float32] [--threads 2]

A step is forward, backward and an SGD update with cross-entropy over 1,000 classes, on random images, in training
mode. Each side is a process of its own and does what its training does: ours the step of `fewsight train`, with its
allocator, fused SGD and channels-last layout, timm's that of its train script. A short trial picks timm's better
memory layout at the precision asked for. The sides then take turns, so that what else the machine does meets both; each
pair of turns gives a ratio. A matrix product of 2048 x 2048 between the turns tells how far both are from what the
machine can do.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import RESULTS, about, busy_unless, device_name, keep, listed
from fewsight.losses import Targets, build_loss
from fewsight.machine.allocator import keep_freed_memory
from fewsight.models.classifier import build_model
from fewsight.recipes import Losses, Stage
from fewsight.training.learner import Learner

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
MATRIX = 2048

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
    gflop: float  # of a step; a multiply-add counts as two
    matrix_gflops: list[float]  # a second, of matrix products between the turns

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.our_seconds, self.timm_seconds, strict=True)]

    def shares(self, seconds: list[float]) -> list[float]:
        """Of the rate of a matrix product in the same turn."""
        return [self.gflop / one / rate for one, rate in zip(seconds, self.matrix_gflops, strict=True)]


def main() -> int:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if args.serve:
        side, name, layout = args.serve
        serve(training_step(side, name, layout, args))
        return 0
    busy = busy_unless(args.force)
    setting = about(
        "step speed",
        busy,
        ("torch", "timm"),
        device_name(args.device),
        threads=str(args.threads),
        setting=f"{args.px} px, batch {args.batch}, {args.precision}, {args.repeats} pairs of steps",
    )
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
    parser.add_argument("--serve", nargs=3, metavar=("SIDE", "MODEL", "LAYOUT"), help="one side: a step for each line")
    parser.add_argument("--force", action="store_true", help="start though another process uses a core")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the .md and the .json")
    return parser.parse_args()


# --- measuring ----------------------------------------------------------------------------------------------


class Served:
    """A side in a process of its own; `step()` gives the seconds of one."""

    def __init__(self, side: str, name: str, layout: str, args: argparse.Namespace) -> None:
        command = [
            sys.executable,
            "-m",
            "benchmarks.step",
            "speed",
            "--serve",
            side,
            name,
            layout,
            "--device",
            args.device,
        ]
        command += ["--batch", str(args.batch), "--px", str(args.px), "--precision", args.precision]
        command += ["--threads", str(args.threads)]
        self.layout = layout
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def compare(name: str, args: argparse.Namespace) -> Comparison:
    """Picks each side's layout, warms both up, then takes turns."""
    ours, theirs = Served("ours", name, "channels-last", args), best_layout("timm", name, args)
    for _ in range(WARM_UP_STEPS):
        ours.step()
        theirs.step()
    our_seconds: list[float] = []
    timm_seconds: list[float] = []
    rates: list[float] = []
    sides = ((ours, our_seconds), (theirs, timm_seconds))
    for repeat in range(args.repeats):
        for side, seconds in sides if repeat % 2 == 0 else reversed(sides):
            seconds.append(side.step())
        rates.append(matrix_gflops(args))
    ours.close()
    theirs.close()
    found = our_seconds, timm_seconds, step_gflop(name, args), rates
    return Comparison(name, TIMM_NAMES[name], ours.layout, theirs.layout, *found)


def best_layout(side: str, name: str, args: argparse.Namespace) -> Served:
    """The side in the layout whose fastest trial step is the shorter."""
    fastest: dict[str, float] = {}
    for layout in LAYOUTS:
        served = Served(side, name, layout, args)
        served.step()
        fastest[layout] = min(served.step() for _ in range(TRIAL_STEPS))
        served.close()
    return Served(side, name, min(fastest, key=fastest.__getitem__), args)


def serve(step: Callable[[], object]) -> None:
    """Do a step for each line that comes, and answer with its seconds."""
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


def training_step(side: str, name: str, layout: str, args: argparse.Namespace) -> Callable[[], object]:
    """A function that does one step as the side's training does."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.px, args.px).to(device, memory_format=LAYOUTS[layout])
    labels = torch.randint(NUM_CLASSES, (args.batch,), device=device)
    if side == "ours":
        keep_freed_memory()
        model = build_model(name, NUM_CLASSES).to(device).to(memory_format=LAYOUTS[layout])
        loss = build_loss("ce", Losses(), num_classes=NUM_CLASSES, num_features=model.head.in_features)
        learner = Learner(model, loss, Stage(epochs=1, batch_size=args.batch), 1, device, args.precision)
        return lambda: learner.step(images, Targets(labels, labels), 0.01)
    peer: nn.Module = timm.create_model(TIMM_NAMES[name], pretrained=False, num_classes=NUM_CLASSES)
    peer = peer.to(device).to(memory_format=LAYOUTS[layout]).train()
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> float:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            output = peer(images)
            logits: Tensor = output[0] if isinstance(output, tuple) else output
        value = F.cross_entropy(logits.float(), labels, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(value.item())  # as the script's meter asks for it; here a device is waited for

    return step


def step_gflop(name: str, args: argparse.Namespace) -> float:
    """Of a step, counted on timm's model with two images."""
    model = timm.create_model(TIMM_NAMES[name], pretrained=False, num_classes=NUM_CLASSES)
    with FlopCounterMode(display=False) as counter:
        output = model(torch.randn(2, 3, args.px, args.px))
        (output[0] if isinstance(output, tuple) else output).sum().backward()
    gflop: float = counter.get_total_flops() / 1e9 * args.batch / 2
    return gflop


def matrix_gflops(args: argparse.Namespace) -> float:
    """A second, at the step's precision: the fastest of a few products, into memory that is there."""
    device = torch.device(args.device)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    factor = torch.randn(MATRIX, MATRIX, device=device, dtype=dtype)
    product = torch.empty_like(factor)
    seconds = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(factor, factor, out=product)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    rate: float = 2 * MATRIX**3 / min(seconds) / 1e9
    return rate


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- results ------------------------------------------------------------------------------------------------


def spread(values: list[float], unit: str = "") -> str:
    return f"{statistics.median(values):.3g}{unit} ({min(values):.3g} to {max(values):.3g})"


def row(comparison: Comparison) -> str:
    cells = [
        comparison.model,
        f"{spread(comparison.our_seconds, ' s')}, {comparison.our_layout}",
        f"{spread(comparison.timm_seconds, ' s')}, {comparison.timm_layout}",
        spread(comparison.ratios),
        f"{statistics.median(comparison.shares(comparison.our_seconds)):.0%}",
        f"{statistics.median(comparison.shares(comparison.timm_seconds)):.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def write_results(args: argparse.Namespace, setting: dict[str, str], comparisons: list[Comparison]) -> None:
    lines = [
        *listed(setting),
        "Median (least to most). Ratio: timm's time over ours in a pair of turns; above 1 ours is faster. Share: of",
        "the rate of a matrix product in the same turn.",
        "",
        "| Model | Ours | timm | Ratio | Our share | timm's share |",
        "|---|---|---|---|---|---|",
        *map(row, comparisons),
    ]
    rows = [{**asdict(one), "ratios": one.ratios} for one in comparisons]
    name = f"step-{torch.device(args.device).type}-{args.px}px-{args.precision}"
    keep(name, "One training step, ours and timm's", lines, {**setting, "rows": rows}, args.out)


if __name__ == "__main__":
    sys.exit(main())

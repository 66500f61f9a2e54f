"""What the metric losses cost: against pytorch-metric-learning's, and as a share of a training step.

    python -m benchmarks.losses [--batch 256] [--classes 1000] [--features 2048] [--repeats 30] [--threads 2]

Each side computes the same loss of the same features, forward and backward, and is checked to give the same value
and gradient. The sides take turns; each pair of turns gives a ratio. The step is ResNeSt50's with cross-entropy at
224 px, measured at --step-batch images and scaled to --batch, since a whole batch of activations fits no memory here.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import ArcFaceLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from benchmarks.machine import RESULTS, about, busy_unless, device_name, keep, listed
from benchmarks.step.speed import spread, synchronize, training_step
from fewsight.losses import ArcFace, BatchHardTriplet, Targets
from fewsight.machine.device import best_precision

WARM_UP = 3
MARGIN, SCALE, MARGIN_RAD = 0.3, 30.0, 0.5

Side = Callable[[Tensor, Tensor], Tensor]  # (features, labels) -> loss


@dataclass(frozen=True)
class Comparison:
    """Seconds of a loss, forward and backward, in the order taken; a ratio above 1 means that ours is faster."""

    loss: str
    our_seconds: list[float]
    peer_seconds: list[float]

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.our_seconds, self.peer_seconds, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=30, help="pairs of turns that are measured")
    parser.add_argument("--step-batch", type=int, default=8)
    parser.add_argument("--step-repeats", type=int, default=5)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--force", action="store_true", help="start though another process uses a core")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    busy = busy_unless(args.force)
    torch.set_num_threads(args.threads)
    args.precision = best_precision(torch.device(args.device))
    comparisons = [compare(name, *sides, args) for name, sides in both_sides(args).items()]
    step_seconds = resnest50_steps(args)
    write(args, busy, comparisons, step_seconds)
    return 0


def both_sides(args: argparse.Namespace) -> dict[str, tuple[Side, Side]]:
    """Each loss as ours and as the peer's, with the same weights."""
    triplet, distance = BatchHardTriplet(MARGIN), LpDistance(normalize_embeddings=False)
    miner, peer_triplet = (
        BatchHardMiner(distance=distance),
        TripletMarginLoss(MARGIN, distance=distance, reducer=MeanReducer()),
    )
    arcface = ArcFace(args.classes, args.features, scale=SCALE, margin_rad=MARGIN_RAD).to(args.device)
    peer_arcface = ArcFaceLoss(args.classes, args.features, margin=math.degrees(MARGIN_RAD), scale=SCALE).to(
        args.device
    )
    with torch.no_grad():
        peer_arcface.W.copy_(arcface.weight.T)
    no_logits = torch.empty(0)

    def ours(loss: torch.nn.Module) -> Side:
        return lambda features, labels: loss(no_logits, features, Targets(labels, labels))[0]

    return {
        "batch-hard triplet": (
            ours(triplet),
            lambda features, labels: peer_triplet(features, labels, miner(features, labels)),
        ),
        "ArcFace": (ours(arcface), peer_arcface),
    }


def compare(name: str, ours: Side, theirs: Side, args: argparse.Namespace) -> Comparison:
    """Check that both give the same numbers, warm both up, then take turns."""
    torch.manual_seed(0)
    features = torch.randn(args.batch, args.features, device=args.device, requires_grad=True)
    labels = torch.randperm(args.classes, device=args.device)[: args.batch // 4].repeat_interleave(4)
    values, gradients = [], []
    for side in (ours, theirs):
        loss = side(features, labels)
        values.append(loss.item())
        gradients.append(torch.autograd.grad(loss, features)[0])
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)

    def turn(side: Side) -> float:
        synchronize(features.device)
        start = time.perf_counter()
        side(features, labels).backward()  # type: ignore[no-untyped-call]
        synchronize(features.device)
        seconds = time.perf_counter() - start
        features.grad = None
        return seconds

    taken: tuple[list[float], list[float]] = ([], [])
    for repeat in range(WARM_UP + args.repeats):
        order = (0, 1) if repeat % 2 == 0 else (1, 0)
        for number in order:
            seconds = turn((ours, theirs)[number])
            if repeat >= WARM_UP:
                taken[number].append(seconds)
    found = Comparison(name, *taken)
    print(
        f"{name}: ours {spread(taken[0], ' s')}, peer {spread(taken[1], ' s')}, ratio {spread(found.ratios)}",
        flush=True,
    )
    return found


def resnest50_steps(args: argparse.Namespace) -> list[float]:
    """Seconds of a step of `--batch` images, scaled from `--step-batch`."""
    settings = argparse.Namespace(batch=args.step_batch, px=args.px, precision=args.precision, device=args.device)
    step = training_step("ours", "resnest50", "channels-last", settings)
    step()
    seconds = []
    for _ in range(args.step_repeats):
        start = time.perf_counter()
        step()
        seconds.append((time.perf_counter() - start) * args.batch / args.step_batch)
    return seconds


def write(args: argparse.Namespace, busy: list[str], comparisons: list[Comparison], step_seconds: list[float]) -> None:
    """Markdown for people, JSON for programs."""
    setting = about(
        "losses",
        busy,
        ("torch", "pytorch-metric-learning"),
        device_name(args.device),
        threads=str(args.threads),
        setting=f"batch {args.batch}, {args.classes} classes, {args.features} features, float32",
        turns=f"{args.repeats} pairs",
        step=f"ResNeSt50, {args.px} px, {args.precision}, {args.step_repeats} steps of {args.step_batch} images, "
        f"scaled to {args.batch}: {spread(step_seconds, ' s')}",
    )
    whole = statistics.median(step_seconds)
    lines = [
        *listed(setting),
        "Forward and backward, median (least to most). Ratio: the peer's time over ours in a pair of turns.",
        "",
    ]
    lines += ["| loss | ours | peer | ratio | ours, share of a step |", "|---|---|---|---|---|"]
    for one in comparisons:
        share = statistics.median(one.our_seconds) / whole
        cells = [one.loss, spread(one.our_seconds, " s"), spread(one.peer_seconds, " s"), spread(one.ratios)]
        lines.append(f"| {' | '.join(cells)} | {share:.3%} |")
    rows = [{**asdict(one), "ratios": one.ratios} for one in comparisons]
    name = f"losses-{torch.device(args.device).type}"
    values = {**setting, "step_seconds": step_seconds, "rows": rows}
    keep(name, "The metric losses, ours and pytorch-metric-learning's", lines, values, args.out)
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())

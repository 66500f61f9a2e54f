"""How long `fewsight train` takes to the accuracy that timm's training script reaches, with the same backbone.

    python -m benchmarks.time_to_accuracy DATA [--share 0.5] [--seeds 0] [--sets tiny20,cifar10-50]

The peer is `benchmarks.peer_timm` with the report's recipe, from start to last score, for a fixed number of epochs.
Ours is `fewsight train` with --hours at --share of the peer's time and the same backbone (`auto` chooses the rest),
timed from the command to its last line. Both are scored on the test images once; the peer's score is in its time, ours
had val to score instead.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch

from benchmarks.machine import about, busy_unless, device_name, keep
from fewsight.scores.metrics import wilson

SETS = {  # name -> folder to train on, folder or split to score, px and epochs of the peer
    "tiny20": ("tiny20", "devtest", 64, 40),
    "cifar10-50": ("cifar10-50/split0", "cifar10-50/devtest", 32, 250),
}
OURS, THEIRS = "resnest14", "resnest14d"
SAME_BACKBONE = ("model.backbone=resnest14", "model.stem=large", "model.width=1.0")


@dataclass(frozen=True)
class Pair:
    """One seed on one set; of `total` images so many are right."""

    data: str
    seed: int
    epochs: int
    timm_seconds: float
    timm_right: int
    our_seconds: float
    our_right: int
    total: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds tiny20/ and cifar10-50/")
    parser.add_argument("--share", type=float, default=0.5, help="of the peer's time that ours is given")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE for fewsight train")
    parser.add_argument("--force", action="store_true", help="start though another process uses a core")
    args = parser.parse_args()
    busy = busy_unless(args.force)
    setting = about(
        "time_to_accuracy",
        busy,
        f"torch {torch.__version__}, timm {timm.__version__}",
        device=f"{device_name('cpu')}, {torch.get_num_threads()} threads",
    )
    lines = [f"- {name}: {value}" for name, value in setting.items()]
    lines += ["", f"timm's {THEIRS} against fewsight's {OURS}, time from the command to the end.", ""]
    lines += [
        "| Data | Seed | timm, top-1 | s | fewsight, top-1 | s | Share of the time |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = []
    for name in args.sets.split(","):
        for seed in (int(text) for text in args.seeds.split(",")):
            pair = compare(args, name, seed)
            pairs.append(pair)
            lines.append(
                f"| {name} | {seed} | {wilson(pair.timm_right, pair.total)}, {pair.epochs} epochs | "
                f"{pair.timm_seconds:.0f} | {wilson(pair.our_right, pair.total)} | {pair.our_seconds:.0f} | "
                f"{pair.our_seconds / pair.timm_seconds:.2f} |"
            )
            print(lines[-1], flush=True)
            keep(
                "time-to-accuracy",
                "Time to timm's accuracy",
                lines,
                {**setting, "pairs": [asdict(one) for one in pairs]},
            )
    return 0


def compare(args: argparse.Namespace, name: str, seed: int) -> Pair:
    """The peer first: its time decides ours."""
    folder, test, px, epochs = SETS[name]
    data, apart = args.data / folder, (args.data / test) if "/" in test else None
    command = [sys.executable, "-m", "benchmarks.peer_timm", str(data), "--model", THEIRS, "--px", str(px)]
    command += ["--epochs", str(epochs), "--seed", str(seed)]
    command += ["--test", str(apart)] if apart else ["--split", test]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peer = json.loads(answer.splitlines()[-1])
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        hours = args.share * peer["seconds"] / 3600
        settings = [text for value in (*SAME_BACKBONE, f"run.seed={seed}", *args.set) for text in ("--set", value)]
        began = time.perf_counter()
        fewsight("train", str(data), "--out", str(run), "--hours", f"{hours:.5f}", *settings)
        seconds = time.perf_counter() - began
        print((run / "recipe.toml").read_text(), file=sys.stderr)
        which = [str(apart)] if apart else [str(data), "--split", test]
        fewsight("evaluate", str(run), *which, "--json", str(run / "test.json"))
        top1 = json.loads((run / "test.json").read_text())["top1"]
    assert top1["total"] == peer["total"], "both are scored on the same images"
    return Pair(name, seed, epochs, peer["seconds"], peer["right"], seconds, top1["count"], peer["total"])


def fewsight(*arguments: str) -> None:
    """Run the command; what it says goes to stderr."""
    subprocess.run([sys.executable, "-m", "fewsight", *arguments], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""Ours against timm at equal wall time on tiny20: 20 classes, 50 training images each, 64 px.

    python -m benchmarks.tiny20 DATA [--hours 0.13] [--seeds 0,1,2] [--split val] [--peers resnet18,resnest14d]

Each side is a whole command in a process of its own, from start to last score, the sides taking turns. Ours is
`fewsight train` with the default recipe, then one `fewsight evaluate`; the peer is `benchmarks.peer_timm`. The
first seed plans and the others repeat its plan, as `--seeds` does; --plan gives a plan that is there already.
Everything is chosen on val; score devtest once, at the end (--split devtest).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, busy_processes, commit, device_name
from fewsight.scores.metrics import wilson


def main() -> int:
    """Run every side for every seed; write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds tiny20/")
    parser.add_argument("--hours", type=float, default=0.13)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--split", default="val")
    parser.add_argument("--peers", default="resnet18,resnest14d", help="timm models; may be empty")
    parser.add_argument("--peer-seeds", default="0", help="the seeds that the peers run too")
    parser.add_argument("--plan", type=Path, help="a recipe.toml that every seed repeats")
    parser.add_argument("--keep", type=Path, help="where the runs are kept; default: a folder that is removed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--force", action="store_true", help="start although another process uses a core")
    args = parser.parse_args()
    busy = busy_processes()
    if busy and not args.force:
        print(f"not started: other processes use a core ({'; '.join(busy)})", file=sys.stderr)
        return 2
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        for seed in (int(text) for text in args.seeds.split(",")):
            rows.append(ours(args, seed, folder))
            peers = args.peers.split(",") if str(seed) in args.peer_seeds.split(",") else []
            rows += [peer(args, name, seed) for name in peers if name]
    write(args, rows, busy)
    return 0


def ours(args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """The whole of `fewsight train`, its test on val included; then the split's score, apart from the time."""
    data, run = str(args.data / "tiny20"), str(folder / f"seed{seed}")
    start = time.perf_counter()
    plan = ["--recipe", str(args.plan)] if args.plan else ["--hours", str(args.hours)]
    fewsight("train", data, "--out", run, *plan, "--set", f"run.seed={seed}")
    seconds = time.perf_counter() - start
    args.plan = args.plan or Path(run) / "recipe.toml"
    fewsight("evaluate", run, data, "--split", args.split, "--json", f"{run}.json")
    top1 = json.loads(Path(f"{run}.json").read_text())["top1"]
    return row("fewsight, auto", seed, top1["count"], top1["total"], seconds)


def peer(args: argparse.Namespace, model: str, seed: int) -> dict[str, Any]:
    """The whole of the peer's script."""
    command = [sys.executable, "-m", "benchmarks.peer_timm", str(args.data / "tiny20"), "--model", model]
    command += ["--hours", str(args.hours), "--seed", str(seed), "--split", args.split]
    command += ["--ema", "0.99"] if model != "resnet18" else []
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(answer.splitlines()[-1])
    return row(f"timm {model}, {found['epochs']} epochs", seed, found["right"], found["total"], found["seconds"])


def fewsight(*arguments: str) -> None:
    """Run the command; its output goes to the screen."""
    subprocess.run([sys.executable, "-m", "fewsight", *arguments], check=True)


def row(side: str, seed: int, right: int, total: int, seconds: float) -> dict[str, Any]:
    """One run's line, printed as it comes."""
    line = {"side": side, "seed": seed, "right": right, "total": total, "seconds": round(seconds, 1)}
    print(json.dumps(line), flush=True)
    return line


def write(args: argparse.Namespace, rows: list[dict[str, Any]], busy: list[str]) -> None:
    """Markdown for people, JSON for programs."""
    setting = {
        "command": f"python -m benchmarks.tiny20 {' '.join(sys.argv[1:])}",
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name("cpu"),
        "versions": f"torch {torch.__version__}",
        "other load": "; ".join(busy) or "none",
    }
    lines = [f"# tiny20, {args.split}: top-1 at {args.hours} hours a run", ""]
    lines += [f"- {name}: {value}" for name, value in setting.items()] + [""]
    lines += ["| side | top-1 of each seed | mean ± sd | n images | seconds, median |", "|---|---|---|---|---|"]
    for kind in dict.fromkeys(line["side"].split(",")[0] for line in rows):
        of_side = [line for line in rows if line["side"].split(",")[0] == kind]
        shares = [100 * line["right"] / line["total"] for line in of_side]
        deviation = f" ± {statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
        seconds = statistics.median(line["seconds"] for line in of_side)
        each = ", ".join(f"{wilson(line['right'], line['total'])}" for line in of_side)
        mean = f"{statistics.mean(shares):.1f}{deviation} %"
        lines.append(f"| {of_side[0]['side']} | {each} | {mean} | {of_side[0]['total']} | {seconds:.0f} |")
    text = "\n".join(lines) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"tiny20-{args.split}.md").write_text(text)
    (args.out / f"tiny20-{args.split}.json").write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(main())

"""Accuracy at equal cost: `fewsight train` against its peers, on sets of several fields.

    python -m benchmarks.accuracy run DATA --out DIR [--sides fewsight,resnet18,ridge] [--sets trash,satellite]
                                  [--budget 1200] [--seeds 0] [--split val]
    python -m benchmarks.accuracy table DATA --out DIR [--budget 1200] [--split val]

DATA holds domains/, tiny20/ and cifar10-50/. The budget is in core-seconds: user and system time of the training's
process and its children, with passive waiting, so that other load decides nothing. Each result is a file in DIR,
written when it is there; a run that was cut short begins with what is missing. Choose on val; score devtest once, at
the end.
`--fewsight NAME=PYTHON:SRC` adds a side that is another checkout in its own environment.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.accuracy.measure import run_job
from benchmarks.accuracy.sets import DEFAULT, SETS
from benchmarks.accuracy.sides import SIDES, Job, Side, fewsight
from benchmarks.accuracy.table import lines, read_results
from benchmarks.machine import about, keep


def main() -> int:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="results, and the runs below runs/")
    parser.add_argument("--sides", default="fewsight,resnet18,ridge", help=f"of {', '.join(SIDES)} and --fewsight's")
    parser.add_argument("--fewsight", action="append", default=[], metavar="NAME=PYTHON:SRC")
    parser.add_argument("--sets", default=",".join(DEFAULT), help=f"of {', '.join(SETS)}")
    parser.add_argument("--budget", type=float, default=1200.0, help="core-seconds")
    parser.add_argument("--cores", type=int, default=2, help="threads of each side")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--split", default="val", choices=("val", "devtest"))
    parser.add_argument("--base", default="fewsight", help="the side that the others are compared with")
    args = parser.parse_args()
    if args.what == "run":
        run(args)
    table = lines(read_results(args.out, args.split, args.budget), args.base)
    setting = about("accuracy", [], ("torch",))
    described = [f"- {name}: {value}" for name, value in setting.items()]
    keep(f"accuracy-{args.split}-{args.budget:g}s", "Accuracy at equal cost", [*described, "", *table], setting)
    print("\n".join(table))
    return 0


def run(args: argparse.Namespace) -> None:
    """Set by set and seed by seed, so that what is there at any time is paired."""
    sides = dict(SIDES)
    for text in args.fewsight:
        name, _, where = text.partition("=")
        python, _, source = where.partition(":")
        sides[name] = fewsight(name, python, source)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in (int(text) for text in args.seeds.split(",")):
        for name in args.sets.split(","):
            for side in (sides[text] for text in args.sides.split(",")):
                one(args, side, name, seed)


def one(args: argparse.Namespace, side: Side, name: str, seed: int) -> None:
    """One result."""
    folder = args.out / "runs" / f"{name}-{side.name}-{args.budget:g}s-seed{seed}"
    job = Job(SETS[name], args.data, seed, args.budget, args.cores, args.split, folder)
    result = run_job(side, job, args.out)
    top1 = 100 * result["count"] / result["n"]
    print(f"{name} {side.name} seed {seed}: {top1:.1f} % in {result['core_seconds']:.0f} core-s", flush=True)


if __name__ == "__main__":
    sys.exit(main())

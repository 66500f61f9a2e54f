"""Accuracy at equal cost: `fewsight train` against its peers, on sets of several fields.

    python -m benchmarks.accuracy run DATA --out DIR [--sides fewsight,resnet18,ridge] [--sets trash,satellite]
                                  [--budget 1200] [--seeds 0] [--split val] [--fastai PYTHON]
    python -m benchmarks.accuracy table DATA --out DIR [--budget 1200] [--split val]
    python -m benchmarks.accuracy plan DATA --out PLANS --sides before --fewsight before=PYTHON:SRC [--budget 1200]

DATA holds domains/, tiny20/ and cifar10-50/. The budget is in core-seconds: user and system time of the training's
process and of the children that it waits for, with passive waiting and in float32, so that other load decides nothing.
Each result is a file in DIR, written when it is there; a run that was cut short begins with what is missing.

The peers resnet18, timm-resnet18, timm-resnest14d, fastai and ridge have two settings each. On val both are run, and
val chooses for each set; on devtest, which is scored once, at the end, the chosen one alone is run, so val comes first.
fastai has an environment of its own: peer_fastai.txt.

`--fewsight NAME=PYTHON:SRC` adds a side that is another checkout in an environment that has its dependencies.
`--fewsight NAME=PYTHON:SRC:PLANS` repeats the plans that the command `plan` wrote: they are made once for each set and
budget, on an idle machine (it refuses a busy one), and lie in PLANS/BUDGETs/SET.toml. An example for today's `auto`:

    git worktree add ../before d22e4e0
    python -m benchmarks.accuracy plan DATA --out ../plans --sides before --fewsight before=PYTHON:../before/src
    python -m benchmarks.accuracy run DATA --out DIR --sides before --fewsight before=PYTHON:../before/src:../plans

For cifar10-50 on devtest all 500 labels are trained on, by a plan of its own: `plan --split devtest`.
`table` writes its tables and the picture to benchmarks/results.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.accuracy.measure import make_plan, run_job
from benchmarks.accuracy.picture import draw
from benchmarks.accuracy.sets import DEFAULT, SETS
from benchmarks.accuracy.sides import Job, Side, all_sides, fewsight
from benchmarks.accuracy.table import chosen, lines, read_results, val_scores
from benchmarks.machine import RESULTS, about, busy_unless, keep, listed


def main() -> int:
    """Run what is missing, make the plans, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "plan"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="results, and the runs below runs/; or the plans")
    parser.add_argument(
        "--sides",
        default="fewsight,resnet18,ridge",
        help=f"names of --fewsight, and of {', '.join(all_sides())}; PEER is both of its settings, or the chosen one",
    )
    parser.add_argument("--fewsight", action="append", default=[], metavar="NAME=PYTHON:SRC[:PLANS]")
    parser.add_argument("--fastai", default=sys.executable, metavar="PYTHON", help="of the environment that has fastai")
    parser.add_argument("--sets", default=",".join(DEFAULT), help=f"of {', '.join(SETS)}")
    parser.add_argument("--budget", type=float, default=1200.0, help="core-seconds")
    parser.add_argument("--cores", type=int, default=2, help="threads of each side")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--split", default="val", choices=("val", "devtest"))
    parser.add_argument("--base", default="fewsight", help="the side that the others are compared with")
    parser.add_argument("--force", action="store_true", help="plan although another process uses a core")
    args = parser.parse_args()
    if args.what == "table":
        write_tables(args)
        return 0
    if args.what == "plan":
        busy_unless(args.force)
    for seed in (int(text) for text in args.seeds.split(",")):
        for name in args.sets.split(","):
            for side in sides_for(args, name):  # set by set, so that what is there at any time is paired
                one(args, side, name, seed)
    return 0


def sides_for(args: argparse.Namespace, name: str) -> list[Side]:
    """The sides that are run on a set: both settings of a peer on val, the one that val chose on devtest."""
    known = all_sides(args.fastai)
    for text in args.fewsight:
        title, _, where = text.partition("=")
        known[title] = fewsight(title, *where.split(":"))
    val = read_results(args.out, "val") if args.split == "devtest" else []
    found = []
    for text in args.sides.split(","):
        settings = [side for side in known.values() if side.name == text or side.name.startswith(f"{text}/")]
        if not settings:
            raise SystemExit(f"--sides: {text} is none of {', '.join(known)}")
        if len(settings) > 1 and args.split == "devtest":
            missing = {side.name for side in settings} - set(val_scores(val, args.budget, name))
            if missing:
                raise SystemExit(f"{name}: no result on val of {', '.join(sorted(missing))}; run --split val first")
            settings = [known[chosen(val, args.budget, name)[text]]]
        found += settings
    return found


def one(args: argparse.Namespace, side: Side, name: str, seed: int) -> None:
    """One result, or one plan."""
    title = f"{name}-{side.name.replace('/', '_')}-{args.budget:g}s-seed{seed}-{args.split}"
    folder = args.out / "runs" / title
    job = Job(SETS[name], args.data.absolute(), seed, args.budget, args.cores, args.split, folder.absolute())
    if args.what == "plan":
        target = args.out / job.plan
        if not target.exists():
            make_plan(side, job, target)
        print(target, flush=True)
        return
    result = run_job(side, job, args.out / f"{title}.json")
    top1 = 100 * result["count"] / result["n"]
    print(f"{name} {side.name} seed {seed}: {top1:.1f} % in {result['core_seconds']:.0f} core-s", flush=True)


def write_tables(args: argparse.Namespace) -> None:
    """The tables at a budget, and the picture over all budgets, to benchmarks/results."""
    results, val = read_results(args.out, args.split), read_results(args.out, "val")
    table = lines(results, val, args.base, args.budget)
    setting = about("accuracy", [])
    picture = f"accuracy-{args.split}.png"
    drawn = draw(results, val, args.split, RESULTS / picture)
    shown = ["", f"![Accuracy over core-seconds]({picture})"] if drawn else []
    title = f"Accuracy at equal cost: {args.budget:g} core-seconds, {args.split}"
    keep(f"accuracy-{args.split}-{args.budget:g}s", title, [*listed(setting), *table, *shown], setting)
    print("\n".join(table))


if __name__ == "__main__":
    sys.exit(main())

"""What the report's losses and augmentation gain at small size, on tiny20: arms paired by seed, with intervals.

    python -m benchmarks.accuracy.loss_arms train DATA --runs DIR [--jobs 2]     # an hour and more; resumes
    python -m benchmarks.accuracy.loss_arms score DATA --runs DIR [--split val]  # at the end: --split devtest

DATA is the folder that holds tiny20/. Every arm is a `fewsight train` by loss_arms.toml. The arms of the second
stage start from the weights of the arm `ce` of their seed, for 32 epochs more; each metric loss has a control that
trains on with cross-entropy on the same kind of batches.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.machine import RESULTS, about, keep, listed
from fewsight.scores.metrics import wilson

HERE = Path(__file__).parent
RECIPE = HERE / "loss_arms.toml"
SEEDS = (0, 1, 2)
SECOND = ("stages.0.epochs=32", "stages.0.optim.warmup_epochs=1.0")
WHOLE = ("stages.0.epochs=72",)  # as long as both stages
NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Arm:
    """One training: what differs from the recipe, the arm whose weights it starts from, its seeds."""

    sets: tuple[str, ...] = ()
    start: str = ""
    seeds: tuple[int, ...] = SEEDS


ARMS = {
    "ce": Arm(),
    "ce, then ce": Arm((*SECOND, "stages.0.batches=shuffled"), "ce"),
    "ce, then ce+arcface": Arm((*SECOND, "stages.0.loss=ce+arcface"), "ce"),
    "ce, then ce on PxK": Arm((*SECOND, "stages.0.batches=pk"), "ce"),
    "ce, then ce+triplet": Arm((*SECOND, "stages.0.loss=ce+triplet"), "ce"),
    "ce, then ce+triplet, normalised": Arm(
        (*SECOND, "stages.0.loss=ce+triplet", "stages.0.losses.triplet.normalise=true"), "ce"
    ),
    "ce, then ce+arcface, weight 0.1": Arm(
        (*SECOND, "stages.0.loss=ce+arcface", "stages.0.losses.weights.arcface=0.1"), "ce"
    ),
    "ce+arcface from scratch": Arm((*WHOLE, "stages.0.loss=ce+arcface"), seeds=(0,)),
    "ce+triplet from scratch": Arm((*WHOLE, "stages.0.loss=ce+triplet"), seeds=(0,)),
    "ce from scratch, as long": Arm(WHOLE, seeds=(0,)),
    "crop 50-100 %": Arm(("augment.crop_area=[0.5, 1.0]",), seeds=(0,)),
    "no AutoAugment": Arm(("augment.policy=none",), seeds=(0,)),
    "no CutMix": Arm(("augment.cutmix_prob=0.0",), seeds=(0,)),
}
PAIRS = (  # the second minus the first
    ("ce", "ce, then ce"),
    ("ce, then ce", "ce, then ce+arcface"),
    ("ce, then ce on PxK", "ce, then ce+triplet"),
    ("ce, then ce on PxK", "ce, then ce+triplet, normalised"),
    ("ce, then ce", "ce, then ce+arcface, weight 0.1"),
    ("ce, then ce", "ce, then ce on PxK"),
    ("ce, then ce+arcface", "ce+arcface from scratch"),
    ("ce, then ce+triplet", "ce+triplet from scratch"),
    ("ce, then ce", "ce from scratch, as long"),
    ("ce", "crop 50-100 %"),
    ("ce", "no AutoAugment"),
    ("ce", "no CutMix"),
)


def main() -> int:
    """Train what is missing, or score what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score"))
    parser.add_argument("data", type=Path, help="the folder that holds tiny20/")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="train these alone")
    parser.add_argument("--split", default="val")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.what == "train":
        return train(args)
    return score(args)


def folder(args: argparse.Namespace, arm: str, seed: int) -> Path:
    """Where a run lies."""
    name = "".join(sign if sign.isalnum() or sign == "+" else "-" for sign in arm)
    return Path(args.runs) / name / f"seed{seed}"


# --- training -----------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> int:
    """Every run that is not finished, seed by seed, `jobs` at a time; an arm waits for the weights it starts from."""
    waiting = [(arm, seed) for seed in SEEDS for arm in args.only if seed in ARMS[arm].seeds]
    lock = threading.Condition()
    failed: list[str] = []

    def next_job() -> tuple[str, int] | None:
        with lock:
            while waiting and not failed:
                for job in waiting:
                    start = ARMS[job[0]].start
                    if not start or finished(folder(args, start, job[1])):
                        waiting.remove(job)
                        return job
                lock.wait(5)
        return None

    def work() -> None:
        while job := next_job():
            if run_job(args, *job) != 0:
                failed.append(f"{job[0]}, seed {job[1]}")
            with lock:
                lock.notify_all()

    threads = [threading.Thread(target=work) for _ in range(args.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(f"failed: {name}" for name in failed) or "all runs are finished")
    return 2 if failed else 0


def run_job(args: argparse.Namespace, arm: str, seed: int) -> int:
    """Train or resume one run; its output goes to a log beside it."""
    out = folder(args, arm, seed)
    if finished(out):
        return 0
    command = [sys.executable, "-m", "fewsight", "train"]
    if (out / "run.json").exists():
        command += ["--resume", str(out)]
    else:
        command += [str(args.data / "tiny20"), "--out", str(out), "--recipe", str(RECIPE)]
        for value in (f"run.seed={seed}", *ARMS[arm].sets):
            command += ["--set", value]
        if ARMS[arm].start:
            command += ["--init-from", str(folder(args, ARMS[arm].start, seed))]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("ab") as log:
        print(f"{datetime.now(UTC):%H:%M} {arm}, seed {seed}", flush=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, stdout=log, stderr=log, check=False, env=environment).returncode


def finished(run: Path) -> bool:
    """Whether the run came to its end."""
    info = run / "run.json"
    return info.exists() and json.loads(info.read_text(encoding="utf-8"))["status"] == "finished"


# --- scoring ------------------------------------------------------------------------------------------------


def score(args: argparse.Namespace) -> int:
    """Predict the split with every run, once, and compare the arms image by image."""
    right = {
        (arm, seed): hits(args, folder(args, arm, seed))
        for arm in ARMS
        for seed in ARMS[arm].seeds
        if finished(folder(args, arm, seed))
    }
    arms = [arm for arm in ARMS if any(arm == one for one, _ in right)]
    rows = [arm_row(arm, [right[arm, seed] for seed in SEEDS if (arm, seed) in right]) for arm in arms]
    pairs = [
        pair_row(
            first, second, [(right[first, seed], right[second, seed]) for seed in SEEDS if (second, seed) in right]
        )
        for first, second in PAIRS
        if first in arms and second in arms
    ]
    write(args, rows, pairs)
    return 0


def hits(args: argparse.Namespace, run: Path) -> np.ndarray:
    """Whether each image of the split is predicted right; the predictions stay beside the run."""
    target = run.with_suffix(f".{args.split}.csv")
    if not target.exists():
        images = str(args.data / "tiny20" / args.split)
        subprocess.run(
            [sys.executable, "-m", "fewsight", "predict", str(run), images, "--out", str(target), "--top-k", "1"],
            check=True,
        )
    with target.open(encoding="utf-8", newline="") as handle:
        return np.array([Path(row["path"]).parent.name == row["label"] for row in csv.DictReader(handle)])


def arm_row(arm: str, right: list[np.ndarray]) -> dict[str, Any]:
    """An arm's top-1 of each seed, in %."""
    each = [100 * float(one.mean()) for one in right]
    interval = str(wilson(int(right[0].sum()), len(right[0]))) if len(right) == 1 else ""
    spread = statistics.stdev(each) if len(each) > 1 else None
    return {"arm": arm, "each": each, "mean": statistics.mean(each), "sd": spread, "wilson": interval}


def pair_row(first: str, second: str, right: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """The gain of `second` over `first` in points: mean over seeds, interval over seeds and over images.

    Over seeds: Student's t on the paired differences. Over images: the images are drawn again (bootstrap), the
    trained models stay; it says what other images of the same kind could show, not what other seeds could.
    """
    gains = 100 * np.stack([after.astype(float) - before for before, after in right])  # [seeds, images]
    each = gains.mean(1)
    over_seeds = None
    if len(each) > 1:
        half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5
        over_seeds = [float(each.mean() - half), float(each.mean() + half)]
    of_image = gains.mean(0)
    drawn = np.random.default_rng(0).integers(0, len(of_image), (NUM_RESAMPLES, len(of_image)))
    over_images = np.percentile(of_image[drawn].mean(1), [2.5, 97.5]).tolist()
    return {
        "from": first,
        "to": second,
        "each": each.tolist(),
        "mean": float(each.mean()),
        "over_seeds": over_seeds,
        "over_images": over_images,
        "discordant": float((gains != 0).mean()),
    }


def write(args: argparse.Namespace, rows: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> None:
    """Markdown for people, JSON for programs."""
    recipe = "loss_arms.toml: half-width ResNeSt14, 48 px, 40 epochs, then 32 more in the second stage"
    setting = about("accuracy.loss_arms", [], recipe=recipe)
    lines = listed(setting)
    lines += ["| arm | top-1 of each seed, % | mean ± sd of seeds |", "|---|---|---|"]
    for row in rows:
        spread = f"{row['mean']:.1f} ± {row['sd']:.1f} %" if row["sd"] is not None else f"{row['wilson']} (one seed)"
        lines.append(f"| {row['arm']} | {numbers(row['each'])} | {spread} |")
    lines += ["", "Gains in points of top-1, paired by seed and image:", ""]
    lines += [
        "| from | to | of each seed | mean | 95 % over seeds (t) | 95 % over images (bootstrap) |",
        "|---|---|---|---|---|---|",
    ]
    for row in pairs:
        seeds = "one seed" if row["over_seeds"] is None else bounds(row["over_seeds"])
        lines.append(
            f"| {row['from']} | {row['to']} | {numbers(row['each'], '+')} | {row['mean']:+.1f} | {seeds} | "
            f"{bounds(row['over_images'])} |"
        )
    title = f"The losses on tiny20, {args.split} (n = 1,000 images)"
    keep(f"loss-arms-{args.split}", title, lines, {"setting": setting, "arms": rows, "pairs": pairs}, args.out)
    print("\n".join(lines))


def numbers(values: list[float], sign: str = "") -> str:
    return ", ".join(f"{value:{sign}.1f}" for value in values)


def bounds(values: list[float]) -> str:
    return f"[{values[0]:+.1f}, {values[1]:+.1f}]"


if __name__ == "__main__":
    sys.exit(main())

"""Six small trainings and the digests of what they give: the proof that a change to the code changes no bit.

Run it on both commits on one machine and compare what it prints:

    git worktree add ../before COMMIT
    PYTHONPATH=../before/src .venv/bin/python tools/trace.py > before.txt
    .venv/bin/python tools/trace.py > after.txt
    diff before.txt after.txt

It knows fewsight by its command line only, so that it runs on any commit: each run is trained by `fewsight train`, one
of them by two processes of torchrun, then scored by `fewsight evaluate --views report`, on a few of scikit-learn's
digits. Python takes fewsight from PYTHONPATH where that is set, else as it is installed; the first line on stderr says
from where.

A line a run: the digests of its losses (the steps and epochs of log.jsonl, by keys that every commit has), of its
weights and of its scores; the last line has one digest of all. Between them the runs see every family of backbones, all
losses, both policies, CutMix, flips, weight decay, growing images, balanced classes, a loading process and
recomputation.

The digests depend on the processor and on the versions of torch, NumPy and Pillow: they are never committed. It takes
about a minute and a half on two idle cores, and needs two.

    --out DIR      keep the data and the runs there (a new folder)
    --only NAME    this run alone
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_digits

SPLITS = {"train": 20, "val": 6}  # images of each of the ten classes
LOG_KEYS = ("kind", "stage", "epoch", "step", "loss", "lr", "terms", "train_loss", "val_top1", "val_nll")
AT_A_TIME = 2  # runs side by side; how many changes no digest

RECIPE = """\
[model]
backbone = "resnest14"
stem = "medium"
width = 0.125

[augment]
train_px = 32
crop_area = [0.3, 1.0]
flip_prob = 0.5
policy = "autoaugment"
cutmix_prob = 0.5

[[stages]]
loss = "ce"
epochs = 3
batch_size = 40
optim = { base_lr = 0.5, weight_decay = 5e-4, warmup_epochs = 1.0 }

[eval]
test_px = [32, 40]

[run]
seed = 1
device = "cpu"
precision = "float32"
threads = 1
workers = 0
"""


@dataclass(frozen=True)
class Training:
    """One of the runs: the recipe above with some values changed."""

    name: str
    changes: tuple[str, ...]
    processes: int = 1


TRAININGS = (
    Training("ce", ("stages.0.first_px=24", "data.balance=sampling")),
    Training(
        "ce_then_arcface",
        (
            "model.backbone=seresnext26d",
            "model.width=0.0625",
            'stages=[{loss="ce", epochs=2, batch_size=40, optim={base_lr=0.5}}, '
            '{loss="ce+arcface", epochs=2, batch_size=40, lr_scale=0.5, optim={base_lr=0.5}}]',
            "data.balance=weights",
        ),
    ),
    Training(
        "ce_triplet",
        (
            "stages.0.loss=ce+triplet",
            "stages.0.batches=pk",
            "stages.0.images_per_class=4",
            "augment.policy=trivialaugment",
            "run.recompute=true",
        ),
    ),
    Training(
        "ema_best",
        (
            "model.backbone=tresnet_s",
            "stages.0.epochs=4",
            "stages.0.ema_half_life_epochs=0.5",
            "stages.0.optim.nesterov=true",
            "run.select=best",
        ),
    ),
    Training("accumulate", ("stages.0.accumulate=2", "run.workers=1")),
    Training("two_processes", ("run.sync_norm=true",), processes=2),
)


class Failed(Exception):
    """A command did not end well; the message is what it was and what it said."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print the digests; 1 where a command failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="keep the data and the runs in this new folder")
    parser.add_argument("--only", choices=[one.name for one in TRAININGS], help="this run alone")
    asked = parser.parse_args(arguments)
    if asked.out is not None and asked.out.exists() and any(asked.out.iterdir()):
        parser.error(f"--out {asked.out} is not empty")
    began = time.monotonic()
    try:
        with folder_for(asked.out) as folder:
            trace(folder, [one for one in TRAININGS if asked.only in (None, one.name)])
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


@contextmanager
def folder_for(out: Path | None) -> Iterator[Path]:
    """The folder that was asked for, or one that is removed at the end."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="fewsight-trace-") as name:
            yield Path(name)


def trace(folder: Path, trainings: Sequence[Training]) -> None:
    """Train the runs in `folder` and print a line for each, then one digest of all."""
    print(f"tracing {home_of_fewsight(folder)}", file=sys.stderr, flush=True)
    write_images(folder / "digits")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    everything = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for training, digests in zip(trainings, pool.map(lambda one: digests_of(folder, one), trainings), strict=True):
            everything += [training.name, *digests]
            loss, weights, scores = digests
            print(f"{training.name:<16} loss {loss}  weights {weights}  scores {scores}", flush=True)
    print(f"{'all':<16} {digest(one.encode() for one in everything)}")


def write_images(folder: Path) -> None:
    """`folder/SPLIT/CLASS`: digits in grey and in colour, of many sizes; PNG, and JPEG for every fifth."""
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for label in range(10):
        of_class = iter(pixels[labels == label])
        for split, count in SPLITS.items():
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(enlarged(next(of_class), number))
                if number % 5 == 4:
                    image.save(place / f"{number:02d}.jpg", quality=90)
                else:
                    image.save(place / f"{number:02d}.png")


def enlarged(digit: np.ndarray, number: int) -> np.ndarray:
    """uint8 [8, 8] -> [H, W], or [H, W, 3] for odd numbers, each in a colour of its own."""
    large = np.kron(digit, np.ones((3 + number % 3, 3 + number % 4), np.uint8))
    if number % 2 == 0:
        return large
    colour = np.array([255 - 20 * (number % 7), 255 - 20 * (number % 5), 255 - 20 * (number % 9)])
    tinted: np.ndarray = (large[:, :, None].astype(int) * colour // 255).astype(np.uint8)
    return tinted


def digests_of(folder: Path, training: Training) -> tuple[str, str, str]:
    """Train and score a run; the digests of its losses, weights and scores."""
    run, data = folder / "runs" / training.name, folder / "digits"
    changes = [part for change in training.changes for part in ("--set", change)]
    command: list[str | Path] = ["train", data, "--recipe", folder / "recipe.toml", "--out", run, *changes]
    fewsight(folder, command, training.processes)
    fewsight(folder, ["evaluate", run, data, "--split", "val", "--views", "report"])
    return loss_digest(run), weights_digest(run), scores_digest(run)


def fewsight(folder: Path, arguments: Sequence[str | Path], processes: int = 1) -> None:
    """Run a command of fewsight in `folder`.

    Raises:
        Failed: it ended with another exit code than 0.
    """
    command = [sys.executable, "-m", "fewsight", *map(str, arguments)]
    if processes > 1:
        shared = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *shared, *command[1:]]
    told = run_in(folder, command)
    if told.returncode != 0:
        raise Failed(f"exit code {told.returncode}: {' '.join(command)}\n{told.stdout}{told.stderr}")


def home_of_fewsight(folder: Path) -> str:
    """Where the processes take fewsight from."""
    told = run_in(folder, [sys.executable, "-c", "import fewsight; print(fewsight.__file__)"])
    if told.returncode != 0:
        raise Failed(told.stderr)
    return str(Path(told.stdout.strip()).parent)


def run_in(folder: Path, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command with one thread, away from any checkout, with a cache of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FEWSIGHT_CACHE": str(folder / "cache")}
    if "PYTHONPATH" in environment:  # it may be relative to here
        parts = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(part).resolve()) for part in parts if part)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def loss_digest(run: Path) -> str:
    """Of the steps and epochs that the run has logged, without times."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [{key: line[key] for key in LOG_KEYS if key in line} for line in lines if line["kind"] in ("step", "epoch")]
    return digest(json.dumps(line, sort_keys=True).encode() for line in kept)


def weights_digest(run: Path) -> str:
    """Of every tensor by name: its type, shape and bytes."""
    tensors = sorted(load_file(run / "weights.safetensors").items())
    return digest(part for name, one in tensors for part in (f"{name} {one.dtype} {one.shape}".encode(), one.tobytes()))


def scores_digest(run: Path) -> str:
    """Of the log-probabilities of every view of val."""
    files = sorted((run / "scores" / "val").glob("*.f32"))
    if not files:
        raise Failed(f"{run} has no scores of val")
    return digest(part for file in files for part in (file.name.encode(), file.read_bytes()))


def digest(parts: Iterable[bytes]) -> str:
    """BLAKE2b over parts, each after its length: 16 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(main())

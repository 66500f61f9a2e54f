"""The peer that needs no training to speak of: ridge regression on gradients' orientations and colours.

Histograms of oriented gradients (Dalal and Triggs, CVPR 2005: 9 orientations, cells of 8 px at 64 px, blocks of 2 x 2)
and 4 x 4 means and deviations of the colours; the strength of the ridge by leave-one-out on train.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.accuracy.rows import write_rows

SIDE, CELL, BINS = 64, 8, 9


def features(path: Path) -> np.ndarray:
    """float [D] of an image."""
    image = np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR), float) / 255
    cells = image.reshape(4, SIDE // 4, 4, SIDE // 4, 3)
    return np.concatenate([gradients(image.mean(2)), cells.mean((1, 3)).ravel(), cells.std((1, 3)).ravel()])


def gradients(grey: np.ndarray) -> np.ndarray:
    """Blocks of 2 x 2 cells of orientation histograms, each of length 1."""
    down, right = np.gradient(grey)
    size, angle = np.hypot(down, right), np.arctan2(down, right) % np.pi
    index = np.minimum((angle / np.pi * BINS).astype(int), BINS - 1)
    onehot = np.eye(BINS)[index] * size[..., None]
    count = SIDE // CELL
    cells = onehot.reshape(count, CELL, count, CELL, BINS).sum((1, 3))
    blocks = np.stack([cells[y : y + 2, x : x + 2].ravel() for y in range(count - 1) for x in range(count - 1)])
    lengths: np.ndarray = np.linalg.norm(blocks, axis=1, keepdims=True) + 1e-6
    return np.asarray(blocks / lengths).ravel()


def main() -> None:
    """Fit, score, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args, _ = parser.parse_known_args()  # size, seed, budget and threads change nothing here
    train = sorted(path for path in (args.data / "train").glob("*/*") if path.is_file())
    test = sorted(path for path in args.test.glob("*/*") if path.is_file())
    labels = np.array([path.parent.name for path in train])
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(0, 5, 16), class_weight="balanced"))
    model.fit(np.stack([features(path) for path in train]), labels)
    decision = model.decision_function(np.stack([features(path) for path in test]))
    decision = np.stack([-decision, decision], 1) if decision.ndim == 1 else decision
    probs = np.exp(decision - decision.max(1, keepdims=True))
    write_rows(args.out, test, [str(name) for name in model.classes_], probs / probs.sum(1, keepdims=True))


if __name__ == "__main__":
    main()

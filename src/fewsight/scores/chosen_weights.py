"""Weights of an ensemble's members: given as numbers, or chosen greedily on stored scores."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from fewsight.errors import RunError
from fewsight.scores.fusion import fused_probs, label_indices, true_class_probs
from fewsight.scores.members import Member, Scored, Weights
from fewsight.wording import counted

GREEDY_STEPS = 25


def check_not_trained_on(scored: Scored, what: str) -> None:
    """Check that no image was trained on, before something is chosen on the images.

    Args:
        scored: on those images.
        what: is to be chosen, for the message.

    Raises:
        RunError: some images were trained on.
    """
    num_trained_on = int(scored.trained_on.sum())
    if num_trained_on:
        raise RunError(
            f"{scored.path}: {num_trained_on:,} of these {counted(len(scored.trained_on), 'image')} were trained on, "
            f"so {what} cannot be chosen on them; choose on a split that was not trained on, or, for runs on train + "
            "val, choose with the same recipes trained on train alone and carry it over (--from)"
        )


def greedy_weights(members: Sequence[Member], steps: int = GREEDY_STEPS) -> tuple[float, ...]:
    """Weights of members chosen for top-1 on labelled images: members are added one at a time, with replacement.

    Starts from an empty ensemble. Each step adds the member that gives the highest top-1, and among equal ones the
    lowest NLL; the best ensemble of all steps is returned. A member that is never added gets 0. Images whose most
    probable class is the same for every member cannot change top-1, and are read only once.

    Source: Caruana et al., Ensemble selection from libraries of models, ICML 2004.
    """
    fusions = [member.weights for member in members]
    true_probs = true_class_probs(fusions)  # [M, n]
    prob_sum, counts = np.zeros(true_probs.shape[1]), np.zeros(len(members), int)
    best, best_counts = (-1, -np.inf), counts
    with tempfile.TemporaryFile() as file:
        contested = _write_contested(fusions, file)
        for step in range(1, steps + 1):
            candidates = counts + np.eye(len(members), dtype=int)
            num_correct = sum((_num_correct(file, part, candidates) for part in contested), np.zeros(len(members), int))
            log_likelihood = np.log(np.maximum((prob_sum + true_probs) / step, 1e-30)).mean(1)
            member = int(np.lexsort((-log_likelihood, -num_correct))[0])
            prob_sum, counts = prob_sum + true_probs[member], candidates[member]
            if (reached := (int(num_correct[member]), float(log_likelihood[member]))) > best:
                best, best_counts = reached, counts
    return tuple(float(weight) for weight in best_counts / best_counts.sum())


@dataclass(frozen=True)
class _ContestedImages:
    """Images on which members differ, in a file of float32 [M, images, K]."""

    offset: int  # bytes
    labels: np.ndarray  # [images]
    num_classes: int


def _write_contested(fusions: Sequence[Weights], file: BinaryIO) -> list[_ContestedImages]:
    """Write the members' probabilities of the images on which their most probable classes differ."""
    store = next(iter(fusions[0])).store
    labels, readable, parts = label_indices(store), store.readable, []
    for images, probs in fused_probs(fusions):
        predicted = probs.argmax(2)
        differ = (predicted != predicted[0]).any(0) & readable[images]
        parts.append(_ContestedImages(file.tell(), labels[images][differ], probs.shape[2]))
        file.write(probs[:, differ].tobytes())
    return parts


def _num_correct(file: BinaryIO, part: _ContestedImages, mixtures: np.ndarray) -> np.ndarray:
    """int [Q]: how many of the images each mixture [Q, M] of members classifies correctly."""
    file.seek(part.offset)
    shape = mixtures.shape[1], len(part.labels) * part.num_classes
    probs = np.frombuffer(file.read(4 * shape[0] * shape[1]), np.float32).reshape(shape)
    mixed = (mixtures.astype(np.float32) @ probs).reshape(len(mixtures), len(part.labels), part.num_classes)
    num_correct: np.ndarray = (mixed.argmax(2) == part.labels).sum(1)
    return num_correct


def parse_weights(text: str, count: int) -> tuple[float, ...]:
    """Numbers separated by commas, one for each of `count` members, as weights that sum to 1.

    Raises:
        RunError: not `count` numbers, one is negative or not finite, or all are 0.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    total = sum(numbers)
    if len(numbers) != count or not all(number >= 0 for number in numbers) or not 0 < total < float("inf"):
        example = ",".join(["2", *["1"] * (count - 1)])
        raise RunError(
            f"--weights {text}: expected a finite number of at least 0 for each of the {count} members, not all 0, for "
            f"example {example}"
        )
    return tuple(number / total for number in numbers)

"""Counter-based random streams: every draw is a function of named integers, so nothing needs restoring.

Each stream is a Philox generator whose key holds the seed and the stream's purpose and whose counter holds
the position (epoch and image, or epoch and step). Worker count, order of work and restarts change nothing.
"""

from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

IMAGE, BATCH, ORDER, SPLIT, SAMPLE, VIEW, NEAR = range(7)  # what a stream is for


class _Key(ISeedSequence):
    """Hands a generator its key. Without a seed sequence NumPy would first ask the system for entropy, which takes
    three times as long as all the rest, and then drop it."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """The key."""
        return self.words


def stream(seed: int, purpose: int, epoch: int = 0, position: int = 0) -> np.random.Generator:
    """A generator of its own for (seed, purpose, epoch, position); all are integers of at most 64 bits."""
    # uint64: a list with an integer of 64 bits would pass through float64 and lose its last bits
    key, counter = np.array([seed, purpose], np.uint64), np.array([0, 0, epoch, position], np.uint64)
    return np.random.Generator(np.random.Philox(_Key(key), counter=counter))  # type: ignore[arg-type]


def image_stream(seed: int, epoch: int, index: int) -> np.random.Generator:
    """What happens to image `index` of the training set in `epoch`."""
    return stream(seed, IMAGE, epoch, index)


def batch_stream(seed: int, epoch: int, step: int) -> np.random.Generator:
    """What happens to the whole batch of `step` (counted within `epoch`), CutMix for example."""
    return stream(seed, BATCH, epoch, step)


def order_stream(seed: int, epoch: int) -> np.random.Generator:
    """The order in which `epoch` visits the training set."""
    return stream(seed, ORDER, epoch)

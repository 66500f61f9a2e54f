"""Counter-based random streams: every draw is a function of named integers, so that no state needs to be saved.

Each stream is a Philox generator whose key holds the seed and the stream's purpose and whose counter holds
the position (epoch, image and draw, or epoch and step). The number of workers, the order of work and restarts change
nothing.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

IMAGE, BATCH, ORDER, SPLIT, SAMPLE, VIEW, NEAR = range(7)  # what a stream is for


class _Key(ISeedSequence):
    """Gives a generator its key. Without a seed sequence NumPy would first get entropy from the system, which takes
    three times as long as everything else, and then discard it."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """The key."""
        return self.words


def stream(seed: int, purpose: int, epoch: int = 0, position: int = 0, draw: int = 0) -> np.random.Generator:
    """The random generator of (seed, purpose, epoch, position, draw), non-negative integers of at most 64 bits."""
    # uint64: NumPy would convert a list with a 64-bit integer through float64 and lose its last bits
    key, counter = np.array([seed, purpose], np.uint64), np.array([0, draw, epoch, position], np.uint64)
    return np.random.Generator(np.random.Philox(_Key(key), counter=counter))  # type: ignore[arg-type]


def image_stream(seed: int, epoch: int, index: int, draw: int = 0) -> np.random.Generator:
    """The stream for the augmentation of image `index` of the training set in `epoch`.

    Args:
        draw: how often the epoch has drawn the image before, where batches may repeat it.
    """
    return stream(seed, IMAGE, epoch, index, draw)


def batch_stream(seed: int, epoch: int, step: int) -> np.random.Generator:
    """The stream for what happens to the whole batch of `step` within `epoch`, such as CutMix."""
    return stream(seed, BATCH, epoch, step)


def order_stream(seed: int, epoch: int) -> np.random.Generator:
    """The stream for the order in which `epoch` visits the training set."""
    return stream(seed, ORDER, epoch)

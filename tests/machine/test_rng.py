"""Random streams: functions of their integers and of nothing else."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewsight.machine.rng import (
    BATCH,
    IMAGE,
    ORDER,
    SAMPLE,
    SPLIT,
    VIEW,
    batch_stream,
    image_stream,
    order_stream,
    stream,
)

WORDS = st.integers(0, 2**63 - 1)
FIRST_NUMBERS = [5174393151606808275, 3436719883951927943, 4463322101129833757]  # of the streams below, kept


def first(generator: np.random.Generator) -> list[int]:
    return [int(number) for number in generator.integers(2**63, size=8)]


@given(WORDS, st.sampled_from([IMAGE, BATCH, ORDER, SPLIT, SAMPLE, VIEW]), WORDS, WORDS)
def test_stream_is_a_function_of_its_integers(seed: int, purpose: int, epoch: int, position: int) -> None:
    drawn = first(stream(seed, purpose, epoch, position))
    np.random.default_rng().random()
    assert first(stream(seed, purpose, epoch, position)) == drawn


@given(*[st.tuples(WORDS, st.integers(0, 4), WORDS, WORDS)] * 2)
def test_streams_of_other_integers_differ(
    first_key: tuple[int, int, int, int], second_key: tuple[int, int, int, int]
) -> None:
    assert (first(stream(*first_key)) == first(stream(*second_key))) == (first_key == second_key)


def test_neighbouring_streams_do_not_overlap() -> None:
    """Philox counts up from a stream's start: no neighbour's numbers follow soon."""
    keys = [
        (seed, purpose, epoch, position)
        for seed in (0, 1)
        for purpose in range(3)
        for epoch in (0, 1)
        for position in (0, 1)
    ]
    numbers = [int(number) for key in keys for number in stream(*key).integers(2**63, size=1000)]
    assert len(set(numbers)) == len(numbers)


def test_named_streams_differ_for_the_same_integers() -> None:
    drawn = [first(image_stream(3, 2, 0)), first(batch_stream(3, 2, 0)), first(order_stream(3, 2))]
    assert len(set(map(tuple, drawn))) == 3
    assert first(image_stream(3, 2, 1)) != first(image_stream(3, 1, 2)), "epoch and image do not mix"
    assert first(image_stream(3, 2, 1, 0)) == first(image_stream(3, 2, 1))
    assert first(image_stream(3, 2, 1, 1)) not in (first(image_stream(3, 2, 1)), first(image_stream(3, 2, 2)))


def test_streams_are_the_same_in_another_process_and_forever() -> None:
    program = (
        "import json; from fewsight.machine.rng import *; "
        "print(json.dumps([g.integers(2**63, size=8).tolist() "
        "for g in (image_stream(7, 1, 2), batch_stream(7, 1, 2), order_stream(7, 1))]))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = [first(image_stream(7, 1, 2)), first(batch_stream(7, 1, 2)), first(order_stream(7, 1))]
    assert json.loads(answer.stdout) == here
    assert [drawn[0] for drawn in here] == FIRST_NUMBERS, "runs begun with an older fewsight would not resume"


@pytest.mark.parametrize("number", [2**53, 2**63, 2**64 - 1025, 2**64 - 2])
def test_integers_of_64_bits_keep_their_last_bit(number: int) -> None:
    draws = [stream(0, VIEW, 0, position).random() for position in (number, number + 1)]
    assert draws[0] != draws[1]
    keys = [stream(seed, VIEW).random() for seed in (number, number + 1)]
    assert keys[0] != keys[1]

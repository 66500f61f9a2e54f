"""Warm-up and schedules by hand."""

import itertools
import math

import pytest

from fewsight.optim import SCHEDULES, is_warmup_cut, lr_at, peak_lr, stage_lr, warmup_epochs
from fewsight.recipes import Optim, Stage


def test_learning_rate_follows_the_paper() -> None:
    rates = [lr_at(step, peak=0.4, warmup_steps=4, total_steps=12) for step in range(12)]
    assert rates[:5] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert rates[8] == pytest.approx(0.2)  # half way down
    assert rates[11] == pytest.approx(0.2 * (1 + math.cos(math.pi * 7 / 8)))
    assert lr_at(12, peak=0.4, warmup_steps=4, total_steps=12) == pytest.approx(0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_starts_at_the_peak_and_never_rises(name: str) -> None:
    values = [SCHEDULES[name](step / 100) for step in range(101)]
    assert values[0] == 1
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))
    assert 0 <= values[-1] < 1e-9


def test_learning_rate_without_warmup_starts_at_the_peak() -> None:
    assert lr_at(0, peak=0.3, warmup_steps=0, total_steps=5) == pytest.approx(0.3)


def test_learning_rate_of_a_stage_that_is_all_warmup_rises() -> None:
    rates = [lr_at(step, peak=1.0, warmup_steps=5, total_steps=5) for step in range(5)]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_peak_scales_with_the_batch() -> None:
    assert peak_lr(Stage(epochs=1, batch_size=128), 128) == pytest.approx(0.05)
    assert peak_lr(Stage(epochs=1, batch_size=64, optim=Optim(base_lr=0.2)), 64) == pytest.approx(0.05)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0, 1.5, 5.0])
def test_every_stage_reaches_its_peak_and_a_cut_warmup_starts_above_zero(
    warmup: float, epochs: int, num_steps: int
) -> None:
    stage = Stage(epochs=epochs, batch_size=256, optim=Optim(warmup_epochs=warmup))
    rates = [stage_lr(stage, step, num_steps, 0.4) for step in range(epochs * num_steps)]
    assert max(rates) == pytest.approx(0.4)
    assert rates.index(max(rates)) <= (len(rates) + 1) / 2, "then it falls"
    assert warmup_epochs(stage) == min(warmup, epochs / 2)
    assert rates[0] > 0 or not is_warmup_cut(stage)


def test_warmup_of_at_most_half_a_stage_is_that_of_the_paper() -> None:
    """Bit for bit: the runs of the paper's recipes stay what they are."""
    for epochs, warmup in ((250, 1.0), (200, 1.0), (2, 1.0), (3, 1.5)):
        stage = Stage(epochs=epochs, batch_size=256, optim=Optim(warmup_epochs=warmup))
        for step in range(0, epochs * 5, 3):
            plain = lr_at(step, peak=0.3, warmup_steps=round(warmup * 5), total_steps=epochs * 5)
            assert stage_lr(stage, step, 5, 0.3) == plain


def test_cut_warmup_by_hand() -> None:
    stage = Stage(epochs=1, batch_size=256, optim=Optim(warmup_epochs=1.0))
    assert [stage_lr(stage, step, 1, 0.4) for step in range(1)] == pytest.approx([0.4])
    assert [stage_lr(stage, step, 2, 0.4) for step in range(2)] == pytest.approx([0.2, 0.4])
    rates = [stage_lr(stage, step, 5, 0.4) for step in range(5)]
    assert rates == pytest.approx([0.4 / 3, 0.8 / 3, 0.4, 0.3, 0.1])

"""Losses against a plain loop over their definition."""

import math

import pytest
import torch
from torch.nn import functional

from fewsight.errors import RecipeError
from fewsight.losses import SmoothedCrossEntropy, Targets, balanced_weights, build_loss
from fewsight.recipes import Losses


def by_definition(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> list[float]:
    """-sum_i q_i log p_i with q = 1 - e on the true class and e / (K - 1) on each other."""
    losses = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = math.log(sum(math.exp(value) for value in row))
        rest = smoothing / max(1, len(row) - 1)
        losses.append(-sum((1 - smoothing if k == label else rest) * (v - total) for k, v in enumerate(row)))
    return losses


@pytest.mark.parametrize("num_classes", [2, 5, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_its_definition(num_classes: int, smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, num_classes), torch.randint(num_classes, (6,))
    loss, logged = SmoothedCrossEntropy(smoothing)(logits, logits, Targets(labels, labels))
    expected = by_definition(logits, labels, smoothing)
    assert loss.item() == pytest.approx(sum(expected) / 6, rel=1e-5)
    assert logged == {}


def test_cross_entropy_equals_pytorch_at_the_scaled_smoothing() -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(8, 10, dtype=torch.float64), torch.randint(10, (8,))
    ours, _ = SmoothedCrossEntropy(0.1)(logits, logits, Targets(labels, labels))
    theirs = functional.cross_entropy(logits.float(), labels, label_smoothing=0.1 * 10 / 9)
    torch.testing.assert_close(ours, theirs)


def test_mixed_targets_mix_the_losses() -> None:
    torch.manual_seed(2)
    logits, labels, others = torch.randn(4, 5), torch.tensor([0, 1, 2, 3]), torch.tensor([3, 0, 4, 3])
    loss, _ = SmoothedCrossEntropy(0.1)(logits, logits, Targets(labels, others, 0.3))
    first, second = (sum(by_definition(logits, which, 0.1)) / 4 for which in (labels, others))
    assert loss.item() == pytest.approx(0.3 * first + 0.7 * second, rel=1e-5)


def test_class_weights_weigh_each_image() -> None:
    torch.manual_seed(3)
    logits, labels = torch.randn(3, 2), torch.tensor([0, 0, 1])
    weights = balanced_weights([2, 1])
    assert weights.tolist() == pytest.approx([0.75, 1.5])
    loss, _ = SmoothedCrossEntropy(0.0, weights)(logits, logits, Targets(labels, labels))
    each = by_definition(logits, labels, 0.0)
    assert loss.item() == pytest.approx((0.75 * each[0] + 0.75 * each[1] + 1.5 * each[2]) / 3, rel=1e-5)


def test_balanced_weights_average_to_one_over_the_images() -> None:
    counts = [10, 1, 0, 5]
    weights = balanced_weights(counts)
    assert weights[2] == 0
    assert sum(w * n for w, n in zip(weights.tolist(), counts, strict=True)) == pytest.approx(16)


def test_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'ce'"):
        build_loss("cee", Losses(), num_classes=3, num_features=8)

"""The batch-hard triplet loss against a plain loop over its definition and against pytorch-metric-learning."""

import math
import re
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from fewsight.losses import BatchHardTriplet, Targets

Margin = float | Literal["soft"]
MARGINS = [0.3, 2.0, "soft"]
CLOSE = 1e-9


def by_definition(
    features: Tensor, labels: Tensor, margin: Margin, *, normalise: bool = False, images: list[int] | None = None
) -> dict[str, float]:
    """Means over the anchors that count: loss, hardest distances, proportion of active anchors; NaN if none counts."""
    rows = features.double().tolist()
    if normalise:
        rows = [[value / math.hypot(*row) for value in row] for row in rows]
    names, own = labels.tolist(), images or list(range(len(rows)))
    losses, farthest, nearest, active = [], [], [], []
    for a, anchor in enumerate(rows):
        others = [b for b in range(len(rows)) if own[b] != own[a]]
        positives = [math.dist(anchor, rows[b]) for b in others if names[b] == names[a]]
        negatives = [math.dist(anchor, rows[b]) for b in others if names[b] != names[a]]
        if not positives or not negatives:
            continue
        gap = max(positives) - min(negatives)
        losses.append(math.log(1 + math.exp(gap)) if margin == "soft" else max(0.0, gap + margin))
        active.append(gap > 0 if margin == "soft" else gap + margin > 0)
        farthest.append(max(positives))
        nearest.append(min(negatives))
    count = len(losses) or math.nan
    return {
        "loss": sum(losses) / count if losses else 0.0,
        "hardest_positive": sum(farthest) / count,
        "hardest_negative": sum(nearest) / count,
        "active_share": sum(active) / count,
    }


def evaluate(loss: BatchHardTriplet, features: Tensor, targets: Targets) -> tuple[float, dict[str, float], Tensor]:
    """The loss, its logged terms, and its gradient with respect to the features."""
    leaf = features.clone().requires_grad_()
    value, logged = loss(leaf, leaf, targets)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), {name: term.item() for name, term in logged.items()}, gradient


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def plain(labels: Tensor | list[int], images: list[int] | None = None) -> Targets:
    labels = torch.as_tensor(labels)
    return Targets(labels, labels, images=None if images is None else torch.tensor(images))


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("normalise", [False, True])
@settings(max_examples=25)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=14), st.integers(0, 99))
def test_loss_equals_its_definition(margin: Margin, normalise: bool, labels: list[int], seed: int) -> None:
    features = drawn(seed, len(labels), 3)
    value, logged, gradient = evaluate(BatchHardTriplet(margin, normalise=normalise), features, plain(labels))
    expected = by_definition(features, torch.tensor(labels), margin, normalise=normalise)
    assert value == pytest.approx(expected.pop("loss"), rel=CLOSE, abs=1e-12)
    assert logged.pop("feature_norm") == pytest.approx(sum(math.hypot(*row) for row in features.tolist()) / len(labels))
    assert logged == pytest.approx(expected, rel=CLOSE, nan_ok=True)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("margin", MARGINS)
def test_float64_features_are_computed_in_float64(margin: Margin) -> None:
    features, labels = drawn(13, 7, 3), torch.tensor([0, 0, 0, 1, 1, 1, 2])  # 6 anchors count: 1 / 6 is no float32
    value, logged, _ = evaluate(BatchHardTriplet(margin), features, plain(labels))
    expected = by_definition(features, labels, margin)
    assert value == pytest.approx(expected["loss"], rel=1e-12)
    assert logged["hardest_positive"] == pytest.approx(expected["hardest_positive"], rel=1e-12)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0]])
def test_batch_without_an_anchor_that_counts_gives_zero(margin: Margin, labels: list[int]) -> None:
    value, logged, gradient = evaluate(BatchHardTriplet(margin), drawn(0, len(labels), 3), plain(labels))
    assert value == 0
    assert all(math.isnan(value) for name, value in logged.items() if name != "feature_norm"), "there is nothing to log"
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("margin", MARGINS)
def test_anchors_without_a_positive_do_not_count(margin: Margin) -> None:
    features, labels = drawn(1, 5, 3), [0, 0, 1, 1, 2]
    features[4] = 100  # alone in its class, and too far to be a hardest negative
    whole, _, gradient = evaluate(BatchHardTriplet(margin), features, plain(labels))
    without, _, _ = evaluate(BatchHardTriplet(margin), features[:4], plain(labels[:4]))
    assert whole == pytest.approx(without)
    assert whole > 0
    assert gradient[4].abs().max() == 0


@pytest.mark.parametrize("margin", MARGINS)
@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=12), st.integers(0, 99))
def test_copies_of_an_image_are_neither_positive_nor_negative(
    margin: Margin, pairs: list[tuple[int, int]], seed: int
) -> None:
    labels, images = [label for label, _ in pairs], [image for _, image in pairs]
    features = drawn(seed, len(pairs), 3)
    value, logged, _ = evaluate(BatchHardTriplet(margin), features, plain(labels, images))
    expected = by_definition(features, torch.tensor(labels), margin, images=images)
    assert value == pytest.approx(expected.pop("loss"), rel=CLOSE, abs=1e-12)
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=CLOSE, nan_ok=True)


def test_far_copy_of_an_image_is_not_its_positive() -> None:
    features = torch.tensor([[0.0], [50.0], [1.0], [2.0], [3.0]])
    loss, labels = BatchHardTriplet(0.3), [0, 0, 0, 1, 1]
    _, apart, _ = evaluate(loss, features, plain(labels, [0, 1, 2, 3, 4]))
    _, copies, _ = evaluate(loss, features, plain(labels, [0, 0, 2, 3, 4]))
    assert apart["hardest_positive"] == pytest.approx((50 + 50 + 49 + 1 + 1) / 5)
    assert copies["hardest_positive"] == pytest.approx((1 + 49 + 49 + 1 + 1) / 5)
    _, lone, _ = evaluate(loss, features, plain(labels, [0, 0, 0, 3, 4]))
    assert lone["hardest_positive"] == pytest.approx(1), "only the other class has positives"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("labels", [[0] * 4 + [1] * 4 + [2] * 4, [0, 1, 2, 0, 1, 5, 0, 3, 3, 6, 2, 0]])
def test_loss_equals_pytorch_metric_learning(
    margin: Margin, normalise: bool, dtype: torch.dtype, labels: list[int]
) -> None:
    features, names = drawn(2, 12, 8, dtype=dtype), torch.tensor(labels)
    value, _, gradient = evaluate(BatchHardTriplet(margin, normalise=normalise), features, plain(names))
    distance = LpDistance(normalize_embeddings=normalise)
    soft = margin == "soft"
    theirs = TripletMarginLoss(0.0 if soft else margin, smooth_loss=soft, distance=distance, reducer=MeanReducer())
    leaf = features.clone().requires_grad_()
    their_value = theirs(leaf, names, BatchHardMiner(distance=distance)(leaf, names))
    (their_gradient,) = torch.autograd.grad(their_value, leaf)
    rtol = CLOSE if dtype == torch.float64 else 1e-4
    assert value == pytest.approx(their_value.item(), rel=rtol)
    torch.testing.assert_close(gradient, their_gradient, rtol=rtol, atol=1e-6)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_gradient_is_right(margin: Margin, normalise: bool, lam: float) -> None:
    features, labels = drawn(3, 8, 4).requires_grad_(), torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])
    loss, targets = BatchHardTriplet(margin, normalise=normalise, mixed="lam"), Targets(labels, labels.roll(3), lam)
    assert torch.autograd.gradcheck(lambda values: loss(values, values, targets)[0], (features,))


def test_small_distances_far_from_the_origin_are_right_in_float32() -> None:
    features = 1000 + 2e-3 * drawn(4, 24, 16, dtype=torch.float32)
    labels = torch.arange(6).repeat_interleave(4)
    expected = by_definition(features, labels, 0.3)
    assert 5e-3 < expected["hardest_negative"] < expected["hardest_positive"] < 2e-2
    _, logged, gradient = evaluate(BatchHardTriplet(0.3), features, plain(labels))
    for name in ("hardest_positive", "hardest_negative"):
        assert logged[name] == pytest.approx(expected[name], rel=1e-3)
    _, _, wide = evaluate(BatchHardTriplet(0.3), features.double(), plain(labels))
    torch.testing.assert_close(gradient.double(), wide, rtol=1e-3, atol=1e-5)  # the same pairs, the same directions


def test_small_distances_between_far_classes_are_right_in_float32() -> None:
    features = torch.tensor([[500.0], [-500.0]]).repeat_interleave(2, 0).repeat(1, 16)
    features += 2e-3 * drawn(5, 4, 16, dtype=torch.float32)
    labels = torch.tensor([0, 0, 1, 1])
    expected = by_definition(features, labels, "soft")
    assert expected["hardest_positive"] < 2e-2
    _, logged, _ = evaluate(BatchHardTriplet("soft"), features, plain(labels))
    assert logged["hardest_positive"] == pytest.approx(expected["hardest_positive"], rel=1e-3)
    assert logged["hardest_negative"] == pytest.approx(expected["hardest_negative"], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_mixed_batch_is_skipped(dtype: torch.dtype) -> None:
    labels = torch.arange(4).repeat(4)
    for size in (1.0, 1e4):
        features = size * drawn(6, 16, 64, dtype=dtype).abs()
        value, logged, gradient = evaluate(BatchHardTriplet(0.3), features, Targets(labels, labels.roll(1), 0.7))
        assert value == 0
        assert logged == {}
        assert torch.equal(gradient, torch.zeros_like(features))


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("normalise", [False, True])
def test_mixed_batch_mixes_the_losses_of_both_labels(margin: Margin, normalise: bool) -> None:
    features, labels, others = drawn(7, 8, 4), torch.tensor([0, 0, 1, 1, 2, 2, 3, 4]), torch.arange(8) % 3
    loss = BatchHardTriplet(margin, normalise=normalise, mixed="lam")
    value, logged, _ = evaluate(loss, features, Targets(labels, others, 0.3))
    first, second = (
        by_definition(features, targets, margin, normalise=normalise)["loss"] for targets in (labels, others)
    )
    assert first != pytest.approx(second, rel=1e-2)
    assert value == pytest.approx(0.3 * first + 0.7 * second, rel=CLOSE)
    assert set(logged) == {"hardest_positive", "hardest_negative", "active_share", "feature_norm"}


def test_only_skipping_learns_from_unmixed_batches_only() -> None:
    assert BatchHardTriplet(mixed="skip").unmixed_only
    assert not BatchHardTriplet(mixed="lam").unmixed_only


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_features_are_computed_in_float32(dtype: torch.dtype) -> None:
    features, targets = drawn(8, 12, 16, dtype=torch.float32).to(dtype), plain(torch.arange(3).repeat(4))
    leaf = features.clone().requires_grad_()
    value, logged = BatchHardTriplet()(leaf, leaf, targets)
    wide, wide_logged, gradient = evaluate(BatchHardTriplet(), features.float(), targets)
    assert value.dtype == torch.float32
    assert value.item() == wide
    assert {name: term.item() for name, term in logged.items()} == wide_logged
    torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], gradient.to(dtype))


def test_logged_terms_equal_values_by_hand() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [6.0, 8.25]])
    _, logged, _ = evaluate(BatchHardTriplet(0.5), features, plain([0, 0, 1, 1]))
    far = math.hypot(3, 4.25)
    assert logged == pytest.approx(
        {
            "hardest_positive": (5 + 5 + 0.25 + 0.25) / 4,
            "hardest_negative": (10 + 5 + 5 + far) / 4,
            "active_share": 1 / 4,  # the second: 5 - 5 + 0.5 > 0
            "feature_norm": (0 + 5 + 10 + math.hypot(6, 8.25)) / 4,
        }
    )
    _, soft, _ = evaluate(BatchHardTriplet("soft"), features, plain([0, 1, 0, 1]))
    assert soft["active_share"] == 1, "soft: active if the positive is farther than the negative"


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_identical_features_give_a_finite_gradient(margin: Margin, normalise: bool, value: float) -> None:
    features = torch.full((8, 5), value)
    loss, logged, gradient = evaluate(BatchHardTriplet(margin, normalise=normalise), features, plain([0, 0, 1, 1] * 2))
    assert loss == pytest.approx(math.log(2) if margin == "soft" else margin, abs=1e-5)
    assert gradient.isfinite().all()
    assert logged["hardest_negative"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    ("margin", "limit"), [(0.3, r"its margin 0\.3"), (2.0, r"its margin 2"), ("soft", r"0\.69 \(log 2\)")]
)
def test_collapse_is_diagnosed_when_features_are_one_point(margin: Margin, limit: str, normalise: bool) -> None:
    loss, targets = BatchHardTriplet(margin, normalise=normalise), plain(torch.arange(8).repeat_interleave(4))
    for spread in (0.0, 1e-4, 1e-3):
        features = torch.ones(1, 64) + spread * drawn(9, 32, 64, dtype=torch.float32)
        value, logged, _ = evaluate(loss, features, targets)
        assert value == pytest.approx(math.log(2) if margin == "soft" else margin, rel=0.05)
        text = loss.collapse(logged, {}, 0.1)
        assert text is not None
        assert ("normalise = true" in text) == (not normalise)
        assert re.search(rf"has collapsed and stays at {limit}.*lr_scale = 0\.1.*losses\.weights\.triplet", text)


def test_collapse_is_diagnosed_while_distances_shrink() -> None:
    loss, first = BatchHardTriplet(0.3), {"hardest_positive": 17.0, "hardest_negative": 11.0, "active_share": 1.0}
    shrinking = {"hardest_positive": 4.0, "hardest_negative": 2.4, "active_share": 0.99}
    text = loss.collapse(shrinking, first, 0.2)
    assert text is not None
    assert (
        "is collapsing: the hardest positive is 4 and the hardest negative 2.4 away on average, 99% of the anchors"
        in text
    )
    assert loss.collapse({**shrinking, "active_share": 0.9}, first, 0.2) is None, "some anchors are satisfied"
    assert loss.collapse({**shrinking, "hardest_positive": 5.0}, first, 0.2) is None
    assert loss.collapse(shrinking, {}, 0.2) is None


@pytest.mark.parametrize("margin", MARGINS)
def test_no_collapse_is_diagnosed_for_healthy_features(margin: Margin) -> None:
    loss, labels = BatchHardTriplet(margin), torch.arange(8).repeat_interleave(4)
    centres, noise = drawn(10, 8, 64, dtype=torch.float32), drawn(11, 32, 64, dtype=torch.float32)
    for features in (noise, centres[labels] + 0.1 * noise, centres[labels] + 1e-4 * noise):
        _, logged, _ = evaluate(loss, features, plain(labels))
        assert loss.collapse(logged, {}, 1.0) is None
    alike = noise[::2].repeat_interleave(2, 0) + 1e-3 * noise  # in pairs of two classes
    _, logged, _ = evaluate(loss, alike, plain(torch.arange(32) % 8))
    assert logged["hardest_negative"] < 0.1
    assert loss.collapse(logged, {}, 1.0) is None, "classes overlap, but features are not one point"
    assert loss.collapse({}, {}, 1.0) is None
    assert loss.collapse({"ce": 0.1}, {}, 1.0) is None


def test_no_collapse_is_diagnosed_where_no_anchor_counts() -> None:
    loss = BatchHardTriplet(0.3)
    _, logged, _ = evaluate(loss, drawn(12, 6, 64), plain([0, 1, 2, 3, 4, 5]))
    assert loss.collapse(logged, {}, 1.0) is None, "healthy features without positives"

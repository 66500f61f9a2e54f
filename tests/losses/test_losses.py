"""Cross-entropy against a plain loop over its definition, sums of losses, and checks before training."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewsight.errors import RecipeError
from fewsight.losses import (
    LOSSES,
    SmoothedCrossEntropy,
    Targets,
    WeightedSum,
    balanced_weights,
    batch_kind,
    build_loss,
    check_loss,
    collapse_of,
)
from fewsight.recipes import Losses, Stage
from fewsight.recipes.schema import Triplet


def by_definition(logits: Tensor, labels: Tensor, smoothing: float) -> list[float]:
    """-sum_i q_i log p_i with q = 1 - e on the true class and e / (K - 1) on each other."""
    losses = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = math.log(sum(math.exp(value) for value in row))
        rest = smoothing / max(1, len(row) - 1)
        losses.append(-sum((1 - smoothing if k == label else rest) * (v - total) for k, v in enumerate(row)))
    return losses


def build(name: str, losses: Losses | None = None) -> nn.Module:
    torch.manual_seed(0)
    return build_loss(name, losses or Losses(), num_classes=3, num_features=5)


def batch(*, lam: float = 1.0) -> tuple[Tensor, Tensor, Targets]:
    """Logits, features and targets: 3 classes of 3 images, 5 features."""
    draw = torch.Generator().manual_seed(4)
    labels = torch.arange(3).repeat_interleave(3)
    logits, features = torch.randn(9, 3, generator=draw), torch.randn(9, 5, generator=draw)
    return logits, features, Targets(labels, labels.roll(1), lam)


def stage(loss: str = "ce", **values: object) -> Stage:
    return Stage.model_validate({"loss": loss, "epochs": 1, "batch_size": 8, **values})


class MinimalLoss(nn.Module):
    """A loss that declares only what it must."""

    batches = "shuffled"
    trains_head = False
    unmixed_only = False

    def forward(self, logits: Tensor, features: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        return features.square().mean(), {"largest": features.detach().max()}


class DiagnosingLoss(MinimalLoss):
    def __init__(self, text: str | None) -> None:
        super().__init__()
        self.text = text

    def collapse(self, means: Mapping[str, float], first: Mapping[str, float], progress: float) -> str | None:
        return None if self.text is None else f"{self.text} {means['x']:g} {progress:g}"


@pytest.mark.parametrize("num_classes", [2, 5, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_its_definition(num_classes: int, smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, num_classes), torch.randint(num_classes, (6,))
    loss, logged = SmoothedCrossEntropy(smoothing)(logits, logits, Targets(labels, labels))
    expected = by_definition(logits, labels, smoothing)
    assert loss.item() == pytest.approx(sum(expected) / 6, rel=1e-5)
    assert logged == {}


@pytest.mark.parametrize("num_classes", [2, 10])
def test_cross_entropy_equals_pytorch_at_the_scaled_smoothing(num_classes: int) -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(8, num_classes, dtype=torch.float64), torch.randint(num_classes, (8,))
    ours, _ = SmoothedCrossEntropy(0.1)(logits, logits, Targets(labels, labels))
    theirs = functional.cross_entropy(logits, labels, label_smoothing=0.1 * num_classes / (num_classes - 1))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_cross_entropy_gradient_is_right_with_mixed_targets() -> None:
    torch.manual_seed(2)
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    targets = Targets(torch.tensor([0, 1, 2, 3]), torch.tensor([3, 1, 4, 0]), 0.3)
    assert torch.autograd.gradcheck(lambda values: SmoothedCrossEntropy(0.1)(values, values, targets)[0], (logits,))


def test_cross_entropy_of_16_bit_logits_is_computed_in_float32() -> None:
    torch.manual_seed(2)
    logits, labels = torch.randn(8, 10).bfloat16(), torch.arange(8)
    (loss, _), (wide, _) = (
        SmoothedCrossEntropy()(values, values, Targets(labels, labels)) for values in (logits, logits.float())
    )
    assert loss.dtype == torch.float32
    assert torch.equal(loss, wide)


def test_mixed_targets_mix_the_losses() -> None:
    torch.manual_seed(2)
    logits, labels, others = torch.randn(4, 5), torch.tensor([0, 1, 2, 3]), torch.tensor([3, 0, 4, 3])
    loss, _ = SmoothedCrossEntropy(0.1)(logits, logits, Targets(labels, others, 0.3))
    first, second = (sum(by_definition(logits, targets, 0.1)) / 4 for targets in (labels, others))
    assert loss.item() == pytest.approx(0.3 * first + 0.7 * second, rel=1e-5)


def test_class_weights_multiply_each_image() -> None:
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


def test_part_of_targets_has_those_rows() -> None:
    labels = torch.arange(6)
    part = Targets(labels, labels.flip(0), 0.3, labels + 10).part(slice(2, 4))
    assert (part.labels.tolist(), part.other_labels.tolist(), part.lam) == ([2, 3], [3, 2], 0.3)
    assert part.images is not None
    assert part.images.tolist() == [12, 13]
    assert Targets(labels, labels).part(slice(2, 4)).images is None


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("ce+triplet", {}),
        ("ce + triplet", {"triplet": 0.5}),
        ("arcface+ce", {"ce": 2.0, "arcface": 0.25}),
        ("ce+triplet+arcface", {"triplet": 3.0}),
    ],
)
@pytest.mark.parametrize("lam", [1.0, 0.4])
def test_sum_is_the_weighted_sum_and_logs_each_term(name: str, weights: dict[str, float], lam: float) -> None:
    logits, features, targets = batch(lam=lam)
    losses = Losses(weights=weights, triplet=Triplet(mixed="lam"))
    loss = build(name, losses)
    assert isinstance(loss, WeightedSum)
    value, logged = loss(logits, features, targets)
    total = 0.0
    for term in [part.strip() for part in name.split("+")]:
        alone, extra = loss.terms[term](logits, features, targets)
        total += weights.get(term, 1.0) * alone.item()
        assert logged[term].item() == pytest.approx(alone.item())
        assert extra.items() <= logged.items()
    assert value.item() == pytest.approx(total, rel=1e-6)
    assert not any(value.requires_grad for value in logged.values())


def test_sum_has_the_weighted_gradient() -> None:
    logits, features, targets = batch()
    ce, triplet = build("ce"), build("ce+triplet").terms["triplet"]
    whole, parts = (tuple(values.clone().requires_grad_() for values in (logits, features)) for _ in range(2))
    build("ce+triplet", Losses(weights={"ce": 2.0, "triplet": 0.5}))(*whole, targets)[0].backward()
    (2.0 * ce(*parts, targets)[0] + 0.5 * triplet(*parts, targets)[0]).backward()
    for result, expected in zip(whole, parts, strict=True):
        torch.testing.assert_close(result.grad, expected.grad)
        assert result.grad is not None
        assert result.grad.abs().max() > 0


def test_single_loss_with_a_weight_is_weighted() -> None:
    logits, features, targets = batch()
    plain, weighted = (build("ce", Losses(weights=weights)) for weights in ({}, {"ce": 3.0}))
    assert isinstance(plain, SmoothedCrossEntropy)
    assert weighted(logits, features, targets)[0].item() == pytest.approx(
        3 * plain(logits, features, targets)[0].item()
    )


def test_sum_does_not_log_a_skipped_term() -> None:
    logits, features, targets = batch(lam=0.4)
    value, logged = build("ce+triplet")(logits, features, targets)
    assert set(logged) == {"ce"}
    assert value.item() == pytest.approx(build("ce")(logits, features, targets)[0].item())


def test_weight_of_a_loss_outside_the_sum_has_no_effect() -> None:
    """So that a control run can change the loss alone."""
    losses = Losses(weights={"triplet": 0.5})
    logits, features, targets = batch()
    assert torch.equal(build("ce", losses)(logits, features, targets)[0], build("ce")(logits, features, targets)[0])


def test_sum_trains_the_weights_of_its_terms() -> None:
    assert [tuple(weight.shape) for weight in build("ce+arcface").parameters()] == [(3, 5)]


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("cee", {}, r"^loss: there is no 'cee'; did you mean 'ce'\?"),
        ("ce+tripplet", {}, r"^loss: there is no 'tripplet'; did you mean 'triplet'\?"),
        ("ce+arc_face", {}, r"^loss: there is no 'arc_face'; did you mean 'arcface'\?"),
        ("ce+triplet", {"triplt": 0.5}, r"^losses.weights: there is no 'triplt'; did you mean 'triplet'\?"),
        ("zzz", {}, rf"no 'zzz'; it is one of {', '.join(sorted(LOSSES))}, or a sum such as ce\+triplet$"),
        ("", {}, rf"loss '': expected one of {', '.join(LOSSES)}, or a sum such as ce\+triplet"),
        ("ce+", {}, rf"loss 'ce\+': expected one of {', '.join(LOSSES)}, or a sum such as ce\+triplet"),
        ("ce+ce", {}, r"loss 'ce\+ce': a loss is given twice"),
        ("triplet", {}, r"loss 'triplet' does not train the linear head.*; use 'ce\+triplet'"),
        ("arcface", {}, r"loss 'arcface' does not train the linear head.*; use 'ce\+arcface'"),
        (
            "triplet+arcface",
            {"triplet": 2.0},
            r"does not train the linear head, which predicts; use 'ce\+triplet\+arcface'",
        ),
    ],
)
def test_loss_that_cannot_train_is_refused(name: str, weights: dict[str, float], message: str) -> None:
    losses = Losses(weights=weights)
    with pytest.raises(RecipeError, match=message):
        build(name, losses)
    with pytest.raises(RecipeError, match=message):
        check_loss(stage(name, losses=losses), 0.0)


@pytest.mark.parametrize(
    ("name", "batches", "expected"),
    [
        ("ce", "auto", "shuffled"),
        ("ce+arcface", "auto", "shuffled"),
        ("ce+triplet", "auto", "pk"),
        ("arcface+triplet+ce", "auto", "pk"),
        ("ce+triplet", "shuffled", "shuffled"),
        ("ce", "pk", "pk"),
    ],
)
def test_batch_kind_is_the_stages_or_that_of_its_loss(name: str, batches: str, expected: str) -> None:
    assert batch_kind(stage(name, batches=batches)) == expected


@pytest.mark.parametrize("batches", ["auto", "shuffled", "pk"])
def test_accumulation_is_refused_where_images_are_compared(batches: str) -> None:
    with pytest.raises(
        RecipeError, match=r"'ce\+triplet' compares the images.*accumulate is 2.*batch_size or train_px"
    ):
        check_loss(stage("ce+triplet", accumulate=2, batches=batches), 0.0)
    check_loss(stage("ce+triplet", batches=batches), 0.0)
    check_loss(stage("ce+arcface", accumulate=2, batches=batches), 0.0)
    check_loss(stage("ce", accumulate=2, batches=batches), 0.0)


def test_mixing_every_batch_is_refused_if_the_loss_skips_mixed_batches() -> None:
    with pytest.raises(RecipeError, match=r"'ce\+triplet' learns from unmixed batches only.*cutmix_prob = 1 mixes"):
        check_loss(stage("ce+triplet"), 1.0)
    check_loss(stage("ce+triplet"), 0.99)
    check_loss(stage("ce+triplet", losses=Losses(triplet=Triplet(mixed="lam"))), 1.0)
    check_loss(stage("ce+arcface"), 1.0)
    check_loss(stage("ce"), 1.0)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_class_batches_of_fewer_than_four_are_refused(batch_size: int) -> None:
    for class_batches in (
        stage("ce+triplet", batch_size=batch_size),
        stage("ce", batch_size=batch_size, batches="pk"),
    ):
        with pytest.raises(RecipeError, match=rf"batch_size = {batch_size}: .*at least 2 x 2 = 4"):
            check_loss(class_batches, 0.0)
    check_loss(stage("ce", batch_size=batch_size), 0.0)
    check_loss(stage("ce+triplet", batch_size=4), 0.0)


def test_new_loss_needs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "minimal", lambda *_: MinimalLoss())
    logits, features, targets = batch()
    loss = build("ce+minimal", Losses(weights={"minimal": 0.5}))
    value, logged = loss(logits, features, targets)
    expected = features.square().mean().item()
    assert value.item() == pytest.approx(build("ce")(logits, features, targets)[0].item() + 0.5 * expected)
    assert logged["minimal"].item() == pytest.approx(expected)
    assert logged["largest"] == features.max()
    assert collapse_of(loss, {}, {}, 1.0) is None
    check_loss(stage("ce+minimal", accumulate=2), 1.0)
    with pytest.raises(RecipeError, match=r"did you mean 'minimal'"):
        build("ce+minima")


def test_collapse_of_a_sum_is_that_of_its_first_collapsed_term() -> None:
    terms = {"a": MinimalLoss(), "b": DiagnosingLoss(None), "c": DiagnosingLoss("late"), "d": DiagnosingLoss("later")}
    loss = WeightedSum(terms, {})
    assert collapse_of(loss, {"x": 2.0}, {}, 0.5) == "late 2 0.5"
    assert collapse_of(WeightedSum({"a": MinimalLoss(), "b": DiagnosingLoss(None)}, {}), {"x": 2.0}, {}, 0.5) is None
    assert collapse_of(terms["d"], {"x": 1.0}, {}, 1.0) == "later 1 1"
    assert collapse_of(SmoothedCrossEntropy(), {"x": 2.0}, {}, 0.5) is None
    assert collapse_of(build("ce+triplet+arcface"), {}, {}, 1.0) is None, "without logged terms there is no diagnosis"


def test_value_that_a_builder_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(*_: object, power: float = 1.0) -> nn.Module:
        raise ValueError(f"power = {power:g} must be above 0")

    monkeypatch.setitem(LOSSES, "picky", picky)
    losses = Losses.model_validate({"options": {"picky": {"power": -1}}})
    with pytest.raises(RecipeError, match=r"losses\.options\.picky: picky cannot be built: power = -1 must be above 0"):
        build("picky", losses)

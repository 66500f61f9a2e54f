"""ArcFace against a plain loop over its definition and against pytorch-metric-learning."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import ArcFaceLoss
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from fewsight.losses import ArcFace, Targets
from fewsight.losses.arcface import add_margin

MARGIN = 0.5
STEEP = math.pi - MARGIN  # the angle past which cos(theta + m) would rise again


def by_definition(
    features: Tensor, weight: Tensor, labels: Tensor, scale: float = 30.0, margin: float = MARGIN
) -> list[float]:
    """Each image's cross-entropy over s * cos(theta_j), with the margin on its own class."""
    losses = []
    for row, label in zip(features.tolist(), labels.tolist(), strict=True):
        cosines = [
            sum(a * b for a, b in zip(row, centre, strict=True)) / math.hypot(*row) / math.hypot(*centre)
            for centre in weight.tolist()
        ]
        theta = math.acos(cosines[label])
        past = theta > math.pi - margin
        true = math.cos(theta) - margin * math.sin(margin) if past else math.cos(theta + margin)
        logits = [scale * (true if k == label else cosine) for k, cosine in enumerate(cosines)]
        top = max(logits)
        losses.append(top + math.log(sum(math.exp(logit - top) for logit in logits)) - logits[label])
    return losses


def at_angle(direction: Tensor, theta: float, length: float = 1.0) -> Tensor:
    """A vector of that length at that angle to `direction`."""
    draw = torch.randn(direction.shape, dtype=direction.dtype, generator=torch.Generator().manual_seed(0))
    direction = direction / direction.norm()
    across = draw - (draw @ direction) * direction
    return length * (math.cos(theta) * direction + math.sin(theta) * across / across.norm())


def case(*angles: float, dtype: torch.dtype = torch.float64) -> tuple[ArcFace, Tensor, Tensor]:
    """A loss of 7 classes and 4 features; 6 random features with their labels, then one at each angle to its own."""
    torch.manual_seed(0)
    loss = ArcFace(7, 4, margin_rad=MARGIN).to(dtype)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, *range(len(angles))])
    weight = loss.weight.detach()
    at_angles = [at_angle(weight[number], angle, 3.0) for number, angle in enumerate(angles)]
    return loss, torch.cat([torch.randn(6, 4, dtype=dtype), *(feature[None] for feature in at_angles)]), labels


def evaluate(loss: ArcFace, features: Tensor, targets: Targets) -> tuple[float, dict[str, float], Tensor, Tensor]:
    """The loss, its logged terms, and its gradients with respect to the features and its weight."""
    leaf = features.clone().requires_grad_()
    value, logged = loss(leaf, leaf, targets)
    gradients = torch.autograd.grad(value, (leaf, loss.weight))
    return value.item(), {name: value.item() for name, value in logged.items()}, *gradients


ANGLES = (0.01, 1.0, STEEP - 0.05, STEEP + 0.05, math.pi - 0.01)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("margin", [0.0, 0.5, 1.2])
def test_loss_equals_its_definition(scale: float, margin: float) -> None:
    loss, features, labels = case(*ANGLES)
    loss.scale, loss.margin_rad = scale, margin
    value, _, _, _ = evaluate(loss, features, Targets(labels, labels))
    expected = by_definition(features, loss.weight, labels, scale, margin)
    assert value == pytest.approx(sum(expected) / len(expected), rel=1e-9)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("margin", [0.0, 0.5, 1.2])
def test_loss_equals_pytorch_metric_learning(margin: float, dtype: torch.dtype, rtol: float) -> None:
    loss, features, labels = case(0.2, 1.0, STEEP - 0.05, STEEP + 0.05, 3.0, dtype=dtype)
    loss.margin_rad = margin
    theirs = ArcFaceLoss(7, 4, margin=math.degrees(margin), scale=30)
    theirs.W.data = loss.weight.detach().T.clone()
    leaf = features.clone().requires_grad_()
    their_value = theirs(leaf, labels)
    their_gradients = torch.autograd.grad(their_value, (leaf, theirs.W))
    value, _, for_features, for_weight = evaluate(loss, features, Targets(labels, labels))
    assert value == pytest.approx(their_value.item(), rel=rtol)
    torch.testing.assert_close(for_features, their_gradients[0], rtol=rtol, atol=rtol)
    torch.testing.assert_close(for_weight, their_gradients[1].T, rtol=rtol, atol=rtol)
    assert for_weight.abs().max() > 0.01


@pytest.mark.parametrize("lam", [1.0, 0.3])
def test_gradients_are_right_on_both_sides_of_the_branch(lam: float) -> None:
    loss, features, labels = case(*ANGLES)
    targets = Targets(labels, labels.roll(1), lam)

    def value(features: Tensor, weight: Tensor) -> Tensor:
        return functional_call(loss, {"weight": weight}, (features, features, targets))[0]

    assert torch.autograd.gradcheck(value, (features.requires_grad_(), loss.weight.detach().requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margin_at_the_ends_has_its_value_and_a_finite_gradient(dtype: torch.dtype) -> None:
    above = 1 + 2 * torch.finfo(dtype).eps
    cosine = torch.tensor([1.0, above, -1.0, -above], dtype=dtype, requires_grad=True)
    shifted = add_margin(cosine, MARGIN)
    (gradient,) = torch.autograd.grad(shifted.sum(), cosine)
    opposite = -1 - MARGIN * math.sin(MARGIN)
    assert shifted.tolist() == pytest.approx([math.cos(MARGIN)] * 2 + [opposite] * 2, rel=1e-6)
    assert gradient.tolist() == pytest.approx([math.cos(MARGIN)] * 2 + [1, 1], rel=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5, 1.4])
def test_margin_has_the_analytic_gradient(margin: float) -> None:
    near = [10.0**-power for power in range(1, 7)]
    distance = torch.tensor([*near, *torch.linspace(0.2, 1.95, 60).tolist(), *(2 - value for value in near)])
    cosine = (1 - distance.double()).requires_grad_()
    (gradient,) = torch.autograd.grad(add_margin(cosine, margin).sum(), cosine)
    for slope, value in zip(gradient.tolist(), cosine.tolist(), strict=True):
        theta = 2 * math.asin(math.sqrt((1 - value) / 2))
        past = theta > math.pi - margin
        assert slope == pytest.approx(1 if past else math.sin(theta + margin) / math.sin(theta), rel=1e-9)


def test_margin_loses_no_digits_near_one_in_float32() -> None:
    cosine = 1 - torch.tensor([1e-2, 1e-4, 1e-6])
    narrow, wide = cosine.clone().requires_grad_(), cosine.double().requires_grad_()
    gradients = [torch.autograd.grad(add_margin(values, MARGIN).sum(), values)[0] for values in (narrow, wide)]
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5, 1.0, 1.49])
def test_margin_never_rises_as_the_angle_grows(margin: float) -> None:
    theta = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
    close = math.pi - margin + torch.linspace(-1e-6, min(1e-6, margin), 2_001, dtype=torch.float64)
    for angles in (theta, close):
        shifted = add_margin(angles.cos(), margin)
        assert (shifted[1:] - shifted[:-1]).max() <= 1e-15
        assert (shifted <= angles.cos() + 1e-15).all(), "the margin never raises the cosine"


def test_zero_margin_is_scaled_cosine_cross_entropy() -> None:
    loss, features, labels = case(*ANGLES)
    loss.margin_rad = 0.0
    cosine = functional.cosine_similarity(features[:, None], loss.weight[None], dim=2)
    value, logged, _, _ = evaluate(loss, features, Targets(labels, labels))
    assert value == pytest.approx(functional.cross_entropy(30 * cosine, labels).item(), rel=1e-9)
    assert logged["margin_share"] == pytest.approx((cosine.argmax(1) == labels).double().mean().item())


def test_mixed_targets_mix_the_losses_and_the_logged_terms() -> None:
    loss, features, labels = case(*ANGLES)
    others = labels.roll(2)
    value, logged, _, _ = evaluate(loss, features, Targets(labels, others, 0.3))
    first, second = (sum(by_definition(features, loss.weight, targets)) / len(labels) for targets in (labels, others))
    assert value == pytest.approx(0.3 * first + 0.7 * second, rel=1e-9)
    parts = [evaluate(loss, features, Targets(targets, targets))[1] for targets in (labels, others)]
    assert logged == pytest.approx({name: 0.3 * parts[0][name] + 0.7 * parts[1][name] for name in logged})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_is_the_same_inside_autocast(dtype: torch.dtype) -> None:
    loss, features, labels = case(*ANGLES, dtype=torch.float32)
    features, targets = features.to(dtype), Targets(labels, labels)
    value, logged, *gradients = evaluate(loss, features, targets)
    leaf = features.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        inside, logged_inside = loss(leaf, leaf, targets)
    gradients_inside = torch.autograd.grad(inside, (leaf, loss.weight))
    assert inside.dtype == torch.float32
    assert inside.item() == value == evaluate(loss, features.float(), targets)[0]
    assert {name: value.item() for name, value in logged_inside.items()} == logged
    assert all(map(torch.equal, gradients_inside, gradients))


def test_feature_of_length_zero_gives_a_finite_loss_and_gradient() -> None:
    loss, features, labels = case(1.0, dtype=torch.float32)
    features[0] = 0
    value, logged, *gradients = evaluate(loss, features, Targets(labels, labels))
    assert math.isfinite(value)
    assert all(math.isfinite(term) for term in logged.values())
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_length_of_features_and_weights_does_not_matter() -> None:
    loss, features, labels = case(1.0)
    value, _, _, _ = evaluate(loss, features, Targets(labels, labels))
    with torch.no_grad():
        loss.weight.mul_(torch.arange(1, 8)[:, None])
    assert evaluate(loss, 100 * features, Targets(labels, labels))[0] == pytest.approx(value, rel=1e-9)


def test_each_image_counts_by_the_weight_of_its_class() -> None:
    weights, labels, features = torch.tensor([0.6, 3.0, 1.0]), torch.tensor([0, 1, 1, 2]), torch.randn(4, 5)
    plain = ArcFace(3, 5)
    weighted = ArcFace(3, 5, class_weights=weights)
    weighted.load_state_dict(plain.state_dict())
    alone = [
        plain(features[:0], features[i : i + 1], Targets(labels[i : i + 1], labels[i : i + 1]))[0] for i in range(4)
    ]
    expected = torch.stack([weights[label] * loss for label, loss in zip(labels, alone, strict=True)]).mean()
    torch.testing.assert_close(weighted(features[:0], features, Targets(labels, labels))[0], expected)


def test_logged_terms_equal_values_by_hand() -> None:
    loss = ArcFace(3, 2, margin_rad=MARGIN)
    angles, labels = [math.radians(angle) for angle in (10.0, 50.0, 85.0)], [0, 0, 1]
    with torch.no_grad():
        loss.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))  # at 0, 90 and 180 degrees
    features = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles])
    targets = Targets(torch.tensor(labels), torch.tensor(labels))
    _, logged, _, _ = evaluate(loss, features, targets)
    cosines = [[math.cos(angle - math.radians(k)) for k in (0, 90, 180)] for angle in angles]
    others = [(sum(row) - row[label]) / 2 for row, label in zip(cosines, labels, strict=True)]
    assert logged["target_angle_deg"] == pytest.approx((10 + 50 + 5) / 3, rel=1e-4)
    assert logged["other_angle_deg"] == pytest.approx(
        sum(math.degrees(math.acos(cosine)) for cosine in others) / 3, rel=1e-4
    )
    assert logged["margin_share"] == pytest.approx(2 / 3), "50 + 28.6 degrees is farther than 40 to the second class"


def test_collapse_is_diagnosed_when_features_are_no_nearer_to_their_own_class() -> None:
    torch.manual_seed(1)
    loss = ArcFace(20, 64)
    labels = torch.arange(20).repeat(10)
    features = torch.randn(200, 64)
    targets = Targets(labels, labels)
    _, unlearnt, _, _ = evaluate(loss, features, targets)
    _, learnt, _, _ = evaluate(loss, features / 8 + loss.weight.detach()[labels], targets)
    assert unlearnt["other_angle_deg"] - unlearnt["target_angle_deg"] < 2 < 30 < learnt["other_angle_deg"] - 40
    assert loss.collapse(unlearnt, {}, 0.49) is None, "too early for a diagnosis"
    text = loss.collapse(unlearnt, {}, 0.5)
    assert text is not None
    assert "ArcFace does not learn" in text
    assert "losses.weights.arcface" in text
    assert "losses.arcface.margin_rad, now 0.5" in text
    assert loss.collapse(learnt, {}, 1.0) is None
    assert loss.collapse({}, {}, 1.0) is None
    assert loss.collapse({"ce": 1.0}, {}, 1.0) is None


def test_collapse_is_diagnosed_at_once_when_angles_exceed_the_margin() -> None:
    loss = ArcFace(20, 64, margin_rad=0.5)
    for angle, other, collapsed in ((156.0, 159.0, True), (152.0, 170.0, True), (150.0, 170.0, False)):
        text = loss.collapse({"target_angle_deg": angle, "other_angle_deg": other}, {}, 0.05)
        assert (text is not None) == collapsed
        assert text is None or "angles exceed pi - m, where the margin has no effect" in text


def test_loss_owns_a_head() -> None:
    torch.manual_seed(2)
    loss = ArcFace(50, 400)
    assert [(name, tuple(weight.shape)) for name, weight in loss.named_parameters()] == [("weight", (50, 400))]
    assert loss.weight.norm(dim=1).tolist() == pytest.approx([1.0] * 50, abs=0.2)
    assert (loss.batches, loss.trains_head, loss.unmixed_only) == ("shuffled", False, False)

"""The training step against sums by hand, and its state restored bit for bit."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewsight.losses import SmoothedCrossEntropy, Targets, build_loss
from fewsight.models.classifier import build_model
from fewsight.optim import MovingAverage
from fewsight.recipes import Losses, Stage
from fewsight.training.learner import Learner, read_values, split_batch

CPU = torch.device("cpu")


class TinyModel(nn.Module):
    """Like a Classifier, without batch statistics: one weight matrix, one norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.LayerNorm(5), nn.ReLU())
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return self.head(features), features


class LossWithWeight(SmoothedCrossEntropy):
    """A loss that owns a weight and logs a term."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits: Tensor, features: Tensor, targets: Targets) -> tuple[Tensor, dict[str, float]]:
        loss, _ = super().forward(logits * self.scale, features, targets)
        return loss, {"mean_logit": float(logits.detach().mean())}


def stage(**values: Any) -> Stage:
    return Stage.model_validate({"epochs": 1, "batch_size": 8, **values})


def tiny(precision: str = "float32", loss: nn.Module | None = None, **values: Any) -> Learner:
    torch.manual_seed(0)
    return Learner(TinyModel(), loss or LossWithWeight(), stage(**values), 4, CPU, precision)  # type: ignore[arg-type]


def convolutional(precision: str = "float32", **values: Any) -> Learner:
    torch.manual_seed(0)
    model = build_model("resnest14", 3, stem="small", width=0.125).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Learner(model, SmoothedCrossEntropy(), stage(**values), 4, CPU, precision)


def batch(number: int, *, px: int = 2, count: int = 8) -> tuple[Tensor, Targets]:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(count, 3, px, px, generator=generator).to(memory_format=torch.channels_last)
    labels = torch.randint(3, (2, count), generator=generator)
    return images, Targets(labels[0], labels[1], 0.7)


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in learner.weights.items()}


def gradients(learner: Learner, number: int) -> dict[str, Tensor]:
    """Gradients of the whole batch, without the learner."""
    images, targets = batch(number)
    loss, _ = learner.loss(*learner.model(images), targets)
    return dict(zip(learner.weights, torch.autograd.grad(loss, list(learner.weights.values())), strict=True))


@given(st.integers(2, 500), st.integers(1, 40))
def test_parts_cover_the_batch_with_at_least_two_images_each(num_images: int, max_parts: int) -> None:
    parts = split_batch(num_images, max_parts)
    sizes = [part.stop - part.start for part in parts]
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(num_images))
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert len(parts) == min(max_parts, num_images // 2)


@pytest.mark.parametrize("accumulate", [2, 3, 4, 100])
def test_parts_give_the_gradient_of_the_whole_batch(accumulate: int) -> None:
    whole, parts = tiny(), tiny(accumulate=accumulate)
    results = read_values([learner.step(*batch(1), lr=0.5) for learner in (whole, parts)])
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-5), "logged terms are means over the batch"
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_two_steps_by_hand(nesterov: bool, momentum: float) -> None:
    if nesterov and not momentum:
        pytest.skip("torch refuses Nesterov without momentum")
    decay = 0.1
    learner = tiny(optim={"momentum": momentum, "nesterov": nesterov, "weight_decay": decay})
    velocity: dict[str, Tensor] = {}
    for number, lr in enumerate((0.5, 0.25)):
        before, grads = weights(learner), gradients(learner, number)
        learner.step(*batch(number), lr=lr)
        for name, weight in before.items():
            decayed = grads[name] + (decay * weight if weight.ndim > 1 else 0)  # not on biases and norms
            velocity[name] = momentum * velocity[name] + decayed if number else decayed
            change = decayed + momentum * velocity[name] if nesterov else velocity[name]
            torch.testing.assert_close(weights(learner)[name], weight - lr * change, rtol=1e-5, atol=1e-6)


def test_weight_decay_applies_to_biases_and_norms_only_with_decay_norm_bias() -> None:
    def decayed(decay_norm_bias: bool) -> dict[str, bool]:
        options = {"weight_decay": 0.1, "decay_norm_bias": decay_norm_bias}
        learner = tiny(optim=options)
        names = {id(weight): name for name, weight in learner.weights.items()}
        return {names[id(weight)]: group["weight_decay"] == 0.1
                for group in learner.optimizer.param_groups for weight in group["params"]}  # fmt: skip

    assert {name for name, is_decayed in decayed(False).items() if is_decayed} == {
        "model.backbone.1.weight",
        "model.head.weight",
    }
    assert all(decayed(True).values())
    assert len(decayed(True)) == len(decayed(False)) == 7, "every weight is trained, including the loss's own"


def test_moving_average_halves_its_memory_every_half_life() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = MovingAverage(model, half_life=3)
    for _ in range(200):  # past the start, where it is an average over all steps
        average.update_parameters(model)
    nn.init.ones_(model.weight)
    for _ in range(3):
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(0.5)
    for _ in range(3):
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(0.75)


def test_moving_average_starts_with_a_short_memory() -> None:
    model = nn.BatchNorm1d(1)
    average = MovingAverage(model, half_life=1000)
    expected = 0.0
    for step in range(5):
        value = float(step + 1)
        nn.init.constant_(model.weight, value)
        nn.init.constant_(model.running_mean, value)  # type: ignore[arg-type]
        model.num_batches_tracked.fill_(step)  # type: ignore[operator, union-attr]
        average.update_parameters(model)
        new_weight = 1.0 if step == 0 else 1 - (1 + step) / (10 + step)
        expected += new_weight * (value - expected)
    assert average.module.weight.item() == pytest.approx(expected)
    assert average.module.running_mean.item() == pytest.approx(expected), "norm statistics are averaged too"
    assert average.module.num_batches_tracked.item() == 4, "counts are copied"


def test_moving_average_of_a_short_run_holds_about_its_last_tenth() -> None:
    """As its documentation says: the numbers 1 to 100 average to 90.0; the mean of the last 20 is 90.5."""
    model = nn.Linear(1, 1, bias=False)
    average = MovingAverage(model, half_life=1000)
    for value in range(1, 101):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(90.0, abs=0.05)


def test_averaged_model_is_what_finish_leaves() -> None:
    learner = convolutional(ema_half_life_epochs=0.5)
    for number in range(3):
        learner.step(*batch(number, px=8), lr=0.1)
    average = {name: value.clone() for name, value in learner.averaged().state_dict().items()}
    assert not torch.equal(average["head.weight"], learner.model.head.weight)
    learner.finish()
    assert all(torch.equal(value, average[name]) for name, value in learner.model.state_dict().items())


@pytest.mark.parametrize(
    ("precision", "values"),
    [
        ("float32", {}),
        ("float32", {"ema_half_life_epochs": 0.5, "accumulate": 2}),
        ("float32", {"optim": {"momentum": 0.0}}),
        ("bf16", {"optim": {"nesterov": True}}),
        ("fp16", {}),
    ],
)
@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_state_restores_every_bit(precision: str, values: dict[str, Any], num_steps: int) -> None:
    learner = convolutional(precision, **values)
    for number in range(num_steps):
        learner.step(*batch(number, px=8), lr=0.1)
    tensors, plain = learner.state()
    restored = convolutional(precision, **values)
    restored.step(*batch(9, px=8), lr=1.0)  # load replaces all of this
    if num_steps == 0:
        restored = convolutional(precision, **values)  # without a step there is no momentum to restore
    restored.load(tensors, plain)
    for number in range(3, 6):
        expected, result = (each.step(*batch(number, px=8), lr=0.1) for each in (learner, restored))
        assert result == expected
    after, again = learner.state(), restored.state()
    assert after[1] == again[1]
    assert list(after[0]) == list(again[0])
    assert all(torch.equal(after[0][name], again[0][name]) for name in after[0])


def test_state_is_a_copy_that_later_steps_do_not_change() -> None:
    learner = convolutional(ema_half_life_epochs=0.5)
    learner.step(*batch(0, px=8), lr=0.1)
    tensors, _ = learner.state()
    before = {name: value.clone() for name, value in tensors.items()}
    learner.step(*batch(1, px=8), lr=0.1)
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())
    assert all(value.is_contiguous() for value in tensors.values())


def test_restored_tensors_have_the_layout_of_the_uninterrupted() -> None:
    learner, restored = convolutional(), convolutional()
    learner.step(*batch(0, px=8), lr=0.1)
    restored.load(*learner.state())
    for name, weight in learner.weights.items():
        other = restored.weights[name]
        momentum = [each.optimizer.state[each.weights[name]]["momentum_buffer"] for each in (learner, restored)]
        assert weight.stride() == other.stride(), name
        assert momentum[0].stride() == momentum[1].stride(), name


def test_state_has_only_existing_tensors() -> None:
    learner = tiny()
    names = set(learner.state()[0])
    assert not any(name.startswith(("optimizer.", "average.")) for name in names), "no step yet, no average"
    assert "loss.scale" in names
    learner.step(*batch(0), lr=0.1)
    assert {name for name in learner.state()[0] if name.startswith("optimizer.")} == {
        f"optimizer.momentum_buffer.{name}" for name in learner.weights
    }
    averaging = tiny(ema_half_life_epochs=1.0)
    assert "average.n_averaged" in averaging.state()[0]


def test_scaler_is_in_the_state_only_in_fp16() -> None:
    assert tiny().state()[1]["scaler"] == tiny("bf16").state()[1]["scaler"] == {}
    half = tiny("fp16")
    half.step(*batch(0), lr=0.1)
    assert half.state()[1]["scaler"]["scale"] == 65536.0


def test_fp16_overflow_in_the_first_step_changes_nothing_but_the_scale() -> None:
    learner = tiny("fp16")
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 2.0**127})
    before = weights(learner)
    ((loss, _),) = read_values([learner.step(*batch(0), lr=0.1)])
    assert math.isfinite(loss)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(learner).items())
    assert not any(name.startswith("optimizer.") for name in learner.state()[0]), "no uninitialised momentum is saved"
    assert learner.scaler.get_scale() == 2.0**126


def test_logged_terms_become_floats_without_nan() -> None:
    class LoggingLoss(nn.Module):
        def forward(self, logits: Tensor, features: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Any]]:
            return logits.sum(), {"tensor": torch.tensor(2.0), "float": 3.0, "nothing": torch.tensor(math.nan)}

    learner = tiny()
    learner.loss = LoggingLoss()
    ((_, logged),) = read_values([learner.step(*batch(0), lr=0.1)])
    assert logged == {"tensor": 2.0, "float": 3.0}
    assert all(type(value) is float for value in logged.values())


class Waits(TorchDispatchMode):
    """Counts where Python needs a number from the device, that is from any tensor but `on_cpu`."""

    def __init__(self, on_cpu: Tensor) -> None:
        super().__init__()
        self.count, self.on_cpu = 0, on_cpu.data_ptr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            self.count += args[0].data_ptr() != self.on_cpu
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backbone", ["resnest14", "tresnet_s", "seresnext26d"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_step_of_an_asynchronous_device_waits_for_nothing(backbone: str, precision: str, optimizer: str) -> None:
    torch.manual_seed(0)
    loss = build_loss("ce+triplet+arcface", Losses(), num_classes=3, num_features=num_features(backbone))
    model = build_model(backbone, 3, stem="small", width=0.125)
    settings = stage(ema_half_life_epochs=1.0, optim={"optimizer": optimizer})
    learner = Learner(model, loss, settings, 4, CPU, precision)
    learner.asynchronous = True
    learner.step(*batch(0, px=16), lr=0.1)  # the first time each norm is asked
    assert learner.average is not None
    with Waits(learner.average.n_averaged) as waits:
        values = [learner.step(*batch(number, px=16), lr=0.1) for number in range(3)]
        assert waits.count == 0
    read = read_values(values)
    assert all(math.isfinite(loss) and "arcface" in terms for loss, terms in read)


def num_features(backbone: str) -> int:
    return build_model(backbone, 3, stem="small", width=0.125).head.in_features


def test_steps_decide_at_once_which_norms_are_inverted_with_the_same_bits() -> None:
    results = []
    for asynchronous in (False, True):
        torch.manual_seed(0)
        model = build_model("tresnet_s", 3, stem="small", width=0.125)
        learner = Learner(model, SmoothedCrossEntropy(), stage(), 4, CPU, "float32")
        learner.asynchronous = asynchronous
        for number in range(3):
            learner.step(*batch(number, px=16), lr=0.5)
            norm = next(module for module in model.modules() if getattr(module, "asks", False))
            nn.init.constant_(norm.weight[:1].detach(), 1e-5 if number == 0 else 1.0)  # not invertible once
            assert getattr(norm, "decided", None) is None, "outside a step every norm decides for itself"
        results.append(weights(learner))
    assert all(torch.equal(weight, results[1][name]) for name, weight in results[0].items())

"""Optimisers against their definitions, and their whole state through safetensors."""

import math
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from fewsight.errors import RecipeError, RunError
from fewsight.optim import (
    OPTIMIZERS,
    build_optimizer,
    check_optimizer,
    load_optimizer_state,
    measured_norms,
    optimizer_state,
)
from fewsight.recipes import Optim

CPU = torch.device("cpu")


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    return nn.Sequential(convolution, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def optimizer_of(model: nn.Module, **values: Any) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
    named = dict(model.named_parameters())
    return build_optimizer(named, Optim.model_validate(values), CPU, "float32"), named


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_through_a_file_goes_on_with_the_same_bits(name: str) -> None:
    values = {"optimizer": name, "weight_decay": 0.01}
    whole = model_of()
    optimizer, named = optimizer_of(whole, **values)
    take_steps(whole, optimizer, range(6))

    first = model_of()
    optimizer, named = optimizer_of(first, **values)
    take_steps(first, optimizer, range(3))
    tensors, plain = optimizer_state(optimizer, named)
    kept = load(save({key: value.detach().contiguous() for key, value in tensors.items()}))
    second = model_of(1)
    second.load_state_dict(first.state_dict())
    optimizer, named = optimizer_of(second, **values)
    load_optimizer_state(optimizer, named, kept, plain)
    take_steps(second, optimizer, range(3, 6))
    for name_, weight in weights_of(whole).items():
        assert torch.equal(weight, weights_of(second)[name_]), name_


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_names_every_tensor_of_every_weight(name: str) -> None:
    model = model_of()
    optimizer, named = optimizer_of(model, optimizer=name)
    take_steps(model, optimizer, range(1))
    tensors, plain = optimizer_state(optimizer, named)
    kept = sum(len(state) for state in optimizer.state.values())
    assert len(tensors) + sum(map(len, plain["weights"].values())) == kept > 0
    assert [group["weight_decay"] for group in plain["groups"]] == [1e-4, 0.0]


def test_restored_momentum_has_the_layout_of_its_weight() -> None:
    model = model_of()
    optimizer, named = optimizer_of(model)
    take_steps(model, optimizer, range(2))
    tensors, plain = optimizer_state(optimizer, named)
    optimizer, named = optimizer_of(model)
    load_optimizer_state(optimizer, named, {key: value.contiguous() for key, value in tensors.items()}, plain)
    weight = named["0.weight"]
    assert optimizer.state[weight]["momentum_buffer"].stride() == weight.stride()


def test_adamw_takes_its_definition() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    settings = Optim(optimizer="adamw", weight_decay=0.1, options={"beta1": 0.8, "beta2": 0.9})
    optimizer = build_optimizer({"weight": weight}, settings, CPU, "float32")
    first = second = torch.zeros(1, 2)
    expected = weight.detach().clone()
    for step, gradient in enumerate(([[0.5, 1.0]], [[-1.0, 0.25]]), 1):
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        weight.grad = torch.tensor(gradient)
        first = 0.8 * first + 0.2 * weight.grad
        second = 0.9 * second + 0.1 * weight.grad**2
        expected = expected * (1 - 0.1 * 0.1)
        expected = expected - 0.1 * (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-8)
        optimizer.step()
        assert torch.allclose(weight.detach(), expected, atol=1e-6)


def test_norms_and_biases_are_not_decayed_unless_asked() -> None:
    plain, named = optimizer_of(model_of(), weight_decay=0.5)
    assert [group["weight_decay"] for group in plain.param_groups] == [0.5, 0.0]
    assert all(weight.ndim > 1 for weight in plain.param_groups[0]["params"])
    every, named = optimizer_of(model_of(), weight_decay=0.5, decay_norm_bias=True)
    assert [len(group["params"]) for group in every.param_groups] == [len(named)]


def test_state_of_another_optimizer_is_refused() -> None:
    model = model_of()
    optimizer, named = optimizer_of(model, optimizer="adamw")
    take_steps(model, optimizer, range(1))
    tensors, plain = optimizer_state(optimizer, named)
    other, named = optimizer_of(model, optimizer="sgd")
    with pytest.raises(RunError, match="of another optimiser"):
        load_optimizer_state(other, named, tensors, plain)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adam"}, "stages.0.optim.optimizer: there is no 'adam'; did you mean 'adamw'?"),
        (
            {"optimizer": "newton"},
            f"stages.0.optim.optimizer: there is no 'newton'; it is one of {', '.join(sorted(OPTIMIZERS))}",
        ),
        ({"optimizer": "adamw", "options": {"beta": 0.9}}, "stages.0.optim.options: there is no 'beta'; did you mean"),
        ({"options": {"beta1": 0.9}}, "stages.0.optim.options: there is no 'beta1'; there are no options here"),
        ({"optimizer": "adamw", "options": {"beta2": 2.0}}, "stages.0.optim: adamw cannot be built: Invalid beta"),
        ({"nesterov": True, "momentum": 0.0}, "stages.0.optim: sgd cannot be built: Nesterov momentum requires"),
    ],
)
def test_unknown_name_or_option_is_refused_with_the_valid_ones(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        check_optimizer(Optim.model_validate(values), "stages.0.optim")
    assert str(refusal.value).startswith(message)


def test_measured_norms_take_the_same_step() -> None:
    plain, measured = model_of(), model_of()
    for model in (plain, measured):
        optimizer, named = optimizer_of(model, momentum=0.0, weight_decay=0.0)
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        torch.manual_seed(0)
        (4 * model(torch.randn(4, 3, 8, 8)).square().mean()).backward()
        before = weights_of(model)
        gradient = math.sqrt(
            sum(float(weight.grad.square().sum()) for weight in named.values() if weight.grad is not None)
        )
        if model is plain:
            optimizer.step()
            continue
        norms = measured_norms(named, 4.0, optimizer.step)
        assert norms.gradient == pytest.approx(gradient / 4)
        assert norms.weights == pytest.approx(math.sqrt(sum(float(one.square().sum()) for one in before.values())))
        assert norms.update == pytest.approx(0.5 * gradient, rel=1e-4)
    for name, weight in weights_of(plain).items():
        assert torch.equal(weight, weights_of(measured)[name])

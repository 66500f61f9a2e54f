"""Optimisers by name, and their whole state as named tensors.

An optimiser is a builder `(param_groups, settings, fused, **options) -> torch.optim.Optimizer`; its keyword-only
parameters are what a recipe may set in `stages.N.optim.options`. The learning rate is set before every step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewsight.errors import RecipeError, RunError
from fewsight.recipes import Optim
from fewsight.recipes.options import check_name, check_options

ParamGroups = list[dict[str, Any]]
OptimizerBuilder = Callable[..., torch.optim.Optimizer]
PREFIX = "optimizer."  # of the state's tensors: optimizer.KEY.WEIGHT


def sgd(param_groups: ParamGroups, settings: Optim, fused: bool) -> torch.optim.Optimizer:
    """SGD with momentum, Nesterov's where the recipe says so; weight decay is added to the gradient."""
    return torch.optim.SGD(param_groups, lr=0.0, momentum=settings.momentum, nesterov=settings.nesterov, fused=fused)


def adamw(
    param_groups: ParamGroups,
    settings: Optim,
    fused: bool,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """AdamW: weight decay apart from the gradient, `weight *= 1 - lr * weight_decay`.

    Source: Loshchilov and Hutter, arXiv 1711.05101.
    """
    del settings  # momentum and nesterov are SGD's
    return torch.optim.AdamW(param_groups, lr=0.0, betas=(beta1, beta2), eps=eps, fused=fused)


OPTIMIZERS: dict[str, OptimizerBuilder] = {
    "sgd": sgd,
    "adamw": adamw,
}


def check_optimizer(settings: Optim, where: str) -> None:
    """Build the optimiser on the meta device, so that a wrong name or value fails before the images are read.

    Args:
        where: the recipe's section, such as "stages.0.optim", for the message.

    Raises:
        RecipeError: no such optimiser or option (the message names the valid ones), or a value that it does not take.
    """
    check_name(settings.optimizer, OPTIMIZERS, f"{where}.optimizer")
    check_options(OPTIMIZERS[settings.optimizer], settings.options, f"{where}.options")
    weight = nn.Parameter(torch.empty(1, 1, device="meta"))
    try:
        build_optimizer({"weight": weight}, settings, weight.device, "float32")
    except ValueError as error:
        raise RecipeError(f"{where}: {settings.optimizer} cannot be built: {error}") from error


def build_optimizer(
    named: Mapping[str, nn.Parameter], settings: Optim, device: torch.device, precision: str
) -> torch.optim.Optimizer:
    """The optimiser of a stage; weight decay acts on weights of two and more dimensions, not on biases and norms.

    `decay_norm_bias` makes it act on all. Not fused in fp16: where the first step overflows, torch's fused SGD leaves
    its momentum uninitialised.
    """
    param_groups: ParamGroups = []
    for decayed, weight_decay in ((True, settings.weight_decay), (False, 0.0)):
        weights = [weight for weight in named.values() if (weight.ndim > 1 or settings.decay_norm_bias) == decayed]
        param_groups += [{"params": weights, "weight_decay": weight_decay}] if weights else []
    fused = device.type in ("cpu", "cuda") and precision != "fp16"
    return OPTIMIZERS[settings.optimizer](param_groups, settings, fused, **settings.options)


def optimizer_state(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The whole state of any torch optimiser: tensors by name, and plain values.

    Returns:
        Tensors `optimizer.KEY.WEIGHT`; and `groups`, the values of each parameter group without its weights, and
        `weights`, what the optimiser keeps of a weight that is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, weight in named.items():
        for key, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{PREFIX}{key}.{name}"] = value
            else:
                plain.setdefault(name, {})[key] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, {"groups": groups, "weights": plain}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
) -> None:
    """Restore what `optimizer_state` gave; tensors of a weight's shape take the weight's memory layout.

    Raises:
        RunError: the state is of another optimiser.
    """
    groups = values["groups"]
    if [set(group) for group in groups] != [set(group) - {"params"} for group in optimizer.param_groups]:
        raise RunError("the saved state is that of another optimiser; train anew")
    state: dict[Any, dict[str, Any]] = {}
    for name, weight in named.items():
        kept = dict(values["weights"].get(name, {}))
        for key in _keys_of(name, tensors):
            value = tensors[f"{PREFIX}{key}.{name}"]
            kept[key] = torch.empty_like(weight).copy_(value) if value.shape == weight.shape else value.clone()
        if kept:
            state[weight] = kept
    order = [weight for group in optimizer.param_groups for weight in group["params"]]  # as the optimiser numbers them
    own = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {
            "state": {index: state[weight] for index, weight in enumerate(order) if weight in state},
            "param_groups": [{**group, "params": there["params"]} for group, there in zip(groups, own, strict=True)],
        }
    )


def _keys_of(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """What is kept of a weight: `optimizer.momentum_buffer.model.head.weight` -> momentum_buffer."""
    ending = f".{name}"
    keys = [key.removeprefix(PREFIX).removesuffix(ending) for key in tensors
            if key.startswith(PREFIX) and key.endswith(ending)]  # fmt: skip
    return [key for key in keys if "." not in key]

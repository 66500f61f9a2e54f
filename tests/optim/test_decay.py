"""Weight decay that is given by what it does over a stage."""

import math

import pytest
import torch
from torch import nn

from fewsight.optim import build_optimizer, peak_lr, stage_lr, weight_decay_for
from fewsight.recipes import Optim, Stage


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("efolds", [0.5, 3.0])
def test_weight_without_gradient_shrinks_as_asked(optimizer: str, efolds: float) -> None:
    stage = Stage(epochs=100, batch_size=32, optim=Optim(optimizer=optimizer, base_lr=0.4, warmup_epochs=5))
    decay = weight_decay_for(efolds, stage, 10, 32)
    settings = stage.optim.model_copy(update={"weight_decay": decay})
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    trained = build_optimizer({"weight": weight}, settings, torch.device("cpu"), "float32")
    for step in range(1000):
        weight.grad = torch.zeros_like(weight)
        trained.param_groups[0]["lr"] = stage_lr(stage, step, 10, peak_lr(stage, 32))
        trained.step()
    assert -math.log(float(weight.mean().detach())) == pytest.approx(efolds, rel=0.05)  # the number is to first order

"""Optimisation: which optimiser, which learning rate at which step, the moving average of the weights.

`OPTIMIZERS` and `SCHEDULES` are tables of name -> builder: a file and a line add one.
"""

from fewsight.optim.decay import weight_decay_for
from fewsight.optim.moving_average import MovingAverage
from fewsight.optim.norms import Norms, measured_norms
from fewsight.optim.optimizers import (
    OPTIMIZERS,
    build_optimizer,
    check_optimizer,
    load_optimizer_state,
    optimizer_state,
)
from fewsight.optim.schedules import SCHEDULES, is_warmup_cut, lr_at, peak_lr, stage_lr, warmup_epochs

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "MovingAverage",
    "Norms",
    "build_optimizer",
    "check_optimizer",
    "is_warmup_cut",
    "load_optimizer_state",
    "lr_at",
    "measured_norms",
    "optimizer_state",
    "peak_lr",
    "stage_lr",
    "warmup_epochs",
    "weight_decay_for",
]

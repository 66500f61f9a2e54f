"""Data + device + hours -> a recipe, with reasons."""

from typing import Any

from rich.console import Console

from fewsight.prepare import Prepared
from fewsight.recipes import Run


def starting_values() -> dict[str, Any]:
    return {
        "model": {"backbone": "resnest14"},
        "augment": {"train_px": 64},
        "stages": [
            {
                "epochs": 60,
                "batch_size": 50,
                "ema_half_life_epochs": 3.0,
                "optim": {"base_lr": 0.3, "weight_decay": 5e-4, "nesterov": True, "warmup_epochs": 3.0},
            }
        ],
        "eval": {"every_epochs": 0},
    }


def plan_recipe(
    prepared: Prepared, settings: Run, hours: float, overrides: Any, console: Console
) -> tuple[dict[str, Any], list[str]]:
    return starting_values(), []

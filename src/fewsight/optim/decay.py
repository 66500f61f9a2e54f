"""Weight decay by what it does over a whole stage, since the number for it depends on rate and steps."""

from fewsight.optim.schedules import peak_lr, stage_lr
from fewsight.recipes import Stage


def weight_decay_for(efolds: float, stage: Stage, num_steps: int, batch_size: float) -> float:
    """The weight decay by which a stage shrinks a weight that gets no gradient to exp(-efolds) of itself.

    To first order: with SGD, whose momentum the decay passes through, efolds = sum of learning rates * weight decay /
    (1 - momentum). Wang and Aitchison (arXiv 2405.13698) find that its time scale should follow the training's length.

    Args:
        num_steps: per epoch.
        batch_size: as for `peak_lr`.

    Returns:
        With four significant digits.
    """
    peak = peak_lr(stage, batch_size)
    total = sum(stage_lr(stage, step, num_steps, peak) for step in range(stage.epochs * num_steps))
    passed_on = 1 / (1 - stage.optim.momentum) if stage.optim.optimizer == "sgd" else 1.0
    return float(f"{efolds / (total * passed_on):.4g}")

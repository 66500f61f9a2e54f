"""Where a training stands, and when its state is saved."""

import time
from dataclasses import asdict, dataclass, field

import torch

from fewsight import runs
from fewsight.errors import RunError
from fewsight.runs import Run
from fewsight.training.learner import Learner


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next step to take, and what the epoch has summed so far."""

    stage: int = 0
    epoch: int = 0  # within the stage
    step: int = 0  # within the epoch
    loss_sum: float = 0.0  # over the epoch's images so far
    num_images: int = 0
    best_top1: float = -1.0  # on val, for select = "best"
    terms: dict[str, list[float]] = field(default_factory=dict)  # what the loss logs: [sum over images, images]
    first: dict[str, float] = field(default_factory=dict)  # their means over the stage's first epoch
    collapsed: bool = False  # the loss said so of the last epoch


class StateSaver:
    """Saves the state from which a run continues with the same bits, and decides when.

    It is due every `minutes` and after each epoch; short epochs of a large model wait until saving has cost no
    more than a fiftieth of the time since the last one. When a state is saved changes no result.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes, self.last, self.cost = minutes, time.monotonic(), 0.0

    def is_due(self, *, epoch_ended: bool) -> bool:
        """Whether to save now."""
        waited = time.monotonic() - self.last
        return waited > 60 * self.minutes or (epoch_ended and waited >= 50 * self.cost)

    def save(self, run: Run, learner: Learner, at: Position) -> None:
        """Write the state."""
        start = time.monotonic()
        tensors, values = learner.state()
        values |= {"position": asdict(at), "log_bytes": runs.sync_log(run.path), "threads": torch.get_num_threads()}
        runs.save_state(run.path, tensors, values)
        self.last = time.monotonic()
        self.cost = self.last - start


def check_threads(run: Run, before: int) -> None:
    if before != torch.get_num_threads():
        raise RunError(
            f"{run.path} was trained with {before} compute threads, but torch computes with "
            f"{torch.get_num_threads()} here, which changes the last bits; resume it where it began"
        )

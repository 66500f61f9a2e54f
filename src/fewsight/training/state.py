"""What stays the same while a run trains and after a resume, its position, and when its state is saved."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from rich.console import Console

from fewsight import runs
from fewsight.augment.normalise import Normalise
from fewsight.data.training_set import TrainingSet
from fewsight.errors import RunError
from fewsight.machine.processes import ProcessGroup
from fewsight.machine.signals import StopFlag
from fewsight.runs import Run
from fewsight.training.feed import AugmentedImages
from fewsight.training.learner import Learner
from fewsight.training.plans import Plan
from fewsight.training.reporters import Reporter


@dataclass(frozen=True)
class Training:
    """What stays the same while a run trains."""

    run: Run
    data: TrainingSet
    images: AugmentedImages  # those of `data`, augmented
    plans: Sequence[Plan]  # one per stage
    normalise: Normalise
    reporter: Reporter
    stop: StopFlag  # set by Ctrl-C and SIGTERM
    group: ProcessGroup  # the processes that share each batch


@dataclass(frozen=True)
class Position:
    """The next step of a run, and the sums over its current epoch so far."""

    stage: int = 0
    epoch: int = 0  # within the stage
    step: int = 0  # within the epoch
    loss_sum: float = 0.0  # of each image's batch loss, over the epoch so far
    num_images: int = 0
    best_top1: float = -1.0  # on val, for select = "best"
    terms: dict[str, list[float]] = field(default_factory=dict)  # logged by the loss: name -> [sum over images, images]
    first: dict[str, float] = field(default_factory=dict)  # means of `terms` over the stage's first epoch
    collapsed: bool = False  # as the loss diagnosed after the last epoch

    def after_step(self, loss: float, terms: Mapping[str, float], count: int) -> "Position":
        """The position after a step on a batch of `count` images.

        A term without a value in the batch does not count the batch's images.
        """
        sums = dict(self.terms)
        for name, value in terms.items():
            total, images = sums.get(name, [0.0, 0.0])
            sums[name] = [total + value * count, images + count]
        return replace(
            self,
            step=self.step + 1,
            loss_sum=self.loss_sum + loss * count,
            num_images=self.num_images + count,
            terms=sums,
        )

    def after_epoch(self) -> "Position":
        """The position at the start of the next epoch."""
        return replace(self, epoch=self.epoch + 1, step=0, loss_sum=0.0, num_images=0, terms={})

    def after_stage(self) -> "Position":
        """The position at the start of the next stage."""
        return replace(self, stage=self.stage + 1, epoch=0, step=0)


class StateSaver:
    """Saves the state from which a run continues with the same bits, and decides when.

    A state is due every `minutes` and after each epoch; where epochs are short and the model is large, only once
    saving takes at most a fiftieth of the time since the last state. The times of saving change no result.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes, self.last, self.cost = minutes, time.monotonic(), 0.0

    def is_due(self, *, epoch_ended: bool) -> bool:
        """Whether to save now."""
        elapsed = time.monotonic() - self.last
        return elapsed > 60 * self.minutes or (epoch_ended and elapsed >= 50 * self.cost)

    def save(self, run: Run, learner: Learner, position: Position) -> None:
        """Write the state to the run folder."""
        start = time.monotonic()
        tensors, values = learner.state()
        values |= {"position": asdict(position), "log_bytes": runs.sync_log(run.path)}
        runs.save_state(run.path, tensors, values)
        self.last = time.monotonic()
        self.cost = self.last - start


def check_conditions(run: Run, group: ProcessGroup, *, other_machine: bool) -> None:
    """Check that what the bits of a run depend on beside its recipe and its data is as it began.

    Raises:
        RunError: it is not; a run without a saved state begins again, so anything goes.
    """
    changed = runs.changed_conditions(run.info.conditions, runs.conditions_here(run.recipe, group.count))
    if changed and runs.has_state(run.path) and not other_machine:
        raise RunError(
            f"{run.path} did not begin as it would go on ({'; '.join(changed)}), so that its last bits would differ. "
            "Resume it as it began, or add --other-machine: it goes on, and run.json notes that its bits are no longer "
            "those of one training"
        )


def with_conditions(run: Run, console: Console, group: ProcessGroup) -> Run:
    """The run with what its bits now depend on in run.json, and a note there if that has changed in the middle."""
    here = runs.conditions_here(run.recipe, group.count)
    changed = runs.changed_conditions(run.info.conditions, here)
    if not changed or not group.first:
        return run
    notes = list(run.info.other_conditions)
    if runs.has_state(run.path):
        notes.append(f"{runs.now()}: {'; '.join(changed)}")
        console.print(f"note: {'; '.join(changed)}: the run's bits are no longer those of one training", markup=False)
    return runs.update_info(run, conditions=asdict(here), other_conditions=notes)

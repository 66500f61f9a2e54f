"""`fit`: the one training loop. It never asks which backbone, loss or augmentation policy it has."""

import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewsight import runs
from fewsight.augment.normalise import Normalise
from fewsight.data import cache_size
from fewsight.data.training_set import TrainingSet
from fewsight.errors import Interrupted, RunError
from fewsight.losses import collapse_of, own_weights
from fewsight.machine.cores import processes_here
from fewsight.machine.device import compute_threads, same_bits
from fewsight.machine.processes import MIN_IMAGES_PER_PROCESS, SINGLE_PROCESS, ProcessGroup, synchronise_norms
from fewsight.machine.rng import batch_stream
from fewsight.machine.signals import signals_that_stop
from fewsight.models.classifier import Classifier, initial_model, load_weights, weights_out
from fewsight.optim import is_warmup_cut, peak_lr, stage_lr, warmup_epochs
from fewsight.recipes import Recipe
from fewsight.runs import Run
from fewsight.training.feed import AugmentedImages, batches, explain_lost_workers
from fewsight.training.finish import finish, loss_not_finite, score_val
from fewsight.training.learner import Learner, StepValues, build_learner, read_values
from fewsight.training.mix import mix, rows_of
from fewsight.training.plans import ClassBatches, Plan, batch_plan, lr_batch_size
from fewsight.training.reporters import Reporter
from fewsight.training.schedule import augment_at
from fewsight.training.start import fit_to_images
from fewsight.training.state import Position, StateSaver, Training
from fewsight.wording import counted, shell_command

READ_EVERY = 10  # steps of an asynchronous device between two looks at their losses, for which Python waits


def fit(
    run: Run,
    data: TrainingSet,
    reporter: Reporter,
    weights: Mapping[str, Tensor] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Run:
    """Train a run to its end, from its last saved state if it has one.

    Args:
        run: a run folder with a resolved recipe (no "auto" values).
        data: its training and validation images.
        reporter: receives every step and epoch.
        weights: initial weights; None: the random initialisation of the recipe's seed.
        group: the processes that share each batch. Every process calls `fit`; only the first one writes files.

    Returns:
        The finished run.

    Raises:
        RunError: the loss is not finite, or has collapsed and `run.on_collapse` is "stop"; a batch is too small for
            the number of processes; the folder cannot be written.
        DataError: an image can no longer be read.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    recipe = run.recipe
    state = runs.read_state(run.path)
    position = Position(**state[1]["position"]) if state else Position()
    if group.first:
        runs.remove_leftovers(run.path)
        runs.cut_log(run.path, state[1]["log_bytes"] if state else 0)
    group.wait()  # no process writes before every process has read
    device = torch.device(recipe.run.device)
    normalise = Normalise(run.data.mean, run.data.std).to(device)
    model = _build_model(run, weights, group)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    plans = [batch_plan(recipe, stage, data) for stage in recipe.stages]
    images = _augmented_images(run, data, group)
    _check_batch_sizes(plans, group)
    reporter.start(_steps_done(recipe, plans, Position(stage=len(plans))), _steps_done(recipe, plans, position))
    assert recipe.run.threads != "auto", "the recipe is resolved"
    exact = same_bits(device, always=recipe.run.deterministic)
    with (
        compute_threads(recipe.run.threads),
        exact,
        signals_that_stop(announced=group.first) as stop,
        explain_lost_workers(),
    ):
        if weights is None and not state:
            fit_to_images(model, images, Normalise(run.data.mean, run.data.std))
        training = Training(run, data, images, plans, normalise, reporter, stop, group)
        for number in range(position.stage, len(recipe.stages)):
            learner = build_learner(model, recipe, recipe.stages[number], data, len(run.classes), device, group)
            if state:
                learner.load(*state)
                state = None
            reporter.say(_stage_line(recipe, number, plans[number], learner))
            position = _fit_stage(training, learner, position)
            learner.finish()
    return finish(training, model, position)


def _fit_stage(training: Training, learner: Learner, position: Position) -> Position:
    """Train one stage from `position` on; returns the position at the start of the next stage."""
    recipe, group = training.run.recipe, training.group
    stage, plan = recipe.stages[position.stage], training.plans[position.stage]
    first_epoch = _epochs_before(recipe, position.stage)
    labels = torch.tensor(training.data.labels)
    peak = peak_lr(stage, lr_batch_size(stage, plan))
    saver, epoch_start = StateSaver(recipe.run.state_minutes), time.monotonic()
    waiting: list[_Step] = []  # steps whose values are still on the device
    read_every = READ_EVERY if learner.asynchronous else 1
    with closing(_stage_batches(training, position)) as feed:  # ends its worker processes, also after an error
        for epoch, step, batch, indices in feed:
            torch.manual_seed(int(batch_stream(recipe.run.seed, epoch, step).integers(2**62)))
            pixels = training.normalise.of_bytes(batch)
            inputs, targets = mix(pixels, labels, indices, recipe, stage, epoch, step, group)
            lr = stage_lr(stage, (epoch - first_epoch) * plan.num_steps + step, plan.num_steps, peak)
            ended = step + 1 == plan.num_steps
            waiting.append(_Step(epoch, step, lr, len(indices), learner.step(inputs, targets, lr, measure=ended)))
            if len(waiting) < read_every and not ended:
                continue  # the same in every process; a signal and a state that is due wait for a few steps
            position = _report_steps(training, position, waiting)
            waiting.clear()
            if ended:
                position = _end_epoch(training, learner, position, time.monotonic() - epoch_start)
                epoch_start = time.monotonic()
            _save_or_stop(training, learner, position, saver, f"epoch {epoch + 1}", f"step {step + 1}")
    return position.after_stage()


@dataclass(frozen=True)
class _Step:
    """A step whose values are still to be read."""

    epoch: int  # from 0
    step: int  # within the epoch, from 0
    lr: float
    num_images: int
    values: StepValues


def _report_steps(training: Training, position: Position, steps: Sequence[_Step]) -> Position:
    """Read the values of steps, report and log them; returns the position after the last one.

    Raises:
        RunError: a loss is not finite.
    """
    run, recipe = training.run, training.run.recipe
    num_steps = training.plans[position.stage].num_steps
    for done, (loss, terms) in zip(steps, read_values([each.values for each in steps]), strict=True):
        if not math.isfinite(loss):
            raise RunError(loss_not_finite(run, loss, done.epoch, done.step, done.lr))
        position = position.after_step(loss, terms, done.num_images)
        line = {
            "kind": "step",
            "stage": position.stage,
            "epoch": done.epoch + 1,
            "step": done.step + 1,
            "loss": loss,
            "lr": done.lr,
            **({"terms": terms} if terms else {}),
        }
        training.reporter.step(line, _steps_done(recipe, training.plans, position))
        if training.group.first and done.step % max(1, num_steps // 10) == 0:
            runs.append_log(run.path, {**line, "time": runs.now()})
    return position


def _end_epoch(training: Training, learner: Learner, position: Position, seconds: float) -> Position:
    """Log the epoch, evaluate on val if it is due and keep the best weights; returns the start of the next epoch.

    Args:
        seconds: the epoch's duration.
    """
    run, recipe, stage = training.run, training.run.recipe, training.run.recipe.stages[position.stage]
    line: dict[str, Any] = {
        "kind": "epoch",
        "stage": position.stage,
        "epoch": _epochs_before(recipe, position.stage) + position.epoch + 1,
        "train_loss": position.loss_sum / position.num_images,
    }
    if learner.norms is not None:
        line["norms"] = asdict(learner.norms)  # of the epoch's last step
    means = {name: total / count for name, (total, count) in position.terms.items()}
    if means:
        line["terms"] = means
    every = recipe.eval.every_epochs
    if every and ((position.epoch + 1) % every == 0 or position.epoch + 1 == stage.epochs):
        figures = score_val(training, learner.averaged())
        if figures:
            line |= {"val_top1": figures.top1.value, "val_nll": figures.nll}
            if recipe.run.select == "best" and figures.top1.value > position.best_top1:
                position = replace(position, best_top1=figures.top1.value)
                if training.group.first:
                    runs.save_weights(run, weights_out(learner.averaged()), best_epoch=line["epoch"])
    first = means if position.epoch == 0 else position.first
    warmed_up = position.epoch + 1 > warmup_epochs(stage)
    collapse = collapse_of(learner.loss, means, first, (position.epoch + 1) / stage.epochs) if warmed_up else None
    if collapse:
        line["collapse"] = collapse
    if training.group.first:
        runs.append_log(run.path, {**line, "seconds": round(seconds, 3), "time": runs.now()})
    num_epochs = _epochs_before(recipe, len(recipe.stages))
    training.reporter.epoch({**line, "epochs": num_epochs, "seconds": seconds})
    if collapse and not position.collapsed:  # reported once, in the first of the epochs that it lasts
        training.reporter.say(f"warning: epoch {line['epoch']}: {collapse}")
    return replace(position, first=first, collapsed=collapse is not None).after_epoch()


def _save_or_stop(
    training: Training, learner: Learner, position: Position, saver: StateSaver, epoch: str, step: str
) -> None:
    """After a step: save the state if it is due, and stop on a signal or a collapsed loss.

    Raises:
        RunError: the loss has collapsed and `run.on_collapse` is "stop".
        Interrupted: a process has received a signal.
    """
    run, group = training.run, training.group
    collapsed = position.step == 0 and position.collapsed and run.recipe.run.on_collapse == "stop"
    signal_number = _signal_of_any(training.stop.signal_number, group)
    if group.first and (signal_number or collapsed or saver.is_due(epoch_ended=position.step == 0)):
        saver.save(run, learner, position)
    if collapsed:
        raise RunError(
            f'{run.path}: stopped after {epoch}: the loss has collapsed and run.on_collapse is "stop". The warning '
            "above, also in log.jsonl, says what to change in a new run"
        )
    if signal_number:
        group.wait()  # no process exits before the state is saved
        raise Interrupted(
            f"interrupted in {epoch}, after {step}; the state is saved. Continue with: "
            + shell_command(["fewsight", "train", "--resume", str(run.path)]),
            signal_number,
        )


def _build_model(run: Run, weights: Mapping[str, Tensor] | None, group: ProcessGroup) -> Classifier:
    """The run's model with the given or random weights."""
    model = initial_model(run.recipe, len(run.classes))
    if weights is not None:
        load_weights(model, weights)
    if run.recipe.run.sync_norm and group.count > 1:
        synchronise_norms(model)
    return model


def _augmented_images(run: Run, data: TrainingSet, group: ProcessGroup) -> AugmentedImages:
    """The training images; each process of this machine has an equal part of the memory for decoded images."""
    recipe = run.recipe
    cache = cache_size(recipe.run.cache_gb) // max(group.count, processes_here())
    return AugmentedImages(
        data.root,
        data.paths,
        recipe.augment,
        recipe.run.seed,
        data.numbers,
        cache,
        partial(augment_at, recipe),
        [recipe.augment_of(stage) for stage in recipe.stages],
    )


def _stage_batches(training: Training, position: Position) -> Generator[tuple[int, int, Tensor, np.ndarray]]:
    """The batches of a stage from `position` on, as `batches` yields them, with the rows that this process needs."""
    recipe, stage = training.run.recipe, training.run.recipe.stages[position.stage]
    first_epoch = _epochs_before(recipe, position.stage)

    def rows(epoch: int, step: int, count: int) -> np.ndarray:
        return rows_of(recipe, stage, epoch, step, count, training.group)

    assert recipe.run.workers != "auto", "the recipe is resolved"
    return batches(
        training.images,
        training.plans[position.stage],
        first_epoch=first_epoch + position.epoch,
        first_step=position.step,
        num_epochs=first_epoch + stage.epochs,
        workers=recipe.run.workers,
        pin=torch.device(recipe.run.device).type == "cuda",
        rows=rows,
    )


def _check_batch_sizes(plans: Sequence[Plan], group: ProcessGroup) -> None:
    """Check that every batch has enough images for every process.

    Raises:
        RunError: the smallest batch has not.
    """
    if group.count == 1:
        return
    smallest = min(min(len(indices) for indices in plan.epoch(0)) for plan in plans)
    if smallest < MIN_IMAGES_PER_PROCESS * group.count:
        raise RunError(
            f"a batch of {smallest} images cannot be split among {group.count} processes, each of which needs "
            f"{MIN_IMAGES_PER_PROCESS}; start fewer processes, or train with a larger batch_size"
        )


def _signal_of_any(signal_number: int, group: ProcessGroup) -> int:
    """The signal that any of the processes has received, 0 for none, so that all stop after the same step."""
    if group.count == 1:
        return signal_number
    signals = torch.zeros(group.count, dtype=torch.int64)
    signals[group.rank] = signal_number
    return int(group.sum_(signals).max())


def _stage_line(recipe: Recipe, number: int, plan: Plan, learner: Learner) -> str:
    """One line that says what a stage trains with."""
    stage = recipe.stages[number]
    size, lr_size = f"{plan.batch_size} images", lr_batch_size(stage, plan)
    if isinstance(plan, ClassBatches):
        size = f"{'x'.join(map(str, plan.shape))} images by class"
    elif plan.mean_size < plan.batch_size:  # an epoch's batches differ by at most one image
        size += f", {plan.mean_size:.3g} on average"
    text = (
        f"stage {number + 1} of {len(recipe.stages)}: {stage.loss}, {counted(stage.epochs, 'epoch')} of "
        f"{counted(plan.num_steps, 'batch')} ({size}), peak learning rate {peak_lr(stage, lr_size):.3g}"
    )
    if plan.mean_size < plan.batch_size:
        text += f", that of {lr_size:.3g} images"
    if is_warmup_cut(stage):
        text += (
            f"; the warm-up is cut from {stage.optim.warmup_epochs:g} to {warmup_epochs(stage):g} epochs, half of the "
            "stage"
        )
    loss_weights = own_weights(learner.loss)
    return text + (f"; the loss's own weights: {', '.join(loss_weights)}" if loss_weights else "")


def _epochs_before(recipe: Recipe, stage: int) -> int:
    """Epochs of the stages before number `stage`: epochs count on across stages."""
    return sum(earlier.epochs for earlier in recipe.stages[:stage])


def _steps_done(recipe: Recipe, plans: Sequence[Plan], position: Position) -> int:
    """Steps of all stages before `position`."""
    stages = zip(plans[: position.stage], recipe.stages, strict=False)
    steps = sum(plan.num_steps * stage.epochs for plan, stage in stages)
    if position.stage == len(plans):
        return steps
    return steps + position.epoch * plans[position.stage].num_steps + position.step

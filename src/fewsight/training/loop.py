"""fit(): the one visible loop. It never asks which backbone, loss or policy it has."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewsight import runs
from fewsight.augment.normalise import Normalise
from fewsight.data import cache_size
from fewsight.data.training_set import TrainingSet
from fewsight.errors import DataError, Interrupted, RunError
from fewsight.losses import collapse_of, own_weights
from fewsight.machine import files
from fewsight.machine.device import compute_threads, keep_freed_memory, same_bits
from fewsight.machine.processes import MIN_IMAGES_PER_PROCESS, SINGLE_PROCESS, ProcessGroup, synchronise_norms
from fewsight.machine.rng import batch_stream
from fewsight.machine.signals import StopFlag, signals_that_stop
from fewsight.models.classifier import initial_model, load_weights, weights_out
from fewsight.recipes import Recipe
from fewsight.runs import Run
from fewsight.scores.metrics import Figures, evaluate_scores
from fewsight.scores.scoring import score_images
from fewsight.training.feed import AugmentedImages, batches, naming_lost_workers
from fewsight.training.learner import Learner, build_learner
from fewsight.training.mix import mix, rows_of
from fewsight.training.plans import ClassBatches, Plan, batch_plan
from fewsight.training.reporters import Reporter
from fewsight.training.schedule import lr_at, peak_lr, px_at
from fewsight.training.state import Position, StateSaver, check_threads
from fewsight.wording import counted

_LOWER_RATE = (
    "{path} keeps the last saved state. Lower the rate (--set stages.0.optim.base_lr=...) or lengthen the warm-up "
    "(--set stages.0.optim.warmup_epochs=...) in a new run."
)


def fit(
    run: Run,
    data: TrainingSet,
    reporter: Reporter,
    weights: Mapping[str, Tensor] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Run:
    """Train a run to its end, from its last saved state if it has one.

    Args:
        weights: what to start from instead of a random initialisation.
        group: the processes that train it together, each of which calls this; the first one writes and speaks.

    Raises:
        RunError: the loss is not finite, or has collapsed and `run.on_collapse` is "stop", or the folder cannot be
            written.
        DataError: an image can no longer be read.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    recipe = run.recipe
    keep_freed_memory()
    state = runs.read_state(run.path)
    at = Position(**state[1]["position"]) if state else Position()
    if group.first:
        runs.remove_leftovers(run.path)
        runs.cut_log(run.path, state[1]["log_bytes"] if state else 0)
    group.wait()  # nobody writes before everybody has read
    device = torch.device(recipe.run.device)
    normalise = Normalise(run.data.mean, run.data.std).to(device)
    model = initial_model(recipe, len(run.classes))
    if weights is not None:
        load_weights(model, weights)
    if recipe.run.sync_norm and group.count > 1:
        synchronise_norms(model)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert recipe.run.threads != "auto", "a resolved recipe has its threads"
    plans = [batch_plan(recipe, stage, data) for stage in recipe.stages]
    cache = cache_size(recipe.run.cache_gb) // group.count
    images = AugmentedImages(
        data.root, data.paths, recipe.augment, recipe.run.seed, data.numbers, cache, partial(px_at, recipe)
    )
    _check_shares(plans, group)
    total = sum(plan.num_steps * stage.epochs for plan, stage in zip(plans, recipe.stages, strict=True))
    reporter.start(total, _steps_before(recipe, plans, at))
    exact = same_bits(device, always=recipe.run.deterministic)
    with compute_threads(recipe.run.threads), exact, signals_that_stop() as stop, naming_lost_workers():
        if state:
            check_threads(run, state[1]["threads"])
        for number in range(at.stage, len(recipe.stages)):
            learner = build_learner(model, recipe, recipe.stages[number], data, len(run.classes), device, group)
            if state:
                learner.load(*state)
                state = None
            reporter.say(_stage_line(recipe, number, plans[number], learner))
            at = _fit_stage(run, data, images, learner, plans, at, normalise, reporter, stop)
            learner.finish()
    if recipe.run.select == "best":
        run = runs.read_run(run.path)  # its weights' digest was noted there
        load_weights(model, runs.read_weights(run))
    with compute_threads(recipe.run.threads):
        figures = score_val(run, data, model, normalise, group)
    if not group.first:
        group.wait()
        return runs.read_run(run.path)
    if recipe.run.select == "last":
        run = runs.save_weights(run, weights_out(model))
    files.write_json(run.path / "metrics.json", {"val": figures.as_json() if figures else None})
    run = runs.update_info(run, status="finished", finished=runs.now(), collapsed=at.collapsed)
    runs.remove_state(run.path)
    group.wait()
    return run


def _check_shares(plans: Sequence[Plan], group: ProcessGroup) -> None:
    """Every process needs images of every batch."""
    if group.count == 1:
        return
    least = min(min(len(indices) for indices in plan.epoch(0)) for plan in plans)
    if least < MIN_IMAGES_PER_PROCESS * group.count:
        raise RunError(
            f"a batch of {least} images cannot be shared by {group.count} processes, each of which needs "
            f"{MIN_IMAGES_PER_PROCESS}; start fewer, or train with a larger batch_size"
        )


def _fit_stage(
    run: Run,
    data: TrainingSet,
    images: AugmentedImages,
    learner: Learner,
    plans: list[Plan],
    at: Position,
    normalise: Normalise,
    reporter: Reporter,
    stop: "StopFlag",
) -> Position:
    """One stage, from `at` to the start of the next."""
    recipe, stage, plan = run.recipe, run.recipe.stages[at.stage], plans[at.stage]
    before = sum(earlier.epochs for earlier in recipe.stages[: at.stage])  # epochs count on across stages
    labels = torch.tensor(data.labels)
    peak, total_steps = peak_lr(stage, plan.batch_size), stage.epochs * plan.num_steps
    warmup_steps = min(round(stage.optim.warmup_epochs * plan.num_steps), total_steps)
    keeper, began, group = StateSaver(recipe.run.state_minutes), time.monotonic(), learner.group

    def rows(epoch: int, step: int, count: int) -> np.ndarray:
        return rows_of(recipe, stage, epoch, step, count, group)

    assert recipe.run.workers != "auto", "a resolved recipe has its workers"
    feed = batches(
        images,
        plan,
        first_epoch=before + at.epoch,
        first_step=at.step,
        num_epochs=before + stage.epochs,
        workers=recipe.run.workers,
        pin=learner.device.type == "cuda",
        rows=rows,
    )
    with closing(feed):  # ends its processes, whatever happens
        for epoch, step, batch, indices in feed:
            torch.manual_seed(int(batch_stream(recipe.run.seed, epoch, step).integers(2**62)))
            inputs, targets = mix(normalise.of_bytes(batch), labels, indices, recipe, stage, epoch, step, group)
            done = (epoch - before) * plan.num_steps + step
            rate = lr_at(done, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps)
            loss, terms = learner.step(inputs, targets, rate)
            if not math.isfinite(loss):
                raise RunError(_not_finite(run, loss, epoch, step, rate))
            at = replace(
                at,
                step=step + 1,
                loss_sum=at.loss_sum + loss * len(indices),
                num_images=at.num_images + len(indices),
                terms=_summed(at.terms, terms, len(indices)),
            )
            line = {
                "kind": "step",
                "stage": at.stage,
                "epoch": epoch + 1,
                "step": step + 1,
                "loss": loss,
                "lr": rate,
                **({"terms": terms} if terms else {}),
            }
            reporter.step(line, _steps_before(recipe, plans, at))
            if group.first and step % max(1, plan.num_steps // 10) == 0:
                runs.append_log(run.path, {**line, "time": runs.now()})
            if step + 1 == plan.num_steps:
                at = _end_epoch(run, data, learner, at, normalise, reporter, time.monotonic() - began)
                began = time.monotonic()
            _keep_or_stop(run, learner, at, keeper, stop, f"epoch {epoch + 1}", f"step {step + 1}")
    return replace(at, stage=at.stage + 1, epoch=0, step=0)


def _keep_or_stop(
    run: Run, learner: Learner, at: Position, keeper: "StateSaver", stop: "StopFlag", epoch: str, step: str
) -> None:
    """After a step: save the state where it is due, and end here where a signal or a collapse asks for it."""
    group = learner.group
    collapsed = at.step == 0 and at.collapsed and run.recipe.run.on_collapse == "stop"
    signal_number = _agreed(stop.signal_number, group)
    if group.first and (signal_number or collapsed or keeper.is_due(epoch_ended=at.step == 0)):
        keeper.save(run, learner, at)
    if collapsed:
        raise RunError(
            f"{run.path}: stopped after {epoch}, because the loss has collapsed (the reason stands above and in "
            'log.jsonl) and run.on_collapse = "stop". Train anew with what it says to change'
        )
    if signal_number:
        group.wait()  # nobody leaves before the state is saved
        raise Interrupted(
            f"interrupted in {epoch}, after {step}; the state is saved. Continue with: fewsight train --resume "
            f"{run.path}",
            signal_number,
        )


def _agreed(signal_number: int, group: ProcessGroup) -> int:
    """The signal that any process has received: all stop after the same step."""
    if group.count == 1:
        return signal_number
    heard = torch.zeros(group.count, dtype=torch.int64)
    heard[group.rank] = signal_number
    return int(group.sum_(heard).max())


def _end_epoch(
    run: Run,
    data: TrainingSet,
    learner: Learner,
    at: Position,
    normalise: Normalise,
    reporter: Reporter,
    seconds: float,
) -> Position:
    """Log the epoch, test on val where it is time to, keep the best; returns the start of the next epoch."""
    recipe, stage = run.recipe, run.recipe.stages[at.stage]
    earlier = sum(one.epochs for one in recipe.stages[: at.stage])
    line: dict[str, Any] = {
        "kind": "epoch",
        "stage": at.stage,
        "epoch": earlier + at.epoch + 1,
        "train_loss": at.loss_sum / at.num_images,
    }
    means = {name: total / count for name, (total, count) in at.terms.items()}
    if means:
        line["terms"] = means
    every = recipe.eval.every_epochs
    if every and ((at.epoch + 1) % every == 0 or at.epoch + 1 == stage.epochs):
        figures = score_val(run, data, learner.averaged(), normalise, learner.group)
        if figures:
            line |= {"val_top1": figures.top1.value, "val_nll": figures.nll}
            if recipe.run.select == "best" and figures.top1.value > at.best_top1:
                at = replace(at, best_top1=figures.top1.value)
                if learner.group.first:
                    runs.save_weights(run, weights_out(learner.averaged()), best_epoch=line["epoch"])
    first = means if at.epoch == 0 else at.first
    warm = at.epoch + 1 > stage.optim.warmup_epochs
    collapse = collapse_of(learner.loss, means, first, (at.epoch + 1) / stage.epochs) if warm else None
    if collapse:
        line["collapse"] = collapse
    if learner.group.first:
        runs.append_log(run.path, {**line, "seconds": round(seconds, 3), "time": runs.now()})
    reporter.epoch({**line, "epochs": sum(one.epochs for one in recipe.stages), "seconds": seconds})
    if collapse and not at.collapsed:  # named once, while it lasts
        reporter.say(f"warning: epoch {line['epoch']}: {collapse}")
    at = replace(at, first=first, collapsed=collapse is not None)
    return replace(at, epoch=at.epoch + 1, step=0, loss_sum=0.0, num_images=0, terms={})


def _stage_line(recipe: Recipe, number: int, plan: Plan, learner: Learner) -> str:
    """What a stage does, in words."""
    stage = recipe.stages[number]
    batch = "x".join(map(str, plan.shape)) if isinstance(plan, ClassBatches) else str(plan.batch_size)
    text = (
        f"stage {number + 1} of {len(recipe.stages)}: {stage.loss}, {counted(stage.epochs, 'epoch')} of "
        f"{counted(plan.num_steps, 'batch')} "
    )
    text += f"({batch} images{' by class' if isinstance(plan, ClassBatches) else ''}), peak rate "
    text += f"{peak_lr(stage, plan.batch_size):.3g}"
    own = own_weights(learner.loss)
    return text + (f"; the loss's own weights: {', '.join(own)}" if own else "")


def _summed(sums: Mapping[str, list[float]], terms: Mapping[str, float], count: int) -> dict[str, list[float]]:
    """What the loss has logged so far in the epoch; a term that sat a batch out does not count there."""
    added = {name: [value * count, count] for name, value in terms.items()}
    before = {name: sums.get(name, [0.0, 0.0]) for name in added}
    return {**sums, **{name: [before[name][0] + total, before[name][1] + n] for name, (total, n) in added.items()}}


def score_val(
    run: Run, data: TrainingSet, model: nn.Module, normalise: Normalise, group: ProcessGroup = SINGLE_PROCESS
) -> Figures | None:
    """Figures on val, None where there is no val; each image is scored once, by one of the processes.

    Raises:
        DataError: an image can no longer be read.
        RunError: a score is not finite.
    """
    for buffer in model.buffers():  # the statistics that are kept are the first process's
        group.copy_(buffer)
    if not data.val_paths:
        return None
    model.eval()
    paths = [data.root / path for path in data.val_paths]
    scored = list(score_images(model, normalise, paths[group.rows(len(paths))], run.recipe))
    for error in (error for scores in scored for error in scores.errors if error is not None):
        raise DataError(f"{error} (val; it could be read before training began)")
    found = [scores.log_probs for scores in scored] or [np.empty((0, len(run.classes)), np.float32)]
    log_probs = group.gather(torch.from_numpy(np.concatenate(found)), len(paths)).numpy()
    if not np.isfinite(log_probs).all():
        raise RunError(f"the model's scores on val are not finite. {_LOWER_RATE.format(path=run.path)}")
    return evaluate_scores(log_probs, np.asarray(data.val_labels), run.classes)


def _steps_before(recipe: Recipe, plans: list[Plan], at: Position) -> int:
    stages = zip(plans[: at.stage], recipe.stages, strict=False)
    done = sum(plan.num_steps * stage.epochs for plan, stage in stages)
    return done + (at.epoch * plans[at.stage].num_steps + at.step if at.stage < len(plans) else 0)


def _not_finite(run: Run, loss: float, epoch: int, step: int, rate: float) -> str:
    where = f"epoch {epoch + 1}, step {step + 1} (rate {rate:.4g})"
    return f"the loss is {loss} at {where}. {_LOWER_RATE.format(path=run.path)}"

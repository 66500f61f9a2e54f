"""Val, and the end of a run: nothing that is not a finite number leaves a training."""

import numpy as np
import torch
from torch import nn

from fewsight import runs
from fewsight.errors import DataError, RunError
from fewsight.machine import files
from fewsight.machine.device import compute_threads
from fewsight.models.classifier import Classifier, load_weights, weights_out
from fewsight.runs import Run
from fewsight.scores.calibration import keep_temperature
from fewsight.scores.log_probs import NOT_FINITE
from fewsight.scores.metrics import Figures, evaluate_scores
from fewsight.scores.scoring import Scorer, Scores, score_images, views_of
from fewsight.training.members.folder import is_member
from fewsight.training.members.scores import keep_val_scores
from fewsight.training.state import Position, Training
from fewsight.wording import named

NUM_CHECKED = 64  # training images that are scored at the end of a run without val

_LOWER_LR = (
    "{path} keeps the last saved state. Start a new run with a lower learning rate (--set stages.0.optim.base_lr=...) "
    "or a longer warm-up (--set stages.0.optim.warmup_epochs=...)."
)


def finish(training: Training, model: Classifier, position: Position) -> Run:
    """Check the final weights, evaluate them on val and mark the run as finished.

    Raises:
        RunError: a weight, a running statistic or a score is not finite; the run is not marked as finished.
    """
    run, recipe, group = training.run, training.run.recipe, training.group
    if recipe.run.select == "best":
        run = runs.read_run(run.path)  # run.json has the digest of the best weights since they were saved
        load_weights(model, runs.read_weights(run))
    assert recipe.run.threads != "auto", "the recipe is resolved"
    with compute_threads(recipe.run.threads):
        _use_first_statistics(training, model)
        _check_weights(run, model)
        log_probs = val_log_probs(training, model)
        figures = None if log_probs is None else val_figures(training, log_probs)
        if figures is None:
            _check_scores(training, model)
    if not group.first:
        group.wait()
        return runs.read_run(run.path)
    if recipe.run.select == "last":
        run = runs.save_weights(run, weights_out(model))
    files.write_json(run.path / "metrics.json", {"val": figures.as_json() if figures else None})
    if log_probs is not None:
        labels, view = np.asarray(training.data.val_labels), views_of(recipe)[0].name
        keep_temperature(run.path, log_probs, labels, view, chose_weights=recipe.run.select == "best")
        if is_member(run.path):
            keep_val_scores(run, training.data, log_probs)
    run = runs.update_info(run, status="finished", finished=runs.now(), collapsed=position.collapsed)
    runs.remove_state(run.path)
    group.wait()
    return run


def score_val(training: Training, model: nn.Module) -> Figures | None:
    """Accuracy and loss on val, centre view; None without a val split.

    Raises:
        DataError, RunError: as `val_log_probs`.
    """
    log_probs = val_log_probs(training, model)
    return None if log_probs is None else val_figures(training, log_probs)


def val_figures(training: Training, log_probs: np.ndarray) -> Figures:
    """Accuracy and loss on val, from log-probabilities [n, K]."""
    return evaluate_scores(log_probs, np.asarray(training.data.val_labels), training.run.classes)


def val_log_probs(training: Training, model: nn.Module) -> np.ndarray | None:
    """Log-probabilities of val, float32 [n, K], centre view; None without a val split.

    Each image is scored once, by one process.

    Raises:
        DataError: an image can no longer be read.
        RunError: a score is not finite.
    """
    run, data, group = training.run, training.data, training.group
    _use_first_statistics(training, model)
    if not data.val_paths:
        return None
    own = group.rows(len(data.val_paths))
    scored = _scored(training, model, data.val_paths[own])
    for error in (error for scores in scored for error in scores.errors if error not in (None, NOT_FINITE)):
        raise DataError(f"{error} (val; it could be read before training began)")
    parts = [scores.log_probs for scores in scored] or [np.empty((0, len(run.classes)), np.float32)]
    log_probs: np.ndarray = group.gather(torch.from_numpy(np.concatenate(parts)), len(data.val_paths)).numpy()
    if not np.isfinite(log_probs).all():
        raise RunError(f"the model's scores on val are not finite. {_LOWER_LR.format(path=run.path)}")
    return log_probs


def loss_not_finite(run: Run, loss: float, epoch: int, step: int, lr: float) -> str:
    """The error message about a loss that is not finite; epoch and step count from 0."""
    where = f"epoch {epoch + 1}, step {step + 1} (learning rate {lr:.4g})"
    return f"the loss is {loss} at {where}. {_LOWER_LR.format(path=run.path)}"


def _use_first_statistics(training: Training, model: nn.Module) -> None:
    """The norm statistics that are evaluated and saved are the first process's."""
    for buffer in model.buffers():
        training.group.copy_(buffer)


def _scored(training: Training, model: nn.Module, paths: tuple[str, ...]) -> list[Scores]:
    model.eval()
    scorer = Scorer(model, training.normalise, training.run.recipe)
    return list(score_images(scorer, [training.data.root / path for path in paths]))


def _check_weights(run: Run, model: nn.Module) -> None:
    """Check what the last update left: the loss of each step was computed before its update.

    Raises:
        RunError: a weight or a running statistic is not finite.
    """
    bad = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise RunError(
            f"the training has ended, but its weights are not finite numbers ({named(bad)}), so the model has no "
            f"probabilities. {_LOWER_LR.format(path=run.path)}"
        )


def _check_scores(training: Training, model: nn.Module) -> None:
    """Check scores of some training images, where there is no val: finite weights may overflow in the layers.

    Raises:
        RunError: a score is not finite.
    """
    scored = _scored(training, model, training.data.paths[:NUM_CHECKED])
    if any(error == NOT_FINITE for scores in scored for error in scores.errors):
        raise RunError(
            "the training has ended, but the model's scores of its training images are not finite. "
            + _LOWER_LR.format(path=training.run.path)
        )

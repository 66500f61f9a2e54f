"""CutMix over a whole batch after normalisation, and the rows of the batch that each process needs."""

import numpy as np
import torch
from torch import Tensor

from fewsight.augment import Mix, draw_cutmix, paste
from fewsight.losses import Targets
from fewsight.machine.device import to_device
from fewsight.machine.processes import SINGLE_PROCESS, ProcessGroup
from fewsight.machine.rng import batch_stream
from fewsight.recipes import Recipe, Stage
from fewsight.training.schedule import px_at


def mix(
    images: Tensor,
    labels: Tensor,
    indices: np.ndarray,
    recipe: Recipe,
    stage: Stage,
    epoch: int,
    step: int,
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Tensor, Targets]:
    """Apply CutMix, drawn for the whole batch by (seed, epoch, step), to the rows of this process.

    Args:
        images: [n, 3, H, W], the rows of the batch that `rows_of` returns: all of them in a single process.
        labels: [N], class indices of the whole training set.
        indices: [B], which images of the training set are in the batch.

    Returns:
        This process's images [b, 3, H, W], and their targets.
    """
    device, count, own = images.device, len(indices), group.rows(len(indices))
    total = None if group.count == 1 else count
    batch_labels, own_indices = labels[indices], to_device(torch.from_numpy(indices)[own], device)
    own_labels = to_device(batch_labels[own], device)
    drawn = _draw(recipe, stage, epoch, step, count)
    if drawn is None:
        return images, Targets(own_labels, own_labels, images=own_indices, group=group, total=total)
    rows = rows_of(recipe, stage, epoch, step, count, group)
    loaded_at = np.empty(count, np.int64)  # row of the batch -> row of `images`
    loaded_at[rows] = np.arange(len(rows))
    partners = drawn.permutation[own]
    mixed = paste(images[: own.stop - own.start], images, loaded_at[partners], drawn.box)
    other_labels = to_device(batch_labels[partners], device)
    return mixed, Targets(own_labels, other_labels, drawn.lam, own_indices, group, total)


def rows_of(recipe: Recipe, stage: Stage, epoch: int, step: int, count: int, group: ProcessGroup) -> np.ndarray:
    """The rows of a batch that a process needs: its own, then their CutMix partners among the other processes' rows."""
    own = np.arange(count)[group.rows(count)]
    if group.count == 1:
        return own
    drawn = _draw(recipe, stage, epoch, step, count)
    return own if drawn is None else np.concatenate([own, np.setdiff1d(drawn.permutation[own], own)])


def _draw(recipe: Recipe, stage: Stage, epoch: int, step: int, count: int) -> Mix | None:
    px, prob, alpha = px_at(recipe, epoch), cutmix_prob(recipe, stage), recipe.augment_of(stage).cutmix_alpha
    return draw_cutmix(batch_stream(recipe.run.seed, epoch, step), count, px, px, prob=prob, alpha=alpha)


def cutmix_prob(recipe: Recipe, stage: Stage) -> float:
    """The probability that CutMix mixes a batch of the stage."""
    return recipe.augment.cutmix_prob if stage.cutmix_prob == "auto" else stage.cutmix_prob

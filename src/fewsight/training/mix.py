"""What a batch is after normalisation: CutMix over the whole of it, and the rows of it that a process takes."""

import numpy as np
import torch
from torch import Tensor

from fewsight.augment import Mix, draw_cutmix, paste
from fewsight.losses import Targets
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
    """CutMix, drawn for the whole batch by (seed, epoch, step); of it this process's rows.

    Args:
        images: [n, 3, H, W], the rows of the batch that `rows_of` names: all of them for a process by itself.
        labels: [N], of the whole training set; `indices` [B] says which of it stand in the batch.
    """
    device, count, own = images.device, len(indices), group.rows(len(indices))
    total = None if group.count == 1 else count
    known, which = labels[indices].to(device), torch.from_numpy(indices)[own].to(device)
    drawn = _drawn(recipe, stage, epoch, step, count)
    if drawn is None:
        return images, Targets(known[own], known[own], images=which, group=group, total=total)
    rows = rows_of(recipe, stage, epoch, step, count, group)
    place = np.empty(count, np.int64)
    place[rows] = np.arange(len(rows))
    partners = drawn.permutation[own]
    mixed = paste(images[: own.stop - own.start], images, place[partners], drawn.box)
    others = known[torch.from_numpy(partners).to(device)]
    return mixed, Targets(known[own], others, drawn.lam, which, group, total)


def rows_of(recipe: Recipe, stage: Stage, epoch: int, step: int, count: int, group: ProcessGroup) -> np.ndarray:
    """Which images of a batch a process needs: its share, then the CutMix partners that lie in the others'."""
    own = np.arange(count)[group.rows(count)]
    if group.count == 1:
        return own
    drawn = _drawn(recipe, stage, epoch, step, count)
    return own if drawn is None else np.concatenate([own, np.setdiff1d(drawn.permutation[own], own)])


def _drawn(recipe: Recipe, stage: Stage, epoch: int, step: int, count: int) -> Mix | None:
    px, prob, alpha = px_at(recipe, epoch), cutmix_prob(recipe, stage), recipe.augment.cutmix_alpha
    return draw_cutmix(batch_stream(recipe.run.seed, epoch, step), count, px, px, prob=prob, alpha=alpha)


def cutmix_prob(recipe: Recipe, stage: Stage) -> float:
    """The probability that a batch of the stage is mixed."""
    return recipe.augment.cutmix_prob if stage.cutmix_prob == "auto" else stage.cutmix_prob

"""Losses: Modules `(logits, features, targets) -> (scalar, what to log)`, and weighted sums of them.

To add one, write its Module and builder in a file here and name it in LOSSES; a recipe then takes it alone or in
a sum (`loss = "ce+yours"`, `losses.weights.yours = 0.5`). What it may declare:

- `batches`: "shuffled", or "pk" where it compares images within the batch (and so takes no accumulation);
- `trains_head`: whether the linear head, which predicts, learns from it;
- `unmixed_only`: whether it learns nothing from a CutMix batch;
- `collapse(means, first, progress) -> str | None`, optional: given the means of what it logs over an epoch and over the
  stage's first, and the share of the stage that is done, what has gone wrong and what to change.

What it logs are floats or 0-dimensional tensors; one that is NaN has no value in this batch and is left out. Weights
that it owns are trained too. `fit()` never asks which loss it has.
"""

import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewsight.errors import RecipeError
from fewsight.losses.arcface import ArcFace, arcface
from fewsight.losses.cross_entropy import SmoothedCrossEntropy, balanced_weights, cross_entropy
from fewsight.losses.sums import WeightedSum, collapse_of
from fewsight.losses.targets import Targets, at_least_float32
from fewsight.losses.triplet import BatchHardTriplet, triplet
from fewsight.recipes import Losses, Stage

__all__ = [
    "LOSSES",
    "ArcFace",
    "BatchHardTriplet",
    "SmoothedCrossEntropy",
    "Targets",
    "WeightedSum",
    "at_least_float32",
    "balanced_weights",
    "build_loss",
    "check_loss",
    "collapse_of",
    "own_weights",
    "wanted_batches",
]

LossBuilder = Callable[[Losses, int, int, Tensor | None], nn.Module]
LOSSES: dict[str, LossBuilder] = {"ce": cross_entropy, "triplet": triplet, "arcface": arcface}


def build_loss(
    name: str, losses: Losses, *, num_classes: int, num_features: int, class_weights: Tensor | None = None
) -> nn.Module:
    """The loss of that name, or the sum: `ce+triplet`, with the weights of `losses.weights`.

    Raises:
        RecipeError: no such loss (the nearest is named), one twice, or a sum that leaves the linear head untrained.
    """
    names = [part.strip() for part in name.split("+")]
    if "" in names:
        raise RecipeError(f"loss {name!r}: expected a loss, or a sum such as ce+triplet; known are {', '.join(LOSSES)}")
    for one in [*names, *losses.weights]:
        if one not in LOSSES:
            near = difflib.get_close_matches(one, LOSSES, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RecipeError(f"no loss {one!r}: known are {', '.join(LOSSES)}, and sums such as ce+triplet{hint}")
    if len(set(names)) < len(names):
        raise RecipeError(f"loss {name!r}: a loss stands there twice; give it a weight in losses.weights instead")
    terms = {one: LOSSES[one](losses, num_classes, num_features, class_weights) for one in names}
    alone = len(names) == 1 and names[0] not in losses.weights
    loss = terms[names[0]] if alone else WeightedSum(terms, losses.weights)
    if not loss.trains_head:
        raise RecipeError(f"loss {name!r} leaves the linear head, which predicts, untrained; use {f'ce+{name}'!r}")
    return loss


def own_weights(loss: nn.Module) -> list[str]:
    """The weights that a loss owns, in words: `terms.arcface.weight [20, 2048]`."""
    return [f"{name} {list(weight.shape)}" for name, weight in loss.named_parameters()]


def batch_kind(stage: Stage) -> str:
    """`shuffled` or `pk`: what the stage says, else what its loss wants."""
    if stage.batches != "auto":
        return stage.batches
    with torch.device("meta"):
        return str(build_loss(stage.loss, stage.losses, num_classes=2, num_features=1).batches)


def check_loss(stage: Stage, cutmix_prob: float) -> None:
    """Refuse a stage whose loss could not do its work.

    Raises:
        RecipeError: as `build_loss`; gradient accumulation with a loss that compares images within the batch; a
            loss of unmixed batches where every batch is mixed; P x K batches too small for two classes of two.
    """
    with torch.device("meta"):
        loss = build_loss(stage.loss, stage.losses, num_classes=2, num_features=1)
    if loss.batches == "pk" and stage.accumulate > 1:
        raise RecipeError(
            f"loss {stage.loss!r} seeks the hardest pairs of the whole batch, so it takes no accumulation (accumulate "
            f"is {stage.accumulate}); set it to 1 and, where memory is short, take a smaller batch_size or train_px"
        )
    if loss.unmixed_only and cutmix_prob >= 1:
        raise RecipeError(
            f"loss {stage.loss!r} learns from unmixed batches only, but cutmix_prob = {cutmix_prob:g} mixes every one; "
            "lower it for this stage (stages.N.cutmix_prob)"
        )
    if batch_kind(stage) == "pk" and stage.batch_size < 4:
        raise RecipeError(
            f"batch_size = {stage.batch_size}: batches of P classes x K images need at least 2 x 2 = 4 images"
        )

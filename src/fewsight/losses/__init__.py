"""Losses: Modules `(logits, features, targets) -> (scalar, what to log)`, and weighted sums of them.

To add a loss, write its Module and builder in a file here and add the builder to LOSSES; a recipe can then use it alone
or in a sum (`loss = "ce+yours"`, `losses.weights.yours = 0.5`, `losses.options.yours.gamma = 2.0` for a keyword-only
parameter `gamma` of the builder). The Module declares:

- `batches`: "shuffled", or "pk" if it compares images within the batch (which excludes gradient accumulation);
- `trains_head`: whether it trains the linear head, which predicts;
- `unmixed_only`: whether a CutMix batch gives no gradient;
- `collapse(means, first, progress) -> str | None`, optional: a diagnosis and what to change, or None, from the means
  of the logged terms over an epoch and over the stage's first epoch, and the proportion of the stage that is done.

The logged terms are floats or 0-dimensional tensors; NaN means no value in this batch, and the term is not logged.
Weights that a loss owns are trained too. `fit()` never asks which loss it has.
"""

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
from fewsight.recipes.options import check_name, check_options

__all__ = [
    "LOSSES",
    "ArcFace",
    "BatchHardTriplet",
    "SmoothedCrossEntropy",
    "Targets",
    "WeightedSum",
    "at_least_float32",
    "balanced_weights",
    "batch_kind",
    "build_loss",
    "check_loss",
    "collapse_of",
    "own_weights",
]

# (settings, num_classes, num_features, class_weights, **options) -> loss; its keyword-only parameters are what a recipe
# may set in `losses.options.NAME`
LossBuilder = Callable[..., nn.Module]
LOSSES: dict[str, LossBuilder] = {
    "ce": cross_entropy,
    "triplet": triplet,
    "arcface": arcface,
}


def build_loss(
    name: str, losses: Losses, *, num_classes: int, num_features: int, class_weights: Tensor | None = None
) -> nn.Module:
    """The loss `name`, or a sum such as `ce+triplet` with the weights of `losses.weights`.

    Raises:
        RecipeError: no such loss (the message suggests the nearest name), an option's value that its builder refuses
            with a ValueError, a loss given twice, or a loss or sum that does not train the linear head.
    """
    names = [part.strip() for part in name.split("+")]
    if "" in names:
        raise RecipeError(f"loss {name!r}: expected one of {', '.join(LOSSES)}, or a sum such as ce+triplet")
    for key, terms in (("loss", names), ("losses.weights", losses.weights), ("losses.options", losses.options)):
        for term in terms:
            check_name(term, LOSSES, key, "a sum such as ce+triplet" if key == "loss" else "")
    for term, options in losses.options.items():
        check_options(LOSSES[term], options, f"losses.options.{term}")
    if len(set(names)) < len(names):
        raise RecipeError(f"loss {name!r}: a loss is given twice; give it a weight in losses.weights instead")
    built = {}
    for term in names:
        try:
            built[term] = LOSSES[term](losses, num_classes, num_features, class_weights, **losses.options.get(term, {}))
        except ValueError as error:
            raise RecipeError(f"losses.options.{term}: {term} cannot be built: {error}") from error
    unweighted = len(names) == 1 and names[0] not in losses.weights
    loss = built[names[0]] if unweighted else WeightedSum(built, losses.weights)
    if not loss.trains_head:
        raise RecipeError(f"loss {name!r} does not train the linear head, which predicts; use {f'ce+{name}'!r}")
    return loss


def own_weights(loss: nn.Module) -> list[str]:
    """Names and shapes of the weights that a loss owns: `terms.arcface.weight [20, 2048]`."""
    return [f"{name} {list(weight.shape)}" for name, weight in loss.named_parameters()]


def batch_kind(stage: Stage) -> str:
    """`shuffled` or `pk`: the stage's `batches`, or for "auto" those of its loss."""
    if stage.batches != "auto":
        return stage.batches
    with torch.device("meta"):
        return str(build_loss(stage.loss, stage.losses, num_classes=2, num_features=1).batches)


def check_loss(stage: Stage, cutmix_prob: float) -> None:
    """Check that a stage's loss can train with the stage's settings.

    Args:
        cutmix_prob: the probability that CutMix mixes a batch of the stage.

    Raises:
        RecipeError: as `build_loss`; gradient accumulation with a loss that compares images within the batch; a
            loss that needs unmixed batches where every batch is mixed; P x K batches of fewer than 2 x 2 images.
    """
    with torch.device("meta"):
        loss = build_loss(stage.loss, stage.losses, num_classes=2, num_features=1)
    if loss.batches == "pk" and stage.accumulate > 1:
        raise RecipeError(
            f"loss {stage.loss!r} compares the images of the whole batch, so it cannot be accumulated (accumulate "
            f"is {stage.accumulate}); set it to 1 and, if memory is short, use a smaller batch_size or train_px"
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

"""Batch-hard triplet loss on the pooled features."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewsight.losses.targets import Targets, at_least_float32
from fewsight.recipes import Losses

LEAST_DISTANCE = 1e-6  # below it a pair has no direction to be pushed in
# collapsed, in units of the margin: every distance is small, and negatives lead positives by next to nothing
COLLAPSED_POSITIVE, COLLAPSED_NEGATIVE, COLLAPSED_LEAD = 1.0, 0.5, 0.1
# on the way there: distances have shrunk to this share of the stage's first epoch, and no more anchors are satisfied
SHRUNKEN, UNSATISFIED = 0.25, 0.95


class BatchHardTriplet(nn.Module):
    """Mean over anchors of [m + max over positives d(a, p) - min over negatives d(a, n)]+, within the batch.

    Distances are Euclidean, on features as they are. A positive is another image of the anchor's class: a copy
    of the same image is neither positive nor negative. Anchors without a positive or without a negative do not
    count. The pairs are chosen by a matrix product of centred features, and the chosen distances computed anew
    by difference, since the product loses small ones in float32. Computed in float32 at least.

    A CutMix image has no one identity, so a mixed batch gives 0 (`mixed = "skip"`) or, as a choice,
    lam * L(labels) + (1 - lam) * L(other_labels) (`mixed = "lam"`).

    Args:
        margin: m, in units of distance, or "soft" for log(1 + exp(d(a, p) - d(a, n))).
        normalise: bring features to length 1 first.

    Source: Hermans et al., arXiv 1703.07737, eq. 5.
    """

    batches = "pk"
    trains_head = False

    def __init__(
        self,
        margin: float | Literal["soft"] = 0.3,
        *,
        normalise: bool = False,
        mixed: Literal["skip", "lam"] = "skip",
    ) -> None:
        super().__init__()
        self.margin, self.normalise, self.mixed = margin, normalise, mixed

    @property
    def unmixed_only(self) -> bool:
        """Whether it learns nothing from a mixed batch."""
        return self.mixed == "skip"

    def forward(self, logits: Tensor, features: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """features [B, D] -> (scalar, distances of the hardest pairs, share of active anchors, feature norm)."""
        if targets.lam < 1 and self.unmixed_only:
            return (0 * at_least_float32(features)).sum(), {}
        features = at_least_float32(features)
        norm = features.detach().norm(dim=1).mean()
        if self.normalise:
            features = functional.normalize(features, dim=1, eps=LEAST_DISTANCE)
        group, total = targets.group, len(features) if targets.total is None else targets.total
        own, everyone = group.rows(total), group.gather(features, total)
        squared = squared_distances(everyone.detach())[own]
        images = None if targets.images is None else group.gather(targets.images, total)
        same_image = torch.eye(total, dtype=torch.bool, device=features.device)[own]
        if images is not None:
            same_image = images[own, None] == images
        loss, logged = self._hardest(everyone, own, squared, targets.labels, same_image, targets)
        if targets.lam < 1:
            other, _ = self._hardest(everyone, own, squared, targets.other_labels, same_image, targets)
            loss = targets.lam * loss + (1 - targets.lam) * other
        return loss, {**logged, "feature_norm": norm}

    def _hardest(
        self, everyone: Tensor, own: slice, squared: Tensor, labels: Tensor, same_image: Tensor, targets: Targets
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Anchors are the rows `own` of `everyone`, pairs are sought among all of them."""
        features, all_labels = everyone[own], targets.group.gather(labels, len(everyone))
        same_class = labels[:, None] == all_labels
        farthest, positives = squared.masked_fill(~same_class | same_image, -torch.inf).max(1)
        nearest, negatives = squared.masked_fill(same_class | same_image, torch.inf).min(1)
        counts = (farthest > -torch.inf) & (nearest < torch.inf)  # has a positive and a negative
        # embedding: a gather whose gradient is summed fast, and on a GPU in one order
        hardest = [
            (features - functional.embedding(pairs, everyone)).norm(dim=1).clamp(min=LEAST_DISTANCE)
            for pairs in (positives, negatives)
        ]
        gap = hardest[0] - hardest[1]
        each = functional.softplus(gap) if self.margin == "soft" else functional.relu(gap + self.margin)
        number = targets.group.sum_(counts.sum())
        share = counts.to(features.dtype) / number.clamp(min=1)  # [B], of the mean over the anchors that count
        if targets.group.count > 1:  # the value is a mean over own rows, as of every loss
            share = share * (len(everyone) / len(features))
        with torch.no_grad():
            shown = share / (number > 0)  # NaN where none counts: nothing to log
            positive, negative = ((distance * shown).sum() for distance in hardest)
            active = ((gap > 0 if self.margin == "soft" else each > 0) * shown).sum()
        logged = {"hardest_positive": positive, "hardest_negative": negative, "active_share": active}
        return (each * share).sum(), logged

    def collapse(self, means: Mapping[str, float], first: Mapping[str, float], progress: float) -> str | None:
        """Features that draw together into one point: distances fall to 0, the loss to its margin."""
        positive, negative = means.get("hardest_positive"), means.get("hardest_negative")
        if positive is None or negative is None:
            return None
        unit = 1.0 if self.margin == "soft" else self.margin
        small = positive < COLLAPSED_POSITIVE * unit and negative < COLLAPSED_NEGATIVE * unit
        collapsed = small and negative - positive < COLLAPSED_LEAD * unit
        shrinks = positive < SHRUNKEN * first.get("hardest_positive", 0.0) and means["active_share"] > UNSATISFIED
        if not collapsed and not shrinks:
            return None
        rest = f"{math.log(2):.2f} (log 2)" if self.margin == "soft" else f"its margin {self.margin:g}"
        what = f"has collapsed and rests at {rest}" if collapsed else "is collapsing"
        remedies = ["lower the rate (lr_scale = 0.1)", "lower its weight (losses.weights.triplet)"]
        remedies += [] if self.normalise else ["normalise the features (losses.triplet.normalise = true)"]
        return (
            f"the triplet loss {what}: the hardest positive lies {positive:.2g} and the hardest negative "
            f"{negative:.2g} away, {means['active_share']:.0%} of the anchors are unsatisfied, and the features draw "
            f"together into one point. In a new run {', or '.join(remedies)}; if this one began at random, begin with "
            "ce weights"
        )


def squared_distances(features: Tensor) -> Tensor:
    """[B, D] -> [B, B], by one matrix product; around the mean, where float32 loses the least."""
    centred = features - features.mean(0)
    lengths = centred.square().sum(1)
    return torch.addmm(lengths[:, None] + lengths, centred, centred.T, alpha=-2)


def triplet(losses: Losses, num_classes: int, num_features: int, class_weights: Tensor | None) -> nn.Module:
    """`triplet`."""
    values = losses.triplet
    return BatchHardTriplet(values.margin, normalise=values.normalise, mixed=values.mixed)

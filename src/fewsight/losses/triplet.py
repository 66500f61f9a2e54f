"""Batch-hard triplet loss on the pooled features."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewsight.losses.targets import Targets, at_least_float32
from fewsight.recipes import Losses

MIN_DISTANCE = 1e-6  # below it the gradient of a distance has no direction
# collapsed, in units of the margin: both distances are small, and negatives are hardly farther than positives
COLLAPSED_POSITIVE, COLLAPSED_NEGATIVE, COLLAPSED_LEAD = 1.0, 0.5, 0.1
# collapsing: distances have shrunk to this proportion of the first epoch's, and more than this proportion is active
SHRUNKEN, UNSATISFIED = 0.25, 0.95


class BatchHardTriplet(nn.Module):
    """Mean over anchors of [m + max over positives d(a, p) - min over negatives d(a, n)]+, within the batch.

    Distances are Euclidean, between the pooled features. A positive is another image of the anchor's class: a copy
    of the anchor's image is neither positive nor negative. Anchors without a positive or without a negative do not
    count. Pairs are mined with a matrix product of centred features, and their distances computed again by
    subtraction, since the product loses small distances in float32. Computed in float32 or float64.

    A CutMix image belongs to two classes, so the loss of a mixed batch is 0 (`mixed = "skip"`) or
    lam * L(labels) + (1 - lam) * L(other_labels) (`mixed = "lam"`).

    Args:
        margin: m, in units of distance, or "soft" for log(1 + exp(d(a, p) - d(a, n))).
        normalise: normalise features to length 1 first.
        mixed: the loss of a CutMix batch.

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
        """Whether a mixed batch gives no gradient."""
        return self.mixed == "skip"

    def forward(self, logits: Tensor, features: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """features [B, D] -> (scalar, mean distances of the hardest pairs, proportion of active anchors, mean norm)."""
        if targets.lam < 1 and self.unmixed_only:
            return (0 * at_least_float32(features)).sum(), {}
        features = at_least_float32(features)
        norm = features.detach().norm(dim=1).mean()
        if self.normalise:
            features = functional.normalize(features, dim=1, eps=MIN_DISTANCE)
        group, total = targets.group, len(features) if targets.total is None else targets.total
        own, all_features = group.rows(total), group.gather(features, total)
        squared = squared_distances(all_features.detach())[own]
        images = None if targets.images is None else group.gather(targets.images, total)
        same_image = torch.eye(total, dtype=torch.bool, device=features.device)[own]
        if images is not None:
            same_image = images[own, None] == images
        loss, logged = self._mine(all_features, own, squared, targets.labels, same_image, targets)
        if targets.lam < 1:
            other, _ = self._mine(all_features, own, squared, targets.other_labels, same_image, targets)
            loss = targets.lam * loss + (1 - targets.lam) * other
        return loss, {**logged, "feature_norm": norm}

    def _mine(
        self, all_features: Tensor, own: slice, squared: Tensor, labels: Tensor, same_image: Tensor, targets: Targets
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the terms to log, of one label per image.

        Args:
            all_features: [N, D], of the whole batch.
            own: the rows of this process, which are the anchors, B of them.
            squared: [B, N], squared distances of anchors and all images.
            labels: [B], of the anchors.
            same_image: [B, N], whether both rows show the same training image.
        """
        features, all_labels = all_features[own], targets.group.gather(labels, len(all_features))
        same_class = labels[:, None] == all_labels
        farthest, positives = squared.masked_fill(~same_class | same_image, -torch.inf).max(1)
        nearest, negatives = squared.masked_fill(same_class | same_image, torch.inf).min(1)
        counts = (farthest > -torch.inf) & (nearest < torch.inf)  # has a positive and a negative
        # embedding: a gather whose backward pass is fast, and deterministic on a GPU
        hardest = [
            (features - functional.embedding(pairs, all_features)).norm(dim=1).clamp(min=MIN_DISTANCE)
            for pairs in (positives, negatives)
        ]
        gap = hardest[0] - hardest[1]
        each = functional.softplus(gap) if self.margin == "soft" else functional.relu(gap + self.margin)
        num_counting = targets.group.sum_(counts.sum())
        weight = counts.to(features.dtype) / num_counting.clamp(min=1)  # [B], for the mean over the counting anchors
        if targets.group.count > 1:  # every loss is a mean over the process's own rows
            weight = weight * (len(all_features) / len(features))
        with torch.no_grad():
            logged_weight = weight / (num_counting > 0)  # NaN if no anchor counts: nothing is logged
            positive, negative = ((distance * logged_weight).sum() for distance in hardest)
            active = ((gap > 0 if self.margin == "soft" else each > 0) * logged_weight).sum()
        logged = {"hardest_positive": positive, "hardest_negative": negative, "active_share": active}
        return (each * weight).sum(), logged

    def collapse(self, means: Mapping[str, float], first: Mapping[str, float], progress: float) -> str | None:
        """Diagnose features that contract to one point: distances fall to 0, and the loss stays at its margin."""
        positive, negative = means.get("hardest_positive"), means.get("hardest_negative")
        if positive is None or negative is None:
            return None
        unit = 1.0 if self.margin == "soft" else self.margin
        small = positive < COLLAPSED_POSITIVE * unit and negative < COLLAPSED_NEGATIVE * unit
        collapsed = small and negative - positive < COLLAPSED_LEAD * unit
        collapsing = positive < SHRUNKEN * first.get("hardest_positive", 0.0) and means["active_share"] > UNSATISFIED
        if not collapsed and not collapsing:
            return None
        limit = f"{math.log(2):.2f} (log 2)" if self.margin == "soft" else f"its margin {self.margin:g}"
        problem = f"has collapsed and stays at {limit}" if collapsed else "is collapsing"
        remedies = ["lower the learning rate (lr_scale = 0.1)", "lower its weight (losses.weights.triplet)"]
        remedies += [] if self.normalise else ["normalise the features (losses.triplet.normalise = true)"]
        return (
            f"the triplet loss {problem}: the hardest positive is {positive:.2g} and the hardest negative "
            f"{negative:.2g} away on average, {means['active_share']:.0%} of the anchors are active, and the features "
            f"contract to one point. In a new run {', or '.join(remedies)}; if this run started from random weights, "
            "start from weights trained with ce"
        )


def squared_distances(features: Tensor) -> Tensor:
    """[B, D] -> squared distances [B, B], by one matrix product of centred features, which loses least in float32."""
    centred = features - features.mean(0)
    lengths = centred.square().sum(1)
    return torch.addmm(lengths[:, None] + lengths, centred, centred.T, alpha=-2)


def triplet(losses: Losses, num_classes: int, num_features: int, class_weights: Tensor | None) -> nn.Module:
    """Build the loss `triplet`."""
    values = losses.triplet
    return BatchHardTriplet(values.margin, normalise=values.normalise, mixed=values.mixed)

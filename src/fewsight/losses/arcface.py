"""ArcFace: an additive angular margin, on a separate head."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewsight.losses.targets import Targets, at_least_float32
from fewsight.recipes import Losses

MIN_NORM = 1e-6  # a feature shorter than this has no direction
PATIENCE = 0.5  # proportion of a stage after which features must be nearer to their own class
MIN_LEAD_DEG = 2.0  # by which the true class must then be nearer than the mean of the others


class ArcFace(nn.Module):
    """Cross-entropy over s * cos(theta_j), with s * cos(theta_y + m) for the true class y.

    theta_j is the angle between the pooled feature and the weight of class j; both are normalised to length 1, and
    there is no bias. Past theta_y = pi - m, where cos(theta_y + m) would rise again, it is replaced by
    cos(theta_y) - m * sin(m), so the loss never falls as the angle grows. The head is used in training only: the
    linear head predicts. Under CutMix the loss is lam * L(labels) + (1 - lam) * L(other_labels). Computed in float32
    or float64, also inside autocast. With class weights each image's loss is multiplied by the weight of its class.

    Args:
        scale: s.
        margin_rad: m, in radians.
        class_weights: [K] with mean 1 over the training images, or None.

    Source: Deng et al., arXiv 1801.07698, eq. 3.
    """

    batches = "shuffled"
    trains_head = False
    unmixed_only = False

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        *,
        scale: float = 30.0,
        margin_rad: float = 0.5,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.scale, self.margin_rad = scale, margin_rad
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        nn.init.normal_(self.weight, std=num_features**-0.5)  # about length 1

    def forward(self, logits: Tensor, features: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """features [B, D] -> (scalar, terms to log).

        The terms are the mean angle to the true class, the mean over images of the angle whose cosine is the mean
        cosine to the other classes, both in degrees, and the proportion of images that satisfy the margin.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_float32(features)
            lengths = features.norm(dim=1, keepdim=True).clamp(min=MIN_NORM) * self.weight.norm(dim=1)  # [B, K]
            cosine = functional.linear(features, self.weight) / lengths  # divided after the product: fewer passes
            loss, logged = self._for_labels(cosine, targets.labels)
            if targets.lam < 1:
                other, logged_other = self._for_labels(cosine, targets.other_labels)
                loss = targets.lam * loss + (1 - targets.lam) * other
                logged = {
                    name: targets.lam * value + (1 - targets.lam) * logged_other[name] for name, value in logged.items()
                }
        return loss, logged

    def _for_labels(self, cosine: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the terms to log, for one label per image; cosine [B, K], labels [B]."""
        columns = labels[:, None]
        true = cosine.gather(1, columns)  # [B, 1]
        with_margin = add_margin(true, self.margin_rad)
        scaled = self.scale * cosine.scatter(1, columns, with_margin)
        if self.class_weights is None:
            loss = functional.cross_entropy(scaled, labels)
        else:
            loss = (functional.cross_entropy(scaled, labels, reduction="none") * self.class_weights[labels]).mean()
        with torch.no_grad():
            others = (cosine.sum(1, keepdim=True) - true) / max(1, cosine.shape[1] - 1)  # mean cosine
            angle, other_angle = (torch.rad2deg(cosines.clamp(-1, 1).acos()).mean() for cosines in (true, others))
            nearest = cosine.scatter(1, columns, -torch.inf).amax(1, keepdim=True)
            satisfied = (with_margin > nearest).to(cosine.dtype).mean()
        return loss, {"target_angle_deg": angle, "other_angle_deg": other_angle, "margin_share": satisfied}

    def collapse(self, means: Mapping[str, float], first: Mapping[str, float], progress: float) -> str | None:
        """Diagnose angles past pi - m, where the margin has no effect, or features no nearer to their own class."""
        angle, other = means.get("target_angle_deg"), means.get("other_angle_deg")
        if angle is None or other is None:
            return None
        past_margin = angle > 180 - math.degrees(self.margin_rad)
        if not past_margin and (progress < PATIENCE or other - angle >= MIN_LEAD_DEG):
            return None
        problem = (
            "has collapsed: angles exceed pi - m, where the margin has no effect" if past_margin else "does not learn"
        )
        return (
            f"ArcFace {problem}; features are at {angle:.0f} degrees to their class and at {other:.0f} to the others. "
            "In a new run lower its weight (losses.weights.arcface), its margin (losses.arcface.margin_rad, now "
            f"{self.margin_rad:g}) or the learning rate (lr_scale = 0.1); if this run started from random weights, "
            "start from weights trained with ce"
        )


def add_margin(cosine: Tensor, margin_rad: float) -> Tensor:
    """cos(theta + m) from cos(theta), with the monotone branch past pi - m.

    The gradient is exact for |cos(theta)| < 1; at 1, where the true gradient is infinite, it is cos(m).
    """
    squared_sine = (1 - cosine) * (1 + cosine)  # 1 - cosine**2 would lose digits near 1
    inside = squared_sine > 0
    sine = torch.where(inside, squared_sine, 1).sqrt() * inside
    shifted = cosine * math.cos(margin_rad) - sine * math.sin(margin_rad)
    return torch.where(cosine >= -math.cos(margin_rad), shifted, cosine - margin_rad * math.sin(margin_rad))


def arcface(losses: Losses, num_classes: int, num_features: int, class_weights: Tensor | None) -> nn.Module:
    """Build the loss `arcface`."""
    values = losses.arcface
    return ArcFace(
        num_classes, num_features, scale=values.scale, margin_rad=values.margin_rad, class_weights=class_weights
    )

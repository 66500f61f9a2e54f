"""ArcFace: an additive angular margin on a head of its own."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewsight.losses.targets import Targets, at_least_float32
from fewsight.recipes import Losses

LEAST_LENGTH = 1e-6  # a feature shorter than this has no direction
PATIENCE = 0.5  # share of a stage after which angles must have parted
LEAST_LEAD_DEG = 2.0  # by which the true class is then nearer than the mean of the others


class ArcFace(nn.Module):
    """Cross-entropy over s * cos(theta_j), with s * cos(theta_y + m) for the true class y.

    theta_j is the angle between the pooled feature and the weight of class j; both are brought to length 1, and
    there is no bias. Past theta_y = pi - m, where cos(theta_y + m) would rise again, s * (cos(theta_y) - m * sin(m))
    takes its place, so the loss never falls as the angle grows. The head serves training only: the linear head
    predicts. Under CutMix the losses are mixed: lam * L(labels) + (1 - lam) * L(other_labels). Computed in
    float32 at least, also inside autocast.

    Args:
        scale: s.
        margin_rad: m, in radians.

    Source: Deng et al., arXiv 1801.07698, eq. 3.
    """

    batches = "shuffled"
    trains_head = False
    unmixed_only = False

    def __init__(self, num_classes: int, num_features: int, *, scale: float = 30.0, margin_rad: float = 0.5) -> None:
        super().__init__()
        self.scale, self.margin_rad = scale, margin_rad
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        nn.init.normal_(self.weight, std=num_features**-0.5)  # about length 1

    def forward(self, logits: Tensor, features: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """features [B, D] -> (scalar, what to log): mean angle to the true class, angle of the mean cosine to the
        others, share of images past the margin.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = at_least_float32(features)
            lengths = features.norm(dim=1, keepdim=True).clamp(min=LEAST_LENGTH) * self.weight.norm(dim=1)  # [B, K]
            cosine = functional.linear(features, self.weight) / lengths  # divided after the product: fewer passes
            loss, logged = self._of(cosine, targets.labels)
            if targets.lam < 1:
                other, logged_other = self._of(cosine, targets.other_labels)
                loss = targets.lam * loss + (1 - targets.lam) * other
                logged = {
                    name: targets.lam * value + (1 - targets.lam) * logged_other[name] for name, value in logged.items()
                }
        return loss, logged

    def _of(self, cosine: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what to log for one label an image; cosine [B, K]."""
        columns = labels[:, None]
        true = cosine.gather(1, columns)  # [B, 1]
        with_margin = add_margin(true, self.margin_rad)
        loss = functional.cross_entropy(self.scale * cosine.scatter(1, columns, with_margin), labels)
        with torch.no_grad():
            others = (cosine.sum(1, keepdim=True) - true) / max(1, cosine.shape[1] - 1)  # mean cosine
            angle, other_angle = (torch.rad2deg(one.clamp(-1, 1).acos()).mean() for one in (true, others))
            nearest = cosine.scatter(1, columns, -torch.inf).amax(1, keepdim=True)
            satisfied = (with_margin > nearest).to(cosine.dtype).mean()
        return loss, {"target_angle_deg": angle, "other_angle_deg": other_angle, "margin_share": satisfied}

    def collapse(self, means: Mapping[str, float], first: Mapping[str, float], progress: float) -> str | None:
        """Features that flee every class past pi - m, where no margin acts, or stand no nearer to their own class."""
        angle, other = means.get("target_angle_deg"), means.get("other_angle_deg")
        if angle is None or other is None:
            return None
        fled = angle > 180 - math.degrees(self.margin_rad)
        if not fled and (progress < PATIENCE or other - angle >= LEAST_LEAD_DEG):
            return None
        what = "has collapsed, features flee to where the margin no longer acts" if fled else "does not learn"
        return (
            f"ArcFace {what}: they stand at {angle:.0f} degrees to their class and at {other:.0f} to the others. In a "
            "new run lower its weight (losses.weights.arcface), its margin (losses.arcface.margin_rad, now "
            f"{self.margin_rad:g}) or the rate (lr_scale = 0.1); if this one began at random, begin with ce weights"
        )


def add_margin(cosine: Tensor, margin_rad: float) -> Tensor:
    """cos(theta + m) from cos(theta), with the monotone branch past pi - m.

    The gradient is exact wherever |cos(theta)| < 1 and finite (cos m) at 1, where the true one is infinite.
    """
    squared_sine = (1 - cosine) * (1 + cosine)  # 1 - cosine**2 would lose digits near 1
    inside = squared_sine > 0
    sine = torch.where(inside, squared_sine, 1).sqrt() * inside
    shifted = cosine * math.cos(margin_rad) - sine * math.sin(margin_rad)
    return torch.where(cosine >= -math.cos(margin_rad), shifted, cosine - margin_rad * math.sin(margin_rad))


def arcface(losses: Losses, num_classes: int, num_features: int, class_weights: Tensor | None) -> nn.Module:
    """`arcface`."""
    values = losses.arcface
    return ArcFace(num_classes, num_features, scale=values.scale, margin_rad=values.margin_rad)

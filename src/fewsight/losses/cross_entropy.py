"""Cross-entropy with the paper's label smoothing."""

import torch
from torch import Tensor, nn

from fewsight.losses.targets import Targets, at_least_float32
from fewsight.recipes import Losses


class SmoothedCrossEntropy(nn.Module):
    """Cross-entropy with targets 1 - e for the true class and e / (K - 1) for each other class (the paper's formula).

    PyTorch's `label_smoothing` distributes e over all K classes: it equals this loss at e * K / (K - 1). Under CutMix
    the loss is lam * L(labels) + (1 - lam) * L(other_labels). With class weights each image's loss is multiplied by
    the weight of its class, and the sum is divided by the number of images.

    Args:
        smoothing: e, in [0, 1).
        class_weights: [K] with mean 1 over the training images, or None.

    Source: Szegedy et al., arXiv 1512.00567; the formula of ResNeSt, arXiv 2004.08955, eq. 5.
    """

    batches = "shuffled"
    trains_head = True
    unmixed_only = False

    def __init__(self, smoothing: float = 0.1, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, features: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """logits [B, K] -> (scalar, {})."""
        log_probs = torch.log_softmax(at_least_float32(logits), dim=1)
        loss = self._per_image(log_probs, targets.labels)
        if targets.lam < 1:
            loss = targets.lam * loss + (1 - targets.lam) * self._per_image(log_probs, targets.other_labels)
        return loss.mean(), {}

    def _per_image(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        num_classes = log_probs.shape[1]
        true = log_probs.gather(1, labels[:, None]).squeeze(1)
        rest = log_probs.sum(1) - true
        loss = -(1 - self.smoothing) * true - self.smoothing / max(1, num_classes - 1) * rest
        return loss if self.class_weights is None else loss * self.class_weights[labels]


def cross_entropy(losses: Losses, num_classes: int, num_features: int, class_weights: Tensor | None) -> nn.Module:
    """Build the loss `ce`."""
    return SmoothedCrossEntropy(losses.smoothing, class_weights)


def balanced_weights(counts: list[int]) -> Tensor:
    """Class weights [K], inversely proportional to the images of each class, with mean 1 over the images."""
    numbers = torch.tensor(counts, dtype=torch.float64)
    present = (numbers > 0).sum()
    return torch.where(numbers > 0, numbers.sum() / (present * numbers.clamp(min=1)), 0.0).float()

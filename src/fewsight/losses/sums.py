"""Weighted sums of losses."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fewsight.losses.targets import Targets


class WeightedSum(nn.Module):
    """The sum of weight * loss over named terms; each term's own value is logged under its name.

    It asks for P x K batches if any term does, and collapses if any term does.

    Args:
        terms: name -> loss, in the order of the sum.
        weights: name -> weight; 1 where there is none.
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.weights = {name: weights.get(name, 1.0) for name in terms}

    @property
    def batches(self) -> str:
        """Which batches it wants: `pk` or `shuffled`."""
        return "pk" if any(term.batches == "pk" for term in self.terms.values()) else "shuffled"

    @property
    def trains_head(self) -> bool:
        """Whether the linear head, which predicts, learns from it."""
        return any(bool(term.trains_head) for term in self.terms.values())

    @property
    def unmixed_only(self) -> bool:
        """Whether a term learns nothing from a mixed batch."""
        return any(bool(term.unmixed_only) for term in self.terms.values())

    def forward(self, logits: Tensor, features: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar, the terms' values and what they log)."""
        total = torch.zeros((), device=features.device)
        logged: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            value, extra = term(logits, features, targets)
            total = total + self.weights[name] * value
            if extra or not (targets.lam < 1 and term.unmixed_only):  # a term that sat out has no value
                logged |= {name: value.detach(), **extra}
        return total, logged

    def collapse(self, means: Mapping[str, float], first: Mapping[str, float], progress: float) -> str | None:
        """The first term's that has collapsed."""
        found = (collapse_of(term, means, first, progress) for term in self.terms.values())
        return next((text for text in found if text), None)


Collapse = Callable[[Mapping[str, float], Mapping[str, float], float], str | None]


def collapse_of(loss: nn.Module, means: Mapping[str, float], first: Mapping[str, float], progress: float) -> str | None:
    """What the loss says has gone wrong, and what to change; None from a loss that never says so.

    Args:
        means: of what the loss logs, over an epoch.
        first: the same of the stage's first epoch.
        progress: share of the stage that is done.
    """
    says: Collapse | None = getattr(loss, "collapse", None)
    return None if says is None else says(means, first, progress)

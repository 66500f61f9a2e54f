"""Weighted sums of losses."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fewsight.losses.targets import Targets


class WeightedSum(nn.Module):
    """The sum of weight * loss over named terms; each term's unweighted value is logged under its name.

    It needs P x K batches if any term does, and collapses if any term does.

    Args:
        terms: name -> loss, in the order of the sum.
        weights: name -> weight; 1 for a term without one.
    """

    def __init__(self, terms: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.weights = {name: weights.get(name, 1.0) for name in terms}

    @property
    def batches(self) -> str:
        """The batches that it needs: `pk` or `shuffled`."""
        return "pk" if any(term.batches == "pk" for term in self.terms.values()) else "shuffled"

    @property
    def trains_head(self) -> bool:
        """Whether a term trains the linear head, which predicts."""
        return any(bool(term.trains_head) for term in self.terms.values())

    @property
    def unmixed_only(self) -> bool:
        """Whether a CutMix batch gives no gradient for some term."""
        return any(bool(term.unmixed_only) for term in self.terms.values())

    def forward(self, logits: Tensor, features: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar, values and logged terms of each loss)."""
        total = torch.zeros((), device=features.device)
        logged: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            value, extra = term(logits, features, targets)
            total = total + self.weights[name] * value
            if extra or not (targets.lam < 1 and term.unmixed_only):  # a skipped term has no value
                logged |= {name: value.detach(), **extra}
        return total, logged

    def collapse(self, means: Mapping[str, float], first: Mapping[str, float], progress: float) -> str | None:
        """The diagnosis of the first term that has collapsed."""
        diagnoses = (collapse_of(term, means, first, progress) for term in self.terms.values())
        return next((text for text in diagnoses if text), None)


Collapse = Callable[[Mapping[str, float], Mapping[str, float], float], str | None]


def collapse_of(loss: nn.Module, means: Mapping[str, float], first: Mapping[str, float], progress: float) -> str | None:
    """The loss's diagnosis of a collapse, and what to change; None without one, or from a loss without `collapse`.

    Args:
        means: of the logged terms, over an epoch.
        first: the same over the stage's first epoch.
        progress: proportion of the stage that is done.
    """
    diagnose: Collapse | None = getattr(loss, "collapse", None)
    return None if diagnose is None else diagnose(means, first, progress)

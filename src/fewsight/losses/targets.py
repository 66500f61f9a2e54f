"""What a batch should be, as every loss takes it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewsight.machine.processes import SINGLE_PROCESS, ProcessGroup


@dataclass(frozen=True)
class Targets:
    """What a batch should be: class `labels` [B] with share `lam`, `other_labels` [B] with the rest.

    `lam` is 1.0 where images are unmixed. `images` [B] says which training image a row shows, so that two copies
    of one image are known as such; None: each row shows another. Where several processes share a batch, these are one's
    rows of `total`, and `group` reaches the others; a loss's value is the mean over its own rows.
    """

    labels: Tensor
    other_labels: Tensor
    lam: float = 1.0
    images: Tensor | None = None
    group: ProcessGroup = SINGLE_PROCESS
    total: int | None = None  # images of the whole batch; None: those here

    def part(self, rows: slice) -> "Targets":
        """The same for some rows of the batch."""
        images = None if self.images is None else self.images[rows]
        return Targets(self.labels[rows], self.other_labels[rows], self.lam, images, self.group, self.total)


def at_least_float32(values: Tensor) -> Tensor:
    """16-bit values as float32, others as they are: what a loss computes in, whatever the model did."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

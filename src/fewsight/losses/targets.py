"""The targets of a batch, as every loss receives them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewsight.machine.processes import SINGLE_PROCESS, ProcessGroup


@dataclass(frozen=True)
class Targets:
    """The targets of a batch: probability `lam` for `labels` and 1 - `lam` for `other_labels`.

    If several processes share a batch, these are the targets of one process's rows, and a loss's value is the mean
    over those rows.
    """

    labels: Tensor  # [B], class indices
    other_labels: Tensor  # [B], of the CutMix partners
    lam: float = 1.0  # 1.0: the images are unmixed
    images: Tensor | None = None  # [B], index of the training image in each row; None: all rows differ
    group: ProcessGroup = SINGLE_PROCESS  # the processes that share the batch
    total: int | None = None  # number of images of the whole batch; None: B

    def part(self, rows: slice) -> "Targets":
        """The targets of some rows of the batch."""
        images = None if self.images is None else self.images[rows]
        return Targets(self.labels[rows], self.other_labels[rows], self.lam, images, self.group, self.total)


def at_least_float32(values: Tensor) -> Tensor:
    """16-bit values as float32, others unchanged: losses compute in float32 or float64 for a model in any precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))

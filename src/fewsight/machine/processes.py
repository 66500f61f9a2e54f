"""Several processes as one training: who takes which rows, and sums over all. A process by itself is rank 0 of 1.

`torchrun` starts the processes; each joins here. What a batch is was drawn before it is cut: see `train.mix`.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from fewsight.errors import RunError

MIN_IMAGES_PER_PROCESS = 2  # images of a batch that a process takes: a lone one has no batch statistics
TIMEOUT = timedelta(minutes=30)  # of a process that lives but does not answer; a dead one is noticed at once


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of a training."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes, and speaks."""
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """Its share of `total` rows; shares differ by at most one."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def sum_(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """[n, ...] of each process -> [total, ...] of all, in order; the gradient comes back to each one's rows."""
        if self.count == 1:
            return rows
        whole: Tensor = _Gather.apply(rows, self, total)
        return whole

    def wait(self) -> None:
        """Until every process is here."""
        self.sum_(torch.zeros(1))

    def copy_(self, values: Tensor) -> None:
        """The first process's values, in place."""
        if self.count > 1:
            distributed.broadcast(values, 0)

    def broadcast_text(self, text: str = "") -> str:
        """The first process's text, at every process."""
        if self.count == 1:
            return text
        data = torch.frombuffer(bytearray(f".{text}".encode("utf-8", "surrogateescape")), dtype=torch.uint8)
        length = torch.tensor([len(data)])
        self.copy_(length)
        data = data if self.first else torch.zeros(int(length), dtype=torch.uint8)
        self.copy_(data)
        return bytes(data.tolist()).decode("utf-8", "surrogateescape")[1:]


SINGLE_PROCESS = ProcessGroup()


@contextlib.contextmanager
def joined() -> Iterator[ProcessGroup]:
    """Join the processes that torchrun has started; without it, alone.

    Raises:
        RunError: another process has ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield SINGLE_PROCESS
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with naming_lost_ranks():
        distributed.init_process_group(backend, timeout=TIMEOUT)
        try:
            yield ProcessGroup(distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()


@contextlib.contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Inside the block the end of another process stops this one with what to do.

    Raises:
        RunError: so it has.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if not any(sign in text for sign in ("Connection", "gloo", "NCCL", "peer", "Timed out")):
            raise
        raise RunError(
            f"another process of this training has ended ({text[:200]}). Its own message says why; continue from the "
            "last saved state by the same command with --resume RUN"
        ) from error


class _Gather(torch.autograd.Function):
    """Rows of all processes; backward sums what each process's loss says of the rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: ProcessGroup, total: int) -> Tensor:
        ctx.own = group.rows(total)
        whole = rows.new_zeros(total, *rows.shape[1:])
        whole[ctx.own] = rows
        distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient[ctx.own], None, None


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        distributed.all_reduce(gradient)
        return gradient


class SyncNorm(nn.BatchNorm2d):
    """Batch normalisation by the mean and variance of all processes' rows; in evaluation as torch's.

    torch's SyncBatchNorm refuses CPUs. Sums in two passes, the mean first, in float32 at least.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C] or [B, C, H, W] -> the same shape."""
        if not self.training or not distributed.is_initialized():
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        over, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
        count = wide.new_tensor([wide.numel() / wide.shape[1]])
        sums: Tensor = _Sum.apply(torch.cat([wide.sum(over), count]))
        number = sums[-1].detach()
        mean = sums[:-1] / number
        centred = wide - mean.view(shape)
        squares: Tensor = _Sum.apply(centred.square().sum(over))
        variance = squares / number
        self._note(mean.detach(), variance.detach() * number / (number - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Both kinds of shape are taken."""

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None, "it tracks its statistics"
        assert self.running_var is not None, "it tracks its statistics"
        assert self.num_batches_tracked is not None, "it tracks its statistics"
        self.num_batches_tracked += 1
        share = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def synchronise_norms(model: nn.Module) -> None:
    """Let every batch norm of a model take its statistics over all processes; weights and names stay.

    Raises:
        RunError: it has a kind of batch norm that does more than torch's own, as some models of timm do.
    """
    for name, child in model.named_children():
        if not isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            synchronise_norms(child)
            continue
        if type(child) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            raise RunError(
                f"run.sync_norm knows torch's own batch norms, but this model has {type(child).__name__}; train with "
                "run.sync_norm=false"
            )
        norm = SyncNorm(child.num_features, child.eps, child.momentum)
        norm.weight, norm.bias = child.weight, child.bias
        norm.running_mean, norm.running_var = child.running_mean, child.running_var
        norm.num_batches_tracked = child.num_batches_tracked
        setattr(model, name, norm)

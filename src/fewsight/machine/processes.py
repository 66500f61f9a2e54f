"""Data-parallel training: the rows of each process, and collectives. A single process is rank 0 of 1.

`torchrun` starts the processes. A batch is drawn as a whole and then split among them: see `training.mix`.
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

MIN_IMAGES_PER_PROCESS = 2  # of a batch: a single image has no batch statistics
TIMEOUT = timedelta(
    minutes=30
)  # for a process that is alive but does not answer; the end of a process is noticed at once


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among the processes that train a run together."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def rows(self, total: int) -> slice:
        """This process's part of `total` rows; the parts of two processes differ by at most one row."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def sum_(self, values: Tensor) -> Tensor:
        """Sum `values` over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """[n, ...] of each process -> [total, ...] of all, by rank; each process receives the gradient of its rows."""
        if self.count == 1:
            return rows
        own, shape = self.rows(total), rows.shape[1:]
        before, after = rows.new_zeros(own.start, *shape), rows.new_zeros(total - own.stop, *shape)
        all_rows: Tensor = _Sum.apply(torch.cat([before, rows, after]))
        return all_rows

    def wait(self) -> None:
        """Wait until every process has called this."""
        self.sum_(torch.zeros(1))

    def copy_(self, values: Tensor) -> None:
        """Copy the first process's `values` to all processes, in place."""
        if self.count > 1:
            distributed.broadcast(values, 0)

    def broadcast_text(self, text: str = "") -> str:
        """Return the first process's text in every process."""
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
    """Join the processes that torchrun has started; without torchrun, yield `SINGLE_PROCESS`.

    Raises:
        RunError: another process has ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield SINGLE_PROCESS
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    own = torch.cuda.device(int(os.environ.get("LOCAL_RANK", "0")))  # the current device again after the block
    with own if torch.cuda.is_available() else contextlib.nullcontext(), explain_lost_processes():
        distributed.init_process_group(backend, timeout=TIMEOUT)
        try:
            yield ProcessGroup(distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()


@contextlib.contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Turn torch's error about the end of another process into a RunError that says what to do.

    Raises:
        RunError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if not any(sign in text for sign in ("Connection", "gloo", "NCCL", "peer", "Timed out")):
            raise
        raise RunError(
            f"another process of this training has ended ({text[:200]}). Its own message says why; continue from the "
            "last saved state with the same command and --resume RUN"
        ) from error


class _Sum(torch.autograd.Function):
    """The sum over all processes; backward sums the gradients in the same way."""

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
    """Batch normalisation with the mean and variance of all processes' rows; in evaluation mode as torch's.

    torch's SyncBatchNorm does not support CPUs. The mean is computed first and the variance from centred values, in
    float32 or float64.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C] or [B, C, H, W] -> the same shape."""
        if not self.training or not distributed.is_initialized():
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        dims, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
        count = wide.new_tensor([wide.numel() / wide.shape[1]])
        sums: Tensor = _Sum.apply(torch.cat([wide.sum(dims), count]))
        number = sums[-1].detach()
        mean = sums[:-1] / number
        centred = wide - mean.view(shape)
        squares: Tensor = _Sum.apply(centred.square().sum(dims))
        variance = squares / number
        self._update_statistics(mean.detach(), variance.detach() * number / (number - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Inputs of both shapes are accepted."""

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None, "it tracks its statistics"
        assert self.running_var is not None, "it tracks its statistics"
        assert self.num_batches_tracked is not None, "it tracks its statistics"
        self.num_batches_tracked += 1
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def synchronise_norms(model: nn.Module) -> None:
    """Replace every batch norm of a model by a SyncNorm; weights and names stay.

    Raises:
        RunError: the model has a subclass of torch's batch norms, as some timm models do.
    """
    for name, child in model.named_children():
        if not isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            synchronise_norms(child)
            continue
        if type(child) not in (nn.BatchNorm1d, nn.BatchNorm2d):
            raise RunError(
                f"run.sync_norm supports torch's own batch norms, but this model has {type(child).__name__}; train "
                "with run.sync_norm=false"
            )
        norm = SyncNorm(child.num_features, child.eps, child.momentum)
        norm.weight, norm.bias = child.weight, child.bias
        norm.running_mean, norm.running_var = child.running_mean, child.running_var
        norm.num_batches_tracked = child.num_batches_tracked
        setattr(model, name, norm)

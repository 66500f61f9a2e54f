"""Activation recomputation (checkpointing) inside a block: less memory for a little time.

Tensors that are cheap to compute are not kept for the backward pass, which computes them again from tensors that are
kept.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

Recompute = Callable[[], Tensor]


class _Block:
    """The tensors of a block that can be recomputed, by the address of their memory.

    It holds them until the block ends, so that their memory cannot be given to another tensor in the meantime.
    """

    def __init__(self) -> None:
        self.recomputable: dict[int, tuple[Tensor, Recompute]] = {}

    def pack(self, tensor: Tensor) -> Tensor | Recompute:
        """What autograd keeps: a function that recomputes the tensor, else the tensor itself."""
        return recompute_of(tensor) if _address(tensor) in self.recomputable else tensor


def _unpack(kept: Any) -> Tensor:
    tensor: Tensor = kept if isinstance(kept, Tensor) else kept()
    return tensor


_block: ContextVar[_Block | None] = ContextVar("block", default=None)


@contextlib.contextmanager
def recomputation(enabled: bool) -> Iterator[None]:
    """Inside, tensors passed to `recomputed` and `set_recompute` are not kept for the backward pass."""
    if not enabled or not torch.is_grad_enabled():
        yield
        return
    block = _Block()
    token = _block.set(block)
    try:
        with torch.autograd.graph.saved_tensors_hooks(block.pack, _unpack):
            yield
    finally:
        _block.reset(token)
        block.recomputable.clear()  # the graph keeps the hooks, and through them the block


def is_recomputing() -> bool:
    """Whether the caller runs inside `recomputation`."""
    return _block.get() is not None


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, which must be a new tensor; inside `recomputation` the backward pass computes it again."""
    output = function(*inputs)
    if is_recomputing():
        recomputes = [recompute_of(tensor) for tensor in inputs]
        set_recompute(output, lambda: function(*(recompute() for recompute in recomputes)))
    return output


def set_recompute(tensor: Tensor, recompute: Recompute) -> None:
    """Inside `recomputation`, let the backward pass call `recompute` instead of keeping a tensor.

    Args:
        tensor: has its own memory, and is not changed afterwards.
        recompute: returns the same values. It must not hold a tensor that is itself recomputed, but that tensor's
            `recompute_of`.
    """
    block, device = _block.get(), tensor.device.type
    assert block is not None, "only called inside `recomputation`"
    strides, autocast, dtype = tensor.stride(), torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def whole() -> Tensor:
        with torch.no_grad(), torch.autocast(device, dtype, enabled=autocast):
            again = recompute()
        if again.stride() == strides:
            return again
        return torch.empty_strided(again.shape, strides, dtype=again.dtype, device=again.device).copy_(again)

    block.recomputable[_address(tensor)] = (tensor, whole)


def recompute_of(tensor: Tensor) -> Recompute:
    """A function that returns the tensor in the backward pass: it recomputes it where that was set, else it holds it.

    A view of a recomputable tensor is cut out of the recomputed whole.
    """
    block = _block.get()
    assert block is not None, "only called inside `recomputation`"
    if _address(tensor) not in block.recomputable:
        held = tensor.detach()
        return lambda: held
    whole = block.recomputable[_address(tensor)][1]
    view = tensor.size(), tensor.stride(), tensor.storage_offset()
    return lambda: whole().as_strided(*view)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

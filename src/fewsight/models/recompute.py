"""Tensors that a backward pass makes again instead of finding them kept: less memory for a little time."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

Make = Callable[[], Tensor]


class _Block:
    """The tensors of one block that can be made again.

    It holds them until the block ends, so that no other takes their place in memory, by which they are known.
    """

    def __init__(self) -> None:
        self.known: dict[int, tuple[Tensor, Make]] = {}

    def pack(self, tensor: Tensor) -> Tensor | Make:
        """What autograd keeps: how to make the tensor, or the tensor."""
        return maker_of(tensor) if _place(tensor) in self.known else tensor


def _unpack(kept: Any) -> Tensor:
    made: Tensor = kept if isinstance(kept, Tensor) else kept()
    return made


_block: ContextVar[_Block | None] = ContextVar("block", default=None)


@contextlib.contextmanager
def remaking(asked: bool) -> Iterator[None]:
    """Inside, tensors that `remade` and `remember` name are made again when the backward pass asks for them."""
    if not asked or not torch.is_grad_enabled():
        yield
        return
    block = _Block()
    token = _block.set(block)
    try:
        with torch.autograd.graph.saved_tensors_hooks(block.pack, _unpack):
            yield
    finally:
        _block.reset(token)
        block.known.clear()  # autograd keeps its hooks, and they the block


def is_remaking() -> bool:
    """Whether this runs inside `remaking`."""
    return _block.get() is not None


def remade(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`function(*inputs)`, a fresh tensor; inside `remaking` it is not kept for the backward pass but made again."""
    output = function(*inputs)
    if is_remaking():
        makers = [maker_of(one) for one in inputs]
        remember(output, lambda: function(*(make() for make in makers)))
    return output


def remember(tensor: Tensor, make: Make) -> None:
    """Inside `remaking`: the backward pass is to call `make` for this tensor.

    Args:
        tensor: with memory of its own, and not changed from here on.
        make: gives the same values; it holds no tensor that is remade itself, but its `maker_of`.
    """
    block, device = _block.get(), tensor.device.type
    assert block is not None, "asked for inside `remaking` alone"
    strides, mixed, dtype = tensor.stride(), torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def whole() -> Tensor:
        with torch.no_grad(), torch.autocast(device, dtype, enabled=mixed):
            made = make()
        if made.stride() == strides:
            return made
        return torch.empty_strided(made.shape, strides, dtype=made.dtype, device=made.device).copy_(made)

    block.known[_place(tensor)] = (tensor, whole)


def maker_of(tensor: Tensor) -> Make:
    """How a backward pass comes by a tensor: as was said to `remember`, or by holding it."""
    block = _block.get()
    assert block is not None, "asked for inside `remaking` alone"
    if _place(tensor) not in block.known:
        held = tensor.detach()
        return lambda: held
    whole = block.known[_place(tensor)][1]
    part = tensor.size(), tensor.stride(), tensor.storage_offset()
    return lambda: whole().as_strided(*part)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

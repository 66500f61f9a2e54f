"""Which device computes, in which precision, with how many threads and loading processes."""

import contextlib
import ctypes
import functools
import os
import sys
import time
from collections.abc import Iterator

import torch
from torch import nn

from fewsight.errors import RecipeError
from fewsight.machine.cores import num_cores, wanted_threads
from fewsight.recipes import RunSettings

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_run(run: RunSettings) -> RunSettings:
    """Fill in device, precision, threads and workers.

    Compute threads plus loading workers never exceed the cores. On a CPU with up to three cores loading runs
    between the steps; beyond, a quarter of the cores loads. OMP_NUM_THREADS limits the threads that are not named.

    Raises:
        RecipeError: a device that is not there; a precision that it lacks; more threads than cores.
    """
    device = resolve_device(run.device)
    cores = num_cores()
    if run.workers != "auto":
        workers = run.workers
    else:
        wanted = min(16, cores - 1) if device.type != "cpu" else 0 if cores <= 3 else cores // 4
        workers = wanted if run.threads == "auto" else max(0, min(wanted, cores - run.threads))
    threads = run.threads if run.threads != "auto" else min(max(1, cores - workers), wanted_threads(cores))
    if threads + workers > cores and (run.threads != "auto" or run.workers != "auto"):
        raise RecipeError(
            f"run.threads = {threads} and run.workers = {workers} need {threads + workers} cores, "
            f"but this process has {cores}; lower one of them"
        )
    precision = run.precision if run.precision != "auto" else best_precision(device)
    if precision == "fp16" and device.type != "cuda":
        raise RecipeError(f'run.precision = "fp16" needs a CUDA device, got {device}; use "bf16" or "float32"')
    return run.model_copy(
        update={"device": str(device), "precision": precision, "threads": threads, "workers": workers}
    )


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA, then mps, then the CPU.

    Raises:
        RecipeError: the device is unknown or not there.
    """
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if kind in there))
    if name not in there:
        raise RecipeError(f"run.device: {name!r} is not there; this machine has {', '.join(there)}")
    return torch.device(name)


@functools.cache
def best_precision(device: torch.device) -> str:
    """bf16 where the device has it and it is faster; on a CPU a short probe decides, not the name."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps":
        return "float32"
    seconds = {dtype: _convolution_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return "bf16" if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else "float32"


def _convolution_seconds(dtype: torch.dtype) -> float:
    """The fastest of five runs of a typical convolution with its gradients."""
    images = torch.zeros(16, 64, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
    convolution = nn.Conv2d(64, 64, 3, padding=1).to(dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        convolution(images.requires_grad_()).sum().backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Mixed precision for the forward pass; nothing in float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, AUTOCAST_DTYPES[precision])


@contextlib.contextmanager
def compute_threads(threads: int) -> Iterator[None]:
    """Compute with `threads` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def same_bits(device: torch.device, *, always: bool) -> Iterator[None]:
    """Inside the block a CUDA device takes only convolutions that give the same bits each time; a CPU always does.

    Args:
        always: every other operation too; one that cannot is refused.

    Raises:
        RecipeError: such an operation was asked for.
    """
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the device is first used
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(always or before)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise RecipeError(
            f"run.deterministic: {str(error).splitlines()[0]} Train without --deterministic, or on a CPU"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)


@functools.cache
def keep_freed_memory() -> None:
    """Keep freed blocks in the process (glibc only): a step reuses its pages and does not fault them again."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD

"""Choose the device, the precision, the compute threads and the loading processes of a run."""

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewsight.errors import RecipeError
from fewsight.machine.cores import num_cores, openmp_threads, processes_here
from fewsight.machine.loading import may_start_processes
from fewsight.recipes import RunSettings

NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "bad_alloc")  # what torch says on a CPU
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_run(run: RunSettings) -> RunSettings:
    """Replace "auto" in device, precision, threads and workers by values for this machine.

    Compute threads plus loading processes never exceed the cores, of which each process of this machine has an equal
    part, and of that each member that trains at the same time. On a CPU with up to three cores images are loaded
    between the steps; with more, a quarter of the cores load. OMP_NUM_THREADS limits the threads where they are "auto".

    Raises:
        RecipeError: the device is not available or lacks the precision, or there are more threads than cores.
    """
    device = resolve_device(run.device)
    processes = processes_here() * len(member_devices(run))
    cores = max(1, num_cores() // processes)
    if run.workers != "auto":
        workers = run.workers
    else:
        default = min(16, cores - 1) if device.type != "cpu" else 0 if cores <= 3 else cores // 4
        default = default if may_start_processes() else 0
        workers = default if run.threads == "auto" else max(0, min(default, cores - run.threads))
    threads = run.threads
    if threads == "auto":
        threads = _usable_threads(min(max(1, cores - workers), openmp_threads(cores)))
    if threads + workers > cores and (run.threads != "auto" or run.workers != "auto"):
        raise RecipeError(
            f"run.threads = {threads} and run.workers = {workers} need {threads + workers} cores, "
            f"but this process has {cores}; lower one of them"
            + (f" ({processes} processes share {num_cores()})" if processes > 1 else "")
        )
    precision = run.precision if run.precision != "auto" else best_precision(device)
    if precision == "fp16" and device.type != "cuda":
        raise RecipeError(f'run.precision = "fp16" needs a CUDA device, got {device}; use "bf16" or "float32"')
    return run.model_copy(
        update={"device": str(device), "precision": precision, "threads": threads, "workers": workers}
    )


def member_devices(run: RunSettings) -> list[str | None]:
    """The device of each of the members that train at the same time; None: that of the recipe.

    On a CPU as many as the cores are enough for, on CUDA one on each GPU.
    """
    device = resolve_device(run.device)
    if device.type != "cpu":
        every: list[str | None] = [*gpus()] if device.type == "cuda" and device.index is None else []
        return every[: run.members] or [None]
    threads, workers = (1 if run.threads == "auto" else run.threads), (0 if run.workers == "auto" else run.workers)
    return [None] * min(run.members, max(1, num_cores() // processes_here() // (threads + workers)))


def resolve_device(name: str) -> torch.device:
    """The device of a name; "auto" prefers CUDA, then mps, then the CPU.

    Raises:
        RecipeError: the device is unknown or not available.
    """
    available = ["cpu"]
    if torch.cuda.is_available():
        available += ["cuda", *gpus()]
    if torch.backends.mps.is_available():
        available.append("mps")
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if kind in available))
    if name not in available:
        raise RecipeError(f"run.device: {name!r} is not available; this machine has {', '.join(available)}")
    return torch.device(name)


def gpus() -> list[str]:
    """The names of this process's CUDA devices."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """After the block, or the decorated function, torch's random streams go on as if it had drawn nothing."""
    state = torch.get_rng_state()
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if on_devices is not None:
            torch.cuda.set_rng_state_all(on_devices)
        elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(torch.initial_seed())  # as the first use of CUDA after the block would


@functools.cache
@random_state_kept()
def best_precision(device: torch.device) -> str:
    """The fastest precision of a device: bf16 where it is supported and faster, which a CPU shows in a short test."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps":
        return "float32"
    seconds = {dtype: _convolution_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return "bf16" if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else "float32"


def _convolution_seconds(dtype: torch.dtype) -> float:
    """Seconds of a typical convolution with its backward pass, the fastest of five runs."""
    images = torch.zeros(16, 64, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
    convolution = nn.Conv2d(64, 64, 3, padding=1).to(dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        convolution(images.requires_grad_()).sum().backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, on any device; on a CPU torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    )


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for what the device is doing."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)  # from other memory the copy waits
    return values.to(device)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """The context for a forward pass in mixed precision; for float32 it does nothing."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, AUTOCAST_DTYPES[precision])


_started_in: int | None = None  # the process in which torch may have started its compute threads for this module


def _usable_threads(threads: int) -> int:
    """As many of `threads` as this process can compute with: 1 if it was forked after torch had started threads.

    A forked process has none of them, and torch would wait for them for ever, so torch is left with one thread there.
    """
    global _started_in
    if _started_in in (None, os.getpid()):
        _started_in = os.getpid() if max(threads, torch.get_num_threads()) > 1 else _started_in
        return threads
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        warnings.warn(
            "this process was forked after torch had started its compute threads, which it does not have: it computes "
            "with one thread (start processes with spawn or forkserver to use more)",
            RuntimeWarning,
            stacklevel=2,
        )
    return 1


@contextlib.contextmanager
def compute_threads(threads: int) -> Iterator[None]:
    """Compute with `threads` threads, or with 1 in a forked process, and with the previous number after the block."""
    threads, before = _usable_threads(threads), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def same_bits(device: torch.device, *, always: bool) -> Iterator[None]:
    """Inside the block a CUDA device uses deterministic convolutions only; a CPU is always deterministic.

    Args:
        device: the device that computes.
        always: make every other operation deterministic too, and refuse one that cannot be.

    Raises:
        RecipeError: an operation has no deterministic implementation.
    """
    before = {
        "mode": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    }
    if always:
        torch.use_deterministic_algorithms(True)
    try:
        with _deterministic_convolutions() if device.type == "cuda" else contextlib.nullcontext():
            yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise RecipeError(
            f"run.deterministic: {str(error).splitlines()[0]} Train without --deterministic, or on a CPU"
        ) from error
    finally:
        torch.use_deterministic_algorithms(**before)


@contextlib.contextmanager
def _deterministic_convolutions() -> Iterator[None]:
    """cuDNN and cuBLAS choose deterministic algorithms inside the block."""
    cudnn, workspace = torch.backends.cudnn, "CUBLAS_WORKSPACE_CONFIG"
    deterministic, benchmark, environment = cudnn.deterministic, cudnn.benchmark, os.environ.get(workspace)
    cudnn.deterministic, cudnn.benchmark = True, False
    os.environ.setdefault(workspace, ":4096:8")  # cuBLAS reads it when it is first used
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
        if environment is None:
            del os.environ[workspace]

"""What a training's bits depend on beside its recipe and its data: recorded as it begins, compared as it resumes."""

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import fewsight
from fewsight.recipes import Recipe


@dataclass(frozen=True)
class Conditions:
    """Where a run trains."""

    processes: int  # that share each batch
    threads: int  # of each process
    instructions: str  # of the processor, such as x86_64 AVX2
    device: str  # with the name of a GPU
    fewsight: str  # versions
    torch: str
    pillow: str
    simplejpeg: str = ""  # decodes JPEG; empty: not recorded


WORDS = {"instructions": "instruction set", "threads": "compute threads"}


def conditions_here(recipe: Recipe, processes: int = 1) -> Conditions:
    """The conditions of a training of a resolved recipe in this process."""
    import torch

    from fewsight.machine.device import compute_threads

    assert recipe.run.threads != "auto", "the recipe is resolved"
    with compute_threads(recipe.run.threads):
        threads = torch.get_num_threads()
    return Conditions(
        processes,
        threads,
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        device_name(recipe.run.device),
        fewsight.__version__,
        torch.__version__,
        importlib.metadata.version("pillow"),
        importlib.metadata.version("simplejpeg"),
    )


def device_name(device: str) -> str:
    """A device as run.json records it: `cpu`, or with the GPU's name."""
    import torch

    kind = torch.device(device)
    return f"{device} ({torch.cuda.get_device_name(kind)})" if kind.type == "cuda" else device


def changed_conditions(before: Conditions | None, here: Conditions) -> Sequence[str]:
    """What differs, each with both values; nothing for a run that recorded none."""
    if before is None:
        return []
    pairs = zip(asdict(before).items(), asdict(here).values(), strict=True)
    return [f"{WORDS.get(name, name)} {old}, here {new}" for (name, old), new in pairs if old not in (new, "")]

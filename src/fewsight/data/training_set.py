"""The images that a run trains on, and the facts about its data that it keeps."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

Std = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class TrainingSet:
    """The images that a run trains on and, where there are any, those of val."""

    root: Path
    paths: tuple[str, ...]  # relative to root
    labels: tuple[int, ...]
    val_paths: tuple[str, ...]
    val_labels: tuple[int, ...]
    numbers: tuple[int, ...] = ()  # of each as the data lists them, those too that were left out; none: 0, 1, 2, ...


@dataclass(frozen=True)
class RunData:
    """What a run knows of its data (data.json)."""

    source: str  # the data's absolute path when the run began
    layout: str
    digest: str  # BLAKE2b over path, size and label of every training and val image
    counts: dict[str, dict[str, int]]  # split -> class -> images
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]  # of RGB in [0, 1], training images
    std: tuple[Std, Std, Std]
    left_out: list[dict[str, str]]  # {"path", "split", "error"} of images that cannot be read, or leak
    ignored: dict[str, int]  # reason -> other files and folders
    leaks: dict[str, Any] = field(default_factory=dict)  # policy, equal and near pairs with other splits

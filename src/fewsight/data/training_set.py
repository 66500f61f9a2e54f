"""The images that a run trains on, and what it records about its data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

Std = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class TrainingSet:
    """The images that a run trains on and those of val, if there are any."""

    root: Path
    paths: tuple[str, ...]  # relative to root
    labels: tuple[int, ...]  # class indices
    val_paths: tuple[str, ...]
    val_labels: tuple[int, ...]
    numbers: tuple[int, ...] = ()  # each image's index in the data before some were left out; empty: 0, 1, 2, ...


@dataclass(frozen=True)
class ListedImage:
    """A training or val image of a run (a line of images.jsonl)."""

    split: str  # train or val
    path: str  # relative to the data, with "/" between the parts
    label: str
    size: int  # of the file in bytes
    pixels: str = ""  # digest of its upright pixels, as `Scanned.pixels`


@dataclass(frozen=True)
class RunData:
    """A run's record of its data (data.json)."""

    source: str  # the data's absolute path when the run began
    layout: str
    digest: str  # BLAKE2b over path, size and label of every training and val image
    counts: dict[str, dict[str, int]]  # split -> class -> number of images
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]  # of the training images, RGB in [0, 1]
    std: tuple[Std, Std, Std]
    left_out: list[dict[str, str]]  # {"path", "split", "error"} of images that are unreadable or leak
    ignored: dict[str, int]  # reason -> number of skipped files and folders
    leaks: dict[str, Any] = field(default_factory=dict)  # the policy; equal and near pairs with other splits

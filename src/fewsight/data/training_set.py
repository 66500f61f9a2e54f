"""The images that a run trains on, and what it records about its data."""

from collections.abc import Sequence
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
    digest: str = ""  # of the file, as `Scanned.digest`; lists of earlier versions have none

    def is_as(self, other: "ListedImage") -> bool:
        """Whether both are the same image under the same label, by content where both have a digest."""
        mine, theirs = (self.digest, other.digest) if self.digest and other.digest else (self.pixels, other.pixels)
        return (self.label, self.size) == (other.label, other.size) and (mine == theirs or not mine or not theirs)


def list_differences(before: Sequence[ListedImage], after: Sequence[ListedImage]) -> str:
    """In words, how a list of images differs from an earlier one; empty if it does not."""
    old, new = ({(image.split, image.path): image for image in images} for images in (before, after))
    kinds = {
        "gone": [key for key in old if key not in new],
        "new": [key for key in new if key not in old],
        "changed": [key for key in old if key in new and not new[key].is_as(old[key])],
    }
    texts = [f"{len(keys):,} {kind} (first: {keys[0][1]})" for kind, keys in kinds.items() if keys]
    return ", ".join(texts) or ("" if list(old) == list(new) else "the same images, in another order")


@dataclass(frozen=True)
class RunData:
    """A run's record of its data (data.json)."""

    source: str  # the data's absolute path when the run began, or where a resume found them
    layout: str
    digest: str  # BLAKE2b over path, size and label of every training and val image
    counts: dict[str, dict[str, int]]  # split -> class -> number of images
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]  # of the training images, RGB in [0, 1]
    std: tuple[Std, Std, Std]
    left_out: list[dict[str, str]]  # {"path", "split", "error"} of images that are unreadable or leak
    ignored: dict[str, int]  # reason -> number of skipped files and folders
    leaks: dict[str, Any] = field(default_factory=dict)  # the policy; equal and near pairs with other splits
    test_splits: list[str] = field(default_factory=list)  # with labels, neither trained on nor val

"""Which images a run was trained on, by path and by pixel content."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewsight.data import digest_of_list
from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.runs.folder import MOST_BYTES, WROTE, Run


def read_images(run: Run) -> list[dict[str, Any]]:
    """The images that a run trains on and selects on: {"split", "path", "label", "size", "pixels"} each.

    Raises:
        RunError: the list is damaged, or is not the one of data.json.
    """
    path = run.path
    try:
        files.check_inside(path / "images.jsonl", path, most=MOST_BYTES)
        text = (path / "images.jsonl").read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.split("\n") if line]
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path / 'images.jsonl'}: {error}") from error
    if not all(isinstance(one, dict) and {"split", "path", "label", "size"} <= one.keys()
               and isinstance(one["path"], str) for one in found):  # fmt: skip
        raise RunError(f"{path / 'images.jsonl'} is not what {WROTE} wrote; restore the file from a copy of the run")
    if digest_of_list((one["path"], one["size"], one["label"]) for one in found) != run.data.digest:
        raise RunError(
            f"{path / 'images.jsonl'} is not the list of images that data.json has the digest of; restore both from a "
            "copy of the run"
        )
    return found


@dataclass(frozen=True)
class TrainedOn:
    """The images that a run was trained on."""

    files: frozenset[Path]  # where its data lay
    pixels: frozenset[str]  # digests of them upright, so that a copy is known too

    def __contains__(self, image: tuple[Path, str]) -> bool:
        """Whether a (file, digest of its pixels) is one of them."""
        file, pixels = image
        return pixels in self.pixels or file.resolve() in self.files


def trained_on(run: Run) -> TrainedOn:
    """The images that the run was trained on, by their places and their pixels."""
    root = Path(run.data.source)
    root = root if root.is_dir() else root.parent
    lines = [one for one in read_images(run) if one["split"] == "train"]
    return TrainedOn(
        frozenset((root / one["path"]).resolve() for one in lines),
        frozenset(str(one["pixels"]) for one in lines if one.get("pixels")),
    )


def held_out(run: Run) -> frozenset[str]:
    """The digests of the pixels of the images that the run selects on, its val."""
    return frozenset(str(one["pixels"]) for one in read_images(run) if one["split"] == "val" and one.get("pixels"))

"""Which images a run was trained on, by path and by pixel content."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewsight.data import digest_of_list
from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.runs.folder import MAX_BYTES, WRITER, Run


def read_images(run: Run) -> list[dict[str, Any]]:
    """Read the list of a run's training and val images: {"split", "path", "label", "size", "pixels"} each.

    Raises:
        RunError: the list is damaged, or does not have the digest in data.json.
    """
    path = run.path
    try:
        files.check_inside(path / "images.jsonl", path, max_bytes=MAX_BYTES)
        text = (path / "images.jsonl").read_text(encoding="utf-8")
        images = [json.loads(line) for line in text.split("\n") if line]
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path / 'images.jsonl'}: {error}") from error
    if not all(isinstance(image, dict) and {"split", "path", "label", "size"} <= image.keys()
               and isinstance(image["path"], str) for image in images):  # fmt: skip
        raise RunError(f"{path / 'images.jsonl'} is not what {WRITER} wrote; restore the file from a copy of the run")
    if digest_of_list((image["path"], image["size"], image["label"]) for image in images) != run.data.digest:
        raise RunError(
            f"{path / 'images.jsonl'} does not have the digest that data.json records; restore both from a "
            "copy of the run"
        )
    return images


@dataclass(frozen=True)
class TrainedOn:
    """The images that a run was trained on."""

    files: frozenset[Path]  # their paths when the run began
    pixels: frozenset[str]  # digests of their upright pixels, so that copies are recognised

    def __contains__(self, image: tuple[Path, str]) -> bool:
        """Whether an image (file, digest of its pixels) is one of them, by either."""
        file, pixels = image
        return pixels in self.pixels or file.resolve() in self.files


def trained_on(run: Run) -> TrainedOn:
    """The images that the run was trained on, by path and by pixel content."""
    source = Path(run.data.source)
    root = source if source.is_dir() else source.parent
    images = [image for image in read_images(run) if image["split"] == "train"]
    return TrainedOn(
        frozenset((root / image["path"]).resolve() for image in images),
        frozenset(str(image["pixels"]) for image in images if image.get("pixels")),
    )


def held_out(run: Run) -> frozenset[str]:
    """The pixel digests of the run's val images, which it selects on."""
    val = [image for image in read_images(run) if image["split"] == "val"]
    return frozenset(str(image["pixels"]) for image in val if image.get("pixels"))

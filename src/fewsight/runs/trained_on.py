"""Which images a run was trained on, by path and by pixel content."""

from dataclasses import dataclass
from pathlib import Path

from fewsight.data import digest_of_list
from fewsight.data.training_set import ListedImage
from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.runs.folder import MAX_BYTES, Run
from fewsight.runs.info import WRITER


def read_images(run: Run) -> list[ListedImage]:
    """Read the list of a run's training and val images.

    Raises:
        RunError: the list is damaged, or does not have the digest in data.json.
    """
    file = run.path / "images.jsonl"
    lines = files.read_inside(file, MAX_BYTES).split(b"\n")
    try:
        images = files.parse_json_lines(filter(None, lines), ListedImage)
    except ValueError as error:
        raise RunError(f"{file} is not what {WRITER} wrote: {error}; restore it from a copy") from error
    if digest_of_list((image.path, image.size, image.label) for image in images) != run.data.digest:
        raise RunError(f"{file} does not have the digest that data.json records; restore both from a copy of the run")
    return images


@dataclass(frozen=True)
class TrainedOn:
    """The images that a run was trained on."""

    files: dict[Path, str]  # their paths when the run began, and the digests of the files (empty in older runs)
    pixels: frozenset[str]  # digests of their upright pixels, so that copies are recognised

    def __contains__(self, image: tuple[Path, str, str]) -> bool:
        """Whether an image (file, digest of its pixels, digest of the file) is one of them, by its contents.

        Another version of a decoder may give other pixels; then the file decides. A path alone decides where nothing
        is known of the contents.
        """
        file, pixels, digest = image
        if pixels in self.pixels:
            return True
        known = self.files.get(file.resolve())
        return known is not None and not (pixels and digest and known and digest != known)


def trained_on(run: Run) -> TrainedOn:
    """The images that the run was trained on, by path and by pixel content."""
    source = Path(run.data.source)
    root = source if source.is_dir() else source.parent
    images = [image for image in read_images(run) if image.split == "train"]
    return TrainedOn(
        {(root / image.path).resolve(): image.digest for image in images},
        frozenset(image.pixels for image in images if image.pixels),
    )


def held_out(run: Run) -> frozenset[str]:
    """The pixel digests of the run's val images, which it selects on."""
    return frozenset(image.pixels for image in read_images(run) if image.split == "val" and image.pixels)

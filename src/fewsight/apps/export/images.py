"""The images that an export is tried on and calibrated with, and what they are to the graph."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL.Image import Image

from fewsight.apps.export.graph import Cut
from fewsight.augment import View, cut_view, random_box
from fewsight.data import decode_bytes, read_bytes
from fewsight.data.samples import sample_positions
from fewsight.errors import DataError, RunError
from fewsight.inference import prediction_files
from fewsight.inference.ensemble import RunsAndViews
from fewsight.runs import read_images, trained_on
from fewsight.scores.scoring import file_digest
from fewsight.wording import counted

SEED = 0  # of the sample, where there are more images than asked for


@dataclass(frozen=True)
class Images:
    """Image files, where they come from, and what is known of them."""

    source: str  # in words: `val of /data/photos`
    files: tuple[Path, ...]
    labels: tuple[int, ...]  # positions in the classes; none where they are not known
    num_trained_on: int = 0  # by any of the runs


def own_images(asked: RunsAndViews, split: str, data: Path | None, most: int) -> Images:
    """Images of the data that the run, or the first of an ensemble's, was made from.

    Args:
        split: train or val; where the run has no val, the images are those that it was trained on.
        data: where the data lies now; None: where it lay.
        most: how many, drawn by a fixed seed where there are more.

    Raises:
        RunError: the data is not there, or the run's list of images is damaged.
    """
    run = asked.first_run
    place = data or Path(run.data.source)
    if not place.exists():
        where = " is not there" if data else ", where the run's data lay, is not there"
        raise RunError(f"{place}{where}; say where it lies now with --data, or try other images with --images")
    root = place if place.is_dir() else place.parent
    lines = read_images(run)
    of_split = [line for line in lines if line["split"] == split]
    split, found = (split, of_split) if of_split else ("train", lines)
    chosen = [found[number] for number in sample_positions(len(found), most, SEED)]
    files = tuple(root / line["path"] for line in chosen)
    if not any(file.is_file() for file in files):
        raise RunError(
            f"{place} does not hold the images of the run, such as {chosen[0]['path']}; say with --data where they lie"
        )
    position = {label: number for number, label in enumerate(asked.classes)}
    if not {line["label"] for line in chosen} <= position.keys():
        raise RunError(
            f"{run.path / 'images.jsonl'} has labels that are none of the run's classes; restore it from a copy"
        )
    known = [trained_on(one) for one in asked.runs.values()]
    seen = [
        any((file, str(line.get("pixels"))) in one for one in known) for file, line in zip(files, chosen, strict=True)
    ]
    return Images(f"{split} of {place}", files, tuple(position[line["label"]] for line in chosen), sum(seen))


def given_images(inputs: Sequence[str], most: int) -> Images:
    """Images of files, folders and patterns, as `predict` takes them."""
    found = prediction_files.expand(inputs)
    files = tuple(Path(found[number]) for number in sample_positions(len(found), most, SEED))
    return Images(", ".join(inputs), files, ())


def readable(images: Images) -> Images:
    """Those that can be decoded.

    Raises:
        DataError: none can.
    """
    errors = [_error(file) for file in images.files]
    kept = [number for number, error in enumerate(errors) if error is None]
    if not kept:
        raise DataError(f"{images.source}: none of {counted(len(errors), 'image')} can be read; the first: {errors[0]}")
    return Images(
        images.source,
        tuple(images.files[number] for number in kept),
        tuple(images.labels[number] for number in kept) if images.labels else (),
        images.num_trained_on,
    )


def inputs_of(
    files: Sequence[Path], cuts: Mapping[str, Cut], *, crop: bool, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """What the graph takes, a batch at a time; one image at a time where it crops, since their shapes differ."""
    size = 1 if crop else batch_size
    for start in range(0, len(files), size):
        loaded = [_load(file) for file in files[start : start + size]]
        if crop:
            ((image, digest),) = loaded
            yield {"images": np.array(image)[None], **_boxes(image, digest, cuts)}
        else:
            yield {name: np.stack([_cut(image, cut, digest) for image, digest in loaded]) for name, cut in cuts.items()}


def _load(file: Path) -> tuple[Image, str]:
    data = read_bytes(file)
    return decode_bytes(data, str(file)), file_digest(data)


def _error(file: Path) -> str | None:
    try:
        _load(file)
    except DataError as error:
        return str(error)
    return None


def _cut(image: Image, cut: Cut, digest: str) -> np.ndarray:
    view = View(cut.crop, cut.px, -1 if cut.scale is None else cut.scale)
    if cut.ratio is not None:
        return cut_view(image, view, digest, view_seed=0, ratio=cut.ratio)
    assert cut.view_seed is not None, "a crop that is drawn has a seed"
    return cut_view(image, view, digest, view_seed=cut.view_seed)


def _boxes(image: Image, digest: str, cuts: Mapping[str, Cut]) -> dict[str, np.ndarray]:
    """The boxes of the random crops, float32 [1, R, 4]; nothing where there are none."""
    drawn = [(cut.scale, cut.view_seed) for cut in cuts.values() if cut.ratio is None]
    boxes = [
        random_box(image.width, image.height, digest, scale, seed)
        for scale, seed in drawn
        if scale is not None and seed is not None
    ]
    return {"boxes": np.array([boxes], np.float32)} if boxes else {}

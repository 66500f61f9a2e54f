"""The images that an exported model is compared and calibrated on, and the graph's inputs made from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL.Image import Image

from fewsight.apps.export.graph import Cut
from fewsight.augment import View, cut_view, random_box
from fewsight.data import changed_files, decode_bytes, file_digest, read_bytes
from fewsight.data.samples import sample_indices
from fewsight.errors import DataError, RunError
from fewsight.inference import prediction_files
from fewsight.inference.opening import RunsAndViews
from fewsight.runs import read_images, trained_on
from fewsight.wording import counted, named

SEED = 0  # of the sample, where there are more images than needed


@dataclass(frozen=True)
class ImageSet:
    """Image files with their origin and labels."""

    source: str  # in words, such as `val of /data/photos`
    files: tuple[Path, ...]
    labels: tuple[int, ...]  # class indices; empty where they are unknown
    num_trained_on: int = 0  # images that any of the runs was trained on


@dataclass(frozen=True)
class CompareOn:
    """Which images an exported model is compared with `predict` on.

    Args:
        images: files, folders and patterns; none: the run's val images.
        data: where the run's dataset is now; None: where it was at training.
        num_images: the maximum number of images, drawn by a fixed seed where there are more.
    """

    images: Sequence[str] = ()
    data: Path | None = None
    num_images: int = 256

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            RunError: it is below 1.
        """
        if self.num_images < 1:
            raise RunError(f"--num-images {self.num_images}: expected at least 1")

    def images_for(self, selection: RunsAndViews) -> ImageSet:
        """The images of a run or an ensemble that can be decoded.

        Raises:
            RunError: as `images_of_run`.
            DataError: none of them can be decoded.
        """
        if self.images:
            return readable_images(given_images(self.images, self.num_images))
        return readable_images(images_of_run(selection, "val", self.data, self.num_images))


def images_of_run(selection: RunsAndViews, split: str, data: Path | None, limit: int) -> ImageSet:
    """Images of the dataset of the run, or of an ensemble's first run.

    Args:
        split: train or val; a run without val images gives images that it was trained on.
        data: where the dataset is now; None: where it was at training.
        limit: the maximum number of images, drawn by a fixed seed where there are more.

    Raises:
        RunError: the dataset is not found, images were replaced, or the run's list of images is damaged.
    """
    run = selection.first_run
    source = data or Path(run.data.source)
    if not source.exists():
        reason = " does not exist" if data else ", where the run's dataset was, does not exist"
        raise RunError(
            f"{source}{reason}; say where the dataset is now with --data, or give other images with --images"
        )
    root = source if source.is_dir() else source.parent
    lines = read_images(run)
    of_split = [line for line in lines if line.split == split]
    split, candidates = (split, of_split) if of_split else ("train", lines)
    chosen = [candidates[index] for index in sample_indices(len(candidates), limit, SEED)]
    files = tuple(root / line.path for line in chosen)
    if not any(file.is_file() for file in files):
        raise RunError(
            f"{source} does not have the images of the run, such as {chosen[0].path}; give the folder that has them "
            "with --data"
        )
    changed = [index for index in changed_files(files, [line.digest for line in chosen]) if files[index].is_file()]
    if changed:
        raise RunError(
            f"{source}: {counted(len(changed), 'image')} of the run changed since it was trained "
            f"({named(chosen[index].path for index in changed)}), so their labels may be others; restore them, or give "
            "other images with --images"
        )
    class_index = {label: index for index, label in enumerate(selection.classes)}
    if not {line.label for line in chosen} <= class_index.keys():
        raise RunError(
            f"{run.path / 'images.jsonl'} has labels that are none of the run's classes; restore it from a copy"
        )
    training_images = [trained_on(run) for run in selection.runs.values()]
    num_trained_on = sum(
        any((file, line.pixels, line.digest) in images for images in training_images)
        for file, line in zip(files, chosen, strict=True)
    )
    labels = tuple(class_index[line.label] for line in chosen)
    return ImageSet(f"{split} of {source}", files, labels, num_trained_on)


def given_images(inputs: Sequence[str], limit: int) -> ImageSet:
    """The images of files, folders and patterns, as `predict` takes them; at most `limit`."""
    paths = prediction_files.expand_inputs(inputs)
    files = tuple(Path(paths[index]) for index in sample_indices(len(paths), limit, SEED))
    return ImageSet(", ".join(inputs), files, ())


def readable_images(images: ImageSet) -> ImageSet:
    """The images that can be decoded.

    Raises:
        DataError: none of them can be decoded.
    """
    errors = [_error(file) for file in images.files]
    kept = [index for index, error in enumerate(errors) if error is None]
    if not kept:
        raise DataError(f"{images.source}: none of {counted(len(errors), 'image')} can be read; the first: {errors[0]}")
    return ImageSet(
        images.source,
        tuple(images.files[index] for index in kept),
        tuple(images.labels[index] for index in kept) if images.labels else (),
        images.num_trained_on,
    )


def inputs_of(
    files: Sequence[Path], cuts: Mapping[str, Cut], *, crop: bool, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """The graph's inputs by name, batch by batch; one image at a time if the graph crops, since image shapes differ."""
    batch_size = 1 if crop else batch_size
    for start in range(0, len(files), batch_size):
        loaded = [_load(file) for file in files[start : start + batch_size]]
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
    assert cut.view_seed is not None, "a random crop has a seed"
    return cut_view(image, view, digest, view_seed=cut.view_seed)


def _boxes(image: Image, digest: str, cuts: Mapping[str, Cut]) -> dict[str, np.ndarray]:
    """The input `boxes`, the boxes of the random crops, float32 [1, R, 4]; no input where there are none."""
    random_crops = [(cut.scale, cut.view_seed) for cut in cuts.values() if cut.ratio is None]
    boxes = [
        random_box(image.width, image.height, digest, scale, seed)
        for scale, seed in random_crops
        if scale is not None and seed is not None
    ]
    return {"boxes": np.array([boxes], np.float32)} if boxes else {}

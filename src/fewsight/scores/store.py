"""The score store: the log-probabilities of every image in every view, written while scoring, read without a model.

A store is a folder: store.json (what was scored, and how), images.jsonl (a line for each image: path, size, label,
error, digest of the file, whether the run was trained on it or chose its weights on it) and `<view>.f32` for each view:
natural log-probabilities, little-endian float32 [images, classes], NaN for an image that could not be read. It is
written batch by batch: a store whose writing was interrupted has fewer images, and is continued.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fewsight.augment import is_view_name
from fewsight.data import changed_files, digest_of_list, read_bytes
from fewsight.errors import DataError, RunError
from fewsight.machine import files

FORMAT = 1  # of a store; a newer one is refused
DTYPE = np.dtype("<f4")
SUFFIX = ".f32"  # of a view's file


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds the scores of. Stores with equal `StoreInfo` can differ only in their views."""

    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    count: Annotated[int, Field(ge=0, lt=2**40)]  # images
    images_digest: str  # `data.digest_of_list` of the images
    weights_digest: str
    view_seed: int
    crop_ratio: float
    flip: bool  # whether each view's mirrored view is averaged in
    precision: str
    dtype: Literal["float32"] = "float32"  # of the log-probabilities on the disk

    @property
    def image_bytes(self) -> int:
        """Bytes of one image in a view's file."""
        return DTYPE.itemsize * len(self.classes)


@dataclass(frozen=True)
class ScoredImage:
    """A line of images.jsonl."""

    path: str
    size: int  # of the file in bytes; -1 if there is none
    label: str | None
    error: str | None
    digest: str  # 64 bits of the file's BLAKE2b in hexadecimal; empty if it could not be read
    trained_on: bool
    chose_weights: bool = False  # whether the run kept the weights of the epoch that was best on it (`run.select`)


@dataclass(frozen=True, eq=False)
class Store:
    """A complete store, opened for reading."""

    path: Path
    about: StoreInfo
    views: tuple[str, ...]
    images: tuple[ScoredImage, ...]

    @property
    def readable(self) -> np.ndarray:
        """bool [images]: which images could be read."""
        return np.array([image.error is None for image in self.images])

    @property
    def num_trained_on(self) -> int:
        """How many of the images the store's run was trained on."""
        return sum(image.trained_on for image in self.images)

    def results(self, view: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """float32 [stop - start, classes]: the log-probabilities of one view, read from its file.

        Raises:
            RunError: the file is shorter than it was, or cannot be read.
        """
        stop, num_classes = self.about.count if stop is None else stop, len(self.about.classes)
        file = self.path / f"{view}{SUFFIX}"
        files.check_inside(file, self.path)
        try:
            # read, not mapped: mapped pages count as the process's memory for as long as it runs
            values = np.fromfile(file, DTYPE, (stop - start) * num_classes, "", start * self.about.image_bytes)
        except OSError as error:
            raise RunError(f"cannot read {file}: {error.strerror or error}") from error
        if len(values) != (stop - start) * num_classes:
            raise RunError(f"{file} is shorter than it was; remove it and score again")
        return values.reshape(stop - start, num_classes).astype(np.float32, copy=False)


@dataclass(frozen=True)
class StoreWriter:
    """A store opened for writing."""

    path: Path
    about: StoreInfo
    views: tuple[str, ...]  # to write; the store may already have others
    done: int  # images that all of these views had when the store was opened
    digests: tuple[str, ...]  # of the files of images.jsonl when the store was opened


def begin(
    path: Path,
    about: StoreInfo,
    views: Sequence[str],
    files_now: Sequence[Path] = (),
    *,
    batch: int = 1,
    reread: bool = False,
) -> StoreWriter:
    """Create a store, or open an existing store of the same images and weights to continue it.

    Args:
        path: the store's folder.
        about: what is scored.
        views: to write, unless the store already has them.
        files_now: the images' files; an existing store must hold scores of the same contents. Where one could not be
            read when it was scored and now can, the store is rewritten from it on.
        batch: images that are scored together. Scoring continues at a multiple of it, so that each image is scored in
            the batch in which an uninterrupted scoring would have scored it; its last bits depend on the others.
        reread: read every file to compare its contents, see `changed_files`.

    Raises:
        RunError: the folder holds other scores (nothing is changed), or it cannot be written.
    """
    if (path / "store.json").exists():
        _check_same(path, about, _read_about(path))
        _check_contents(path, files_now, reread)
        _drop_unreadable(path, files_now)
    else:
        files.make_folder(path)
        files.write_json(path / "store.json", {"format": FORMAT, **asdict(about)})
    image_bytes, lines = about.image_bytes, _lines(path)
    num_images = {file.stem: _size(file) // image_bytes for file in path.glob(f"*{SUFFIX}")}
    complete = len(lines) == about.count  # else the first pass was interrupted: scores without a line do not count
    missing = tuple(view for view in views if not complete or num_images.get(view) != about.count)
    done = min([num_images.get(view, 0) for view in missing] + [len(lines)])
    done -= done % batch if missing else 0
    if not complete:
        lines = lines[:done]
        _truncate(path / "images.jsonl", sum(map(len, lines)))
    for view in num_images if not complete else missing:
        _truncate(path / f"{view}{SUFFIX}", done * image_bytes)
    return StoreWriter(path, about, missing, done, tuple(image.digest for image in _parse_images(path, lines)))


def _check_contents(path: Path, files_now: Sequence[Path], reread: bool) -> None:
    """Check that the files of a store still have the contents that were scored.

    Raises:
        RunError: names the first file that has not.
    """
    images = _parse_images(path, _lines(path))[: len(files_now)]
    changed = changed_files(files_now[: len(images)], [image.digest for image in images], reread=reread)
    if changed:
        raise RunError(
            f"{path} holds scores of other images: {files_now[changed[0]]} "
            f"{f'and {len(changed) - 1:,} more have' if len(changed) > 1 else 'has'} changed since; give --scores "
            "another folder, or remove this one"
        )


def _drop_unreadable(path: Path, files_now: Sequence[Path]) -> None:
    """Truncate images.jsonl before the first image that could not be read and now can."""
    lines = _lines(path)
    images = _parse_images(path, lines)
    unreadable = (index for index, image in enumerate(images[: len(files_now)]) if image.error and not image.digest)
    if (first := next((index for index in unreadable if _is_readable(files_now[index])), None)) is not None:
        _truncate(path / "images.jsonl", sum(map(len, lines[:first])))


def _is_readable(file: Path) -> bool:
    try:
        read_bytes(file)
    except DataError:
        return False
    return True


def append(store: StoreWriter, first: int, results: np.ndarray, images: Sequence[ScoredImage]) -> None:
    """Add the scores of the next images.

    Args:
        store: opened for writing.
        first: index of the first of the images in the store.
        results: float32 [V, n, K], in the order of `store.views`.
        images: their lines of images.jsonl.

    Raises:
        RunError: the disk is full, or a file has changed since another view of it was scored.
    """
    for digest, image in zip(store.digests[first : first + len(images)], images, strict=False):
        if digest != image.digest:
            raise RunError(
                f"{image.path} has changed since {store.path} was written; score into a new folder (--scores)"
            )
    try:
        for view, values in zip(store.views, results.astype(DTYPE), strict=True):
            with (store.path / f"{view}{SUFFIX}").open("ab") as handle:
                handle.write(values.tobytes())
        if len(store.digests) <= first:
            with (store.path / "images.jsonl").open("ab") as handle:
                handle.write("".join(files.json_text(asdict(image)) + "\n" for image in images).encode())
    except OSError as error:
        files.raise_write_error(store.path, error)


def finish(store: StoreWriter) -> Store:
    """Flush a store to the disk, and open it for reading."""
    for name in ("images.jsonl", *(f"{view}{SUFFIX}" for view in store.views)):
        with (store.path / name).open("rb") as handle:
            os.fsync(handle.fileno())
    files.sync_folder(store.path)
    return _read(store.path)


def read_store(path: Path) -> Store:
    """Open a complete store.

    Raises:
        RunError: not a store, of a newer format, damaged, or incomplete; an incomplete view is named.
    """
    store = _read(path)
    incomplete = [file for file in path.glob(f"*{SUFFIX}") if file.stem not in store.views]
    if incomplete:
        expected, actual = store.about.count * store.about.image_bytes, _size(incomplete[0])
        raise RunError(
            f"{incomplete[0]} is incomplete: {actual:,} of {expected:,} bytes; to continue it, repeat the command that "
            "wrote it with this view, or remove the file"
        )
    return store


def _read(path: Path) -> Store:
    """A store with those of its views that are complete."""
    about = _read_about(path)
    lines = _lines(path)
    num_bytes = about.count * about.image_bytes
    view_files = sorted(path.glob(f"*{SUFFIX}"), key=lambda file: file.stem)
    unknown = next((file for file in view_files if not is_view_name(file.stem)), None)
    if unknown is not None:
        raise RunError(f"{unknown} is not named after a view, such as center-64{SUFFIX}; remove it")
    views = tuple(file.stem for file in view_files if _size(file) == num_bytes)
    if len(lines) != about.count:
        raise RunError(
            f"{path} is incomplete: {len(lines):,} of {about.count:,} images are scored; repeat the command that wrote "
            "it to continue"
        )
    if not views:
        raise RunError(f"{path} is incomplete: it has no complete view; repeat the command that wrote it")
    images = _parse_images(path, lines)
    if digest_of_list((image.path, image.size, image.label) for image in images) != about.images_digest:
        raise RunError(
            f"{path / 'images.jsonl'} is not what was written: its paths, labels, sizes or their order were changed; "
            f"remove {path} and score again"
        )
    return Store(path, about, views, images)


def _parse_images(path: Path, lines: Sequence[bytes]) -> tuple[ScoredImage, ...]:
    try:
        return tuple(files.parse_json_lines(lines, ScoredImage))
    except ValueError as error:
        raise RunError(f"{path / 'images.jsonl'} is damaged: {error}; remove {path} and score again") from error


def _read_about(path: Path) -> StoreInfo:
    values = files.read_json(path / "store.json", dict[str, Any], "fewsight", newest_format=FORMAT)
    if values.get("dtype") == "float16":
        raise RunError(
            f"{path} has scores in float16, which fewsight no longer reads; remove the folder, then repeat the command "
            "that wrote it, without --scores-dtype"
        )
    return files.read_json(path / "store.json", StoreInfo, "fewsight")


def _check_same(path: Path, about: StoreInfo, stored: StoreInfo) -> None:
    """Raise unless a store holds the scores that are to be written.

    Raises:
        RunError: names what differs.
    """
    differences = [name for name, value in asdict(about).items() if value != asdict(stored)[name]]
    if "images_digest" in differences:
        differences = [name for name in differences if name != "count"]
    if differences:
        words = {"images_digest": "images", "weights_digest": "weights"}
        what = ", ".join(words.get(name, name) for name in differences)
        raise RunError(f"{path} holds scores of other {what}; give --scores another folder, or remove this one")


def _lines(path: Path) -> list[bytes]:
    """The complete lines of images.jsonl."""
    file = path / "images.jsonl"
    if not os.path.lexists(file):
        return []
    files.check_inside(file, path)
    return [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _truncate(file: Path, num_bytes: int) -> None:
    if _size(file) <= num_bytes:
        return
    try:
        if file.stat().st_nlink > 1:  # shared with an ensemble, whose file must stay complete
            with files.replacing(file) as part:
                shutil.copyfile(file, part)
        os.truncate(file, num_bytes)
    except OSError as error:
        files.raise_write_error(file, error)

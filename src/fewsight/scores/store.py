"""The score store: every view's log-probabilities of every image, and what is asked of them without a model.

A store is a folder: store.json (what was scored, and how), images.jsonl (a line for each image: path, size, label,
error, digest of the file, whether the run was trained on it) and `<view>.f32` for each view: natural log-probabilities,
little-endian float32 [images, classes], rows of NaN where an image could not be read (`<view>.f16` and float16 where
that was asked for). It is written as it goes: a store that was cut short has fewer rows and goes on from there.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from fewsight.augment import is_view_name
from fewsight.data import digest_of_list
from fewsight.errors import RunError
from fewsight.machine import files

FORMAT = 1  # of a store; a newer one is refused
SUFFIXES = {"float32": ".f32", "float16": ".f16"}


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds the scores of; two with the same `StoreInfo` differ in nothing but their views."""

    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    count: Annotated[int, Field(ge=0, lt=2**40)]  # images
    images_digest: str  # `data.digest_of_list` of them
    weights_digest: str
    view_seed: int
    crop_ratio: float
    flip: bool  # the flipped twin is averaged in each view
    precision: str
    dtype: Annotated[str, Field(pattern="^float(32|16)$")] = "float32"  # of the log-probabilities on the disk

    @property
    def suffix(self) -> str:
        """What a view's file ends with."""
        return SUFFIXES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Of one image in a view's file."""
        return np.dtype(self.dtype).itemsize * len(self.classes)


@dataclass(frozen=True)
class ScoredImage:
    """One line of images.jsonl."""

    path: str
    size: int  # of the file in bytes; -1 where there is none
    label: str | None
    error: str | None
    digest: str  # 64 bits of the file's BLAKE2b in hexadecimal; empty where it could not be read
    trained_on: bool


_IMAGE = TypeAdapter(ScoredImage)


@dataclass(frozen=True, eq=False)
class Store:
    """A whole store, opened for reading."""

    path: Path
    about: StoreInfo
    views: tuple[str, ...]
    images: tuple[ScoredImage, ...]

    @property
    def readable(self) -> np.ndarray:
        """bool [images]: which could be read."""
        return np.array([image.error is None for image in self.images])

    @property
    def num_trained_on(self) -> int:
        """How many of the images the store's run was trained on."""
        return sum(image.trained_on for image in self.images)

    def results(self, view: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """float32 [stop - start, classes]: log-probabilities of one view, read from the file.

        Raises:
            RunError: the file is shorter than it was, or cannot be read.
        """
        stop, width = self.about.count if stop is None else stop, len(self.about.classes)
        file = self.path / f"{view}{self.about.suffix}"
        files.check_inside(file, self.path)
        try:
            # read, not mapped: mapped pages count as the process's memory for as long as it lives
            found = np.fromfile(
                file,
                np.dtype(self.about.dtype).newbyteorder("<"),
                (stop - start) * width,
                "",
                start * self.about.row_bytes,
            )
        except OSError as error:
            raise RunError(f"cannot read {file}: {error.strerror or error}") from error
        if len(found) != (stop - start) * width:
            raise RunError(f"{file} is shorter than it was; remove it and score again")
        return found.reshape(stop - start, width).astype(np.float32, copy=False)


@dataclass(frozen=True)
class StoreWriter:
    """A store that is being written."""

    path: Path
    about: StoreInfo
    views: tuple[str, ...]  # that are written now; others may be there already
    done: int  # images that all of them had when it was opened
    digests: tuple[str, ...]  # of the files of images.jsonl as it was opened


def begin(
    path: Path,
    about: StoreInfo,
    views: Sequence[str],
    mended: Callable[[int], bool] = lambda place: False,
    *,
    batch: int = 1,
) -> StoreWriter:
    """Make a store, or open one that there is of the same images and weights and go on where it stopped.

    Args:
        mended: whether the image at a position, which could not be read when it was scored, can be read now; the
            store is then written anew from there.
        batch: images that are scored together; it goes on at a multiple of it, so that each image is scored with those
            that it would have been scored with, on which its last bits depend.

    Raises:
        RunError: the folder holds other scores, and nothing is changed; or it cannot be written.
    """
    if (path / "store.json").exists():
        _check_same(path, about, _read_about(path))
        _forget(path, mended)
    else:
        files.make_folder(path)
        files.write_json(path / "store.json", {"format": FORMAT, **asdict(about)})
    row_bytes, lines = about.row_bytes, _lines(path)
    there = {file.stem: _size(file) // row_bytes for file in path.glob(f"*{about.suffix}")}
    whole = len(lines) == about.count  # else the first pass was cut short: rows without their lines do not count
    missing = tuple(view for view in views if not whole or there.get(view) != about.count)
    done = min([there.get(view, 0) for view in missing] + [len(lines)])
    done -= done % batch if missing else 0
    if not whole:
        lines = lines[:done]
        _cut(path / "images.jsonl", sum(map(len, lines)))
    for view in there if not whole else missing:
        _cut(path / f"{view}{about.suffix}", done * row_bytes)
    return StoreWriter(path, about, missing, done, tuple(image.digest for image in _images(path, lines)))


def _forget(path: Path, mended: Callable[[int], bool]) -> None:
    """Cut a store before the first image that could not be read and now can."""
    lines = _lines(path)
    lost = (place for place, one in enumerate(_images(path, lines)) if one.error and not one.digest)
    if (first := next(filter(mended, lost), None)) is not None:
        _cut(path / "images.jsonl", sum(map(len, lines[:first])))


def append(store: StoreWriter, first: int, results: np.ndarray, images: Sequence[ScoredImage]) -> int:
    """Add the scores of the next images.

    Args:
        first: position of the first of them in the store.
        results: float32 [V, n, K], in the order of `store.views`.

    Returns:
        In how many of the V x n the class with the most probability is another as stored: 0 for float32.

    Raises:
        RunError: the disk is full, or a file has changed since another view of it was scored.
    """
    for known, image in zip(store.digests[first : first + len(images)], images, strict=False):
        if known != image.digest:
            raise RunError(f"{image.path} is not the file that {store.path} has scores of; score into a new folder")
    kept = results.astype(np.dtype(store.about.dtype).newbyteorder("<"))
    try:
        for view, rows in zip(store.views, kept, strict=True):
            with (store.path / f"{view}{store.about.suffix}").open("ab") as handle:
                handle.write(rows.tobytes())
        if len(store.digests) <= first:
            with (store.path / "images.jsonl").open("ab") as handle:
                handle.write("".join(files.json_text(asdict(image)) + "\n" for image in images).encode())
    except OSError as error:
        files.raise_write_error(store.path, error)
    return int((kept.argmax(2) != results.argmax(2)).sum())


def finish(store: StoreWriter) -> Store:
    """Flush a store to the disk and open it."""
    for name in ("images.jsonl", *(f"{view}{store.about.suffix}" for view in store.views)):
        with (store.path / name).open("rb") as handle:
            os.fsync(handle.fileno())
    files.sync_folder(store.path)
    return _read(store.path)


def read_store(path: Path) -> Store:
    """Open a whole store.

    Raises:
        RunError: not a store, of a newer format, damaged, or cut short; a view that is, is named.
    """
    store = _read(path)
    cut = [file for file in path.glob(f"*{store.about.suffix}") if file.stem not in store.views]
    if cut:
        size, has = store.about.count * store.about.row_bytes, _size(cut[0])
        raise RunError(
            f"{cut[0]} is not whole: {has:,} of {size:,} bytes; run the command that wrote it again with this view, it "
            "goes on where it stopped, or remove the file"
        )
    return store


def _read(path: Path) -> Store:
    """A store with those of its views that are whole."""
    about = _read_about(path)
    lines = _lines(path)
    size = about.count * about.row_bytes
    found = sorted(path.glob(f"*{about.suffix}"), key=lambda file: file.stem)
    strange = next((file for file in found if not is_view_name(file.stem)), None)
    if strange is not None:
        raise RunError(f"{strange} is no view that fewsight scores, such as center-64{about.suffix}; remove it")
    views = tuple(file.stem for file in found if _size(file) == size)
    if len(lines) != about.count:
        raise RunError(
            f"{path} is not whole: {len(lines):,} of {about.count:,} images are scored; run the command that wrote it "
            "again, it goes on where it stopped"
        )
    if not views:
        raise RunError(f"{path} is not whole: it holds no whole view; run the command that wrote it again")
    images = _images(path, lines)
    if digest_of_list((one.path, one.size, one.label) for one in images) != about.images_digest:
        raise RunError(
            f"{path / 'images.jsonl'} is not what was written: its paths, labels, sizes or their order were changed; "
            f"remove {path} and score again"
        )
    return Store(path, about, views, images)


def _images(path: Path, lines: Sequence[bytes]) -> tuple[ScoredImage, ...]:
    try:
        return tuple(_IMAGE.validate_json(line, strict=True) for line in lines)
    except ValidationError as error:
        told = files.first_problem(error)
        raise RunError(f"{path / 'images.jsonl'} is damaged: {told}; remove {path} and score again") from error


def _read_about(path: Path) -> StoreInfo:
    values = files.read_json(path / "store.json")
    version = values.get("format") if isinstance(values, dict) else None
    if version is None:
        raise RunError(f"{path / 'store.json'} is not what fewsight wrote")
    if not isinstance(version, int) or version > FORMAT:
        raise RunError(f"{path}: store format {version!r}, but this fewsight reads up to {FORMAT}; upgrade fewsight")
    return files.read_json_as(path / "store.json", StoreInfo, "fewsight")


def _check_same(path: Path, about: StoreInfo, there: StoreInfo) -> None:
    differences = [name for name, value in asdict(about).items() if value != asdict(there)[name]]
    if "images_digest" in differences:
        differences = [name for name in differences if name != "count"]
    if differences:
        named = {"images_digest": "images", "weights_digest": "weights"}
        what = ", ".join(named.get(name, name) for name in differences)
        raise RunError(f"{path} holds scores of other {what}; give --scores another folder, or remove this one")


def _lines(path: Path) -> list[bytes]:
    """The whole lines of images.jsonl."""
    file = path / "images.jsonl"
    if not os.path.lexists(file):
        return []
    files.check_inside(file, path)
    return [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _cut(file: Path, num_bytes: int) -> None:
    if _size(file) <= num_bytes:
        return
    try:
        if file.stat().st_nlink > 1:  # an ensemble shares it: that one keeps it whole
            with files.replacing(file) as part:
                shutil.copyfile(file, part)
        os.truncate(file, num_bytes)
    except OSError as error:
        files.raise_write_error(file, error)

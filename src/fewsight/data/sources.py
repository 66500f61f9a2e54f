"""Read the dataset at a path: folders here, manifests in manifest.py."""

import os
import posixpath
import re
import stat
from pathlib import Path, PurePath
from typing import Any

from fewsight.data.decode import IMAGE_SUFFIXES
from fewsight.data.manifest import MANIFEST_SUFFIXES, read_manifest
from fewsight.data.samples import Dataset, Ignored, Sample
from fewsight.data.splits import USUAL_NAMES, naming_notes, parse_splits, split_by_seed, split_names, usual_split
from fewsight.errors import DataError
from fewsight.wording import named

_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
_WORDS_OF_SPLITS = frozenset(word for names in USUAL_NAMES.values() for word in names)
MAX_DEPTH = 8  # of folders that hold one folder
MIN_SHARED = (
    0.5  # of the folders in two class folders, intersection over union: from here on they are a level of their own
)
_TEST_IMAGE_FOLDERS = frozenset({"imgs", "images"})  # the only folder of an unlabelled test split, not a class
_WORDNET_ID = re.compile(r"n\d{8}")


def read_dataset(path: str | Path, *, holdout: float = 0.2, seed: int = 0, splits: str = "") -> Dataset:
    """The dataset at `path`: folders with splits, one level of class folders, or a CSV or Parquet manifest.

    Args:
        path: a folder, or a manifest file.
        holdout: the fraction of each class that becomes val where the data does not name its splits.
        seed: the seed of that draw.
        splits: names the splits that are not called train, val or test: `train=NAME,val=NAME`.

    Raises:
        DataError: there is no usable dataset; the message says what was found and what is expected.
    """
    path = Path(path)
    check_source(path)
    read = _read_folder if path.is_dir() else read_manifest
    return read(path, holdout=holdout, seed=seed, given=parse_splits(splits))


def check_source(path: Path) -> None:
    """Check that there can be a dataset at `path`, without reading it.

    Raises:
        DataError: there is nothing, it cannot be read, or it is neither a folder nor a manifest.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise DataError(f"{path}: a link to {path.readlink()}, which does not exist") from None
        raise DataError(f"{path}: no such file or folder (looked in {Path.cwd()})") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise DataError(f"{path}: a device or a pipe; write the manifest to a file first")
    if not stat.S_ISDIR(mode) and path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise DataError(
            f"{path}: a dataset is a folder of class folders, or a .csv or .parquet manifest with the columns "
            "path,label[,split] (unpack an archive first)"
        )


def images_under(folder: Path, ignored: Ignored) -> list[str]:
    """Paths of the images at any depth below `folder`, relative to it, in code-point order.

    Links are followed, each real folder once, so loops end. What is skipped is counted in `ignored`.

    Raises:
        DataError: a folder cannot be read.
    """
    images: list[str] = []
    visited: set[tuple[int, int]] = set()  # (device, inode)
    pending = [""]
    while pending:
        prefix = pending.pop()
        subfolder = folder / prefix
        try:
            status = subfolder.stat()
        except OSError as error:
            raise _unreadable(subfolder, error) from None
        identity = status.st_dev, status.st_ino
        if identity in visited:
            ignored.note("link to a folder already read", subfolder)
            continue
        visited.add(identity)
        files, folders = _entries(subfolder, ignored)
        images += [prefix + name for name in files if is_image(name)]
        ignored.note("other file", *(subfolder / name for name in files if not is_image(name)))
        pending += [f"{prefix}{name}/" for name in reversed(folders)]
    return sorted(images)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is skipped by its name: a leading dot, or one that operating systems create."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS or name.lower() in _SYSTEM_FILES


def is_image(name: str) -> bool:
    """Whether a file has the suffix of a supported image format, in upper or lower case."""
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def _entries(folder: Path, ignored: Ignored) -> tuple[list[str], list[str]]:
    """The names of the visible (files, folders) directly in `folder`, sorted; all else is counted in `ignored`."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_folder, is_file = _kind(entry)
                if is_hidden(entry.name):
                    ignored.note("hidden folder" if is_folder else "hidden file", folder / entry.name)
                elif is_folder:
                    folders.append(entry.name)
                elif is_file:
                    files.append(entry.name)
                else:
                    ignored.note("broken link" if entry.is_symlink() else "other file", folder / entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from None
    return sorted(files), sorted(folders)


def _kind(entry: "os.DirEntry[str]") -> tuple[bool, bool]:
    """(is a folder, is a file), following links; neither for a link to nothing or to itself."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:
        return False, False


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError(f"{folder}: this folder cannot be read ({error.strerror or error})")


def _read_folder(root: Path, *, holdout: float, seed: int, given: dict[str, str]) -> Dataset:
    ignored: Ignored = Ignored()
    files, folders = _entries(root, ignored)
    if not files and not folders:
        raise DataError(f"{root}: this folder is empty; expected class folders, or train/ with class folders in it")
    loose = [root / name for name in files if is_image(name)]
    ignored.note("image outside a class folder", *loose)
    ignored.note("other file", *(root / name for name in files if not is_image(name)))
    if given or _holds_splits(folders):
        return _read_splits(root, split_names(_split_folders(root, folders, given, ignored), given, root), ignored)
    if folders and all(map(usual_split, folders)):
        raise DataError(
            f"{root}: holds {named(f'{name}/' for name in folders)} but no train/; name the training split "
            "train/ (or give --splits train=FOLDER), or pass the folder of one split to evaluate it"
        )
    samples = _class_folders(root, "", folders, ignored)
    if not samples:
        raise DataError(f"{root}: {_why_no_classes(root, len(loose), folders)}")
    without_images = _without_images(folders, "", samples)
    _refuse_datasets(root, without_images)
    notes = _notes_on_levels(root, without_images)
    train, val = split_by_seed(samples, holdout=holdout, seed=seed)
    splits = {"train": train} | ({"val": val} if val else {})
    return Dataset(root, splits, "classes", split_by_seed=True, notes=notes, **_counted(root, ignored))


def _holds_splits(folders: list[str]) -> bool:
    """Whether folders are splits. A class may be called Training: it is a split only beside another split."""
    splits = [usual_split(name) for name in folders]
    return "train" in folders or ("train" in splits and (all(splits) or len(set(splits) - {None}) > 1))


def _split_folders(root: Path, folders: list[str], given: dict[str, str], ignored: Ignored) -> list[str]:
    """The folders of the splits, relative to the root: the given ones, and every other that holds none of those.

    An empty one is left out, so that valid/ is read as val beside an empty val/.
    """
    for split, name in given.items():
        if posixpath.normpath(name) != name or name.startswith(("/", "..")) or not (root / name).is_dir():
            raise DataError(f"{root}: --splits {split}={name}: there is no such folder; found {named(folders)}")
    parents = {name.split("/")[0] for name in given.values()}
    others = [name for name in folders if name not in parents]
    filled = [name for name in others if name == "train" or any(_entries(root / name, Ignored()))]
    ignored.note("folder without images", *(root / name for name in others if name not in filled))
    return [*given.values(), *filled]


def _read_splits(root: Path, read_as: dict[str, str], ignored: Ignored) -> Dataset:
    """The dataset whose splits are folders.

    Args:
        root: the dataset's folder.
        read_as: the path of each split's folder below it -> the split's name.
        ignored: counts what is skipped.
    """
    splits: dict[str, tuple[Sample, ...]] = {}
    unlabelled: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()
    for folder, split in read_as.items():
        files, classes = _entries(root / folder, ignored)
        loose = [f"{folder}/{file}" for file in files if is_image(file)]
        ignored.note("other file", *(root / folder / file for file in files if not is_image(file)))
        samples = _class_folders(root, f"{folder}/", classes, ignored)
        if split == "train" and not samples:
            raise DataError(f"{root / folder}: {_why_no_classes(root / folder, len(loose), classes)}")
        if split == "train":
            notes = _notes_on_levels(root / folder, _without_images(classes, f"{folder}/", samples))
        if len(classes) == 1 and classes[0].lower() in _TEST_IMAGE_FOLDERS and split != "train":
            loose += [sample.path for sample in samples]
            samples = []
        if samples:
            splits[split] = tuple(samples)
            ignored.note("image outside a class folder", *(root / path for path in loose))
        elif loose:
            unlabelled[split] = tuple(sorted(loose))
        else:
            ignored.note("folder without images", root / folder)
    names = {split: folder for folder, split in read_as.items() if split in splits or split in unlabelled}
    layout = _splits_layout(splits, unlabelled)
    notes = (*naming_notes(names), *notes)
    return Dataset(root, splits, layout, unlabelled=unlabelled, names=names, notes=notes, **_counted(root, ignored))


def _splits_layout(splits: dict[str, tuple[Sample, ...]], unlabelled: dict[str, tuple[str, ...]]) -> str:
    has_challenge_splits = "val" in splits and "test" in unlabelled
    has_wordnet_ids = all(_WORDNET_ID.fullmatch(sample.label) for sample in splits["train"])
    return "vipriors" if has_challenge_splits and has_wordnet_ids else "splits"


def _class_folders(root: Path, prefix: str, folders: list[str], ignored: Ignored) -> list[Sample]:
    """The samples in `folders` of `root / prefix`, whose names are the classes."""
    samples = []
    for label in folders:
        images = images_under(root / prefix / label, ignored)
        if not images:
            ignored.note("empty class folder", root / prefix / label)
        samples += [Sample(f"{prefix}{label}/{image}", label) for image in images]
    return sorted(samples, key=lambda sample: sample.path)


def _without_images(folders: list[str], prefix: str, samples: list[Sample]) -> list[str]:
    """The class folders that hold no image directly."""
    filled = {posixpath.dirname(sample.path) for sample in samples}
    return [folder for folder in folders if f"{prefix}{folder}" not in filled]


def _refuse_datasets(root: Path, folders: list[str]) -> None:
    """Check that class folders are not datasets of their own.

    Raises:
        DataError: some hold train/ with class folders; the message names each of them.
    """
    found = [path for path in (_dataset_in(root, folder) for folder in folders) if path]
    if found:
        given = named(str(root / path) for path in found)
        raise DataError(
            f"{root}: train/ with class folders is in {named(f'{path}/' for path in found)}, so those are datasets and "
            f"no classes: give {'one of ' if len(found) > 1 else ''}{given} as DATA"
        )


def _dataset_in(root: Path, folder: str) -> str:
    """The folder, from `folder` downwards, that holds train/ with classes, alone or beside a split; "" if none does."""
    path, below = _first_branch(root, folder)
    if path != folder and path.endswith("/train"):  # nothing beside it; x_train/train/ is a split in itself
        return posixpath.dirname(path) if below and not _words_of_splits(folder) else ""
    if not _holds_splits(below):
        return ""
    inside = {name: set(_entries(root / path / name, Ignored())[1]) for name in below}
    train = next(name for name in below if usual_split(name) == "train")
    beside = [name for name in below if name != train and (usual_split(name) or inside[name] & inside[train])]
    return path if len(inside[train]) > 1 and beside else ""  # a class of vehicles may hold train/ beside car/


def _words_of_splits(path: str) -> frozenset[str]:
    return _WORDS_OF_SPLITS.intersection(re.split("[^a-z]+", path.lower()))


def _notes_on_levels(root: Path, folders: list[str]) -> tuple[str, ...]:
    """Notice class folders that hold folders of the same names, which then may be the classes.

    Returns:
        A line with what to type, or none.

    Raises:
        DataError: the folders on one of the two levels are called like splits.
    """
    inside = {}
    for folder in folders:
        path, below = _first_branch(root, folder)
        if below:
            inside[path] = frozenset(below)
    largest = max(inside.values(), key=len, default=frozenset())
    alike = {path: below for path, below in inside.items() if len(below & largest) >= MIN_SHARED * len(below | largest)}
    if len(alike) < 2 or len(largest) < 2:
        return ()
    shared = named(sorted(largest))
    what = f"{named(f'{path}/' for path in alike)} hold no images, but folders of the same names ({shared})"
    words = {path: _words_of_splits(path) for path in alike}
    if all(map(usual_split, largest)):
        raise DataError(f"{root}: {what}: put the splits above the classes ({min(largest)}/{min(alike)}/ and so on)")
    typed = {usual_split(min(found)): path for path, found in words.items() if found}
    if not typed:
        return (f"{root}: {what}: if those are the classes, move them up, or give --splits train=... with the splits",)
    rest = [path for path in alike if path not in typed.values()]
    typed |= dict(zip([split for split in USUAL_NAMES if split not in typed], rest, strict=False))
    pairs = ",".join(f"{split}={typed[split]}" for split in USUAL_NAMES if split in typed)
    raise DataError(f"{root}: {what}, so they are splits and no classes: give --splits {pairs}")


def _first_branch(root: Path, folder: str) -> tuple[str, list[str]]:
    """The first folder, from `folder` downwards, that holds anything but one folder; the folders in it, or [] beside
    images."""
    for _ in range(MAX_DEPTH):
        files, folders = _entries(root / folder, Ignored())
        if any(map(is_image, files)) or not folders:
            return folder, []
        if len(folders) > 1:
            return folder, folders
        folder = f"{folder}/{folders[0]}"
    return folder, []


def _why_no_classes(folder: Path, num_loose: int, folders: list[str]) -> str:
    expected = "expected one folder per class with its images in it"
    if num_loose:
        hint = " (if 'train' is one of your classes, rename its folder)" if folder.name == "train" else ""
        return f"images are directly in this folder ({num_loose:,}) and none in class folders; {expected}{hint}"
    if folders:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        return f"no images in its folders ({named(folders)}); {expected}, with the suffixes {suffixes}"
    return f"no class folders; {expected}"


def _counted(root: Path, ignored: Ignored) -> dict[str, Any]:
    """What was skipped, as a `Dataset` holds it."""
    first = {
        reason: tuple(path.relative_to(root).as_posix() for path in paths) for reason, paths in ignored.first.items()
    }
    counts = {reason: count for reason, count in sorted(ignored.items()) if count}
    return {"ignored": counts, "first_ignored": first}

"""Build the challenge's subset of ImageNet from the toolkit's lists."""

import io
import os
import pickle
import pickletools
import re
import reprlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fewsight.data import images_under
from fewsight.errors import DataError
from fewsight.machine import files

SUBSET = "imagenet_50"
NESTED = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # where common archives have train/ and val/
WNID = re.compile(r"n\d{8}")
FILE = re.compile(r"[A-Za-z0-9_]+\.JPEG")
MAX_LIST_BYTES = 64 * 2**20
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80
HASHING = frozenset(["DICT", "SETITEM", "SETITEMS", "ADDITEMS", "FROZENSET"])  # pickle operations that hash values
LOOKUPS = frozenset(["GLOBAL", "STACK_GLOBAL", "INST", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"])  # all refused


class _PlainLists(pickle.Unpickler):
    """Unpickle only lists, tuples, strings and numbers, which need no name from any module."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to an object outside itself")


@dataclass(frozen=True)
class ListedImage:
    """One image of the subset."""

    source: str  # relative to the ImageNet tree: train/n01440764/n01440764_2823.JPEG
    target: str  # relative to imagenet_50: train/n01440764/n01440764_2823.JPEG, test/imgs/img_0.JPEG


@dataclass(frozen=True)
class Built:
    """The result of `build`."""

    folder: Path
    created: int
    present: int  # before this call
    counts: dict[str, int]  # split -> images in it now
    missing: tuple[str, ...]  # sources that the ImageNet tree lacks
    unlisted: tuple[str, ...]  # images of the subset that are in no list


def read_lists(folder: Path) -> list[ListedImage]:
    """Read the toolkit's train.pickle, val.pickle and test.pickle.

    Raises:
        DataError: a file is missing, is not a plain list, or has an entry that the toolkit's lists do not have.
    """
    images = []
    for split in ("train", "val"):
        for number, entry in enumerate(_plain_list(folder / f"{split}.pickle")):
            if not (
                isinstance(entry, (list, tuple)) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
            ):
                raise _unexpected(folder / f"{split}.pickle", number, entry, '("n01440764", "n01440764_2823.JPEG")')
            wnid, name = entry
            if not WNID.fullmatch(wnid) or not FILE.fullmatch(name):
                raise _unexpected(folder / f"{split}.pickle", number, entry, '("n01440764", "n01440764_2823.JPEG")')
            images.append(ListedImage(f"train/{wnid}/{name}", f"{split}/{wnid}/{name}"))
    for number, entry in enumerate(_plain_list(folder / "test.pickle")):
        wnid, _, name = entry.partition("/") if isinstance(entry, str) else ("", "", "")
        if not WNID.fullmatch(wnid) or not FILE.fullmatch(name):
            raise _unexpected(folder / "test.pickle", number, entry, '"n02104029/ILSVRC2012_val_00002402.JPEG"')
        images.append(ListedImage(f"val/{wnid}/{name}", f"test/imgs/img_{number}.JPEG"))
    names = [image.source if image.target.startswith("test/") else image.target for image in images]
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise DataError(f"{folder}: the lists name {repeated} twice")
    in_val = {image.source for image in images if image.target.startswith("val/")}
    in_train = (image.source for image in images if image.target.startswith("train/"))
    shared = next((source for source in in_train if source in in_val), None)
    if shared is not None:
        raise DataError(f"{folder}: {shared} is in train.pickle and in val.pickle")
    return images


def build(
    imagenet: Path,
    lists: Path,
    out: Path,
    *,
    link: str = "hard",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Built:
    """Lay out `out/imagenet_50`: train/ and val/ by class, test/imgs/img_N.JPEG in the order of test.pickle.

    Images that are already present are kept. Those that the tree lacks are listed, in missing.txt too, and a later
    call adds them.

    Args:
        imagenet: a folder with train/ (a folder per class) and val/ (a folder per class, or flat).
        lists: the toolkit's folder with train.pickle, val.pickle and test.pickle.
        out: the folder in which to write imagenet_50.
        link: "hard" (needs no space, but the same disk), "symlink", or "copy".
        progress: called with (done, total) images.

    Raises:
        DataError: no ImageNet tree or lists; or a link cannot be made, as a hard link to another disk.
        RunError: an image cannot be written, as on a full disk.
    """
    images, root, folder = read_lists(lists), _imagenet_root(imagenet), out / SUBSET
    created, present, missing = 0, 0, []
    for parent in sorted({str(Path(image.target).parent) for image in images}):
        files.make_folder(folder / parent)
    for number, image in enumerate(images):
        progress(number, len(images))
        source, target = _source(root, image), folder / image.target
        if target.is_file() if source is None else _is_present(source, target):
            present += 1
        elif source is None:
            missing.append(image.source)
        else:
            _create(source, target, link)
            created += 1
    note = folder / "missing.txt"
    if missing:
        files.write_text(note, "\n".join(missing) + "\n")
    else:
        note.unlink(missing_ok=True)
    in_split = {split: set(_images_of(folder, split)) for split in ("train", "val", "test")}
    listed = {image.target for image in images}
    unlisted = sorted(name for names in in_split.values() for name in names if name not in listed)
    counts = {split: len(names & listed) for split, names in in_split.items()}
    return Built(folder, created, present, counts, tuple(missing), tuple(unlisted))


def _plain_list(path: Path) -> Sequence[Any]:
    """Read a pickled list without running anything in it."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_LIST_BYTES else b""
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; --lists is the toolkit's folder with train.pickle, val.pickle and test.pickle"
        ) from error
    if size > MAX_LIST_BYTES:
        raise DataError(f"{path}: {size / 2**20:.0f} MiB is too much for a list of names (at most 64)")
    try:
        _check_operations(data)
        value = _PlainLists(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise DataError(f"{path}: not a pickle of a plain list ({error}); nothing in it was run") from error
    if not isinstance(value, list) or not value:
        raise DataError(f"{path}: expected a list of image names, got {type(value).__name__}, {len(data):,} bytes")
    return value


def _check_operations(data: bytes) -> None:
    """Refuse, before loading it, a pickle that would take unbounded memory or time.

    A large memo index allocates as many entries; and the time to hash a tuple that contains a tuple twice, which in
    turn contains a tuple twice, and so on, doubles with each level.
    """
    tuples = False
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in LOOKUPS:
            return  # the unpickler stops here
        tuples |= operation.name.startswith("TUPLE")
        if tuples and operation.name in HASHING:
            raise pickle.UnpicklingError(f"it holds {operation.name} and tuples")
        if operation.name.endswith("PUT") and int(argument or 0) > len(data):
            raise pickle.UnpicklingError(f"its memo index {argument:,} is too large")


def _unexpected(path: Path, number: int, entry: Any, example: str) -> DataError:
    """The error for an entry that the toolkit's lists do not have."""
    shown = entry if isinstance(entry, str) else SHORT.repr(entry)  # a list that contains itself has no finite text
    return DataError(f"{path}: entry {number} is {shown[:80]!r}; expected an entry like {example}")


def _imagenet_root(imagenet: Path) -> Path:
    """The folder with train/ and val/, which archives nest differently."""
    for nested in NESTED:
        if (imagenet / nested / "train").is_dir() and (imagenet / nested / "val").is_dir():
            return imagenet / nested
    raise DataError(f"{imagenet}: expected an ImageNet tree, a folder with train/ by class and val/ in it")


def _source(root: Path, image: ListedImage) -> Path | None:
    """The image in the tree, None if it is missing; val/ may be flat, as in the archive."""
    source = root / image.source
    if source.is_file():
        return source
    flat = root / "val" / source.name
    return flat if image.source.startswith("val/") and flat.is_file() else None


def _is_present(source: Path, target: Path) -> bool:
    """Whether the target is the source, or a copy by its size."""
    try:
        return target.samefile(source) or target.stat().st_size == source.stat().st_size
    except OSError:
        return False


def _create(source: Path, target: Path, link: str) -> None:
    """Link or copy one image."""
    if link == "copy":
        with files.replacing(target) as part:
            shutil.copyfile(source, part)
        return
    try:
        target.unlink(missing_ok=True)
        if link == "hard":
            os.link(source.resolve(), target)
        else:
            target.symlink_to(source.resolve())
    except OSError as error:
        hint = "; hard links need the same disk, so give --link symlink or --link copy" if link == "hard" else ""
        raise DataError(f"cannot create {target}: {error.strerror}{hint}. Images created before are kept") from error


def _images_of(folder: Path, split: str) -> list[str]:
    """The images of a split, relative to the subset."""
    below = folder / split
    return [f"{split}/{name}" for name in images_under(below, Counter())] if below.is_dir() else []

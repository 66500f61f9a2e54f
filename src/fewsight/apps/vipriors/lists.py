"""Read the toolkit's lists of images: pickles, in which nothing is run."""

import io
import pickle
import pickletools
import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fewsight.errors import DataError

WNID = re.compile(r"n\d{8}")
FILE = re.compile(r"[A-Za-z0-9_]+\.JPEG")
MAX_LIST_BYTES = 64 * 2**20
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80
HASHING = frozenset(["DICT", "SETITEM", "SETITEMS", "ADDITEMS", "FROZENSET"])  # pickle operations that hash values
LOOKUPS = frozenset(["GLOBAL", "STACK_GLOBAL", "INST", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"])  # all refused


@dataclass(frozen=True)
class ListedImage:
    """One image of the subset."""

    source: str  # relative to the ImageNet tree: train/n01440764/n01440764_2823.JPEG
    target: str  # relative to imagenet_50: train/n01440764/n01440764_2823.JPEG, test/imgs/img_0.JPEG


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


class _PlainLists(pickle.Unpickler):
    """Unpickle only lists, tuples, strings and numbers, which need no name from any module."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to an object outside itself")

"""The challenge's subset of ImageNet, laid out from the toolkit's lists."""

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
NESTED = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # where train/ and val/ lie in the archives that people have
WNID = re.compile(r"n\d{8}")
FILE = re.compile(r"[A-Za-z0-9_]+\.JPEG")
MOST_LIST_BYTES = 64 * 2**20
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80


HASHING = frozenset(["DICT", "SETITEM", "SETITEMS", "ADDITEMS", "FROZENSET"])  # pickle's operations
LOOKUPS = frozenset(["GLOBAL", "STACK_GLOBAL", "INST", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"])  # all refused


class _PlainLists(pickle.Unpickler):
    """Lists, tuples, strings and numbers: what needs no name from any module."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an object outside itself")


@dataclass(frozen=True)
class Wanted:
    """One image of the subset."""

    source: str  # below the ImageNet tree: train/n01440764/n01440764_2823.JPEG
    target: str  # below imagenet_50: train/n01440764/n01440764_2823.JPEG, test/imgs/img_0.JPEG


@dataclass(frozen=True)
class Built:
    """What `build` did."""

    folder: Path
    made: int
    there: int  # from before
    counts: dict[str, int]  # split -> images that lie there now
    missing: tuple[str, ...]  # sources that the ImageNet tree lacks
    strange: tuple[str, ...]  # files in the subset that no list names


def read_lists(folder: Path) -> list[Wanted]:
    """The toolkit's train.pickle, val.pickle and test.pickle.

    Raises:
        DataError: one is missing, is not a plain list, or does not hold what the toolkit's hold.
    """
    wanted = []
    for split in ("train", "val"):
        for number, entry in enumerate(_plain_list(folder / f"{split}.pickle")):
            if not (
                isinstance(entry, (list, tuple)) and len(entry) == 2 and all(isinstance(one, str) for one in entry)
            ):
                raise _strange(folder / f"{split}.pickle", number, entry, '("n01440764", "n01440764_2823.JPEG")')
            wnid, name = entry
            if not WNID.fullmatch(wnid) or not FILE.fullmatch(name):
                raise _strange(folder / f"{split}.pickle", number, entry, '("n01440764", "n01440764_2823.JPEG")')
            wanted.append(Wanted(f"train/{wnid}/{name}", f"{split}/{wnid}/{name}"))
    for number, entry in enumerate(_plain_list(folder / "test.pickle")):
        wnid, _, name = entry.partition("/") if isinstance(entry, str) else ("", "", "")
        if not WNID.fullmatch(wnid) or not FILE.fullmatch(name):
            raise _strange(folder / "test.pickle", number, entry, '"n02104029/ILSVRC2012_val_00002402.JPEG"')
        wanted.append(Wanted(f"val/{wnid}/{name}", f"test/imgs/img_{number}.JPEG"))
    listed = [one.source if one.target.startswith("test/") else one.target for one in wanted]
    twice = next((name for name, count in Counter(listed).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{folder}: the lists name {twice} twice")
    both = {one.source for one in wanted if one.target.startswith("val/")}
    shared = next((one.source for one in wanted if one.target.startswith("train/") and one.source in both), None)
    if shared is not None:
        raise DataError(f"{folder}: {shared} stands in train.pickle and in val.pickle")
    return wanted


def build(
    imagenet: Path,
    lists: Path,
    out: Path,
    *,
    link: str = "hard",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Built:
    """Lay out `out/imagenet_50`: train/ and val/ by class, test/imgs/img_N.JPEG in the order of test.pickle.

    Images that are there already are left; those that the tree lacks are listed, in missing.txt too, and the same
    command goes on with them.

    Args:
        imagenet: a folder with train/ by class, and val/ by class or flat.
        link: "hard" (no space, the same disk), "symlink", or "copy".

    Raises:
        DataError: no ImageNet tree or lists; another disk for hard links; or the disk is full.
    """
    wanted, root, folder = read_lists(lists), _tree(imagenet), out / SUBSET
    made, there, missing = 0, 0, []
    for parent in sorted({str(Path(one.target).parent) for one in wanted}):
        files.make_folder(folder / parent)
    for number, one in enumerate(wanted):
        progress(number, len(wanted))
        source, target = _source(root, one), folder / one.target
        if target.is_file() if source is None else _is_there(source, target):
            there += 1
        elif source is None:
            missing.append(one.source)
        else:
            _place(source, target, link)
            made += 1
    note = folder / "missing.txt"
    if missing:
        files.write_text(note, "\n".join(missing) + "\n")
    else:
        note.unlink(missing_ok=True)
    found = {split: set(_below(folder, split)) for split in ("train", "val", "test")}
    named = {one.target for one in wanted}
    strange = sorted(name for names in found.values() for name in names if name not in named)
    counts = {split: len(names & named) for split, names in found.items()}
    return Built(folder, made, there, counts, tuple(missing), tuple(strange))


def _plain_list(path: Path) -> Sequence[Any]:
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MOST_LIST_BYTES else b""
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; --lists is the toolkit's folder with train.pickle, val.pickle and test.pickle"
        ) from error
    if size > MOST_LIST_BYTES:
        raise DataError(f"{path}: {size / 2**20:.0f} MiB is too much for a list of names (at most 64)")
    try:
        _check_operations(data)
        found = _PlainLists(io.BytesIO(data)).load()
    except Exception as error:  # damaged pickles raise nearly anything
        raise DataError(f"{path}: not a pickle of a plain list ({error}); nothing in it was run") from error
    if not isinstance(found, list) or not found:
        raise DataError(f"{path}: expected a list of image names, got {type(found).__name__}, {len(data):,} bytes")
    return found


def _check_operations(data: bytes) -> None:
    """Refuse, before it is built, a pickle that would take memory or time without end.

    A number in its memo makes room for as many values; the hash of a tuple that holds a tuple twice, which holds a
    tuple twice, doubles with each.
    """
    tuples = False
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in LOOKUPS:
            return  # nothing after it is built
        tuples |= operation.name.startswith("TUPLE")
        if tuples and operation.name in HASHING:
            raise pickle.UnpicklingError(f"it holds {operation.name} and tuples")
        if operation.name.endswith("PUT") and int(argument or 0) > len(data):
            raise pickle.UnpicklingError(f"it numbers a value {argument:,}")


def _strange(path: Path, number: int, entry: Any, example: str) -> DataError:
    shown = entry if isinstance(entry, str) else SHORT.repr(entry)  # the same list within a list could be endless
    return DataError(f"{path}: entry {number} is {shown[:80]!r}; expected such as {example}")


def _tree(imagenet: Path) -> Path:
    for nested in NESTED:
        if (imagenet / nested / "train").is_dir() and (imagenet / nested / "val").is_dir():
            return imagenet / nested
    raise DataError(f"{imagenet}: expected an ImageNet tree, a folder with train/ by class and val/ in it")


def _source(root: Path, one: Wanted) -> Path | None:
    """The image in the tree; val/ may be flat, as the archive is."""
    source = root / one.source
    if source.is_file():
        return source
    flat = root / "val" / source.name
    return flat if one.source.startswith("val/") and flat.is_file() else None


def _is_there(source: Path, target: Path) -> bool:
    try:
        return target.samefile(source) or target.stat().st_size == source.stat().st_size
    except OSError:
        return False


def _place(source: Path, target: Path, link: str) -> None:
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
        hint = "; hard links need the same disk, so say --link symlink or --link copy" if link == "hard" else ""
        raise DataError(f"cannot make {target}: {error.strerror}{hint}. What was made before stays") from error


def _below(folder: Path, split: str) -> list[str]:
    place = folder / split
    return [f"{split}/{name}" for name in images_under(place, Counter())] if place.is_dir() else []

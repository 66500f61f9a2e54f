"""Build the challenge's subset of ImageNet from the toolkit's lists."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fewsight.apps.vipriors.lists import ListedImage, read_lists
from fewsight.data import Ignored, images_under
from fewsight.errors import DataError
from fewsight.machine import files

SUBSET = "imagenet_50"
NESTED = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # where common archives have train/ and val/


@dataclass(frozen=True)
class Built:
    """The result of `build`."""

    folder: Path
    created: int
    present: int  # before this call
    counts: dict[str, int]  # split -> images in it now
    missing: tuple[str, ...]  # sources that the ImageNet tree lacks
    unlisted: tuple[str, ...]  # images of the subset that are in no list


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
    return [f"{split}/{name}" for name in images_under(below, Ignored())] if below.is_dir() else []

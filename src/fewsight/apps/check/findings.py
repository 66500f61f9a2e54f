"""What is wrong, or worth a look, in scanned images and their labels; only near duplicates are opened again."""

import difflib
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

import numpy as np

from fewsight.data import Scanned, candidates, confirmed
from fewsight.wording import counted

SMALL_PX = 16  # a shorter side below it holds little
LARGE_PIXELS = 50_000_000
LONG = 8.0  # a longer side over the shorter one
FEW = 5  # images of a class to train on
LOST = ("broken link", "image outside a class folder")  # reasons for which a file is not read
UNEVEN = 10.0  # images of the largest class over those of the smallest
ALIKE = 0.9  # of difflib's ratio, for names of six signs and more
SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "HEIF": (".heic", ".heif"),
    "AVIF": (".avif",),
}

Level = Literal["fault", "warning", "note"]


@dataclass(frozen=True)
class Entry:
    """One image of the data, with what a full decode found."""

    path: str
    split: str
    label: str | None  # None where the split has no labels
    scanned: Scanned


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found."""

    kind: str  # "unreadable", "leak: equal images across splits"
    level: Level  # a fault makes figures wrong or training fail; a warning may; a note need not
    text: str  # what it means and what to do
    groups: tuple[tuple[str, ...], ...]  # of paths or names; duplicates in one group
    details: tuple[str, ...] = field(default=())  # a line for each group, or none


def find(
    entries: Sequence[Entry],
    empty: Sequence[str],
    hidden: Sequence[str],
    load: Callable[[int], np.ndarray],
    ignored: Mapping[str, int],
) -> list[Finding]:
    """Everything that is found, faults first.

    Args:
        empty: class folders without images.
        hidden: folders that are passed over for their names.
        load: an image by its place in `entries`, uint8 [32, 32, 3].
        ignored: files that are not read, by the reason.
    """
    found = [
        *_unreadable(entries),
        *_files(entries),
        *_sizes(entries),
        *_equal(entries),
        *_near(entries, load),
        *_classes(entries, empty, hidden),
        *_ignored(ignored),
    ]
    order = {"fault": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda one: order[one.level])


def _unreadable(entries: Sequence[Entry]) -> Iterator[Finding]:
    kinds: dict[str, list[Entry]] = defaultdict(list)
    for one in entries:
        if one.scanned.error is not None:
            error = one.scanned.error.removeprefix(f"{one.path}: ")
            kind = (
                "empty file"
                if error.startswith("empty file")
                else "truncated"
                if "truncated" in error
                else "unreadable"
            )
            kinds[kind].append(one)
    for kind, those in kinds.items():
        details = tuple(str(one.scanned.error).removeprefix(f"{one.path}: ") for one in those)
        text = "training leaves these out and names them; mend or remove them"
        yield Finding(kind, "fault", text, tuple((one.path,) for one in those), details)


def _files(entries: Sequence[Entry]) -> Iterator[Finding]:
    good = [one for one in entries if one.scanned.error is None]
    wrong = [
        one
        for one in good
        if one.scanned.header.kind in SUFFIXES_OF
        and PurePath(one.path).suffix.lower() not in SUFFIXES_OF[one.scanned.header.kind]
    ]
    if wrong:
        text = "the name says another format than the bytes; fewsight goes by the bytes, other programs may not"
        details = tuple(f"is {one.scanned.header.kind}" for one in wrong)
        yield Finding("wrong extension", "warning", text, tuple((one.path,) for one in wrong), details)
    moving = tuple((one.path,) for one in good if one.scanned.header.animated)
    if moving:
        yield Finding("animated", "warning", "several frames or pages; only the first is used", moving)
    turned = [one for one in good if one.scanned.header.orientation != 1]
    if turned:
        text = "EXIF turns these; fewsight shows them upright, other programs may not"
        details = tuple(f"orientation {one.scanned.header.orientation}" for one in turned)
        yield Finding("EXIF-rotated", "note", text, tuple((one.path,) for one in turned), details)


def _sizes(entries: Sequence[Entry]) -> Iterator[Finding]:
    good = [one for one in entries if one.scanned.error is None]
    if not good:
        return
    middle = statistics.median(min(one.scanned.width, one.scanned.height) for one in good)
    least = min(SMALL_PX, middle)  # data whose images are all tiny are meant so
    for kind, chosen, text in (
        (
            "extremely small",
            [one for one in good if min(one.scanned.width, one.scanned.height) < max(least, middle / 8)],
            "far smaller than the others, so they hold little detail",
        ),
        (
            "extremely large",
            [one for one in good if one.scanned.width * one.scanned.height > LARGE_PIXELS],
            "they cost much time each epoch; store them smaller",
        ),
        (
            "extremely long",
            [
                one
                for one in good
                if max(one.scanned.width, one.scanned.height) > LONG * min(one.scanned.width, one.scanned.height)
            ],
            "a crop shows a small part of such an image",
        ),
    ):
        if chosen:
            details = tuple(f"{one.scanned.width} x {one.scanned.height}" for one in chosen)
            yield Finding(kind, "warning", text, tuple((one.path,) for one in chosen), details)


def _equal(entries: Sequence[Entry]) -> Iterator[Finding]:
    groups: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(entries):
        if one.scanned.error is None:
            groups[one.scanned.pixels].append(place)
    yield from _duplicates(entries, [group for group in groups.values() if len(group) > 1], "equal")


def _near(entries: Sequence[Entry], load: Callable[[int], np.ndarray]) -> Iterator[Finding]:
    good = [place for place, one in enumerate(entries) if one.scanned.error is None]
    pairs = [
        (good[one], good[other], correlation)
        for one, other, correlation in candidates([entries[place].scanned.thumbnail for place in good])
        if entries[good[one]].scanned.pixels != entries[good[other]].scanned.pixels
    ]
    yield from _duplicates(entries, [[one, other] for one, other, _ in confirmed(pairs, load)], "nearly equal")


def _duplicates(entries: Sequence[Entry], groups: Sequence[Sequence[int]], how: str) -> Iterator[Finding]:
    """Groups of equal images, by the harm that they do."""
    exact = how == "equal"
    layout = "a copy, or one layout drawn or taken anew (a form, a fixed camera)? look; "
    leak = (
        "a test on such an image tests memory; training drops its copy (--leak drop)"
        if exact
        else layout + "a test on a copy tests memory, so remove one of each"
    )
    conflict = "at least one of the labels is wrong, or the image belongs to both; keep one"
    kinds: dict[str, tuple[Level, str]] = {
        f"leak: {how} images across splits": ("fault" if exact else "warning", leak),
        f"conflicting labels: {how} images in several classes": (
            "fault" if exact else "warning",
            conflict if exact else layout + "of a copy one of the labels is wrong",
        ),
        f"duplicates: {how} images in one class": (
            "warning",
            "they weigh more than others; keep one" if exact else layout + "copies weigh more than others, so keep one",
        ),
    }
    sorted_out: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in kinds}
    for group in groups:
        those = [entries[place] for place in group]
        labels = {one.label for one in those if one.label is not None}
        leaks, conflicts, within = sorted_out.values()
        if len({one.split for one in those}) > 1:
            leaks.append(tuple(one.path for one in those))
        if len(labels) > 1:
            conflicts.append(tuple(one.path for one in those))
        if len({one.split for one in those}) == 1 and len(labels) <= 1:
            within.append(tuple(one.path for one in those))
    for kind, found in sorted_out.items():
        if found:
            level, text = kinds[kind]
            yield Finding(kind, level, text, tuple(found))


def _classes(entries: Sequence[Entry], empty: Sequence[str], hidden: Sequence[str]) -> Iterator[Finding]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in entries:
        if one.label is not None:
            counts[one.split][one.label] += one.scanned.error is None
    train = counts.get("train", Counter())
    if empty:
        yield Finding("empty class", "fault", "a class folder without an image", tuple((name,) for name in empty))
    if hidden:
        text = "passed over for the name; rename what should be a class"
        yield Finding("hidden", "warning", text, tuple((name,) for name in hidden))
    there = [name for name, count in train.items() if count]
    if len(there) == 1:
        text = "there is nothing to tell apart, so training refuses; it needs at least two class folders (or labels)"
        yield Finding("only one class", "fault", text, ((there[0],),))
    tiny = [name for name, count in sorted(train.items()) if count < FEW]
    if tiny:
        details = tuple(counted(train[name], "image") for name in tiny)
        yield Finding("tiny class", "warning", "too few to learn from", tuple((name,) for name in tiny), details)
    names = sorted({label for split in counts.values() for label in split})
    alike = [pair for number, one in enumerate(names) for pair in _alike(one, names[number + 1 :])]
    if alike:
        yield Finding("classes named alike", "warning", "perhaps one class under two names", tuple(alike))
    if train and max(train.values()) > UNEVEN * max(1, min(train.values())):
        least, most = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
        text = f"{most} has {counted(train[most], 'image')}, {least} {train[least]:,}; consider data.balance"
        yield Finding("imbalance", "warning", text, ((most, least),))
    for split in sorted(counts):
        lacking, more = sorted(set(train) - set(counts[split])), sorted(set(counts[split]) - set(train))
        if split != "train" and train and lacking:
            text = f"{split} has no image of these classes, so nothing is said of them there"
            yield Finding("classes that a split lacks", "warning", text, tuple((name,) for name in lacking))
        if split != "train" and train and more:
            text = f"{split} has classes that train lacks; no model can know them"
            yield Finding("classes that train lacks", "fault", text, tuple((name,) for name in more))


def _ignored(ignored: Mapping[str, int]) -> Iterator[Finding]:
    """Files that no command reads, but for those of an operating system and what stands among the findings already."""
    for reason, count in sorted(ignored.items()):
        if not count or reason.startswith(("hidden", "empty class")):
            continue
        if reason == "broken link":
            text = "not read: it leads nowhere, or to itself"
        elif reason in LOST:
            text = "not read: move it into the folder of its class"
        else:
            text = "not read: no image by its name or place"
        level: Level = "warning" if reason in LOST else "note"
        yield Finding(f"passed over: {reason}", level, text, ((counted(count, "file"),),))


def _alike(name: str, others: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names that differ by case, spaces, signs that look alike, a plural, or a sign or two of many."""
    plain = _plain(name)
    matcher = difflib.SequenceMatcher(b=plain, autojunk=False)
    for other in others:
        theirs = _plain(other)
        matcher.set_seq1(theirs)
        # numbers differ by a sign and mean another thing
        close = min(len(plain), len(theirs)) >= 6 and not any(sign.isdigit() for sign in plain + theirs)
        close = close and matcher.real_quick_ratio() >= ALIKE and matcher.quick_ratio() >= ALIKE
        if plain == theirs or theirs == f"{plain}s" or (close and matcher.ratio() >= ALIKE):
            yield name, other


def _plain(name: str) -> str:
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(sign for sign in folded if sign.isalnum())

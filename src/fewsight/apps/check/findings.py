"""Problems in the scanned images of a dataset and their labels; only possible near duplicates are read again."""

import difflib
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

import numpy as np

from fewsight.data import Dataset, Scanned, candidates, confirmed
from fewsight.data.selection import as_seen
from fewsight.wording import counted

SMALL_PX = 16  # an image whose shorter side is below it shows little
LARGE_PIXELS = 50_000_000
MAX_ASPECT_RATIO = 8.0
FEW_IMAGES = 5  # of a class in train
LOST = ("broken link", "image outside a class folder")  # reasons for ignoring a file that was meant to be an image
MAX_IMBALANCE = 10.0  # images of the largest class over those of the smallest
MIN_SIMILARITY = 0.9  # difflib's ratio from which on two class names are alike
MIN_NAME_LENGTH = 6  # characters; a shorter name differs from many others by one character
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
    """One image of the dataset with the result of decoding it."""

    path: str
    split: str
    label: str | None  # None where the split has no labels
    scanned: Scanned


@dataclass(frozen=True)
class Finding:
    """All problems of one kind."""

    kind: str  # "unreadable", "leak: equal images across splits"
    level: Level  # fault: figures are wrong or training fails; warning: this may happen; note: harmless
    text: str  # what it means and what to do
    groups: tuple[tuple[str, ...], ...]  # paths or names; duplicates share a group
    details: tuple[str, ...] = field(default=())  # one text per group, or none at all


def find_problems(
    entries: Sequence[Entry],
    empty: Sequence[str],
    hidden: Sequence[str],
    load: Callable[[int], np.ndarray],
    dataset: Dataset,
) -> list[Finding]:
    """Every finding, faults first.

    Args:
        entries: the images of the dataset.
        empty: class folders without images.
        hidden: folders that are ignored because of their names.
        load: reads the image at an index of `entries`, uint8 [32, 32, 3].
        dataset: which files it passes over, and whether its train and val were drawn.
    """
    findings = [
        *_unreadable(entries),
        *_files(entries),
        *_sizes(entries),
        *_equal(entries),
        *_near(entries, load),
        *_too_small(entries, dataset.split_by_seed),
        *_classes(entries, empty, hidden),
        *_ignored(dataset),
    ]
    order = {"fault": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.level])


def _unreadable(entries: Sequence[Entry]) -> Iterator[Finding]:
    kinds: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.scanned.error is not None:
            error = entry.scanned.error.removeprefix(f"{entry.path}: ")
            kind = (
                "empty file"
                if error.startswith("empty file")
                else "truncated"
                if "truncated" in error
                else "unreadable"
            )
            kinds[kind].append(entry)
    for kind, unreadable in kinds.items():
        details = tuple(str(entry.scanned.error).removeprefix(f"{entry.path}: ") for entry in unreadable)
        text = "training leaves these out and names them; fix or remove them"
        yield Finding(kind, "fault", text, _paths(unreadable), details)


def _files(entries: Sequence[Entry]) -> Iterator[Finding]:
    readable = [entry for entry in entries if entry.scanned.error is None]
    misnamed = [
        entry
        for entry in readable
        if entry.scanned.header.kind in SUFFIXES_OF
        and PurePath(entry.path).suffix.lower() not in SUFFIXES_OF[entry.scanned.header.kind]
    ]
    if misnamed:
        text = (
            "the extension names another format than the content; fewsight goes by the content, other programs may not"
        )
        details = tuple(f"is {entry.scanned.header.kind}" for entry in misnamed)
        yield Finding("wrong extension", "warning", text, _paths(misnamed), details)
    animated = [entry for entry in readable if entry.scanned.header.animated]
    if animated:
        yield Finding("animated", "warning", "several frames or pages; only the first is used", _paths(animated))
    rotated = [entry for entry in readable if entry.scanned.header.orientation != 1]
    if rotated:
        text = "EXIF rotates these; fewsight shows them upright, other programs may not"
        details = tuple(f"orientation {entry.scanned.header.orientation}" for entry in rotated)
        yield Finding("EXIF-rotated", "note", text, _paths(rotated), details)


def _sizes(entries: Sequence[Entry]) -> Iterator[Finding]:
    readable = [entry for entry in entries if entry.scanned.error is None]
    if not readable:
        return
    median_px = statistics.median(min(entry.scanned.width, entry.scanned.height) for entry in readable)
    small_px = max(min(SMALL_PX, median_px), median_px / 8)  # in a dataset of tiny images, tiny is the norm
    for kind, chosen, text in (
        (
            "extremely small",
            [entry for entry in readable if min(entry.scanned.width, entry.scanned.height) < small_px],
            "far smaller than the others, so they show little detail",
        ),
        (
            "extremely large",
            [entry for entry in readable if entry.scanned.width * entry.scanned.height > LARGE_PIXELS],
            "reading them takes long in every epoch; store smaller copies",
        ),
        (
            "extremely long",
            [
                entry
                for entry in readable
                if max(entry.scanned.width, entry.scanned.height)
                > MAX_ASPECT_RATIO * min(entry.scanned.width, entry.scanned.height)
            ],
            "a crop shows only a small part of such an image",
        ),
    ):
        if chosen:
            details = tuple(f"{entry.scanned.width} x {entry.scanned.height}" for entry in chosen)
            yield Finding(kind, "warning", text, _paths(chosen), details)


def _paths(entries: Sequence[Entry]) -> tuple[tuple[str], ...]:
    """A group for each image."""
    return tuple((entry.path,) for entry in entries)


def _equal(entries: Sequence[Entry]) -> Iterator[Finding]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if entry.scanned.error is None:
            groups[entry.scanned.pixels].append(index)
    yield from _duplicates(entries, [group for group in groups.values() if len(group) > 1], "equal")


def _near(entries: Sequence[Entry], load: Callable[[int], np.ndarray]) -> Iterator[Finding]:
    readable = [index for index, entry in enumerate(entries) if entry.scanned.error is None]
    pairs = [
        (readable[first], readable[second], correlation)
        for first, second, correlation in candidates([entries[index].scanned.thumbnail for index in readable])
        if entries[readable[first]].scanned.pixels != entries[readable[second]].scanned.pixels
    ]
    yield from _duplicates(entries, [[first, second] for first, second, _ in confirmed(pairs, load)], "nearly equal")


def _duplicates(entries: Sequence[Entry], groups: Sequence[Sequence[int]], how: str) -> Iterator[Finding]:
    """Findings on groups of equal or nearly equal images, by the harm that they do.

    Args:
        entries: the images of the dataset.
        groups: indices of `entries`.
        how: "equal" or "nearly equal".
    """
    exact = how == "equal"
    look = "a copy, or the same layout drawn or photographed again (a form, a fixed camera)? Look at both: "
    leak = (
        "a test on such an image measures memorisation; training drops its copy (--leak drop)"
        if exact
        else look + "a test on a copy measures memorisation, so remove one of them"
    )
    conflict = "at least one of the labels is wrong, or the image belongs to both classes; keep one"
    kinds: dict[str, tuple[Level, str]] = {
        f"leak: {how} images across splits": ("fault" if exact else "warning", leak),
        f"conflicting labels: {how} images in several classes": (
            "fault" if exact else "warning",
            conflict if exact else look + "if it is a copy, one of the labels is wrong",
        ),
        f"duplicates: {how} images in one class": (
            "warning",
            "they count more than other images; keep one"
            if exact
            else look + "copies count more than other images, so keep one",
        ),
    }
    by_kind: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in kinds}
    leaks, conflicts, within = by_kind.values()
    for group in groups:
        images = [entries[index] for index in group]
        paths = tuple(image.path for image in images)
        splits = {image.split for image in images}
        labels = {image.label for image in images if image.label is not None}
        if len(splits) > 1:
            leaks.append(paths)
        if len(labels) > 1:
            conflicts.append(paths)
        if len(splits) == 1 and len(labels) <= 1:
            within.append(paths)
    for kind, groups_of_paths in by_kind.items():
        if groups_of_paths:
            level, text = kinds[kind]
            yield Finding(kind, level, text, tuple(groups_of_paths))


def _too_small(entries: Sequence[Entry], split_by_seed: bool) -> Iterator[Finding]:
    """Classes of few images; training refuses one of a single image (`check_class_sizes`) or of none to be read."""
    samples = [entry for entry in entries if entry.split == "train" or (split_by_seed and entry.split == "val")]
    total = Counter(entry.label for entry in samples if entry.label is not None)
    readable = Counter(entry.label for entry in samples if entry.split == "train" and entry.scanned.error is None)
    single = [name for name, count in sorted(total.items()) if count < 2]
    if single:
        text = "training refuses: it needs at least 2 images of every class; add images, or remove the class"
        yield Finding("class of one image", "fault", text, tuple((name,) for name in single))
    others = [name for name in sorted(total) if name not in single]
    unread = [name for name in others if not readable[name]]
    if unread:
        text = "training refuses: no image of the class can be read; add images, or remove the class"
        yield Finding("class without a readable image", "fault", text, tuple((name,) for name in unread))
    tiny = [name for name in others if 0 < readable[name] < FEW_IMAGES]
    if tiny:
        details = tuple(counted(readable[name], "image") for name in tiny)
        yield Finding("tiny class", "warning", "too few images to learn from", tuple((name,) for name in tiny), details)


def _classes(entries: Sequence[Entry], empty: Sequence[str], hidden: Sequence[str]) -> Iterator[Finding]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        if entry.label is not None:
            counts[entry.split][entry.label] += entry.scanned.error is None
    train = counts.get("train", Counter())
    if counts and not train:
        text = "training refuses; say which split is train: --splits train=NAME"
        yield Finding("no train split", "fault", text, tuple((name,) for name in sorted(counts)))
    if empty:
        yield Finding("empty class", "fault", "a class folder without images", tuple((name,) for name in empty))
    if hidden:
        text = "ignored because of the name; rename a folder that should be a class"
        yield Finding("hidden", "warning", text, tuple((name,) for name in hidden))
    with_images = [name for name, count in train.items() if count]
    if len(with_images) == 1:
        text = "there is nothing to distinguish, so training refuses; it needs at least two class folders (or labels)"
        yield Finding("only one class", "fault", text, ((with_images[0],),))
    names = sorted({label for split in counts.values() for label in split})
    pairs = [pair for index, name in enumerate(names) for pair in _alike(name, names[index + 1 :])]
    if same := [pair for pair in pairs if as_seen(pair[0]) == as_seen(pair[1])]:
        text = "nobody can tell them apart, so training refuses; rename or merge them"
        details = tuple(f"{first!a} and {second!a}" for first, second in same)
        yield Finding("classes that look alike", "fault", text, tuple(same), details)
    if alike := [pair for pair in pairs if pair not in same]:
        yield Finding("classes named alike", "warning", "possibly one class under two names", tuple(alike))
    if train and max(train.values()) > MAX_IMBALANCE * max(1, min(train.values())):
        smallest, largest = min(train, key=train.__getitem__), max(train, key=train.__getitem__)
        text = (
            f"{largest} has {counted(train[largest], 'image')}, {smallest} {train[smallest]:,}; consider data.balance"
        )
        yield Finding("imbalance", "warning", text, ((largest, smallest),))
    for split in sorted(counts):
        missing, extra = sorted(set(train) - set(counts[split])), sorted(set(counts[split]) - set(train))
        if split != "train" and train and missing:
            text = f"{split} has no images of these classes, so its figures say nothing about them"
            yield Finding("classes that a split lacks", "warning", text, tuple((name,) for name in missing))
        if split != "train" and train and extra:
            text = f"{split} has classes that train lacks; no model can predict them"
            yield Finding("classes that train lacks", "fault", text, tuple((name,) for name in extra))


def _ignored(dataset: Dataset) -> Iterator[Finding]:
    """Files that no command reads, except an operating system's own and those that have a finding of their own."""
    for reason, count in sorted(dataset.ignored.items()):
        if not count or reason.startswith(("hidden", "empty class")):
            continue
        if reason == "broken link":
            text = "not read: the link leads nowhere, or to itself"
        elif reason in LOST:
            text = "not read: move it into the folder of its class"
        else:
            text = "not read: neither its name nor its location is that of an image"
        first = dataset.first_ignored.get(reason, ())
        more = [f"and {count - len(first):,} more"] * (count > len(first))
        names = (", ".join([*first, *more]),) if first else ()
        level: Level = "warning" if reason in LOST else "note"
        yield Finding(f"passed over: {reason}", level, text, ((counted(count, "file"),),), names)


def _alike(name: str, others: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of names that differ by case, spaces, compatible characters, a plural, or one or two of many characters."""
    plain = _plain(name)
    matcher = difflib.SequenceMatcher(b=plain, autojunk=False)
    for other in others:
        other_plain = _plain(other)
        matcher.set_seq1(other_plain)
        # two numbers differ by one digit and still name different classes
        long_enough = min(len(plain), len(other_plain)) >= MIN_NAME_LENGTH
        comparable = long_enough and not any(char.isdigit() for char in plain + other_plain)
        close = comparable and matcher.real_quick_ratio() >= MIN_SIMILARITY and matcher.quick_ratio() >= MIN_SIMILARITY
        if plain == other_plain or other_plain == f"{plain}s" or (close and matcher.ratio() >= MIN_SIMILARITY):
            yield name, other


def _plain(name: str) -> str:
    """The letters and digits of a name, case-folded."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(char for char in folded if char.isalnum())

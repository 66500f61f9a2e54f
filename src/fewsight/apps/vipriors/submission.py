"""The challenge's submission: a class for every test image, or nothing."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from fewsight.errors import DataError
from fewsight.inference.ensemble import open_runs, score_folders, score_runs
from fewsight.inference.score_run import LabelledFile
from fewsight.machine import files
from fewsight.scores.fusion import Scored, fused_probs
from fewsight.terminal import progress_counter
from fewsight.wording import counted

PER_CLASS = 50  # images of each class in the test set
TEST_NAME = re.compile(r"img_(0|[1-9]\d*)\.JPEG")
HEADER = "Image IDs,Predictions"


def submit(
    path: Path,
    data: Path,
    out: Path,
    *,
    views: str | None = None,
    scores: Path | None = None,
    num_images: int | None = None,
    console: Console,
) -> int:
    """Write the challenge's submission: each test image's class as its place among the sorted names.

    The evaluator skips ids that are missing, so nothing is written unless every image is there and can be read.

    Args:
        path: a run or an ensemble.
        data: the subset, with test/imgs/img_N.JPEG in it, or a folder of such images.
        views: report unless said.
        scores: the folder that keeps the scores; default `RUN/scores/submission`. What is there already is taken.
        num_images: that the test set has; default 50 a class, as in the challenge.

    Returns:
        How many images.

    Raises:
        DataError: images are missing, are not named as in the challenge, or cannot be read.
    """
    files.check_target(out, "--out")
    asked = open_runs(path, views or "report")
    if num_images is not None and num_images < 1:
        raise DataError(f"--images {num_images}: expected at least 1")
    _check_classes(data, asked.classes)
    folder, count = _test_images(data), PER_CLASS * len(asked.classes) if num_images is None else num_images
    _check_names(folder, count)
    images = [LabelledFile(folder / f"img_{number}.JPEG", f"img_{number}.JPEG") for number in range(count)]
    with progress_counter(console, "predicting") as progress:
        stored = score_runs(asked, images, score_folders(asked, scores, "submission"), progress)
    scored = asked.scored(stored)
    errors = [image.error for image in scored.first_store.images if image.error is not None]
    if errors:
        raise DataError(
            f"{folder}: {counted(len(errors), 'image')} cannot be read, so nothing was written; the first: {errors[0]}"
        )
    lines = [f"img_{number}.JPEG,{place}" for number, place in _predicted(scored)]
    files.write_text(out, "\n".join([HEADER, *lines]) + "\n")
    return len(lines)


def _predicted(scored: Scored) -> Iterator[tuple[int, int]]:
    """(number of the image, place of its most probable class)."""
    for rows, probs in fused_probs([scored.weights]):
        yield from zip(range(rows.start, rows.stop), np.argmax(probs[0], axis=1).tolist(), strict=True)


def _check_classes(data: Path, classes: tuple[str, ...]) -> None:
    """The evaluator counts the data's classes, so the run must know just these."""
    for split in ("train", "val"):
        if not (data / split).is_dir():
            continue
        names = {one.name for one in (data / split).iterdir() if one.is_dir() and not one.name.startswith(".")}
        if different := sorted(names ^ set(classes)):
            raise DataError(
                f"{data / split} has other classes than the run (only one of them has {', '.join(different[:5])}), so "
                "the class numbers would mean others; nothing was written"
            )


def _test_images(data: Path) -> Path:
    for folder in (data / "test" / "imgs", data / "imgs", data):
        if folder.is_dir() and (folder == data or any(folder.iterdir())):
            return folder
    raise DataError(f"{data}: no such folder; expected the subset, with test/imgs/img_0.JPEG and so on")


def _check_names(folder: Path, count: int) -> None:
    """Every id of the challenge has its image, and no other is there."""
    names = {name for name in os.listdir(folder) if not name.startswith(".")}  # noqa: PTH208
    wanted = {f"img_{number}.JPEG" for number in range(count)}
    if missing := sorted(wanted - names, key=lambda name: int(name[4:-5])):
        some = ", ".join(missing[:5])
        raise DataError(
            f"{folder}: {len(missing):,} of {count:,} test images are missing ({some}); the evaluator would skip them "
            "silently, so nothing was written. For a test set of another size say --images N"
        )
    if extra := sorted(name for name in names - wanted if TEST_NAME.fullmatch(name)):
        raise DataError(
            f"{folder}: {len(extra):,} more test images than {count:,} ({', '.join(extra[:5])}); say --images N"
        )

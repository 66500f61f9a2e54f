"""The challenge's submission: a predicted class for every test image."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from fewsight.errors import DataError
from fewsight.inference.opening import open_runs, score_folders, score_runs
from fewsight.inference.score_run import LabelledFile
from fewsight.machine import files
from fewsight.machine.outputs import Kind, check_output
from fewsight.scores.fusion import fused_probs
from fewsight.scores.members import Scored
from fewsight.terminal import progress_counter
from fewsight.wording import counted, named

TEST_IMAGES_PER_CLASS = 50
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
    """Write the challenge's submission: for each test image the index of its class among the sorted names.

    The evaluator silently skips missing ids, so nothing is written unless every image is present and can be read.

    Args:
        path: a run or an ensemble.
        data: the subset with test/imgs/img_N.JPEG, or the folder of these images.
        out: the CSV file to write.
        views: as for `predict`; default: the paper's views.
        scores: the folder in which the scores are stored; default `RUN/scores/submission`. Stored scores are reused.
        num_images: the size of the test set; default 50 per class, as in the challenge.
        console: shows the progress.

    Returns:
        The number of images.

    Raises:
        DataError: images are missing, are not named as in the challenge, or cannot be read.
    """
    check_output(out, "--out", Kind("a submission", (HEADER.encode(),)))
    chosen = open_runs(path, views or "paper")
    if num_images is not None and num_images < 1:
        raise DataError(f"--images {num_images}: expected at least 1")
    _check_classes(data, chosen.classes)
    folder, count = (
        _test_images(data),
        TEST_IMAGES_PER_CLASS * len(chosen.classes) if num_images is None else num_images,
    )
    _check_names(folder, count)
    images = [LabelledFile(folder / f"img_{number}.JPEG", f"img_{number}.JPEG") for number in range(count)]
    with progress_counter(console, "predicting") as progress:
        stored = score_runs(chosen, images, score_folders(chosen, scores, "submission"), progress)
    scored = chosen.scored(stored)
    errors = [image.error for image in scored.first_store.images if image.error is not None]
    if errors:
        raise DataError(
            f"{folder}: {counted(len(errors), 'image')} cannot be read, so nothing was written; the first: {errors[0]}"
        )
    lines = [f"img_{number}.JPEG,{class_index}" for number, class_index in _predicted(scored)]
    files.write_text(files.link_target(out), "\n".join([HEADER, *lines]) + "\n")
    return len(lines)


def _predicted(scored: Scored) -> Iterator[tuple[int, int]]:
    """Yield (number of the image, index of its most probable class)."""
    for rows, probs in fused_probs([scored.weights]):
        yield from zip(range(rows.start, rows.stop), np.argmax(probs[0], axis=1).tolist(), strict=True)


def _check_classes(data: Path, classes: tuple[str, ...]) -> None:
    """Raise unless the run has exactly the data's classes, from which the evaluator numbers them."""
    for split in ("train", "val"):
        if not (data / split).is_dir():
            continue
        names = {path.name for path in (data / split).iterdir() if path.is_dir() and not path.name.startswith(".")}
        if different := sorted(names ^ set(classes)):
            raise DataError(
                f"{data / split} has other classes than the run (only one of them has {named(different)}), "
                "so the class indices would be wrong; nothing was written"
            )


def _test_images(data: Path) -> Path:
    """The folder with the test images."""
    for folder in (data / "test" / "imgs", data / "imgs", data):
        if folder.is_dir() and (folder == data or any(folder.iterdir())):
            return folder
    raise DataError(f"{data}: no such folder; expected the subset, with test/imgs/img_0.JPEG and so on")


def _check_names(folder: Path, count: int) -> None:
    """Raise unless the folder has an image for every id of the challenge, and no other test images."""
    names = {name for name in os.listdir(folder) if not name.startswith(".")}  # noqa: PTH208
    expected = {f"img_{number}.JPEG" for number in range(count)}
    if missing := sorted(expected - names, key=lambda name: int(name[4:-5])):
        raise DataError(
            f"{folder}: {len(missing):,} of {count:,} test images are missing ({named(missing)}); the evaluator would "
            "skip them silently, so nothing was written. For a test set of another size give --images N"
        )
    if extra := sorted(name for name in names - expected if TEST_NAME.fullmatch(name)):
        raise DataError(f"{folder}: {len(extra):,} more test images than {count:,} ({named(extra)}); give --images N")

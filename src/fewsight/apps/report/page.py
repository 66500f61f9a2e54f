"""Write the HTML page: its images, plots and script are embedded, so it makes no request."""

import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

import fewsight
from fewsight.apps.check import CheckResult
from fewsight.apps.check import check as check_data
from fewsight.apps.pictures import data_url, thumbnail
from fewsight.apps.report.gather import AGREEMENT, Curve, Prediction, RunFacts, against, gather, paper_tables
from fewsight.data import ImageError, decode_bytes, read_bytes
from fewsight.errors import DataError, RunError
from fewsight.machine import files
from fewsight.recipes import Recipe, recipe_toml
from fewsight.runs import Run
from fewsight.scores.calibration import Bin, calibration_error, view_names
from fewsight.terminal import printable, trained_on_note

MAX_TABLE_CLASSES = 30  # the confusion matrix of more classes is an image instead of a table
THUMBNAIL_PX = 128
PLOT_PX = (480, 240)  # width and height inside the axes
RELIABILITY_PX = 240
MIN_MATRIX_PX = 600
MAX_GROUPS = 5  # shown of a finding in the data
SUFFIXES = (".html", ".htm")
MARK = b'<meta name="generator" content="fewsight'  # in the head of every page
MARK_WITHIN = 400  # bytes
SUSPECTED = "Possibly wrong labels"
RELIABLE_TOP1 = 0.8  # below it, a mistake of the run is far more likely than a wrong label; our choice


@dataclass(frozen=True)
class Pictures:
    """Where a page looked for the images that it shows, and how many it found."""

    data: Path | None  # a folder or manifest; None if the run does not say
    num_images: int  # that the page should show
    num_missing: int  # of these: missing, or changed since they were scored

    def __str__(self) -> str:
        if not self.num_missing:
            return f"all {self.num_images:,} images were found"
        if self.data is None:
            return "no images are shown: the run does not say where they are; give their folder with --data"
        number = "none" if self.num_missing == self.num_images else f"{self.num_images - self.num_missing:,}"
        return (
            f"{number} of the {self.num_images:,} images to show were found in {printable(str(self.data))}: the others "
            "are missing or have changed; give their folder with --data"
        )


def write_report(
    paths: Sequence[Path],
    target: Path,
    *,
    split: str | None = None,
    views: Sequence[str] = (),
    data: Path | None = None,
    check: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Pictures:
    """Write a page on the first run, compared with the others.

    Args:
        paths: runs, ensembles, or folders of `fewsight reproduce`, whose ensemble is shown with the paper's tables.
        target: the page to write; an older page is replaced.
        split: the split whose stored scores are used.
        views: use only these views; none: all that are stored.
        data: the folder with the images; None: where they were when the run started.
        check: also show the findings of `fewsight check`, if the data is present; decoded images come from its cache.
        progress: called with (done, total) images that are checked.

    Returns:
        Where it looked for the images that it shows, and how many it found.

    Raises:
        RunError: a run has no such scores, or `target` cannot be written, has no HTML suffix, or is another file.
    """
    if target.suffix.lower() not in SUFFIXES:
        raise RunError(f"--out {target}: the page is an HTML file; call it {target.stem}.html")
    if target.exists() and not _is_ours(target):
        raise RunError(f"--out {target}: this file exists and is not a page of fewsight report; give another name")
    tables = next((tables for tables in map(paper_tables, paths) if tables), None)
    facts = [gather(path / "ensemble" if paper_tables(path) else path, split, views) for path in paths]
    first = facts[0]
    source = _data_source(first, data)
    galleries = _galleries(first, source.parent if source is not None and source.is_file() else source)
    checked, why_not_checked = _checked(first, source, progress) if check else (None, "")
    template = resources.files("fewsight.apps.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"name": printable, "percent": lambda value: "-" if value is None else f"{100 * value:.1f}"}
    page = environment.from_string(template)
    pictures = _pictures(galleries, source)
    html = page.render(
        version=fewsight.__version__,
        facts=first,
        trained_on=trained_on_note(first.num_trained_on, first.figures.num_images) if first.num_trained_on else "",
        others=[(other, against(first, other)) for other in facts[1:]],
        views_differ=any(view_names(other.scored) != view_names(first.scored) for other in facts[1:]),
        curves=[_curve_plot(curve) for curve in first.curves],
        soft_targets="" if first.recipe is None else _soft_targets(first.recipe),
        reliability=_reliability_dots(first.reliability),
        tempered=_reliability_dots(first.tempered),
        error=calibration_error(first.reliability),
        tempered_error=calibration_error(first.tempered) if first.tempered else None,
        cells=_cells(first) if len(first.classes) <= MAX_TABLE_CLASSES else None,
        matrix=_matrix(first) if len(first.classes) > MAX_TABLE_CLASSES else None,
        galleries=galleries,
        pictures=pictures,
        tables=tables,
        checked=checked,
        why_not_checked=why_not_checked,
        again="" if first.run is None else _command_again(first.run, source),
        recipe="" if first.run is None else recipe_toml(first.run.recipe),
        max_groups=MAX_GROUPS,
    )
    files.write_text(target, html)
    return pictures


def _is_ours(target: Path) -> bool:
    """Whether a file is a page of this command."""
    with target.open("rb") as handle:
        return MARK in handle.read(MARK_WITHIN)


def _data_source(facts: RunFacts, data: Path | None) -> Path | None:
    """Where the data is now: a folder, or the manifest in it that the run was trained on."""
    source = None if facts.source is None else Path(facts.source)
    if data is None:
        return source
    if not data.exists():
        raise RunError(f"--data {data} does not exist; give the folder with the images")
    manifest = None if source is None else data / source.name
    return manifest if manifest is not None and manifest.is_file() else data


def _checked(
    facts: RunFacts, source: Path | None, progress: Callable[[int, int], None]
) -> tuple[CheckResult | None, str]:
    """The result of checking the data as it is now, or why it was not checked."""
    if facts.recipe is None or source is None:
        return None, ""
    if not source.exists():
        return None, f"it was in {source}, where there is nothing now; give its folder with --data"
    settings = facts.recipe.data
    try:
        return check_data(source, holdout=settings.holdout, seed=settings.split_seed, progress=progress), ""
    except DataError as error:
        return None, str(error)


@dataclass(frozen=True)
class Gallery:
    """Images under a heading."""

    title: str
    description: str  # how they were selected
    warning: str
    images: list[dict[str, Any]]  # from `_image`


def _galleries(facts: RunFacts, root: Path | None) -> list[Gallery]:
    """Images worth a look; the gallery of suspected labels is there even if it is empty."""
    galleries = [
        (
            "Most confident mistakes",
            "The predicted class is not the label; highest probability first.",
            "",
            facts.sure_mistakes,
        ),
        ("Least confident predictions", "The predicted class has a low probability; lowest first.", "", facts.unsure),
        (SUSPECTED, _suspicion(facts), _unreliable(facts), facts.suspects),
    ]
    return [
        Gallery(title, description, warning, [_image(prediction, root) for prediction in predictions])
        for title, description, warning, predictions in galleries
        if predictions or title == SUSPECTED
    ]


def _suspicion(facts: RunFacts) -> str:
    """How labels are suspected, and how many are."""
    if facts.sure_prob is None:
        return f"None: at no level of confidence does the run agree with {100 * AGREEMENT:g} % of the labels."
    rule = (
        "The predicted class is not the label. Its probability is at least its mean over the images labelled with it "
        f"(confident learning, arXiv:1911.00068), and at least {100 * facts.sure_prob:.1f} %, from which on the run "
        f"agrees with at least {100 * AGREEMENT:g} % of the labels."
    )
    total = f"of these {len(facts.correct):,} images"
    if not facts.num_suspects:
        return f"{rule} This applies to none {total}."
    first = f", of which the first {len(facts.suspects)} are shown" * (facts.num_suspects > len(facts.suspects))
    return f"{rule} This applies to {facts.num_suspects:,} {total}{first}. Look at each before you change its label."


def _unreliable(facts: RunFacts) -> str:
    """The warning that a weak run says little about labels; empty for a strong run."""
    top1 = facts.figures.top1.value
    if top1 >= RELIABLE_TOP1 or not facts.suspects:
        return ""
    return (
        f"This list is unreliable: the run predicts only {100 * top1:.1f} % of the images correctly, so most of these "
        "are more likely its own mistakes than wrong labels."
    )


def _command_again(run: Run, source: Path | None) -> str:
    """The command that trains the run again, on the data where it is now."""
    words = ["fewsight", "train", str(source or run.data.source), "--out", "AGAIN"]
    words += ["--recipe", str(run.path / "recipe.toml")]
    start = run.info.get("start")
    return shlex.join([*words, "--init-from", start["run"]] if start else words)


def _pictures(galleries: Sequence[Gallery], source: Path | None) -> Pictures:
    """How many of the galleries' images were found; an image in two galleries counts once."""
    is_found = {image["prediction"].path: bool(image["src"]) for gallery in galleries for image in gallery.images}
    return Pictures(source, len(is_found), list(is_found.values()).count(False))


def _image(prediction: Prediction, root: Path | None) -> dict[str, Any]:
    """An image as the template needs it."""
    src = "" if root is None else _thumbnail(root / prediction.path, prediction.digest)
    return {"prediction": prediction, "src": src}


def _thumbnail(path: Path, digest: str) -> str:
    """A small JPEG as a data URL; empty if the file is missing or has changed."""
    try:
        data = read_bytes(path)
        if hashlib.blake2b(data, digest_size=8).hexdigest() != digest:
            return ""
        image = decode_bytes(data, str(path))
    except ImageError:
        return ""
    return thumbnail(image, THUMBNAIL_PX)


def _matrix(facts: RunFacts) -> dict[str, Any]:
    """A confusion matrix too large for a table: an image, and the names and counts to show under the pointer."""
    order = _confused_together(facts.confusion)
    counts = facts.confusion[np.ix_(order, order)]
    rows, columns = np.nonzero(counts)
    return {
        "src": _matrix_image(counts),
        "names": [printable(facts.classes[index]) for index in order],
        "cells": {
            f"{row},{column}": int(counts[row, column])
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        },
    }


def _confused_together(confusion: np.ndarray) -> np.ndarray:
    """An order of the classes [K] that puts classes next to each other that are often confused."""
    fractions = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    distances = 1 - np.minimum(1, (fractions + fractions.T) / 2)
    np.fill_diagonal(distances, 0)
    order: np.ndarray = leaves_list(linkage(squareform(distances, checks=False), "average"))
    return order


def _matrix_image(confusion: np.ndarray) -> str:
    """The confusion matrix as an image; a cell is the darker, the larger its fraction of the row's images."""
    fractions = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    darkness = np.sqrt(fractions)[:, :, None]  # the root keeps cells of few images visible
    pixels = (255 - darkness * (255 - np.array([0, 68, 136]))).astype(np.uint8)  # to a blue that prints well in grey
    image = Image.fromarray(pixels)
    scale = max(1, -(-MIN_MATRIX_PX // len(confusion)))
    return data_url(image.resize((scale * len(confusion),) * 2, Image.Resampling.NEAREST), "PNG", optimize=True)


def _cells(facts: RunFacts) -> list[tuple[str, list[tuple[int, float]]]]:
    """For each true class: (number of images, fraction of the class) for each predicted class."""
    rows = []
    for name, counts in zip(facts.classes, facts.confusion, strict=True):
        total = max(1, int(counts.sum()))
        rows.append((name, [(int(count), int(count) / total) for count in counts]))
    return rows


def _curve_plot(curve: Curve) -> dict[str, Any]:
    """A curve as the points of a polyline, with the labels of its axes."""
    epochs, values = ([point[axis] for point in curve.points] for axis in (0, 1))
    low, high = min(values), max(values)
    last = max(epochs)
    points = [
        (PLOT_PX[0] * (epoch - 1) / max(1, last - 1), PLOT_PX[1] * (1 - (value - low) / ((high - low) or 1)))
        for epoch, value in curve.points
    ]
    return {
        "name": curve.name,
        "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "last": int(last),
        "caption": f"{curve.name}: {values[0]:.3g} in epoch {int(epochs[0])}, {values[-1]:.3g} in epoch {int(last)}",
        "width": PLOT_PX[0],
        "height": PLOT_PX[1],
    }


def _soft_targets(recipe: Recipe) -> str:
    """The parts of a recipe whose soft targets keep the training loss above 0."""
    smoothing = any(stage.losses.smoothing > 0 for stage in recipe.stages)
    used = {"CutMix": recipe.augment.cutmix_prob > 0, "label smoothing": smoothing}
    return " and ".join(name for name, is_used in used.items() if is_used)


def _reliability_dots(bins: Sequence[Bin]) -> list[dict[str, Any]]:
    """A circle for each bin: confidence on the x axis, accuracy on the y axis, the area by the number of images."""
    max_count = max((entry.count for entry in bins), default=1)
    return [
        {
            "x": f"{RELIABILITY_PX * entry.confidence:.1f}",
            "y": f"{RELIABILITY_PX * (1 - entry.accuracy):.1f}",
            "r": f"{2 + 8 * (entry.count / max_count) ** 0.5:.1f}",
            "title": (
                f"{entry.count:,} images: confidence {100 * entry.confidence:.0f} %, "
                f"accuracy {100 * entry.accuracy:.0f} %"
            ),
        }
        for entry in bins
    ]

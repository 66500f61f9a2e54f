"""The page: HTML with its pictures and drawings in it, no script from elsewhere, no request."""

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
from fewsight.apps.check import Checked
from fewsight.apps.check import check as check_data
from fewsight.apps.pictures import address, thumbnail
from fewsight.apps.report.gather import AGREED, Curve, Prediction, RunFacts, against, gather, report_tables
from fewsight.data import ImageError, decode_bytes, read_bytes
from fewsight.errors import DataError, RunError
from fewsight.machine import files
from fewsight.recipes import Recipe, recipe_toml
from fewsight.runs import Run
from fewsight.scores.calibration import Bin, calibration_error, view_names
from fewsight.terminal import printable

MOST_CELLS = 30  # classes whose confusion matrix is a table; a picture beyond
THUMBNAIL_PX = 128
PLOT = (480, 240)  # the inside of a drawing
MIN_PICTURE_PX = 600
MOST_GROUPS = 5  # of a finding in the data
SUFFIXES = (".html", ".htm")
MARK = b'<meta name="generator" content="fewsight'  # of the page's own head
MARK_WITHIN = 400  # bytes
SUSPECTED = "Labels that are perhaps wrong"
RELIABLE_TOP1 = 0.8  # below it a mistake of the run is far more likely than a wrong label; our choice


@dataclass(frozen=True)
class Pictures:
    """Where a page looked for its images, and how many it found."""

    place: Path | None  # a folder or manifest; None where the run does not say
    num_images: int  # that the page has a place for
    num_missing: int  # of those: not there, or other bytes than those that were scored

    def __str__(self) -> str:
        if not self.num_missing:
            return f"all {self.num_images:,} images were found"
        if self.place is None:
            return "no image is shown: the run does not say where they lie; give their folder with --data"
        share = "none" if self.num_missing == self.num_images else f"{self.num_images - self.num_missing:,}"
        return (
            f"{share} of the {self.num_images:,} images to show were found in {printable(str(self.place))}: the others "
            "are not there, or are others now; give the folder that they lie in with --data"
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
    """Write a page on the first of some runs, against the others.

    Args:
        paths: runs, ensembles, or a folder of `fewsight reproduce`, whose ensemble is shown with the report's tables.
        split: whose kept scores.
        views: only these of them; all that there are where none is named.
        data: where the images lie; None: where the run's data lay when it began.
        check: also say what `fewsight check` finds in the data, if it is there; what was decoded before is remembered.
        progress: told (done, total) of the images that are checked.

    Returns:
        Where it looked for the images that it shows, and how many it found.

    Raises:
        RunError: a run has no such scores, or the file cannot be written, is no HTML file by its name, or is there
            and no such page; an older page is replaced.
    """
    if target.suffix.lower() not in SUFFIXES:
        raise RunError(f"--out {target}: the page is an HTML file; call it {target.stem}.html")
    if target.exists() and not _is_ours(target):
        raise RunError(f"--out {target}: this is there already, and no page of fewsight report; give another name")
    tables = next((found for found in map(report_tables, paths) if found), None)
    asked = [path / "ensemble" if report_tables(path) else path for path in paths]
    facts = [gather(path, split, views) for path in asked]
    first = facts[0]
    place = _data_place(first, data)
    galleries = _galleries(first, place.parent if place is not None and place.is_file() else place)
    checked, why_not = _checked(first, place, progress) if check else (None, "")
    template = resources.files("fewsight.apps.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"name": printable, "percent": lambda value: "-" if value is None else f"{100 * value:.1f}"}
    page = environment.from_string(template)
    pictures = _pictures(galleries, place)
    text = page.render(
        version=fewsight.__version__,
        one=first,
        others=[(facts_of, against(first, facts_of)) for facts_of in facts[1:]],
        other_views=any(view_names(facts_of.scored) != view_names(first.scored) for facts_of in facts[1:]),
        curves=[_drawn(curve) for curve in first.curves],
        softened="" if first.recipe is None else _softened(first.recipe),
        reliability=_reliability(first.reliability),
        tempered=_reliability(first.tempered),
        error=calibration_error(first.reliability),
        tempered_error=calibration_error(first.tempered) if first.tempered else None,
        cells=_cells(first) if len(first.classes) <= MOST_CELLS else None,
        matrix=_matrix(first) if len(first.classes) > MOST_CELLS else None,
        galleries=galleries,
        pictures=pictures,
        tables=tables,
        checked=checked,
        why_not_checked=why_not,
        again="" if first.run is None else _again(first.run, place),
        recipe="" if first.run is None else recipe_toml(first.run.recipe),
        most=MOST_GROUPS,
    )
    files.write_text(target, text)
    return pictures


def _is_ours(target: Path) -> bool:
    """Whether a file is a page that this wrote."""
    with target.open("rb") as handle:
        return MARK in handle.read(MARK_WITHIN)


def _data_place(facts: RunFacts, data: Path | None) -> Path | None:
    """The data as they lie now: the folder, or the manifest that the run's was."""
    source = None if facts.source is None else Path(facts.source)
    if data is None:
        return source
    if not data.exists():
        raise RunError(f"--data {data}: is not there; give the folder that the images lie in")
    manifest = None if source is None else data / source.name
    return manifest if manifest is not None and manifest.is_file() else data


def _checked(facts: RunFacts, place: Path | None, progress: Callable[[int, int], None]) -> tuple[Checked | None, str]:
    """What is wrong with the data as it lies there now, or why nothing is said of it."""
    if facts.recipe is None or place is None:
        return None, ""
    if not place.exists():
        return None, f"it lay in {place}, where nothing is now; say with --data where it lies"
    settings = facts.recipe.data
    try:
        return check_data(place, holdout=settings.holdout, seed=settings.split_seed, progress=progress), ""
    except DataError as error:
        return None, str(error)


@dataclass(frozen=True)
class Gallery:
    """Images under a heading."""

    title: str
    said: str  # which they are
    warning: str
    images: list[dict[str, Any]]  # `_shown` of each


def _galleries(facts: RunFacts, root: Path | None) -> list[Gallery]:
    """Images that are worth a look; suspected labels say too that there are none."""
    asked = [
        ("The most confident mistakes", "Not the label's class, the most probable first.", "", facts.sure_mistakes),
        ("The least sure", "The most probable class has little probability.", "", facts.unsure),
        (SUSPECTED, _suspicion(facts), _unreliable(facts), facts.suspects),
    ]
    return [
        Gallery(title, said, warning, [_shown(one, root) for one in those])
        for title, said, warning, those in asked
        if those or title == SUSPECTED
    ]


def _suspicion(facts: RunFacts) -> str:
    """Which labels are suspected, and how many."""
    if facts.sure_prob is None:
        return f"None: at no probability does the run agree with {100 * AGREED:g} % of the labels."
    which = (
        "Another class is the most probable one. Its probability is at least the mean that it has over the images with "
        f"its label (confident learning, arXiv:1911.00068), and at least {100 * facts.sure_prob:.1f} %, from where on "
        f"the run agrees with {100 * AGREED:g} % of the labels or more."
    )
    total = f"of these {len(facts.right):,} images"
    if not facts.num_suspects:
        return f"{which} That is so for none {total}."
    first = f", of which the first {len(facts.suspects)} stand here" * (facts.num_suspects > len(facts.suspects))
    return f"{which} That is so for {facts.num_suspects:,} {total}{first}. Look at each before you change its label."


def _unreliable(facts: RunFacts) -> str:
    """That a weak run cannot say much of labels."""
    top1 = facts.figures.top1.value
    if top1 >= RELIABLE_TOP1 or not facts.suspects:
        return ""
    return (
        f"This list is unreliable: the run has {100 * top1:.1f} % of the images right, so that most of what is here is "
        "more likely its mistake than a wrong label."
    )


def _again(run: Run, place: Path | None) -> str:
    """The command that trains the run again, from the data as they lie now."""
    words = ["fewsight", "train", str(place or run.data.source), "--out", "AGAIN"]
    words += ["--recipe", str(run.path / "recipe.toml")]
    start = run.info.get("start")
    return shlex.join([*words, "--init-from", start["run"]] if start else words)


def _pictures(galleries: Sequence[Gallery], place: Path | None) -> Pictures:
    """How many of the galleries' images were found; one that stands in two of them counts once."""
    found = {one["seen"].path: bool(one["src"]) for gallery in galleries for one in gallery.images}
    return Pictures(place, len(found), list(found.values()).count(False))


def _shown(one: Prediction, root: Path | None) -> dict[str, Any]:
    return {"seen": one, "src": "" if root is None else _thumbnail(root / one.path, one.digest)}


def _thumbnail(path: Path, digest: str) -> str:
    """A small JPEG as a data address; empty where the file is not there any more, or is another."""
    try:
        data = read_bytes(path)
        if hashlib.blake2b(data, digest_size=8).hexdigest() != digest:
            return ""
        image = decode_bytes(data, str(path))
    except ImageError:
        return ""
    return thumbnail(image, THUMBNAIL_PX)


def _matrix(facts: RunFacts) -> dict[str, Any]:
    """A confusion matrix too large for a table: a picture, and what a pointer on it is told."""
    order = _beside_each_other(facts.confusion)
    counts = facts.confusion[np.ix_(order, order)]
    rows, columns = np.nonzero(counts)
    return {
        "src": _picture(counts),
        "names": [printable(facts.classes[place]) for place in order],
        "cells": {
            f"{row},{column}": int(counts[row, column])
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        },
    }


def _beside_each_other(confusion: np.ndarray) -> np.ndarray:
    """An order of the classes in which those that are taken for each other stand beside each other."""
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    near = 1 - np.minimum(1, (shares + shares.T) / 2)
    np.fill_diagonal(near, 0)
    order: np.ndarray = leaves_list(linkage(squareform(near, checks=False), "average"))
    return order


def _picture(confusion: np.ndarray) -> str:
    """The confusion matrix as a picture, each row by its own images: white is none, dark is all."""
    shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    dark = np.sqrt(shares)[:, :, None]  # a few images show too
    pixels = (255 - dark * (255 - np.array([0, 68, 136]))).astype(np.uint8)  # to a blue that greys well
    image = Image.fromarray(pixels)
    scale = max(1, -(-MIN_PICTURE_PX // len(confusion)))
    return address(image.resize((scale * len(confusion),) * 2, Image.Resampling.NEAREST), "PNG", optimize=True)


def _cells(facts: RunFacts) -> list[tuple[str, list[tuple[int, float]]]]:
    """For each true class: (images, their share of the class) for each class that they were taken for."""
    rows = []
    for name, counts in zip(facts.classes, facts.confusion, strict=True):
        total = max(1, int(counts.sum()))
        rows.append((name, [(int(count), int(count) / total) for count in counts]))
    return rows


def _drawn(curve: Curve) -> dict[str, Any]:
    """A curve as the points of a polyline, with what stands at its axes."""
    epochs, values = ([point[axis] for point in curve.points] for axis in (0, 1))
    low, high = min(values), max(values)
    last = max(epochs)
    points = [
        (PLOT[0] * (epoch - 1) / max(1, last - 1), PLOT[1] * (1 - (value - low) / ((high - low) or 1)))
        for epoch, value in curve.points
    ]
    return {
        "name": curve.name,
        "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "last": int(last),
        "said": f"{curve.name}: {values[0]:.3g} in epoch {int(epochs[0])}, {values[-1]:.3g} in epoch {int(last)}",
        "width": PLOT[0],
        "height": PLOT[1],
    }


def _softened(recipe: Recipe) -> str:
    """What keeps the training loss of a recipe from falling to 0."""
    smoothed = any(stage.losses.smoothing > 0 for stage in recipe.stages)
    used = {"CutMix": recipe.augment.cutmix_prob > 0, "label smoothing": smoothed}
    return " and ".join(name for name, there in used.items() if there)


def _reliability(those: Sequence[Bin]) -> list[dict[str, Any]]:
    """A circle for each bin: its probability across, its share that is right upwards, its area by its images."""
    most = max((one.count for one in those), default=1)
    return [
        {
            "x": f"{240 * one.confidence:.1f}",
            "y": f"{240 * (1 - one.accuracy):.1f}",
            "r": f"{2 + 8 * (one.count / most) ** 0.5:.1f}",
            "said": f"{one.count:,} images: {100 * one.confidence:.0f} % sure, {100 * one.accuracy:.0f} % right",
        }
        for one in those
    ]

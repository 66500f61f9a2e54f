"""The plots of the page: confusion matrix, training curves, reliability diagram."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from fewsight.apps.pictures import data_url
from fewsight.apps.report.gather import Curve, RunFacts
from fewsight.scores.calibration import Bin
from fewsight.terminal import printable

PLOT_PX = (480, 240)  # width and height inside the axes
RELIABILITY_PX = 240
MIN_MATRIX_PX = 600


def confusion_image(facts: RunFacts) -> dict[str, Any]:
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


def confusion_table(facts: RunFacts) -> list[tuple[str, list[tuple[int, float]]]]:
    """For each true class: (number of images, fraction of the class) for each predicted class."""
    rows = []
    for name, counts in zip(facts.classes, facts.confusion, strict=True):
        total = max(1, int(counts.sum()))
        rows.append((name, [(int(count), int(count) / total) for count in counts]))
    return rows


def curve_plot(curve: Curve) -> dict[str, Any]:
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


def reliability_dots(bins: Sequence[Bin]) -> list[dict[str, Any]]:
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

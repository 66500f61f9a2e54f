"""The plots of the page: confusion matrix, training curves, reliability diagram."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from fewsight.apps.pictures import data_url
from fewsight.apps.report.gather import Curve, RunFacts
from fewsight.scores.calibration import NUM_BINS, Bin
from fewsight.terminal import printable
from fewsight.wording import counted

PLOT_PX = (480, 240)  # width and height inside the axes of a curve
WIDE_PX = 1060  # width of the only curve
RELIABILITY_PX = 240
BARS_PX = (560, 240)
MIN_MATRIX_PX = 600
RIGHT_RGB, WRONG_RGB = (0, 68, 136), (170, 60, 0)  # of the confusion matrix as an image


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
    darkness = _darkness(confusion / np.maximum(1, confusion.sum(1, keepdims=True)))
    is_right = np.eye(len(confusion), dtype=bool)[:, :, None]
    pixels = (255 - darkness[:, :, None] * (255 - np.where(is_right, RIGHT_RGB, WRONG_RGB))).astype(np.uint8)
    image = Image.fromarray(pixels)
    scale = max(1, -(-MIN_MATRIX_PX // len(confusion)))
    return data_url(image.resize((scale * len(confusion),) * 2, Image.Resampling.NEAREST), "PNG", optimize=True)


def _darkness(fractions: np.ndarray) -> np.ndarray:
    """Of cells, from 0 to 1: the cube root of their fraction, which keeps cells of few images visible."""
    darkness: np.ndarray = np.cbrt(fractions)
    return darkness


def confusion_table(facts: RunFacts) -> list[tuple[str, list[tuple[int, float]]]]:
    """For each true class: (number of images, darkness) for each predicted class."""
    darkness = _darkness(facts.confusion / np.maximum(1, facts.confusion.sum(1, keepdims=True)))
    return [
        (name, list(zip(counts.tolist(), row.tolist(), strict=True)))
        for name, counts, row in zip(facts.classes, facts.confusion, darkness, strict=True)
    ]


def curve_plots(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Curves that fill the page's width together."""
    width = PLOT_PX[0] if len(curves) > 1 else WIDE_PX
    return [_curve_plot(curve, width) for curve in curves]


def _curve_plot(curve: Curve, width: int) -> dict[str, Any]:
    """A curve as the points of a polyline, with the labels of its axes."""
    epochs, values = ([point[axis] for point in curve.points] for axis in (0, 1))
    low, high = min(values), max(values)
    last = max(epochs)
    points = [
        (width * (epoch - 1) / max(1, last - 1), PLOT_PX[1] * (1 - (value - low) / ((high - low) or 1)))
        for epoch, value in curve.points
    ]
    return {
        "name": curve.name,
        "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "last": int(last),
        "caption": f"{curve.name}: {values[0]:.3g} in epoch {int(epochs[0])}, {values[-1]:.3g} in epoch {int(last)}",
        "width": width,
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
                f"{counted(entry.count, 'image')}: confidence {100 * entry.confidence:.0f} %, "
                f"accuracy {100 * entry.accuracy:.0f} %"
            ),
        }
        for entry in bins
    ]


def confidence_bars(bins: Sequence[Bin]) -> list[dict[str, Any]]:
    """A bar for each bin: its height by the number of images, the wrong ones on top of the correct ones."""
    max_count, step = max((entry.count for entry in bins), default=1), BARS_PX[0] / NUM_BINS
    bars = []
    for entry in bins:
        number, correct = min(int(entry.confidence * NUM_BINS), NUM_BINS - 1), round(entry.accuracy * entry.count)
        height, wrong = (BARS_PX[1] * count / max_count for count in (entry.count, entry.count - correct))
        low, high = (100 * edge / NUM_BINS for edge in (number, number + 1))
        bars.append(
            {
                "x": f"{number * step + 1:.1f}",
                "width": f"{step - 2:.1f}",
                "top": f"{BARS_PX[1] - height:.1f}",
                "wrong": f"{wrong:.1f}",
                "middle": f"{BARS_PX[1] - height + wrong:.1f}",
                "correct": f"{height - wrong:.1f}",
                "title": f"confidence {low:.0f} to {high:.0f} %: {correct:,} correct, {entry.count - correct:,} wrong",
            }
        )
    return bars

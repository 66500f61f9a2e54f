"""Accuracy over core-seconds as a picture: a line a side. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.accuracy.table import BEST, Result, at_chosen


def points(results: Sequence[Result], val: Sequence[Result]) -> tuple[list[str], dict[str, list[tuple[float, float]]]]:
    """The sets that every side has at every budget that it was run with, and each side's points on their mean.

    Returns:
        The sets, and side -> (core-seconds, top-1 in %) by budget; each peer at the setting that val chose.
    """
    settled = [one for one in at_chosen(results, val) if one["side"] != BEST]
    by_point: dict[tuple[str, float], dict[str, list[Result]]] = {}
    for one in settled:
        by_point.setdefault((one["side"], one["budget"]), {}).setdefault(one["set"], []).append(one)
    shared = sorted(set.intersection(*(set(of_set) for of_set in by_point.values()))) if by_point else []
    lines: dict[str, list[tuple[float, float]]] = {}
    for (side, _), of_set in sorted(by_point.items()) if shared else ():
        each = [
            np.mean([(one["core_seconds"], 100 * one["count"] / one["n"]) for one in of_set[name]], axis=0)
            for name in shared
        ]
        cost, top1 = np.mean(each, axis=0)
        lines.setdefault(side, []).append((float(cost), float(top1)))
    return shared, lines


def draw(results: Sequence[Result], val: Sequence[Result], split: str, target: Path) -> bool:
    """Write the picture; False, and no file, where the sides have no set in common."""
    from matplotlib.figure import Figure

    shared, lines = points(results, val)
    if not shared:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for (side, each), marker in zip(lines.items(), "osD^v<>P*X" * len(lines), strict=False):
        axes.plot(*zip(*each, strict=True), marker=marker, label=side)
    axes.set_xscale("log")
    axes.set_xlabel("core-seconds of training, the mean over the sets")
    axes.set_ylabel(f"top-1 on {split}, %")
    axes.set_title(f"Mean of {len(shared)} sets: {', '.join(shared)}", fontsize="small", wrap=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(target, dpi=120)
    return True

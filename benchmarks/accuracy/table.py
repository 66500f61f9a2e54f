"""The results as tables: top-1 of each side on each set, and paired differences over all sets."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from fewsight.scores.metrics import wilson

NUM_RESAMPLES = 10_000
Results = list[dict[str, Any]]


def read_results(out: Path, split: str, budget: float) -> Results:
    """Every result of a split at a budget."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob(f"*-{split}.json"))]
    return [result for result in found if result["budget"] == budget]


def lines(results: Results, base: str) -> list[str]:
    """Markdown: a row a set, a column a side; then every side against `base`, paired by set, seed and image."""
    sides = sorted({result["side"] for result in results}, key=lambda side: (side != base, side))
    sets = sorted({result["set"] for result in results})
    table = [f"| set | {' | '.join(sides)} |", "|---" * (len(sides) + 1) + "|"]
    for name in sets:
        cells = [cell([one for one in results if (one["set"], one["side"]) == (name, side)]) for side in sides]
        table.append(f"| {name} | {' | '.join(cells)} |")
    table += ["", f"| side against {base} | sets | mean difference, points | sets behind, 95 % |", "|---|---|---|---|"]
    return table + [against(results, side, base) for side in sides if side != base]


def cell(results: Results) -> str:
    """Top-1 with its interval, balanced accuracy, NLL and cost; the mean over seeds."""
    if not results:
        return "-"
    top1 = wilson(sum(one["count"] for one in results), sum(one["n"] for one in results))
    balanced, nll, cost = (
        float(np.mean([one[key] for one in results])) for key in ("balanced_accuracy", "nll", "core_seconds")
    )
    return f"{top1}, balanced {100 * balanced:.1f} %, NLL {nll:.3f}, {cost:.0f} core-s, {len(results)} seed(s)"


def against(results: Results, side: str, base: str) -> str:
    """The paired difference `base` - `side`: images drawn again within each set, the sets weighed equally."""
    gains: dict[str, list[np.ndarray]] = defaultdict(list)
    by_key = {(one["set"], one["seed"], one["side"]): one for one in results}
    for (name, seed, which), result in by_key.items():
        other = by_key.get((name, seed, base))
        if which == side and other is not None:
            if result["names"] != other["names"]:
                raise SystemExit(f"{name}, seed {seed}: {side} and {base} were scored on other images")
            gains[name].append(100.0 * (np.array(other["correct"]) - np.array(result["correct"])))
    if not gains:
        return f"| {side} | 0 | - | - |"
    rng = np.random.default_rng(0)
    drawn, means, behind = [], [], []
    for name, seeds in gains.items():
        of_image = np.stack(seeds).mean(0)
        resampled = of_image[rng.integers(0, len(of_image), (NUM_RESAMPLES, len(of_image)))].mean(1)
        drawn.append(resampled)
        means.append(of_image.mean())
        if np.percentile(resampled, 97.5) < 0:
            behind.append(name)
    low, high = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
    mean = f"{np.mean(means):+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"| {side} | {len(gains)} | {mean} | {', '.join(behind) or 'none'} |"

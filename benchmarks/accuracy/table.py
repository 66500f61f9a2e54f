"""The results as tables: each side on each set, paired differences over all sets, and the peers' settings."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewsight.scores.metrics import wilson

NUM_RESAMPLES = 10_000
BEST = "best peer of each set"
Result = dict[str, Any]


def read_results(out: Path, split: str) -> list[Result]:
    """Every result of a split, at every budget."""
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"*-{split}.json"))]


# --- the peers' settings, by val -----------------------------------------------------------------------------


def peer_of(side: str) -> str:
    """The peer whose setting a side is; "" where it is none."""
    return side.partition("/")[0] if "/" in side else ""


def val_scores(val: Sequence[Result], budget: float, name: str) -> dict[str, float]:
    """Top-1 in % on val of each setting of each peer on a set, the mean over seeds.

    A peer without a result at the budget has those of its largest smaller one.
    """
    there = [one for one in val if one["set"] == name and peer_of(one["side"]) and one["budget"] <= budget]
    at: dict[str, float] = {}
    for one in there:
        at[peer_of(one["side"])] = max(one["budget"], at.get(peer_of(one["side"]), 0.0))
    found = defaultdict(list)
    for one in there:
        if one["budget"] == at[peer_of(one["side"])]:
            found[one["side"]].append(100 * one["count"] / one["n"])
    return {side: float(np.mean(each)) for side, each in found.items()}


def chosen(val: Sequence[Result], budget: float, name: str) -> dict[str, str]:
    """Peer -> its better setting on val of a set, the best peer first."""
    scores = val_scores(val, budget, name)
    choice: dict[str, str] = {}
    for side in sorted(scores, key=lambda side: (-scores[side], side)):
        choice.setdefault(peer_of(side), side)
    return choice


def at_chosen(results: Sequence[Result], val: Sequence[Result]) -> list[Result]:
    """The results with each peer at its chosen setting and by its own name, and `BEST`, the peer that val names."""
    kept = []
    for one in results:
        if not peer_of(one["side"]):
            kept.append(one)
            continue
        settings = chosen(val, one["budget"], one["set"])
        if settings.get(peer_of(one["side"])) == one["side"]:
            kept.append({**one, "side": peer_of(one["side"])})
            if next(iter(settings.values())) == one["side"]:
                kept.append({**one, "side": BEST})
    return kept


# --- means and intervals -------------------------------------------------------------------------------------


def values(results: Sequence[Result], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Of one side on one set: the mean over its seeds for each image, [n], and the groups that weigh equally, [n]."""
    each = [one["nlls"] if metric == "nll" else 100.0 * np.array(one["correct"]) for one in results]
    names = results[0]["names"]
    groups = [name.partition("/")[0] if metric == "balanced" else "" for name in names]
    return np.mean(each, axis=0), np.array(groups)


def drawn(of_image: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[1 + NUM_RESAMPLES] means over the groups: of the images themselves, then of images drawn again in each group."""
    means = []
    for group in np.unique(groups):
        members = of_image[groups == group]
        again = members[rng.integers(0, len(members), (NUM_RESAMPLES, len(members)))].mean(1)
        means.append(np.concatenate([[members.mean()], again]))
    return np.asarray(np.mean(means, axis=0))


def interval(draws: np.ndarray, form: str) -> str:
    """The mean and its 95 % interval."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return f"{draws[0]:{form}} [{low:{form}}, {high:{form}}]"


def differences(results: Sequence[Result], side: str, base: str, metric: str) -> dict[str, np.ndarray]:
    """Set -> `drawn` of `base` - `side`, paired by seed and image."""
    by_key = {(one["set"], one["side"], one["seed"]): one for one in results}
    pairs = defaultdict(list)
    for (name, which, seed), one in by_key.items():
        other = by_key.get((name, base, seed))
        if which == side and other is not None:
            if one["names"] != other["names"]:
                raise SystemExit(f"{name}, seed {seed}: {side} and {base} were scored on other images")
            pairs[name].append((other, one))
    found = {}
    rng = np.random.default_rng(0)
    for name, each in pairs.items():
        ours, groups = values([pair[0] for pair in each], metric)
        theirs, _ = values([pair[1] for pair in each], metric)
        found[name] = drawn(ours - theirs, groups, rng)
    return found


# --- tables --------------------------------------------------------------------------------------------------


def lines(results: Sequence[Result], val: Sequence[Result], base: str, budget: float) -> list[str]:
    """Markdown: top-1 at a glance, differences to `base`, every figure, and what val says of the peers' settings."""
    settled = at_chosen([one for one in results if one["budget"] == budget], val)
    sides = sorted({one["side"] for one in settled} - {BEST}, key=lambda side: (side != base, side))
    sets = list(dict.fromkeys(one["set"] for one in settled))
    return [
        *glance(settled, sides, sets),
        *against(settled, [*sides, BEST], base),
        *every_figure(settled, sides, sets),
        *settings(val, budget, sets),
    ]


def of(results: Sequence[Result], name: str, side: str) -> list[Result]:
    """One side on one set, a result a seed."""
    return [one for one in results if (one["set"], one["side"]) == (name, side)]


def glance(results: Sequence[Result], sides: Sequence[str], sets: Sequence[str]) -> list[str]:
    """Top-1 in %, a row a set; the means over the sets that all sides have."""
    top1 = {
        (name, side): 100 * float(np.mean([one["count"] / one["n"] for one in of(results, name, side)]))
        for name in sets
        for side in sides
        if of(results, name, side)
    }
    shared = [name for name in sets if all((name, side) in top1 for side in sides)]
    table = ["## Top-1, %", "", f"| set | {' | '.join(sides)} |", "|---" * (len(sides) + 1) + "|"]
    for name in sets:
        cells = [f"{top1[name, side]:.1f}" if (name, side) in top1 else "-" for side in sides]
        table.append(f"| {name} | {' | '.join(cells)} |")
    for title, over in (("mean", shared), ("mean without steel", [name for name in shared if name != "steel"])):
        if over:
            means = [f"{np.mean([top1[name, side] for name in over]):.1f}" for side in sides]
            table.append(f"| {title}, {len(over)} sets | {' | '.join(means)} |")
    return [*table, ""]


def against(results: Sequence[Result], sides: Sequence[str], base: str) -> list[str]:
    """`base` minus each side: the images drawn again in each set, the sets weighed equally."""
    table = [
        f"## {base} minus each side, in points, paired by set, seed and image",
        "",
        "| side | sets | top-1 | top-1 without steel | balanced accuracy | NLL | top-1 behind on, 95 % |",
        "|---" * 7 + "|",
    ]
    for side in sides:
        top1 = differences(results, side, base, "top1")
        if side == base or not top1:
            continue
        rest = [draws for name, draws in top1.items() if name != "steel"]
        cells = [mean_of(list(top1.values()), "+.1f"), mean_of(rest, "+.1f")]
        cells.append(mean_of(list(differences(results, side, base, "balanced").values()), "+.1f"))
        cells.append(mean_of(list(differences(results, side, base, "nll").values()), "+.3f"))
        behind = [name for name, draws in top1.items() if np.percentile(draws[1:], 97.5) < 0]
        table.append(f"| {side} | {len(top1)} | {' | '.join(cells)} | {', '.join(behind) or 'none'} |")
    return [*table, ""]


def mean_of(draws: Sequence[np.ndarray], form: str) -> str:
    """The mean over sets with its interval."""
    return interval(np.asarray(np.mean(draws, axis=0)), form) if draws else "-"


def every_figure(results: Sequence[Result], sides: Sequence[str], sets: Sequence[str]) -> list[str]:
    """A row a set and side, with intervals over images (Wilson's for top-1) and the cost."""
    table = [
        "## Each set and side",
        "",
        "| set | side | seeds | top-1 | balanced accuracy, % | NLL | core-seconds |",
        "|---" * 7 + "|",
    ]
    rng = np.random.default_rng(0)
    for name in sets:
        for side in sides:
            each = of(results, name, side)
            if each:
                top1 = wilson(round(float(np.mean([one["count"] for one in each]))), each[0]["n"])
                balanced = interval(drawn(*values(each, "balanced"), rng), ".1f")
                nll = interval(drawn(*values(each, "nll"), rng), ".3f")
                cost = np.mean([one["core_seconds"] for one in each])
                table.append(f"| {name} | {side} | {len(each)} | {top1} | {balanced} | {nll} | {cost:.0f} |")
    return [*table, ""]


def settings(val: Sequence[Result], budget: float, sets: Sequence[str]) -> list[str]:
    """Top-1 on val of each peer's settings, the chosen one in bold; then the best peer of each set."""
    scores = {name: val_scores(val, budget, name) for name in sets}
    choices = {name: chosen(val, budget, name) for name in sets}
    sides = sorted({side for name in sets for side in scores[name]})
    table = ["## The peers' settings: top-1 on val, %", "", f"| set | {' | '.join(sides)} | best peer |"]
    table.append("|---" * (len(sides) + 2) + "|")
    for name in sets:
        cells = []
        for side in sides:
            cell = f"{scores[name][side]:.1f}" if side in scores[name] else "-"
            cells.append(f"**{cell}**" if side in choices[name].values() else cell)
        table.append(f"| {name} | {' | '.join(cells)} | {next(iter(choices[name]), '-')} |")
    return table

"""Questions to kept scores, answered as lines with counts and intervals: rows, comparisons, ablations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fewsight.errors import RunError
from fewsight.scores.fusion import (
    Member,
    Result,
    Scored,
    Weights,
    check_not_trained_on,
    check_same_images,
    correct_top1,
    fuse_members,
    greedy_weights,
    open_scored,
    parse_views,
    read_weights,
    restrict,
    uniform,
)
from fewsight.scores.metrics import Paired, Proportion, paired, wilson
from fewsight.wording import counted


@dataclass(frozen=True)
class Line:
    """The accuracy of a fusion of results, and where it is compared with another, the paired difference."""

    name: str
    num_results: int
    top1: Proportion
    against: Paired | None = None


def lines_by_size(scored: Scored) -> list[Line]:
    """One line for each row (a run at a test size, the mean over its crops), then all of them together.

    Raises:
        RunError: the images have no labels.
    """
    several = len({row.run for row in scored.sized_runs}) > 1
    asked = [(f"{row.run} " * several + f"{row.px} px", uniform([row])) for row in scored.sized_runs]
    if len(asked) > 1:
        asked.append(("all views" if len(scored.members) == 1 else "fusion", scored.weights))
    return lines(asked)


def describe_mean(scored: Scored) -> str:
    """What the probabilities are, in words: `the view center-32`, `the mean of 8 views, each with its mirror image`."""
    results = list(scored.weights)
    mirrored = all(one.flips and one.store.about.flip for one in results)
    if len(results) == 1:
        return f"the view {results[0].view}" + " and its mirror image" * mirrored
    of = f" of {len(scored.members)} members" * (len(scored.members) > 1)
    weighed = "weighed " * (len(set(scored.weights.values())) > 1)
    return f"the {weighed}mean of {len(results)} views{of}" + ", each with its mirror image" * mirrored


def lines(asked: Sequence[tuple[str, Weights]], base: Weights | None = None) -> list[Line]:
    """A line for each fusion, in one pass over the files; paired with `base` where it is given."""
    found = correct_top1([*(weights for _, weights in asked), *([base] if base else [])])
    return [
        Line(name, len(weights), _share(one), paired(found[-1], one) if base else None)
        for (name, weights), one in zip(asked, found, strict=False)
    ]


def compare(first: Scored, second: Scored) -> Paired:
    """All of one run's views against all of another's, image by image.

    Raises:
        RunError: they hold other images or classes, or could not read the same ones.
    """
    check_same_images([first.first_store, second.first_store])
    before, after = correct_top1([first.weights, second.weights])
    return paired(before, after)


@dataclass(frozen=True)
class Ablation:
    """What the parts of a fusion give: the whole, then parts of it, each compared with it on the same images."""

    whole: Line
    groups: tuple[tuple[str, tuple[Line, ...]], ...]  # "by scale" -> lines


def ablate(scored: Scored) -> Ablation:
    """What each scale, each crop, the flips and each member give.

    Raises:
        RunError: there is nothing to take away.
    """
    whole = scored.weights
    asked = {group: parts for group, parts in _parts(scored).items() if parts}
    if not asked:
        raise RunError(
            f"{scored.path} has scores of one view, so there is nothing to take away; evaluate with --views report"
        )
    flat = [(group, name, weights) for group, parts in asked.items() for name, weights in parts.items()]
    found = correct_top1([whole, *(weights for _, _, weights in flat)])
    grouped: dict[str, list[Line]] = {group: [] for group in asked}
    for (group, name, weights), one in zip(flat, found[1:], strict=True):
        grouped[group].append(Line(name, len(weights), _share(one), paired(found[0], one)))
    top = Line("all together", len(whole), _share(found[0]))
    return Ablation(top, tuple((group, tuple(parts)) for group, parts in grouped.items()))


def _parts(scored: Scored) -> dict[str, dict[str, Weights]]:
    whole, results = scored.weights, list(scored.weights)
    sizes, crops = sorted({one.px for one in results}), sorted({one.crop for one in results})
    parts: dict[str, dict[str, Weights]] = {
        "one scale": {f"{px} px alone": restrict(whole, [one for one in results if one.px == px]) for px in sizes},
        "one crop": {
            f"{crop} crops alone": restrict(whole, [one for one in results if one.crop == crop]) for crop in crops
        },
        "flips": _without_flips(scored),
        "one member": {one.name: restrict(whole, _results([one])) for one in scored.members},
        "without a member": {
            f"without {one.name}": restrict(whole, _results([other for other in scored.members if other is not one]))
            for one in scored.members
        },
    }
    single = {"one scale": len(sizes), "one crop": len(crops), "flips": 2, "without a member": len(scored.members)}
    single["one member"] = len(scored.members)
    return {group: names for group, names in parts.items() if single[group] > 1}


def _without_flips(scored: Scored) -> dict[str, Weights]:
    """The same fusion of views without their flipped twins, where all of them were scored so too."""
    twins = {}
    for result, weight in scored.weights.items():
        if result.unmirrored.view not in result.store.views:
            return {}
        twins[result.unmirrored] = weight
    return {"without flips": twins}


def _results(members: Sequence[Member]) -> list[Result]:
    return [result for member in members for row in member.sized_runs for result in row.results]


def fuse(scored: Sequence[Scored], weights: Sequence[float] | None = None) -> Scored:
    """Runs as one ensemble: uniform over all their rows, or a weight for each run; one of weight 0 is left out.

    Raises:
        RunError: they hold other images or classes.
    """
    check_same_images([one.first_store for one in scored])
    shares = weights or [len(one.sized_runs) for one in scored]
    taken = [(as_member(one), share) for one, share in zip(scored, shares, strict=True) if share]
    members = tuple(member for member, _ in taken)
    return Scored(scored[0].path, members, fuse_members(members, [share for _, share in taken]))


def fusions(
    scored: Sequence[Scored], views: str | None, *, rows_alike: bool, weights: str | None, choose_on: str | None
) -> Iterator[tuple[str, Scored]]:
    """(what it is, the runs as one ensemble), for each way that is asked for.

    Args:
        views: that `scored` was restricted to.
        rows_alike: uniform over the rows.
        weights: a number for each run, with commas.
        choose_on: a split, on whose kept scores weights are chosen greedily.

    Raises:
        RunError: weights are not such numbers, or would be chosen on images that were trained on.
    """
    several = counted(len(scored), "run")
    if rows_alike:
        yield f"{several}, uniform over {counted(sum(len(one.sized_runs) for one in scored), 'row')}", fuse(scored)
    if weights is not None:
        yield f"{several}, weights {weights}", fuse(scored, read_weights(weights, len(scored)))
    if choose_on is not None:
        seen = [open_scored(one.path, choose_on, parse_views(views)) for one in scored]
        check_same_images([one.first_store for one in seen])
        for one in seen:
            check_not_trained_on(one, "weights")
        chosen = greedy_weights([as_member(one) for one in seen])
        told = ", ".join(f"{one:.2f}" for one in chosen)
        same = [one.first_store.path for one in seen] == [one.first_store.path for one in scored]
        flatters = ", so the figure flatters" if same else ""
        yield f"{several}, weights {told} chosen on {choose_on}{flatters}", fuse(scored, chosen)


def as_member(scored: Scored) -> Member:
    """A run, or an ensemble, as one member of another."""
    return Member(str(scored.path), scored.sized_runs, scored.weights)


def _share(found: np.ndarray) -> Proportion:
    return wilson(int(found.sum()), len(found))

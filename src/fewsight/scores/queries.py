"""Tables computed from stored scores: accuracy by test size, comparisons, ablations, fusions of runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fewsight.errors import RunError
from fewsight.scores.chosen_weights import check_not_trained_on, greedy_weights, parse_weights
from fewsight.scores.fusion import correct_top1
from fewsight.scores.members import Member, Result, Scored, Weights, check_same_images, fuse_members, restrict, uniform
from fewsight.scores.metrics import Paired, Proportion, paired, wilson
from fewsight.scores.opening import open_scored, parse_views
from fewsight.wording import counted


@dataclass(frozen=True)
class Line:
    """The accuracy of a fusion, with the paired difference if it is compared with another."""

    name: str
    num_results: int
    top1: Proportion
    against: Paired | None = None


def lines_by_size(scored: Scored) -> list[Line]:
    """A line for each run at a test size, then a line for all of them together.

    Raises:
        RunError: the images have no labels.
    """
    several = len({sized_run.run for sized_run in scored.sized_runs}) > 1
    named = [
        (f"{sized_run.run} " * several + f"{sized_run.px} px", uniform([sized_run])) for sized_run in scored.sized_runs
    ]
    if len(named) > 1:
        named.append(("all views" if len(scored.members) == 1 else "fusion", scored.weights))
    return lines(named)


def describe_mean(scored: Scored) -> str:
    """What a fusion averages: `the view center-32`, `the mean of 8 views, each with its mirror image`."""
    results = list(scored.weights)
    mirrored = all(result.flips and result.store.about.flip for result in results)
    if len(results) == 1:
        return f"the view {results[0].view}" + " and its mirror image" * mirrored
    members = f" of {len(scored.members)} members" * (len(scored.members) > 1)
    weighted = "weighted " * (len(set(scored.weights.values())) > 1)
    return f"the {weighted}mean of {len(results)} views{members}" + ", each with its mirror image" * mirrored


def better_part(scored: Scored) -> str | None:
    """A sentence with both accuracies if a member has a higher one than the fusion of all; None if not.

    A run at a test size is named only where the difference is significant: the best of many is often ahead by chance.

    Raises:
        RunError: the images have no labels.
    """
    members = {member.name: member.weights for member in scored.members} if len(scored.members) > 1 else {}
    several = len({sized_run.run for sized_run in scored.sized_runs}) > 1
    sizes = {f"{run.run} at {run.px} px" if several else f"{run.px} px": uniform([run]) for run in scored.sized_runs}
    parts = {**sizes, **members}
    if len(parts) == 1:
        return None
    whole, *correct = correct_top1([scored.weights, *parts.values()])
    gains = {name: paired(whole, row) for name, row in zip(parts, correct, strict=True)}
    better = [name for name, found in gains.items() if found.gain > 0 and (name in members or found.distinguishable)]
    if not better:
        return None
    best = max(better, key=lambda name: gains[name].gain)
    figures = _accuracy(whole), _accuracy(correct[list(parts).index(best)])
    return f"{best} alone has a higher accuracy ({figures[1]}) than the mean of all views ({figures[0]})"


def lines(named: Sequence[tuple[str, Weights]], base: Weights | None = None) -> list[Line]:
    """A line for each named fusion, in one pass over the files; compared with `base` if it is given."""
    correct = correct_top1([*(weights for _, weights in named), *([base] if base else [])])
    return [
        Line(name, len(weights), _accuracy(row), paired(correct[-1], row) if base else None)
        for (name, weights), row in zip(named, correct, strict=False)
    ]


def compare(first: Scored, second: Scored) -> Paired:
    """Compare two runs or ensembles image by image, each by the mean of all its views.

    Raises:
        RunError: their images or classes differ, or different images could not be read.
    """
    check_same_images([first.first_store, second.first_store])
    before, after = correct_top1([first.weights, second.weights])
    return paired(before, after)


@dataclass(frozen=True)
class Ablation:
    """The accuracy of a fusion and of parts of it, each compared with the whole on the same images."""

    whole: Line
    groups: tuple[tuple[str, tuple[Line, ...]], ...]  # "by scale" -> lines


def ablate(scored: Scored) -> Ablation:
    """The contribution of each scale, each crop, the mirrored views and each member.

    Raises:
        RunError: there is only one view, so that nothing can be left out.
    """
    whole = scored.weights
    groups = {group: parts for group, parts in _parts(scored).items() if parts}
    if not groups:
        raise RunError(f"{scored.path} has scores of one view, so nothing can be left out; evaluate with --views paper")
    flat = [(group, name, weights) for group, parts in groups.items() for name, weights in parts.items()]
    correct = correct_top1([whole, *(weights for _, _, weights in flat)])
    grouped: dict[str, list[Line]] = {group: [] for group in groups}
    for (group, name, weights), row in zip(flat, correct[1:], strict=True):
        grouped[group].append(Line(name, len(weights), _accuracy(row), paired(correct[0], row)))
    first_line = Line("all together", len(whole), _accuracy(correct[0]))
    return Ablation(first_line, tuple((group, tuple(parts)) for group, parts in grouped.items()))


def _parts(scored: Scored) -> dict[str, dict[str, Weights]]:
    """Group -> name -> part of the fusion, for the groups that have more than one part."""
    whole, results, members = scored.weights, list(scored.weights), scored.members
    sizes, crops = sorted({result.px for result in results}), sorted({result.crop for result in results})
    parts: dict[str, dict[str, Weights]] = {
        "one scale": {
            f"{px} px alone": restrict(whole, [result for result in results if result.px == px]) for px in sizes
        },
        "one crop": {
            f"{crop} crops alone": restrict(whole, [result for result in results if result.crop == crop])
            for crop in crops
        },
        "flips": _without_flips(scored),
        "one member": {member.name: restrict(whole, _results([member])) for member in members},
        "without a member": {
            f"without {member.name}": restrict(whole, _results([other for other in members if other is not member]))
            for member in members
        },
    }
    num_choices = {"one scale": len(sizes), "one crop": len(crops), "flips": 2, "without a member": len(members)}
    num_choices["one member"] = len(members)
    return {group: names for group, names in parts.items() if num_choices[group] > 1}


def _without_flips(scored: Scored) -> dict[str, Weights]:
    """The same fusion without mirrored views; empty unless all of its views were also scored without them."""
    weights = {}
    for result, weight in scored.weights.items():
        if result.unmirrored.view not in result.store.views:
            return {}
        weights[result.unmirrored] = weight
    return {"without flips": weights}


def _results(members: Sequence[Member]) -> list[Result]:
    return [result for member in members for sized_run in member.sized_runs for result in sized_run.results]


def fuse(scored: Sequence[Scored], weights: Sequence[float] | None = None) -> Scored:
    """Runs as the members of one ensemble.

    Args:
        scored: the runs' scores.
        weights: one for each run; a run of weight 0 is left out. None: uniform over all runs at a test size.

    Raises:
        RunError: their images or classes differ.
    """
    check_same_images([run.first_store for run in scored])
    run_weights = weights or [len(run.sized_runs) for run in scored]
    used = [(as_member(run), weight) for run, weight in zip(scored, run_weights, strict=True) if weight]
    members = tuple(member for member, _ in used)
    return Scored(scored[0].path, members, fuse_members(members, [weight for _, weight in used]))


def fusions(
    scored: Sequence[Scored], views: str | None, *, equal_weights: bool, weights: str | None, choose_on: str | None
) -> Iterator[tuple[str, Scored]]:
    """Runs as one ensemble, in each of the requested ways.

    Args:
        scored: the runs' scores.
        views: that `scored` was restricted to.
        equal_weights: uniform over all runs at a test size.
        weights: a number for each run, separated by commas.
        choose_on: a split, on whose stored scores weights are chosen greedily.

    Yields:
        A description, and the ensemble.

    Raises:
        RunError: the weights are not such numbers, or would be chosen on images that were trained on.
    """
    several = counted(len(scored), "run")
    if equal_weights:
        num_sized_runs = sum(len(run.sized_runs) for run in scored)
        yield f"{several}, uniform over {counted(num_sized_runs, 'test size')}", fuse(scored)
    if weights is not None:
        yield f"{several}, weights {weights}", fuse(scored, parse_weights(weights, len(scored)))
    if choose_on is not None:
        chosen_on = [open_scored(run.path, choose_on, parse_views(views)) for run in scored]
        check_same_images([run.first_store for run in chosen_on])
        for run in chosen_on:
            check_not_trained_on(run, "weights")
        chosen = greedy_weights([as_member(run) for run in chosen_on])
        numbers = ", ".join(f"{weight:.2f}" for weight in chosen)
        same_scores = [run.first_store.path for run in chosen_on] == [run.first_store.path for run in scored]
        remark = ", so the accuracy is optimistic" if same_scores else ""
        yield f"{several}, weights {numbers} chosen on {choose_on}{remark}", fuse(scored, chosen)


def as_member(scored: Scored) -> Member:
    """A run, or an ensemble, as one member of another."""
    return Member(str(scored.path), scored.sized_runs, scored.weights)


def _accuracy(correct: np.ndarray) -> Proportion:
    return wilson(int(correct.sum()), len(correct))

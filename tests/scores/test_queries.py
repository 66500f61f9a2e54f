"""Tables from stored scores against plain NumPy: lines by size, comparisons, ablations, runs as one ensemble."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewsight.errors import RunError
from fewsight.scores.entries import EnsembleEntry, write_entries
from fewsight.scores.fusion import fused_probs
from fewsight.scores.members import Scored, uniform
from fewsight.scores.metrics import paired, wilson
from fewsight.scores.opening import open_scored
from fewsight.scores.queries import Line, ablate, as_member, compare, describe_mean, fuse, lines, lines_by_size
from stores import probs_of, random_labels, random_scores, write_run, write_store

LABELS = random_labels(1, 60)
UNREADABLE = (0, 31)
READABLE = np.array([number not in UNREADABLE for number in range(60)])
VIEWS = ("center-8", "random-8", "center-12", "random-12")


def run_of(path: Path, seed: int, views: Sequence[str] = VIEWS, lead: float = 1.0, **options: Any) -> Scored:
    scores = {view: random_scores(10 * seed + number, LABELS, lead) for number, view in enumerate(views)}
    return write_run(path, scores, LABELS, **{"unreadable": UNREADABLE, **options})


def correct(*parts: tuple[Scored, str, float]) -> np.ndarray:
    """Which readable images a weighted mean of views classifies correctly."""
    mean = sum(weight * probs_of(scored.first_store, view) for scored, view, weight in parts)
    is_correct: np.ndarray = np.asarray(mean)[READABLE].argmax(1) == LABELS[READABLE]
    return is_correct


def equally(scored: Scored, views: Sequence[str]) -> np.ndarray:
    return correct(*[(scored, view, 1.0) for view in views])


def line(name: str, num_results: int, is_correct: np.ndarray, whole: np.ndarray | None = None) -> Line:
    top1 = wilson(int(is_correct.sum()), 58)
    return Line(name, num_results, top1, None if whole is None else paired(whole, is_correct))


@pytest.fixture
def first(tmp_path: Path) -> Scored:
    return run_of(tmp_path / "a", 1)


@pytest.fixture
def second(tmp_path: Path) -> Scored:
    return run_of(tmp_path / "b", 2, lead=1.5)


@pytest.fixture
def ensemble(first: Scored, second: Scored) -> Scored:
    """Member m: both runs at 8 px; member n: the first at 12 px, which has half of the weight."""
    path = first.path.parent
    (path / "runs").mkdir()
    for run in (first, second):
        run.path.rename(path / "runs" / run.path.name)
    write_entries(
        path, [EnsembleEntry("m", "a", 8, 0.2), EnsembleEntry("m", "b", 8, 0.3), EnsembleEntry("n", "a", 12, 0.5)]
    )
    return open_scored(path, "test")


def weighted(ensemble: Scored, **weights: float) -> np.ndarray:
    """`a8=0.2`: run a at 8 px."""
    stores = {run.run: open_scored(run.results[0].store.path, "test") for run in ensemble.sized_runs}
    return correct(
        *[
            (stores[name[0]], f"{crop}-{name[1:]}", weight)
            for name, weight in weights.items()
            for crop in ("center", "random")
        ]
    )


def test_mean_is_described_in_words(tmp_path: Path, ensemble: Scored) -> None:
    one, plain = run_of(tmp_path / "one", 1, VIEWS[:1]), run_of(tmp_path / "plain", 1, ("center-8", "center-8-noflip"))
    assert describe_mean(one) == "the view center-8 and its mirror image"
    assert describe_mean(open_scored(plain.path, "test", ("center-8-noflip",))) == "the view center-8-noflip"
    assert describe_mean(run_of(tmp_path / "all", 1)) == "the mean of 4 views, each with its mirror image"
    assert describe_mean(ensemble) == "the weighted mean of 6 views of 2 members, each with its mirror image"


# Lines by size


def test_lines_are_the_sizes_then_all_views(first: Scored) -> None:
    assert lines_by_size(first) == [
        line("8 px", 2, equally(first, VIEWS[:2])),
        line("12 px", 2, equally(first, VIEWS[2:])),
        line("all views", 4, equally(first, VIEWS)),
    ]
    assert len({entry.top1.count for entry in lines_by_size(first)}) > 1


def test_one_size_has_one_line(tmp_path: Path) -> None:
    scored = run_of(tmp_path / "a", 1, VIEWS[:2])
    assert lines_by_size(scored) == [line("8 px", 2, equally(scored, VIEWS[:2]))]


def test_lines_of_an_ensemble_are_named_after_its_runs(ensemble: Scored) -> None:
    assert lines_by_size(ensemble) == [
        line("a 8 px", 2, weighted(ensemble, a8=1)),
        line("b 8 px", 2, weighted(ensemble, b8=1)),
        line("a 12 px", 2, weighted(ensemble, a12=1)),
        line("fusion", 6, weighted(ensemble, a8=0.2, b8=0.3, a12=0.5)),
    ]


def test_lines_are_paired_with_a_base(first: Scored, second: Scored) -> None:
    found = lines([("all", first.weights), ("8 px", uniform(first.sized_runs[:1]))], second.weights)
    base = equally(second, VIEWS)
    assert found == [line("all", 4, equally(first, VIEWS), base), line("8 px", 2, equally(first, VIEWS[:2]), base)]


# Comparison


def test_comparison_uses_all_views_image_by_image(first: Scored, second: Scored) -> None:
    before, after = equally(first, VIEWS), equally(second, VIEWS)
    found = compare(first, second)
    assert found == paired(before, after)
    assert (found.second_only, found.first_only) == ((after & ~before).sum(), (before & ~after).sum())
    assert (found.gain > 0, found.total) == (True, 58)


def test_different_images_are_not_compared_or_fused(first: Scored, tmp_path: Path) -> None:
    other = run_of(tmp_path / "other", 3, unreadable=(1,))
    for query in (lambda: compare(first, other), lambda: fuse([first, other])):
        with pytest.raises(RunError, match="hold scores of different images, so they cannot be compared or fused"):
            query()


# Ablation


def test_ablation_of_a_run_has_parts_by_scale_and_crop(first: Scored) -> None:
    whole = equally(first, VIEWS)
    found = ablate(first)
    assert found.whole == line("all together", 4, whole)
    assert found.groups == (
        ("one scale", (
            line("8 px alone", 2, equally(first, VIEWS[:2]), whole),
            line("12 px alone", 2, equally(first, VIEWS[2:]), whole),
        )),
        ("one crop", (
            line("center crops alone", 2, equally(first, VIEWS[::2]), whole),
            line("random crops alone", 2, equally(first, VIEWS[1::2]), whole),
        )),
    )  # fmt: skip


def test_ablation_shows_flips_if_every_view_was_scored_without(tmp_path: Path) -> None:
    plain = [f"{view}-noflip" for view in VIEWS]
    scored = run_of(tmp_path / "a", 1, [*VIEWS, *plain])
    whole, without = equally(scored, VIEWS), equally(scored, plain)
    groups = dict(ablate(scored).groups)
    assert list(groups) == ["one scale", "one crop", "flips"]
    assert groups["flips"] == (line("without flips", 4, without, whole),)
    assert (whole != without).any()
    assert ablate(scored).whole == line("all together", 4, whole), "the unmirrored views are not in the whole"
    fewer = run_of(tmp_path / "b", 1, [*VIEWS, *plain[1:]])
    assert [group for group, _ in ablate(fewer).groups] == ["one scale", "one crop"]


def test_ablation_of_an_ensemble_has_parts_by_member(ensemble: Scored) -> None:
    whole = weighted(ensemble, a8=0.2, b8=0.3, a12=0.5)
    found = ablate(ensemble)
    assert found.whole == line("all together", 6, whole)
    groups = dict(found.groups)
    assert list(groups) == ["one scale", "one crop", "one member", "without a member"]
    member, other = weighted(ensemble, a8=0.2, b8=0.3), weighted(ensemble, a12=1)
    assert groups["one scale"] == (line("8 px alone", 4, member, whole), line("12 px alone", 2, other, whole))
    assert groups["one member"] == (line("m", 4, member, whole), line("n", 2, other, whole))
    assert groups["without a member"] == (line("without m", 2, other, whole), line("without n", 4, member, whole))


def test_ablation_leaves_one_of_three_runs_out(first: Scored, second: Scored, tmp_path: Path) -> None:
    runs = [first, second, run_of(tmp_path / "c", 3)]
    whole = correct(*[(run, view, 1.0) for run in runs for view in VIEWS])
    groups = dict(ablate(fuse(runs)).groups)
    assert groups["without a member"] == tuple(
        line(
            f"without {out.path}",
            8,
            correct(*[(run, view, 1.0) for run in runs if run is not out for view in VIEWS]),
            whole,
        )
        for out in runs
    )
    assert groups["one member"] == tuple(line(str(run.path), 4, equally(run, VIEWS), whole) for run in runs)


def test_run_of_weight_0_is_left_out(first: Scored, tmp_path: Path) -> None:
    """It is no member, whose mean would be empty, and marks no image as trained on."""
    trained = run_of(tmp_path / "trained", 3, trained_on=(1, 2))
    fused = fuse([first, trained], [2.0, 0.0])
    assert [member.name for member in fused.members] == [str(first.path)]
    assert fused.weights == pytest.approx(first.weights)
    assert not fused.trained_on.any()
    assert [group for group, _ in ablate(fused).groups] == ["one scale", "one crop"]


def test_ablation_of_one_view_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match="has scores of one view, so nothing can be left out; evaluate with --views paper"
    ):
        ablate(run_of(tmp_path / "a", 1, VIEWS[:1]))


def test_accuracies_need_labels(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", {view: random_scores(0, LABELS) for view in VIEWS})
    scored = open_scored(store.path, "test")
    for query in (lines_by_size, ablate, lambda run: compare(run, run)):
        with pytest.raises(RunError, match="have no labels"):
            query(scored)


# Runs as one ensemble


def test_fused_runs_are_uniform_over_sizes(first: Scored, tmp_path: Path) -> None:
    small = run_of(tmp_path / "b", 2, VIEWS[:2])
    found = fuse([first, small])
    assert found.weights == pytest.approx(uniform([*first.sized_runs, *small.sized_runs]))
    assert [member.name for member in found.members] == [str(first.path), str(small.path)]
    ((_, probs),) = fused_probs([found.weights])
    by_size = [
        [probs_of(run.first_store, view) for view in views]
        for run in (first, small)
        for views in (VIEWS[:2], VIEWS[2:])
        if set(views) <= set(run.first_store.views)
    ]
    expected = np.mean([np.mean(probs, axis=0) for probs in by_size], axis=0)
    np.testing.assert_allclose(probs[0], expected, rtol=2e-6)


def test_runs_are_fused_by_weights(first: Scored, second: Scored) -> None:
    found = fuse([first, second], [3.0, 1.0])
    ((_, probs),) = fused_probs([found.weights])
    means = [np.mean([probs_of(run.first_store, view) for view in VIEWS], axis=0) for run in (first, second)]
    np.testing.assert_allclose(probs[0], 0.75 * means[0] + 0.25 * means[1], rtol=2e-6)


def test_ensemble_keeps_its_weights_in_a_fusion(ensemble: Scored, tmp_path: Path) -> None:
    run = run_of(tmp_path / "c", 3)
    found = fuse([ensemble, run])
    assert [member.name for member in found.members] == [str(ensemble.path), str(run.path)]
    assert found.sized_runs == (*ensemble.sized_runs, *run.sized_runs)
    of_ensemble = {result: 0.6 * weight for result, weight in ensemble.weights.items()}
    of_run = {result: 0.4 * weight for result, weight in run.weights.items()}
    assert found.weights == pytest.approx({**of_ensemble, **of_run}), "3 sizes and 2"
    assert as_member(ensemble).weights == ensemble.weights

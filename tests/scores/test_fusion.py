"""The algebra of scores against plain loops in float64; bad stores, weights and ensembles are refused by name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewsight.augment.views import View
from fewsight.errors import RunError
from fewsight.scores import chosen_weights, fusion
from fewsight.scores.chosen_weights import check_not_trained_on, greedy_weights, parse_weights
from fewsight.scores.entries import EnsembleEntry, read_entries, write_entries
from fewsight.scores.fusion import correct_top1, fused_log_probs, fused_probs, label_indices, true_class_probs
from fewsight.scores.members import (
    Member,
    Result,
    Scored,
    SizedRun,
    Weights,
    check_same_images,
    fuse_members,
    make_member,
    restrict,
    scored_ensemble,
    scored_run,
    sized_runs,
    uniform,
)
from fewsight.scores.metrics import evaluate_scores
from fewsight.scores.opening import open_scored
from fewsight.scores.store import Store, read_store
from stores import CLASSES, mean_plainly, random_labels, random_scores, write_run, write_store

LABELS = random_labels(0, 23)
UNREADABLE = (4, 17)
READABLE = np.array([number not in UNREADABLE for number in range(23)])
VIEWS = ("center-12", "center-8", "center-8-noflip", "random-12", "random-8")


def store_of(
    path: Path, seed: int, views: Sequence[str] = VIEWS, labels: np.ndarray | None = LABELS, **options: Any
) -> Store:
    scores = {view: random_scores(10 * seed + number, LABELS) for number, view in enumerate(views)}
    return write_store(path, scores, labels, **{"unreadable": UNREADABLE, **options})


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Store, Store]:
    """The stores of two runs of the same 23 images, of which two are unreadable."""
    return store_of(tmp_path / "a", 1), store_of(tmp_path / "b", 2)


def by_view(weights: Weights) -> dict[tuple[str, str], float]:
    return {(result.store.path.name, result.view): weight for result, weight in weights.items()}


# Results, runs at a test size, members


@pytest.mark.parametrize(
    "view", [View("center", 64, 0, False), View("random", 448, 3, False), View("center", 64, 0), View("random", 8, 1)]
)
def test_result_parses_the_name_of_a_view(view: View, pair: tuple[Store, Store]) -> None:
    result = Result(pair[0], view.name)
    assert (result.crop, result.px, result.flips) == (view.crop, view.px, view.flip)
    assert Result(pair[0], view.cut).unmirrored.view == View(view.crop, view.px, view.scale, False).name


def test_sized_runs_begin_with_the_smallest(pair: tuple[Store, Store]) -> None:
    small, large = sized_runs("run", pair[0])
    assert (small.run, small.px, large.px) == ("run", 8, 12), "by number: as text 12 comes first"
    assert [result.view for result in small.results] == ["center-8", "random-8"]
    assert [result.view for result in large.results] == ["center-12", "random-12"]


def test_view_without_its_mirrored_view_is_used_only_by_name(pair: tuple[Store, Store]) -> None:
    (plain,) = sized_runs("run", pair[0], ["center-8-noflip"])
    assert [result.view for result in plain.results] == ["center-8-noflip"]
    (both,) = sized_runs("run", pair[0], ["random-8", "center-8-noflip", "center-99"])
    assert [result.view for result in both.results] == ["center-8-noflip", "random-8"]
    assert sized_runs("run", pair[0], ["center-99"]) == ()


def test_uniform_weights_sizes_equally_and_crops_within_them(tmp_path: Path) -> None:
    first, second = store_of(tmp_path / "a", 1, ("center-8", "random-8", "center-12")), store_of(tmp_path / "b", 2)
    weights = uniform([*sized_runs("a", first), *sized_runs("b", second)])
    expected = {
        **{("a", "center-8"): 1 / 8, ("a", "random-8"): 1 / 8, ("a", "center-12"): 1 / 4},
        **{("b", view): 1 / 8 for view in ("center-8", "random-8", "center-12", "random-12")},
    }
    assert by_view(weights) == pytest.approx(expected)


def test_run_weights_its_views_equally(pair: tuple[Store, Store], tmp_path: Path) -> None:
    scored = scored_run(tmp_path, "run", pair[0])
    assert by_view(scored.weights) == pytest.approx({("a", view): 1 / 4 for view in VIEWS if "noflip" not in view})
    assert ([member.name for member in scored.members], scored.sized_runs) == (["run"], sized_runs("run", pair[0]))
    with pytest.raises(RunError, match=r"has no view center-99, center-98; it has center-12, center-8, center-8-nofl"):
        scored_run(tmp_path, "run", pair[0], ["center-99", "center-98"])


def test_member_divides_its_weight_among_sizes(pair: tuple[Store, Store]) -> None:
    small, large = sized_runs("a", pair[0])
    member = make_member("m", [(small, 3.0), (large, 1.0)])
    expected = {"center-8": 3 / 8, "random-8": 3 / 8, "center-12": 1 / 8, "random-12": 1 / 8}
    assert by_view(member.weights) == pytest.approx({("a", view): weight for view, weight in expected.items()})
    assert (member.name, member.sized_runs) == ("m", (small, large))


def test_members_are_weighted_and_left_out_at_weight_0(pair: tuple[Store, Store]) -> None:
    a8, a12 = sized_runs("a", pair[0])
    (b8, _) = sized_runs("b", pair[1])
    first, second, third = (
        make_member("a", [(a8, 1.0), (a12, 1.0)]),
        make_member("b", [(b8, 1.0)]),
        make_member("c", [(a8, 1.0)]),
    )
    mixed = fuse_members([first, second, third], [2, 0, 6])
    expected = {"center-12": 1 / 16, "random-12": 1 / 16, "center-8": 7 / 16, "random-8": 7 / 16}
    assert by_view(mixed) == pytest.approx({("a", view): weight for view, weight in expected.items()})
    assert set(fuse_members([first, second], [1, 3])) == {*first.weights, *second.weights}
    assert sum(fuse_members([first, second], [1, 3])[result] for result in b8.results) == pytest.approx(3 / 4)


def test_restriction_keeps_the_proportions(pair: tuple[Store, Store]) -> None:
    (small, large) = sized_runs("a", pair[0])
    weights = {small.results[0]: 0.1, small.results[1]: 0.3, large.results[0]: 0.6}
    assert restrict(weights, small.results) == pytest.approx({small.results[0]: 0.25, small.results[1]: 0.75})
    assert restrict(weights, [*large.results, *sized_runs("b", pair[1])[0].results]) == pytest.approx(
        {large.results[0]: 1.0}
    )
    assert restrict(weights, large.results[1:]) == {}


# Sums over the files


@pytest.mark.parametrize("chunk_bytes", [None, 1, 420])
def test_fusion_equals_the_plain_loop(
    chunk_bytes: int | None, pair: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk_bytes is not None:
        monkeypatch.setattr(fusion, "CHUNK_BYTES", chunk_bytes)
    runs = [*sized_runs("a", pair[0]), *sized_runs("b", pair[1])]
    plain = Result(pair[1], "center-8-noflip")
    fusions = [uniform(runs), uniform(runs[:1]), {plain: 0.25, runs[3].results[1]: 0.75}, {plain: 1.0}]
    parts = list(fused_probs(fusions))
    indices = [index for part, _ in parts for index in range(part.start, part.stop)]
    assert indices == list(range(23)), "each image once, in order"
    assert len(parts) == {None: 1, 1: 23, 420: 12}[chunk_bytes], "9 results, 4 fusions, 4 classes: 208 bytes per image"
    probs = np.concatenate([chunk for _, chunk in parts], axis=1)
    assert probs.dtype == np.float32
    expected = np.stack([mean_plainly(weights) for weights in fusions])
    np.testing.assert_allclose(probs, expected, rtol=2e-6)
    assert np.array_equal(np.isnan(probs).any((0, 2)), ~READABLE)

    kept = expected[:, READABLE]
    is_correct = kept.argmax(2) == LABELS[READABLE]
    assert np.array_equal(correct_top1(fusions), is_correct)
    assert len({tuple(row) for row in is_correct}) > 1, "the fusions differ"
    np.testing.assert_allclose(true_class_probs(fusions), kept[:, np.arange(21), LABELS[READABLE]], rtol=2e-6)
    assert true_class_probs(fusions).dtype == np.float64
    np.testing.assert_allclose(fused_log_probs(fusions[0]), np.log(expected[0]), rtol=1e-5, atol=1e-6)


def test_fused_log_probs_of_tiny_probabilities_are_finite_and_exact(tmp_path: Path) -> None:
    sure = np.array([[0.0, -690.0, -200.0, -80.0]])
    store = write_store(tmp_path / "s", {"center-8": sure, "random-8": sure - [0, 10, 0, 0]}, [1])
    alone = fused_log_probs({Result(store, "center-8"): 1.0})
    np.testing.assert_allclose(alone, sure, rtol=1e-6)
    both = fused_log_probs({Result(store, "center-8"): 0.75, Result(store, "random-8"): 0.25})
    expected = [0, -690 + np.log(0.75 + 0.25 * np.exp(-10)), -200, -80]
    np.testing.assert_allclose(both, [expected], rtol=1e-6)
    assert evaluate_scores(both, np.array([1]), CLASSES).nll == pytest.approx(-expected[1], rel=1e-6)


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_stored_scores_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    scores = random_scores(0, LABELS)
    store = write_store(tmp_path / "s", {"center-8": scores}, LABELS)
    damaged = scores.copy()
    damaged[4] = [0, value, -100, -100]
    (store.path / "center-8.f32").write_bytes(damaged.astype("<f4").tobytes())
    with pytest.raises(RunError, match=r"scores of s/4\.png in center-8 are damaged \(not finite"):
        fused_log_probs({Result(store, "center-8"): 1.0})


def test_labels_are_indices_into_the_classes(pair: tuple[Store, Store]) -> None:
    assert np.array_equal(label_indices(pair[0]), LABELS)


def test_accuracies_need_labels_and_readable_images(tmp_path: Path) -> None:
    scores = {"center-8": random_scores(0, LABELS)}
    unlabelled = write_store(tmp_path / "a", scores)
    for query in (correct_top1, true_class_probs):
        with pytest.raises(RunError, match="a: its images have no labels, so there is no accuracy"):
            query([{Result(unlabelled, "center-8"): 1.0}])
    with pytest.raises(RunError, match="none of its 23 images could be read"):
        label_indices(write_store(tmp_path / "b", scores, LABELS, unreadable=range(23)))
    strange = write_store(tmp_path / "c", scores, [*LABELS[1:], "cow"])
    with pytest.raises(RunError, match="an image has the label 'cow', which is not one of its classes"):
        label_indices(read_store(strange.path))


# Scores that cannot be compared


@pytest.mark.parametrize("harm", ["digest", "order", "label", "readable", "fewer", "class", "order of classes"])
def test_scores_of_different_images_are_not_compared(harm: str, pair: tuple[Store, Store], tmp_path: Path) -> None:
    digests = [f"{number:016x}" for number in range(23)]
    labels, scores, options = LABELS.copy(), random_scores(3, LABELS), dict[str, Any](unreadable=UNREADABLE)
    expected = (
        r"other and .*a hold scores of different images, so they cannot be compared or fused; evaluate both on the"
    )
    if harm == "digest":
        options["digests"] = [*digests[:22], "f" * 16]
    elif harm == "order":
        first, second = np.flatnonzero(labels == 0)[:2]  # so that only the digests differ
        digests[first], digests[second] = digests[second], digests[first]
        options["digests"] = digests
    elif harm == "label":
        labels[3] = (labels[3] + 1) % 4
    elif harm == "readable":
        options["unreadable"] = UNREADABLE[:1]
    elif harm == "fewer":
        labels, scores = labels[:22], scores[:22]
    elif harm == "class":
        options["classes"] = ("ant", "bee", "cat", "emu")
        expected = r"other and .*a have different classes.*only one of them has 'dog', 'emu'"
    elif harm == "order of classes":
        options["classes"] = ("bee", "ant", "cat", "dog")
        expected = r"other and .*a have different classes"
    other = write_store(tmp_path / "other", {"center-8": scores}, labels, **options)
    with pytest.raises(RunError, match=expected):
        check_same_images([*pair, other])
    with pytest.raises(RunError, match=expected):
        correct_top1([{Result(pair[0], "center-8"): 0.5, Result(other, "center-8"): 0.5}])
    with pytest.raises(RunError, match=expected):
        correct_top1([{Result(pair[0], "center-8"): 1.0}, {Result(other, "center-8"): 1.0}])


def test_same_images_under_other_names_may_be_compared(pair: tuple[Store, Store]) -> None:
    assert pair[0].images[0].path != pair[1].images[0].path
    check_same_images(pair)
    check_same_images(pair[:1])


def test_nothing_is_chosen_on_images_that_a_member_was_trained_on(pair: tuple[Store, Store], tmp_path: Path) -> None:
    trained = store_of(tmp_path / "trained", 3, trained_on=(1, 2, 22))
    untrained = [scored_run(tmp_path / store.path.name, store.path.name, store) for store in pair]
    for scored in untrained:
        check_not_trained_on(scored, "weights")
    runs = [*untrained[0].sized_runs, *sized_runs("trained", trained)]
    members = (*untrained[0].members, make_member("trained", [(runs[-1], 1.0)]))
    both = Scored(tmp_path / "both", members, uniform(runs))
    assert np.flatnonzero(both.trained_on).tolist() == [1, 2, 22]
    with pytest.raises(
        RunError, match=r"both: 3 of these 23 images were trained on, so a temperature cannot be chosen"
    ):
        check_not_trained_on(both, "a temperature")


# Weights chosen greedily


def members_of(path: Path, scores: Sequence[np.ndarray], labels: np.ndarray, **options: Any) -> list[Member]:
    members = []
    for number, log_probs in enumerate(scores):
        store = write_store(path / f"m{number}", {"center-8": log_probs}, labels, **options)
        members.append(scored_run(store.path, store.path.name, store).members[0])
    return members


def greedy_plainly(scores: Sequence[np.ndarray], labels: np.ndarray, steps: int) -> np.ndarray:
    """How often each member is added: every mixture of every step, image by image, in float64."""
    probs = [np.exp(log_probs.astype(np.float64)) for log_probs in scores]
    counts, best, best_counts = [0] * len(probs), (-1, -np.inf), [0]
    for step in range(1, steps + 1):
        candidates = []
        for member in range(len(probs)):
            more = [count + (number == member) for number, count in enumerate(counts)]
            num_correct, log_likelihood = 0, 0.0
            for image, label in enumerate(labels):
                mixed = sum(count * of_member[image] for count, of_member in zip(more, probs, strict=True)) / step
                num_correct += int(mixed.argmax() == label)
                log_likelihood += float(np.log(mixed[label]))
            candidates.append((num_correct, log_likelihood, more))
        num_correct, log_likelihood, counts = max(candidates, key=lambda candidate: candidate[:2])
        if (num_correct, log_likelihood) > best:
            best, best_counts = (num_correct, log_likelihood), counts
    return np.array(best_counts)


@pytest.mark.parametrize("seed", range(8))
def test_greedy_weights_equal_the_plain_search(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = random_labels(seed, 14 + seed)
    scores = [random_scores(100 * seed + number, labels, 0.6) for number in range(4)]
    unreadable = [3, 9]
    if seed % 2:
        monkeypatch.setattr(fusion, "CHUNK_BYTES", 300)
    found = greedy_weights(members_of(tmp_path, scores, labels, unreadable=unreadable), steps=9)
    kept = np.delete(np.arange(len(labels)), unreadable)
    expected = greedy_plainly([log_probs[kept] for log_probs in scores], labels[kept], 9)
    assert found == tuple(expected / expected.sum())


def test_plain_search_adds_members_twice_and_ends_before_the_last_step() -> None:
    """So that the test above covers both."""
    chosen = []
    for seed in range(8):
        labels = random_labels(seed, 14 + seed)
        chosen.append(
            greedy_plainly([random_scores(100 * seed + number, labels, 0.6) for number in range(4)], labels, 9)
        )
    assert any(2 < counts.sum() < 9 for counts in chosen)
    assert any(counts.max() > 1 and (counts > 0).sum() > 1 for counts in chosen)


def two_classes(*of_ant: float) -> np.ndarray:
    """float32 [n, 4]: log-probabilities of the first two classes; the others have almost none."""
    first = np.array(of_ant)
    rest = np.full(len(first), 1e-6)
    return np.log(np.stack([first, 1 - first - 2e-6, rest, rest], axis=1)).astype(np.float32)


def test_greedy_weights_prefer_top1_then_nll(tmp_path: Path) -> None:
    labels = np.array([0, 0, 0])
    correct_but_unsure, wrong_once = two_classes(0.51, 0.51, 0.51), two_classes(0.99, 0.99, 0.49)
    assert greedy_weights(members_of(tmp_path / "a", [wrong_once, correct_but_unsure], labels), 1) == (0.0, 1.0)
    low, high = two_classes(0.6, 0.6, 0.4), two_classes(0.4, 0.7, 0.7)
    assert greedy_weights(members_of(tmp_path / "b", [low, high], labels), 1) == (0.0, 1.0), (
        "of equal top-1, the lower NLL"
    )
    same = members_of(tmp_path / "c", [high, high], labels)
    assert greedy_weights(same) == (1.0, 0.0), "the first of equal members, and none that changes nothing"


def test_greedy_weights_are_taken_with_replacement_and_end_at_the_best_step(tmp_path: Path) -> None:
    labels = np.array([0, 0])
    # 2 a + b is correct on both images, a + b and every other mixture on one: the third step is the best, with b once
    scores = [two_classes(0.60, 0.45), two_classes(0.35, 0.62)]
    members = members_of(tmp_path, scores, labels)
    assert (2 * 0.60 + 0.35 > 1.5, 2 * 0.45 + 0.62 > 1.5, 0.60 + 0.35 > 1) == (True, True, False)
    found, counts = greedy_weights(members), greedy_plainly(scores, labels, chosen_weights.GREEDY_STEPS)
    assert found == tuple(counts / counts.sum())
    assert correct_top1([fuse_members(members, found)]).all()
    assert not correct_top1([fuse_members(members, [1, 1])]).all()
    assert found[0] > found[1] > 0


@pytest.mark.parametrize("label", [0, 1])
def test_images_on_which_all_members_agree_change_nothing(label: int, tmp_path: Path) -> None:
    """Whether they are correct or wrong, as long as every member gives the label the same probability."""
    labels = random_labels(5, 12)
    scores = [random_scores(50 + number, labels, 0.6) for number in range(3)]
    before = greedy_weights(members_of(tmp_path / "few", scores, labels))
    assert len([weight for weight in before if weight]) > 1
    agreed = two_classes(*[0.9] * 40)
    more = [np.concatenate([log_probs, agreed]) for log_probs in scores]
    after = greedy_weights(members_of(tmp_path / "many", more, np.concatenate([labels, np.full(40, label)])))
    assert after == before


def test_only_images_on_which_members_differ_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = random_labels(6, 30)
    scores = [random_scores(60 + number, labels, 2.0) for number in range(3)]
    predicted = np.stack([log_probs.argmax(1) for log_probs in scores])
    differ = (predicted != predicted[0]).any(0)
    differ[[0, int(np.flatnonzero(differ)[0])]] = False
    tried, num_correct = list[int](), chosen_weights._num_correct

    def spy(file: Any, part: Any, mixtures: np.ndarray) -> np.ndarray:
        tried.append(len(part.labels))
        return num_correct(file, part, mixtures)

    monkeypatch.setattr(chosen_weights, "_num_correct", spy)
    unreadable = [0, int(np.flatnonzero((predicted != predicted[0]).any(0))[0])]
    found = greedy_weights(members_of(tmp_path, scores, labels, unreadable=unreadable), steps=4)
    assert tried == [differ.sum()] * 4
    assert 0 < differ.sum() < 20
    kept = np.delete(np.arange(30), unreadable)
    counts = greedy_plainly([log_probs[kept] for log_probs in scores], labels[kept], 4)
    assert found == tuple(counts / counts.sum())


def test_member_that_never_helps_gets_0(tmp_path: Path) -> None:
    labels = random_labels(7, 40)
    scores = [random_scores(70, labels, 1.0), random_scores(71, labels, -4.0), random_scores(72, labels, 1.0)]
    found = greedy_weights(members_of(tmp_path, scores, labels))
    assert found[1] == 0.0
    assert found[0] > 0
    assert found[2] > 0
    members = members_of(tmp_path / "again", scores, labels)
    assert (
        correct_top1([fuse_members(members, found)]).sum()
        >= correct_top1([member.weights for member in members]).sum(1).max()
    )


def test_label_of_probability_0_gives_no_warning(tmp_path: Path) -> None:
    never, often = np.log(np.array([[1e-300, 1.0, 1e-300, 1e-300]] * 3)), two_classes(0.9, 0.9, 0.1)
    assert greedy_weights(members_of(tmp_path, [never, often], np.array([0, 0, 1]))) == (0.0, 1.0)


def test_greedy_weights_need_labels(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", {"center-8": random_scores(0, LABELS)})
    with pytest.raises(RunError, match="have no labels"):
        greedy_weights(scored_run(tmp_path, "s", store).members)


# --weights


def test_weights_are_parsed_and_sum_to_one() -> None:
    assert parse_weights("2,1,1", 3) == (0.5, 0.25, 0.25)
    assert parse_weights(" 0 , 1e1", 2) == (0.0, 1.0)
    assert parse_weights("7", 1) == (1.0,)


@pytest.mark.parametrize(
    "text", ["1", "1,2,3", "a,b", "1;2", "1,", "", "-1,2", "0,0", "nan,1", "inf,1", "1e400,1", "1e308,1e308"]
)
def test_wrong_weights_are_refused(text: str) -> None:
    expected = (
        rf"--weights {text}: expected a finite number of at least 0 for each of the 2 members, not all 0, for example 2"
    )
    with pytest.raises(RunError, match=expected):
        parse_weights(text, 2)


# ensemble.json


ENTRIES = (EnsembleEntry("m", "a", 8, 0.5), EnsembleEntry("m", "b", 12, 1 / 3), EnsembleEntry("n", "b", 8, 1 / 6))


def test_entries_are_written_and_read_back(tmp_path: Path) -> None:
    write_entries(tmp_path, ENTRIES)
    assert read_entries(tmp_path) == ENTRIES


ROW = {"member": "m", "run": "a", "px": 8, "weight": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"run": "../x"},
        {"run": ".."},
        {"run": "."},
        {"run": ""},
        {"run": "/etc"},
        {"run": "a/b"},
        {"weight": 0.0},
        {"weight": -0.5},
        {"weight": 1.5},
        {"weight": float("nan")},
        {"weight": float("inf")},
        {"weight": "heavy"},
        {"weight": None},
        {"px": "big"},
        {"px": None},
        {"px": float("inf")},
    ],
    ids=str,
)
def test_invalid_entry_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "ensemble.json").write_text(json.dumps({"rows": [ROW, {**ROW, **change}]}))
    with pytest.raises(RunError, match=r"ensemble\.json is not what `fewsight ensemble` wrote"):
        read_entries(tmp_path)


@pytest.mark.parametrize("missing", list(ROW))
def test_entry_without_a_key_is_refused(missing: str, tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != missing}
    (tmp_path / "ensemble.json").write_text(json.dumps({"rows": [row]}))
    with pytest.raises(RunError, match=rf"is not what `fewsight ensemble` wrote: rows\.0\.{missing}: Field required"):
        read_entries(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"rows": []}', "is not what `fewsight ensemble` wrote: no rows"),
        ("{}", "is not what `fewsight ensemble` wrote"),
        ("[]", "is not what `fewsight ensemble` wrote"),
        ('{"rows": 3}', "is not what `fewsight ensemble` wrote"),
        ('{"rows": "ab"}', "is not what `fewsight ensemble` wrote"),
        ("null", "is not what `fewsight ensemble` wrote"),
        ("{", "cannot read .*ensemble.json"),
        ("", "cannot read .*ensemble.json"),
    ],
)
def test_damaged_ensemble_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "ensemble.json").write_text(text)
    with pytest.raises(RunError, match=expected):
        read_entries(tmp_path)
    with pytest.raises(RunError, match=expected):
        open_scored(tmp_path, "test")


# Opening stored scores


def test_scores_open_by_run_and_split_or_by_their_folder(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"center-8": random_scores(0, LABELS)}, LABELS)
    for path in (tmp_path / "run", tmp_path / "run" / "scores" / "test"):
        scored = open_scored(path, "test")
        assert (scored.path, scored.first_store.path) == (path, tmp_path / "run" / "scores" / "test")
    with pytest.raises(RunError, match=r"run has no scores of 'val'; it has scores of test \(--split\)"):
        open_scored(tmp_path / "run", "val")
    with pytest.raises(
        RunError, match=r"no does not exist; expected a run that was evaluated, an ensemble, or a folder of scores"
    ):
        open_scored(tmp_path / "no", "test")


@pytest.mark.parametrize("beside", [False, True])
def test_scores_of_an_ensemble_are_in_its_runs_or_beside(beside: bool, tmp_path: Path) -> None:
    write_entries(tmp_path, ENTRIES)
    with pytest.raises(RunError, match=r"a has no scores of 'test'; make them with: fewsight evaluate \S*[0-9] DATA"):
        open_scored(tmp_path, "test")
    for seed, name in enumerate("ab", start=1):
        store_of(tmp_path / name if beside else tmp_path / "runs" / name / "scores" / "test", seed)
    scored = open_scored(tmp_path, "test")
    assert [(member.name, [(run.run, run.px) for run in member.sized_runs]) for member in scored.members] == [
        ("m", [("a", 8), ("b", 12)]),
        ("n", [("b", 8)]),
    ]
    weight_of = {("a", 8): 0.5, ("b", 12): 1 / 3, ("b", 8): 1 / 6}
    for run in scored.sized_runs:
        assert [result.crop for result in run.results] == ["center", "random"]
        assert [scored.weights[result] for result in run.results] == pytest.approx([weight_of[run.run, run.px] / 2] * 2)
    assert len(scored.weights) == 6
    assert sorted(scored.members[0].weights.values()) == pytest.approx([0.2, 0.2, 0.3, 0.3]), "within the member"
    centers = open_scored(tmp_path, "test", ["center-8"])
    assert [(run.run, run.px) for run in centers.sized_runs] == [("a", 8), ("b", 8)]
    assert sorted(centers.weights.values()) == pytest.approx([0.25, 0.75])
    with pytest.raises(RunError, match="no member has a view center-99"):
        open_scored(tmp_path, "test", ["center-99"])


def test_ensemble_needs_every_size_on_the_same_images(pair: tuple[Store, Store], tmp_path: Path) -> None:
    stores = dict(zip("ab", pair, strict=True))
    with pytest.raises(RunError, match=r"b has no scores at 16 px; it has center-12.*: evaluate .*e again"):
        scored_ensemble(tmp_path / "e", [*ENTRIES, EnsembleEntry("n", "b", 16, 0.1)], stores)
    fewer = store_of(tmp_path / "fewer", 3, unreadable=())
    with pytest.raises(RunError, match="hold scores of different images"):
        scored_ensemble(tmp_path / "e", ENTRIES, {"a": pair[0], "b": fewer})


def test_sized_runs_are_values(pair: tuple[Store, Store]) -> None:
    assert sized_runs("a", pair[0])[0] == SizedRun("a", 8, (Result(pair[0], "center-8"), Result(pair[0], "random-8")))
    assert Result(pair[0], "center-8") != Result(pair[1], "center-8")

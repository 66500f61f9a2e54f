"""Metrics by hand and against torchmetrics."""

import math

import numpy as np
import pytest
import torch

from fewsight.inference.prediction_files import prediction_rows
from fewsight.scores.metrics import evaluate_scores, label_ranks, paired, wilson


def test_wilson_interval_has_its_published_values() -> None:
    proportion = wilson(81, 263)  # Newcombe 1998, Statistics in Medicine 17, table I: 0.2553 to 0.3662
    assert (round(proportion.low, 4), round(proportion.high, 4)) == (0.2553, 0.3662)
    none, all_ = wilson(0, 20), wilson(20, 20)  # the same table: 0 to 0.1611
    assert (none.low, round(none.high, 4)) == (0.0, 0.1611)
    assert (round(all_.low, 4), all_.high) == (0.8389, 1.0)


def test_metrics_of_a_small_case_by_hand() -> None:
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    figures = evaluate_scores(np.log(probs), np.array([0, 1, 1, 2]), ("a", "b", "c"), num_images=5)
    assert (figures.top1.count, figures.top1.total, figures.num_images) == (3, 4, 5)
    assert (figures.top_k, figures.top5.value) == (3, 1.0)
    assert figures.balanced_accuracy == pytest.approx((1 + 0.5 + 1) / 3)
    assert figures.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert figures.nll == pytest.approx(-np.log([0.7, 0.6, 0.3, 0.6]).mean())
    assert figures.confusions == (("b", "a", 1),)
    assert [of_class.count for of_class in figures.classes] == [1, 2, 1]


def test_class_without_images_is_left_out_of_means() -> None:
    log_probs = np.log(np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]))
    figures = evaluate_scores(log_probs, np.array([0, 1]), ("a", "b", "c"))
    assert figures.balanced_accuracy == figures.macro_f1 == 1.0
    assert figures.classes[2].recall is None


def test_ties_go_to_the_class_of_the_lower_index_at_every_k() -> None:
    """As `predict` lists the classes."""
    classes = tuple("abcdefgh")
    log_probs = np.log(np.array([[0.3, 0.3, 0.1, 0.1, 0.1, 0.1 / 3, 0.1 / 3, 0.1 / 3]] * 8))
    labels = np.arange(8)
    assert label_ranks(log_probs, labels).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    figures = evaluate_scores(log_probs, labels, classes)
    assert (figures.top1.count, figures.top5.count) == (1, 5)
    rows = list(prediction_rows(["x"] * 8, log_probs, [None] * 8, classes, 5))
    listed = [[row[f"label{rank}"] for rank in ("", 2, 3, 4, 5)] for row in rows]
    assert sum(classes[label] in names for label, names in zip(labels, listed, strict=True)) == figures.top5.count
    equal = np.full((1, 1000), -np.log(1000))
    assert evaluate_scores(equal, np.array([999]), tuple(map(str, range(1000)))).top5.count == 0


def test_metrics_agree_with_torchmetrics() -> None:
    classification = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(400, 12)), rng.integers(12, size=400)
    figures = evaluate_scores(scores, labels, tuple("abcdefghijkl"))
    given = torch.tensor(scores), torch.tensor(labels)
    for value, k, average in ((figures.top1.value, 1, "micro"), (figures.top5.value, 5, "micro"),
                              (figures.balanced_accuracy, 1, "macro")):  # fmt: skip
        theirs = classification.multiclass_accuracy(*given, num_classes=12, top_k=k, average=average)
        assert value == pytest.approx(theirs.item(), abs=1e-6)
    theirs = classification.multiclass_f1_score(*given, num_classes=12, average="macro")
    assert figures.macro_f1 == pytest.approx(theirs.item(), abs=1e-6)


def test_paired_comparison_counts_by_hand() -> None:
    first = np.array([True] * 60 + [False] * 40)
    second = np.array([True] * 50 + [False] * 10 + [True] * 25 + [False] * 15)
    found = paired(first, second)
    assert (found.first_only, found.second_only, found.total, found.gain) == (10, 25, 100, 0.15)
    tail = sum(math.comb(35, k) for k in range(25, 36)) / 2**35
    assert found.p_value == pytest.approx(2 * tail)
    assert found.low == pytest.approx(0.15 - 1.96 * math.sqrt(0.35 - 0.15**2) / 10, abs=0.015)
    assert found.high == pytest.approx(0.15 + 1.96 * math.sqrt(0.35 - 0.15**2) / 10, abs=0.015)
    assert "+15.0 points" in str(found)
    assert "not distinguishable" not in str(found)


def test_paired_interval_excludes_0_exactly_where_the_test_is_significant() -> None:
    for first_only in range(12):
        for second_only in range(12):
            total = first_only + second_only + 40
            first = np.arange(total) < first_only
            second = np.arange(total) >= total - second_only
            found = paired(first, second)
            assert found.low <= found.gain <= found.high
            assert found.distinguishable == (found.low > 0 or found.high < 0)
            assert ("not distinguishable" in found.brief()) == (found.low <= 0 <= found.high)


def test_paired_comparison_says_when_it_is_not_significant() -> None:
    correct = np.array([True, False, True])
    same = paired(correct, correct)
    assert (same.gain, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert str(same).endswith("not distinguishable on these 3 images")
    assert "on 3 images (both correct on the same images), McNemar" in str(same)
    assert "on 3 images (2 correct in it alone, 1 in the first alone), McNemar" in str(paired(~correct, correct))

"""Temperatures: known ones are recovered, only the confidence changes, and they are stored with their views."""

import io
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss

from fewsight.cli.show import show_calibrations
from fewsight.errors import RecipeError, RunError
from fewsight.scores import calibration
from fewsight.scores.calibration import (
    Calibration,
    apply_temperature,
    calibrate,
    calibration_for,
    choose_threshold,
    fit_temperature,
    keep_temperature,
    read_calibrations,
    write_calibrations,
)
from fewsight.scores.entries import EnsembleEntry, write_entries
from fewsight.scores.fusion import fused_log_probs
from fewsight.scores.members import Scored, scored_run
from fewsight.scores.opening import open_scored
from fewsight.terminal import make_console
from stores import CLASSES, log_softmax, random_labels, random_scores, write_run, write_store

EXAMPLE = Calibration(1.5, ("center-8",), "a/scores/val", 10, (0.75, 0.5), (0.25, 0.125))


def drawn(count: int, sharper: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [n, K], `sharper` than the distribution that the labels [n] are drawn from."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(count, len(CLASSES)))
    probs = np.exp(log_softmax(logits))
    labels = (rng.random((count, 1)) > probs.cumsum(1)).sum(1).clip(0, len(CLASSES) - 1)
    return log_softmax(sharper * logits), labels


def run_of(path: Path, scores: np.ndarray, labels: np.ndarray, **options: Any) -> Scored:
    return write_run(path, {"center-8": scores}, labels, **options)


def nll_plainly(scores: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    powers = np.exp(scores.astype(np.float64)) ** (1 / temperature)
    return float(log_loss(labels, powers / powers.sum(1, keepdims=True), labels=range(len(CLASSES))))


def ece_plainly(scores: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """Guo et al., equations 2 and 3, bin by bin."""
    powers = np.exp(scores.astype(np.float64)) ** (1 / temperature)
    probs = powers / powers.sum(1, keepdims=True)
    error = 0.0
    for number in range(15):
        inside = [
            image
            for image in range(len(labels))
            if number / 15 <= probs[image].max() < (number + 1) / 15 or (number == 14 and probs[image].max() == 1)
        ]
        if inside:
            accuracy = np.mean([probs[image].argmax() == labels[image] for image in inside])
            confidence = np.mean([probs[image].max() for image in inside])
            error += len(inside) / len(labels) * abs(accuracy - confidence)
    return error


# The temperature


@pytest.mark.parametrize("sharper", [0.5, 1.0, 2.5])
def test_known_temperature_is_recovered(sharper: float, tmp_path: Path) -> None:
    scores, labels = drawn(6000, sharper)
    unreadable = (0, 5999)
    fitted = fit_temperature(run_of(tmp_path / "run", scores, labels, unreadable=unreadable))
    assert fitted.temperature == pytest.approx(sharper, rel=0.05)
    assert (fitted.views, fitted.num_images) == (("center-8",), 5998)
    assert fitted.fitted_on == str(tmp_path / "run" / "scores" / "test")
    around = [nll_plainly(scores[1:-1], labels[1:-1], factor * fitted.temperature) for factor in (0.99, 1, 1.01)]
    assert around[1] < min(around[0], around[2]), "the NLL has a minimum there"
    if sharper != 1:
        assert fitted.ece[1] < fitted.ece[0] / 3


def test_figures_before_and_after_equal_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CHUNK_IMAGES", 64)
    scores, labels = drawn(300, 3.0, seed=1)
    scores[7], labels[7] = np.log([1 - 3e-9, 1e-9, 1e-9, 1e-9]), 0  # the highest confidence: the last bin
    fitted = fit_temperature(run_of(tmp_path / "run", scores, labels))
    for index, temperature in enumerate((1.0, fitted.temperature)):
        assert fitted.nll[index] == pytest.approx(nll_plainly(scores, labels, temperature), rel=1e-5)
        assert fitted.ece[index] == pytest.approx(ece_plainly(scores, labels, temperature), rel=1e-4)


def test_temperature_is_that_of_the_mean_of_views_and_members(tmp_path: Path) -> None:
    first, labels = drawn(400, 2.0)
    second = random_scores(3, labels, 2.0)
    scored = write_run(tmp_path / "run", {"center-8": first, "random-8": second}, labels)
    fitted = fit_temperature(scored)
    mean = np.log((np.exp(first.astype(np.float64)) + np.exp(second.astype(np.float64))) / 2)
    assert fitted.views == ("center-8", "random-8")
    assert fitted.nll == pytest.approx(
        [nll_plainly(mean, labels, temperature) for temperature in (1, fitted.temperature)], rel=1e-5
    )
    around = [nll_plainly(mean, labels, factor * fitted.temperature) for factor in (0.97, 1, 1.03)]
    assert around[1] < min(around[0], around[2])


@pytest.mark.parametrize("lead", [-1.0, 0.0, 1.0, 4.0, 12.0])
def test_nll_with_one_more_image_never_grows(lead: float, tmp_path: Path) -> None:
    for seed in range(4):
        labels = random_labels(seed, 40)
        scores = random_scores(seed, labels, lead)
        fitted = fit_temperature(run_of(tmp_path / f"{seed}", scores, labels))
        second = np.argsort(-scores, axis=1)[:, 1]
        found, *others = (
            40 * nll_plainly(scores, labels, temperature) + nll_plainly(scores, second, temperature)
            for temperature in (fitted.temperature, 1, 0.97 * fitted.temperature, 1.03 * fitted.temperature)
            if temperature <= 20
        )
        assert found <= min(others)
        assert 0.05 <= fitted.temperature <= 20


@pytest.mark.parametrize("num_images", [30, 300, 3000])
def test_temperature_of_a_training_is_bounded_where_every_image_is_right(num_images: int, tmp_path: Path) -> None:
    """The mean probability of the labels comes near n / (n + 1): Laplace's rule for n of n."""
    labels = random_labels(0, num_images)
    keep_temperature(tmp_path, random_scores(0, labels, 30.0) * 0.1, labels, "center-8", chose_weights=True)
    (kept,) = read_calibrations(tmp_path)
    assert (kept.views, kept.num_images, kept.num_chose_weights) == (("center-8",), num_images, num_images)
    scores = apply_temperature(random_scores(0, labels, 30.0) * 0.1, kept.temperature)
    assert 1 - np.exp(scores[np.arange(num_images), labels]).mean() == pytest.approx(1 / (num_images + 1), rel=0.3)
    assert "chose the epoch of the weights" in kept.notes[-1]


def test_temperature_of_a_training_is_that_of_the_same_scores(tmp_path: Path) -> None:
    scores, labels = drawn(1500, 2.0)
    keep_temperature(tmp_path, scores, labels, "center-8", chose_weights=False)
    (kept,) = read_calibrations(tmp_path)
    fitted = fit_temperature(run_of(tmp_path / "a", scores, labels))
    assert kept.temperature == pytest.approx(fitted.temperature, rel=0.01)
    assert kept.notes == ()
    keep_temperature(tmp_path / "few", scores[:29], labels[:29], "center-8", chose_weights=False)
    assert read_calibrations(tmp_path / "few") == []


@pytest.mark.parametrize("coverage", [None, 0.9])
def test_calibrating_gives_the_temperature_of_the_training(coverage: float | None, tmp_path: Path) -> None:
    """Where every image is right too: the NLL alone, which falls without end, would take 0.05."""
    labels = random_labels(0, 40)
    scores = log_softmax(0.1 * random_scores(0, labels, 30.0))
    run_of(tmp_path / "run", scores, labels)
    keep_temperature(tmp_path / "run", scores, labels, "center-8", chose_weights=False)
    (kept,) = read_calibrations(tmp_path / "run")
    (fitted,) = calibrate(tmp_path / "run", "test", None, coverage)
    assert fitted.temperature == pytest.approx(kept.temperature, rel=1e-3)
    assert fitted.temperature > 0.3
    assert fitted.doubt is None


def test_calibrating_again_keeps_the_coverage_of_the_threshold(tmp_path: Path) -> None:
    run_of(tmp_path / "run", *drawn(60))
    (first,) = calibrate(tmp_path / "run", "test", None, 0.8)
    (again,) = calibrate(tmp_path / "run", "test", None)
    assert again.threshold == first.threshold is not None
    (other,) = calibrate(tmp_path / "run", "test", None, 0.5)
    assert other.threshold is not None
    assert other.threshold.coverage == 0.5


@pytest.mark.parametrize("coverage", [None, 0.6])
def test_too_few_images_for_a_temperature_are_refused(coverage: float | None, tmp_path: Path) -> None:
    """Unreadable images do not count, and an older temperature stays."""
    scores, labels = drawn(30)
    run_of(tmp_path / "few", scores, labels, unreadable=(3,))
    write_calibrations(tmp_path / "few", [EXAMPLE])
    with pytest.raises(RunError, match=r"has 29 images, and a temperature needs at least 30 labelled images that did"):
        calibrate(tmp_path / "few", "test", None, coverage)
    assert read_calibrations(tmp_path / "few") == [EXAMPLE]
    run_of(tmp_path / "enough", scores, labels)
    assert len(calibrate(tmp_path / "enough", "test", None, coverage)) == 1


def test_temperature_at_the_end_of_its_range_is_said(tmp_path: Path) -> None:
    """Scores that say nothing of the labels: the best probabilities are equal ones, at an infinite temperature."""
    labels = random_labels(0, 400)
    fitted = fit_temperature(run_of(tmp_path / "run", random_scores(1, random_labels(1, 400), 9.0), labels))
    assert (
        fitted.doubt == "this temperature is at the end of the range that is searched, 0.05 to 20: the best lies beyond"
    )
    file = io.StringIO()
    show_calibrations(make_console(file), "run", [fitted])
    assert "note: this temperature is at the end of the range" in " ".join(file.getvalue().split())
    assert replace(EXAMPLE, num_images=30).doubt is None
    assert "was fitted on 10 images, and a temperature needs at least 30" in str(EXAMPLE.doubt)


def test_calibrated_scores_need_no_temperature(tmp_path: Path) -> None:
    scores, labels = drawn(200, 2.0)
    fitted = fit_temperature(run_of(tmp_path / "a", scores, labels))
    again = fit_temperature(run_of(tmp_path / "b", apply_temperature(scores, fitted.temperature), labels))
    assert again.temperature == pytest.approx(1, rel=1e-3)
    assert again.nll[0] == pytest.approx(fitted.nll[1], rel=1e-6)
    assert again.nll[1] <= again.nll[0] + 1e-7, "up to float32 rounding"


def test_label_of_probability_0_does_not_decide(tmp_path: Path) -> None:
    """An image whose label has no measurable probability has the same NLL at each temperature."""
    scores, labels = drawn(1500, 2.0)
    without = fit_temperature(run_of(tmp_path / "a", scores, labels)).temperature
    scores[0], labels[0] = [0.0, -690, -690, -690], 2
    fitted = fit_temperature(run_of(tmp_path / "b", scores, labels))
    assert fitted.temperature == pytest.approx(without, rel=0.01)
    assert np.isfinite(fitted.nll).all()


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0, 20.0])
def test_temperature_keeps_the_order_and_sums_to_1(temperature: float) -> None:
    scores = random_scores(0, random_labels(0, 200), 3.0)
    scaled = apply_temperature(scores, temperature)
    assert scaled.dtype == np.float32
    assert np.array_equal(np.argsort(scaled, axis=1, kind="stable"), np.argsort(scores, axis=1, kind="stable"))
    np.testing.assert_allclose(np.exp(scaled.astype(np.float64)).sum(1), 1, rtol=1e-6)
    powers = np.exp(scores.astype(np.float64)) ** (1 / temperature)
    np.testing.assert_allclose(np.exp(scaled), powers / powers.sum(1, keepdims=True), rtol=1e-4, atol=1e-30)
    if temperature != 1:
        is_higher = np.exp(scaled).max(1) > np.exp(scores).max(1)
        assert is_higher.all() == (temperature < 1)
        assert is_higher.any() == (temperature < 1)


def test_temperature_1_changes_nothing() -> None:
    scores = random_scores(0, random_labels(0, 200), 3.0)
    np.testing.assert_allclose(apply_temperature(scores, 1.0), scores, atol=1e-6)


def test_nan_of_unreadable_images_stays() -> None:
    scores = np.array([[np.nan] * 4, [0.0, -np.inf, -np.inf, -np.inf]], np.float32)
    scaled = apply_temperature(scores, 2.0)
    assert np.isnan(scaled[0]).all()
    assert scaled[1].tolist() == [0.0, -np.inf, -np.inf, -np.inf]


@pytest.mark.parametrize("number", [1, 3])
def test_no_temperature_from_images_that_were_trained_on(number: int, tmp_path: Path) -> None:
    scores, labels = drawn(20)
    run_of(tmp_path / "run", scores, labels, trained_on=range(number))
    with pytest.raises(RunError, match=rf"{number} of these 20 images were trained on, so a temperature cannot be"):
        calibrate(tmp_path / "run", "test", None)
    assert not (tmp_path / "run" / "calibration.json").exists()


def test_no_temperature_without_labels(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", {"center-8": drawn(20)[0]})
    with pytest.raises(RunError, match="have no labels"):
        fit_temperature(scored_run(tmp_path, "s", store))


# The threshold


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_threshold_accepts_the_coverage_of_new_images(coverage: float) -> None:
    """On average over draws, as the quantile guarantees; a plain quantile of the n images would accept fewer."""
    rng = np.random.default_rng(0)
    accepted = []
    for _ in range(400):
        threshold = choose_threshold(rng.beta(5, 2, 40), np.ones(40, bool), coverage, "val")
        accepted.append((rng.beta(5, 2, 2000) >= threshold.prob).mean())
    assert coverage - 0.005 < np.mean(accepted) < coverage + 2 / 41


def test_threshold_is_between_two_images_and_counts_the_accepted() -> None:
    confidence = np.array([0.9, 0.2, 0.5, 0.7, 0.6, 0.3, 0.8, 0.4, 0.95])
    is_correct = np.array([True, True, False, True, False, False, True, False, True])
    threshold = choose_threshold(confidence, is_correct, 0.6, "val")
    assert threshold.prob == pytest.approx(0.45), "between the 6th and the 7th"
    assert (threshold.kept, threshold.right) == (6, 4)
    assert str(threshold.accuracy).startswith("66.7 % [")


def test_threshold_of_equal_confidences_accepts_them_all() -> None:
    assert choose_threshold(np.full(30, 0.4), np.ones(30, bool), 0.9, "val").kept == 30


def test_too_few_images_for_a_coverage_are_refused() -> None:
    with pytest.raises(RunError, match=r"coverage 0\.95 needs at least 19 images .* there are 18; give at most 0\.947"):
        choose_threshold(np.linspace(0.1, 1, 18), np.ones(18, bool), 0.95, "val")
    assert choose_threshold(np.linspace(0.1, 1, 19), np.ones(19, bool), 0.95, "val").kept == 19


@pytest.mark.parametrize(
    ("num_images", "ece", "expected"),
    [
        (
            60,
            (0.113, 0.171),
            r"the calibration error grew, .*; the calibration error of 60 images is largely chance, .* 15 groups",
        ),
        (60, (0.2, 0.1), r"the calibration error of 60 images is largely chance, .*: compare the NLL instead"),
        (1000, (0.1, 0.2), r"the calibration error grew, because .* not for the lowest calibration error"),
        (1000, (0.2, 0.1), None),
    ],
)
def test_calibration_has_a_note_on_its_error(num_images: int, ece: tuple[float, float], expected: str | None) -> None:
    note = replace(EXAMPLE, num_images=num_images, ece=ece).note
    assert note is None if expected is None else re.fullmatch(expected + ".*", note or "")
    file = io.StringIO()
    show_calibrations(make_console(file), "run", [replace(EXAMPLE, num_images=num_images, ece=ece)])
    assert ("note: " in file.getvalue()) == (expected is not None)


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.5, 95.0, float("nan")])
def test_coverage_that_is_no_proportion_is_refused(coverage: float, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"expected a proportion between 0 and 1, such as 0\.95"):
        calibrate(tmp_path, "test", None, coverage)


def test_threshold_applies_to_the_calibrated_probabilities_of_its_views(tmp_path: Path) -> None:
    labels = random_labels(0, 60)
    views = {view: random_scores(number, labels) for number, view in enumerate(("center-8", "random-8"))}
    write_run(tmp_path / "run", views, labels)
    for fitted in calibrate(tmp_path / "run", "test", None, 0.9):
        mean = np.mean([np.exp(views[view].astype(np.float64)) for view in fitted.views], axis=0)
        powers = mean ** (1 / fitted.temperature)
        confidence = (powers / powers.sum(1, keepdims=True)).max(1)
        assert fitted.threshold is not None
        assert fitted.threshold.kept == (confidence >= fitted.threshold.prob).sum() == 55
        assert fitted.threshold.right == (mean.argmax(1) == labels)[confidence >= fitted.threshold.prob].sum()
        assert calibration_for(tmp_path / "run", fitted.views) == fitted, "as it was stored"
    again = [fitted.threshold for fitted in calibrate(tmp_path / "run", "test", None)]
    assert [threshold is not None and threshold.coverage for threshold in again] == [0.9, 0.9], "its own, chosen anew"


def test_no_threshold_from_images_that_were_trained_on(tmp_path: Path) -> None:
    scores, labels = drawn(200)
    run_of(tmp_path / "run", scores, labels, trained_on=range(3))
    with pytest.raises(RunError, match="3 of these 200 images were trained on"):
        calibrate(tmp_path / "run", "test", None, 0.9)


# The views that are calibrated


def test_run_is_calibrated_for_each_centre_view_and_for_all_views(tmp_path: Path) -> None:
    labels = random_labels(0, 50)
    views = {view: random_scores(number, labels) for number, view in enumerate(("center-12", "center-8", "random-8"))}
    write_run(tmp_path / "run", {**views, "center-8-noflip": views["center-8"]}, labels)
    calibrations = calibrate(tmp_path / "run", "test", None)
    assert [fitted.views for fitted in calibrations] == [
        ("center-12",),
        ("center-8",),
        ("center-12", "center-8", "random-8"),
    ]
    assert read_calibrations(tmp_path / "run") == calibrations
    for fitted in calibrations:
        assert fitted == fit_temperature(open_scored(tmp_path / "run", "test", fitted.views))
    assert len({fitted.temperature for fitted in calibrations}) == 3


def test_named_views_are_calibrated_together(tmp_path: Path) -> None:
    labels = random_labels(0, 50)
    views = {view: random_scores(number, labels) for number, view in enumerate(("center-12", "center-8", "random-8"))}
    write_run(tmp_path / "run", views, labels)
    (fitted,) = calibrate(tmp_path / "run", "test", "random-8, center-12")
    assert fitted.views == ("center-12", "random-8")
    assert calibration_for(tmp_path / "run", ["center-12", "random-8"]) == fitted
    with pytest.raises(RunError, match="has no view center-99"):
        calibrate(tmp_path / "run", "test", "center-99")


def test_one_view_is_calibrated_once(tmp_path: Path) -> None:
    scores, labels = drawn(30)
    run_of(tmp_path / "run", scores, labels)
    assert [fitted.views for fitted in calibrate(tmp_path / "run", "test", None)] == [("center-8",)]


def test_ensemble_is_calibrated_for_its_centres_together(tmp_path: Path) -> None:
    labels = random_labels(0, 50)
    write_entries(tmp_path, [EnsembleEntry("m", "a", 8, 0.5), EnsembleEntry("n", "b", 12, 0.5)])
    for seed, (name, px) in enumerate([("a", 8), ("b", 12)]):
        views = {f"{crop}-{px}": random_scores(2 * seed + (crop == "random"), labels) for crop in ("center", "random")}
        write_store(tmp_path / "runs" / name / "scores" / "test", views, labels)
    calibrations = calibrate(tmp_path, "test", None)
    all_views = ("center-12", "center-8", "random-12", "random-8")
    assert [fitted.views for fitted in calibrations] == [("center-12", "center-8"), all_views]
    assert calibrations[0].nll[0] == pytest.approx(
        nll_plainly(fused_log_probs(open_scored(tmp_path, "test", ["center-8", "center-12"]).weights), labels, 1),
        rel=1e-5,
    )


# calibration.json


def test_temperatures_are_stored_and_replaced_by_views(tmp_path: Path) -> None:
    assert read_calibrations(tmp_path) == []
    both = replace(EXAMPLE, views=("center-8", "random-8"), temperature=2.0)
    write_calibrations(tmp_path, [EXAMPLE, both])
    assert read_calibrations(tmp_path) == [EXAMPLE, both]
    again = replace(EXAMPLE, temperature=0.9, fitted_on="elsewhere")
    write_calibrations(tmp_path, [again])
    assert read_calibrations(tmp_path) == [again, both]
    write_calibrations(tmp_path, [])
    assert read_calibrations(tmp_path) == [again, both]


def test_temperature_is_valid_for_a_set_of_views(tmp_path: Path) -> None:
    assert calibration_for(tmp_path, ["center-8"]) is None
    both = replace(EXAMPLE, views=("center-8", "random-8"), temperature=2.0)
    write_calibrations(tmp_path, [EXAMPLE, both])
    assert calibration_for(tmp_path, ["center-8"]) == EXAMPLE
    assert calibration_for(tmp_path, ["random-8", "center-8"]) == both, "in any order"
    assert calibration_for(tmp_path, ["random-8"]) is None
    assert calibration_for(tmp_path, ["center-8", "random-8", "center-12"]) is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"calibrations": 3},
        {"calibrations": None},
        {"calibrations": [3]},
        {"calibrations": [{}]},
        {"calibrations": [{**asdict(EXAMPLE), "more": 1}]},
        {"calibrations": [{**asdict(EXAMPLE), "temperature": "1.5"}]},
        {"calibrations": [{**asdict(EXAMPLE), "temperature": None}]},
        {"calibrations": [{**asdict(EXAMPLE), "threshold": 0.5}]},
        {"calibrations": [{**asdict(EXAMPLE), "threshold": {"prob": 0.5}}]},
        {"calibrations": [{**asdict(EXAMPLE), "threshold": {"prob": "0.5", "coverage": 0.9, "kept": 9, "right": 8}}]},
    ],
    ids=str,
)
def test_damaged_calibration_is_refused(value: object, tmp_path: Path) -> None:
    text = json.dumps(value)
    (tmp_path / "calibration.json").write_text(text)
    for access in (
        lambda: read_calibrations(tmp_path),
        lambda: calibration_for(tmp_path, ["center-8"]),
        lambda: write_calibrations(tmp_path, [EXAMPLE]),
    ):
        with pytest.raises(RunError, match=r"calibration\.json is not what `fewsight scores calibrate` wrote"):
            access()
    assert (tmp_path / "calibration.json").read_text() == text, "left unchanged"


@pytest.mark.parametrize("temperature", [0, 0.049, 20.1, -1, float("nan"), float("inf")])
def test_temperature_out_of_range_is_refused(temperature: float, tmp_path: Path) -> None:
    text = json.dumps({"calibrations": [asdict(EXAMPLE), {**asdict(EXAMPLE), "temperature": temperature}]})
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(RunError, match=r"calibration\.json: a temperature is not between 0\.05 and 20\.0; remove the"):
        read_calibrations(tmp_path)


@pytest.mark.parametrize("prob", [-0.1, 1.1, float("nan")])
def test_threshold_that_is_no_probability_is_refused(prob: float, tmp_path: Path) -> None:
    threshold = {"prob": prob, "coverage": 0.9, "kept": 9, "right": 8}
    text = json.dumps({"calibrations": [{**asdict(EXAMPLE), "threshold": threshold}]})
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(RunError, match=r"calibration\.json: a threshold is not a probability; remove the file"):
        read_calibrations(tmp_path)


def test_calibration_of_an_older_fewsight_has_no_threshold(tmp_path: Path) -> None:
    old = {key: value for key, value in asdict(EXAMPLE).items() if key != "threshold"}
    (tmp_path / "calibration.json").write_text(json.dumps({"calibrations": [old]}))
    assert read_calibrations(tmp_path) == [EXAMPLE]


def test_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text('{"calibrations": [')
    with pytest.raises(RunError, match=r"cannot read .*calibration\.json"):
        calibration_for(tmp_path, ["center-8"])

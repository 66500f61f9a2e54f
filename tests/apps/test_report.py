"""The page on runs: figures of the scores, escaped names, no requests; and the list of runs."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from conftest import TINY, Command
from fewsight.apps.listing import list_runs, seed_groups
from fewsight.apps.report import gather, write_report
from fewsight.apps.report.suspects import confident_from, suspects
from fewsight.errors import RunError
from fewsight.inference.evaluate import evaluate
from fewsight.machine import locks
from fewsight.scores.calibration import calibration_error, reliability_bins
from fewsight.training.session import train
from stores import CLASSES, log_softmax, random_labels, random_scores, write_run

VIEWS = ("center-8", "random-8")


class Page(HTMLParser):
    """The text of a page, and every address that it would request."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.text, self.addresses, self.tags = "", list[str](), list[str]()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "poster")]


def scored_run(path: Path, num: int = 200, seed: int = 1) -> Path:
    labels = random_labels(0, num)
    write_run(path, {view: random_scores(seed + number, labels, 2.0) for number, view in enumerate(VIEWS)}, labels)
    return path


def test_facts_are_those_of_the_scores(tmp_path: Path) -> None:
    labels = random_labels(0, 200)
    facts = gather(scored_run(tmp_path / "run"))
    views = [np.exp(random_scores(1 + number, labels, 2.0).astype(np.float64)) for number in range(2)]
    probs = np.mean(views, 0)
    predicted = probs.argmax(1)
    assert facts.figures.top1.count == (predicted == labels).sum()
    for true in range(len(CLASSES)):
        for other in range(len(CLASSES)):
            assert facts.confusion[true, other] == ((labels == true) & (predicted == other)).sum()
    wrong = np.flatnonzero(predicted != labels)
    most_confident = wrong[np.argsort(-probs[wrong, predicted[wrong]])]
    assert [entry.path for entry in facts.examples.mistakes] == [f"test/{index}.png" for index in most_confident[:24]]
    assert [entry.path for entry in facts.examples.unsure] == [
        f"test/{index}.png" for index in np.argsort(probs.max(1))[:24]
    ]
    first = facts.examples.mistakes[0]
    assert (first.label, first.predicted) == (CLASSES[labels[most_confident[0]]], CLASSES[predicted[most_confident[0]]])
    assert first.prob == pytest.approx(probs[most_confident[0], predicted[most_confident[0]]], rel=1e-5)
    assert first.label_prob == pytest.approx(probs[most_confident[0], labels[most_confident[0]]], rel=1e-5)
    assert sum(entry.count for entry in facts.calibration.bins) == 200


def test_wrong_labels_are_suspected_first() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    logits = rng.normal(size=(400, 4))
    logits[np.arange(400), labels] += 4
    noisy = labels.copy()
    changed = rng.choice(400, 12, replace=False)
    noisy[changed] = (labels[changed] + 1) % 4
    suspected, predicted = suspects(log_softmax(logits), noisy)
    assert len(set(suspected[:12]) & set(changed)) >= 10
    assert (predicted != noisy[suspected]).all()
    assert (predicted[:12] == labels[suspected[:12]]).mean() > 0.8


def test_weak_run_suspects_few_labels(tmp_path: Path) -> None:
    labels = random_labels(0, 400)
    scores = random_scores(1, labels, 0.5)
    mistakes = np.flatnonzero(scores.argmax(1) != labels)
    suspected, _ = suspects(scores, labels)
    assert len(mistakes) > 200
    assert len(suspected) < 10
    assert suspects(scores, (scores.argmax(1) + 1) % 4)[0].tolist() == [], "never correct, so never confident"
    bound = confident_from(scores, labels)
    assert bound is not None
    confident = np.exp(scores.max(1).astype(np.float64)) >= bound
    assert (scores.argmax(1) == labels)[confident].mean() >= 0.9


def test_own_confusions_are_not_suspected() -> None:
    """Two of four classes look alike; wrong labels of the other two are found, confident confusions are left out."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 100)
    logits = rng.normal(size=(400, 4))
    logits[np.arange(400), labels] += 9
    alike = labels < 2
    logits[alike, :2] = rng.normal(size=(200, 2)) * 3 + 9
    logits[alike, labels[alike]] += 4
    noisy = labels.copy()
    noisy[[210, 250, 290]] = 3
    scores = log_softmax(logits)
    confident = (scores.argmax(1) != noisy) & (np.exp(scores.max(1)) > 0.9)
    assert confident.sum() > 10
    assert sorted(suspects(scores, noisy)[0]) == [210, 250, 290]


def test_page_says_why_labels_are_suspected(tmp_path: Path) -> None:
    labels = random_labels(0, 400)
    noisy = labels.copy()
    noisy[:30] = (labels[:30] + 1) % 4
    write_run(tmp_path / "strong", {"center-8": random_scores(1, labels, 9.0)}, noisy)
    weak = np.where(np.arange(400)[:, None] < 250, random_scores(1, labels, 9.0), random_scores(1, labels, 0.0))
    write_run(tmp_path / "weak", {"center-8": weak}, noisy)
    texts = []
    for name in ("strong", "weak"):
        write_report([tmp_path / name], tmp_path / "page.html")
        texts.append(" ".join(Page(tmp_path / "page.html").text.split()))
        assert gather(tmp_path / name).examples.num_suspects > 0
    assert "This applies to 30 of these 400 images, of which the first 24 are shown." in texts[0]
    assert ["This list is unreliable" in text for text in texts] == [False, True]


def test_reliability_is_exact_for_a_calibrated_run() -> None:
    confidence = np.array([0.6] * 10 + [0.9] * 10)
    scores = np.log(np.stack([confidence, 1 - confidence], 1)).astype(np.float32)
    labels = np.array([0] * 6 + [1] * 4 + [0] * 9 + [1])
    low, high = reliability_bins(scores, labels)
    assert (low.count, high.count) == (10, 10)
    assert (low.accuracy, high.accuracy) == (0.6, 0.9)
    assert calibration_error([low, high]) == pytest.approx(0, abs=1e-6)


def test_page_of_a_real_run_makes_no_request_and_shows_its_images(
    tiny_run: Path, enough_val: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for split in ("test", "val"):
        evaluate(run, enough_val, split=split, views="report")
    assert command("scores", "calibrate", run, "--coverage", "0.8").code == 0
    other = scored_run(tmp_path / "other")
    answer = command("report", run, run, "--out", tmp_path / "page.html")
    assert answer.code == 0, answer
    page = Page(tmp_path / "page.html")
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert page.addresses, "images are shown"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val"]
    top1 = gather(run).figures.top1
    assert f"{100 * top1.value:.1f} %" in page.text
    assert "top-1 on 15 images of test in 3 classes" in page.text
    assert page.text.count("the mean of 2 views") == 3, "once for the page's figures and once for each compared run"
    for text in ("nought", "training loss", "one crop", "at the stored temperature", "recipe.toml", "+0.0 points",
                 "because of CutMix and label smoothing",
                 "The stored threshold rejects an image", "of these 15 images are accepted"):  # fmt: skip
        assert text in page.text, text
    splits = re.findall(
        r"<bdi>(\w+)</bdi></th><td class=\"n\">3</td><td class=\"n\">(\d+)<", (tmp_path / "page.html").read_text()
    )
    assert splits == [("train", "18"), ("val", "12"), ("test", "15")]
    assert "Current findings of fewsight check" in page.text
    assert command("report", run, "--out", tmp_path / "short.html", "--no-check").code == 0
    assert "Current findings of fewsight check" not in Page(tmp_path / "short.html").text
    write_report([run, other], tmp_path / "two.html")
    assert "tested on different images, so not compared" in Page(tmp_path / "two.html").text


def test_page_notes_other_views_and_uses_the_given_ones(
    tiny_run: Path, enough_val: Path, tmp_path: Path, command: Command
) -> None:
    run, other, page = tmp_path / "run", tmp_path / "other", tmp_path / "page.html"
    for path, views in ((run, "report"), (other, "center")):
        shutil.copytree(tiny_run, path)
        evaluate(path, enough_val, split="val", views=views)
    assert command("scores", "calibrate", other).code == 0
    shutil.copy(other / "calibration.json", run)
    answer = command("report", run, other, "--out", page, "--split", "val", "--no-check")
    assert answer.out.startswith(f"wrote {page}: ")
    text = Page(page).text
    assert "Some runs have other views than the first" in text
    assert "the stored temperatures are for other views (center-32)" in text
    answer = command("report", run, other, "--out", page, "--split", "val", "--no-check", "--views", "center-32")
    assert answer.out.startswith(f"replaced {page}: ")
    text = Page(page).text
    assert "Some runs have other views than the first" not in text
    assert "both correct on the same" in text
    assert "at the stored temperature" in text


def test_advice_on_the_page_can_be_followed(enough_val: Path, tmp_path: Path, command: Command) -> None:
    run, page = tmp_path / "run", tmp_path / "page.html"
    train(enough_val, run, recipe="digits", overrides=TINY)
    (run / "calibration.json").unlink(missing_ok=True)
    evaluate(run, enough_val, views="center-24")
    write_report([run], page, check=False)
    assert "These probabilities are not calibrated" in Page(page).text
    lines = re.findall("<code>fewsight (.*?)</code>", page.read_text())
    assert [line.split()[0] for line in lines] == ["evaluate", "scores"]
    for line in lines:
        assert command(*shlex.split(line)).code == 0, line
    write_report([run], page, check=False)
    assert "at the stored temperature" in Page(page).text
    assert "not calibrated" not in Page(page).text
    write_report([scored_run(tmp_path / "scores only")], page)
    assert "There are no val images to fit a temperature on" in Page(page).text
    assert "<code>fewsight" not in page.read_text()


@pytest.mark.parametrize("split", ["test", "val"])
def test_page_advises_no_temperature_on_few_images(
    split: str, tiny_run: Path, digit_images: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    evaluate(tmp_path / "run", digit_images, split=split)
    write_report([tmp_path / "run"], tmp_path / "page.html", check=False)
    needed = "a temperature needs at least 30 labelled images that did not train."
    assert f"There are too few val images to fit a temperature on: {needed}" in Page(tmp_path / "page.html").text
    assert "<code>fewsight" not in (tmp_path / "page.html").read_text()


def test_probabilities_of_a_calibrated_run_are_those_of_predict(
    tiny_run: Path, digit_images: Path, enough_val: Path, tmp_path: Path, command: Command
) -> None:
    run, page = tmp_path / "run", tmp_path / "page.html"
    shutil.copytree(tiny_run, run)
    labelled = evaluate(run, digit_images, split="test").figures
    evaluate(run, enough_val, split="val")
    command("scores", "calibrate", run, "--coverage", "0.5")
    stored = json.loads((run / "calibration.json").read_text())
    stored["calibrations"][0]["temperature"] = 0.25
    (run / "calibration.json").write_text(json.dumps(stored))
    answer = command("predict", run, digit_images / "test", "--out", tmp_path / "new.jsonl", "--top-k", "3")
    assert answer.code == 0, answer
    rows = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    probs = {
        Path(row["path"]).relative_to(digit_images).as_posix(): {
            row[f"label{rank}"]: row[f"prob{rank}"] for rank in ("", "2", "3")
        }
        for row in rows
    }
    facts = gather(run, "test")
    shown = (*facts.examples.mistakes, *facts.examples.unsure, *facts.examples.suspects)
    assert len(facts.examples.mistakes) > 3
    for image in shown:
        expected = probs[image.path]
        assert (image.prob, image.label_prob) == pytest.approx((expected[image.predicted], expected[image.label]))
    nll = -np.mean([np.log(of_image[path.split("/")[1]]) for path, of_image in probs.items()])
    assert (facts.figures.nll, facts.calibration.nll) == pytest.approx((nll, labelled.nll), rel=1e-5)
    confidence = np.mean([max(of_image.values()) for of_image in probs.values()])
    bins = facts.calibration.tempered_bins
    assert sum(entry.count * entry.confidence for entry in bins) / 15 == pytest.approx(confidence)
    num_accepted = sum(not row["none_of_these"] for row in rows)
    assert (facts.calibration.accepted.total if facts.calibration.accepted else 0) == num_accepted
    write_report([run], page, split="test", check=False)
    text = Page(page).text
    assert f"NLL {nll:.3f} at the stored temperature ({labelled.nll:.3f} uncalibrated)" in text
    predicted = facts.examples.mistakes[0].prob
    assert f"{100 * predicted:.1f} %" in text
    assert text.count("Probabilities are at the stored temperature") >= 2
    (run / "calibration.json").unlink()
    write_report([run], page, split="test", check=False)
    text = Page(page).text
    assert f"NLL {labelled.nll:.3f} (uncalibrated)" in text
    assert "at the stored temperature" not in text


def test_top_5_of_few_classes_is_left_out(tmp_path: Path) -> None:
    for num_classes, is_shown in ((5, False), (6, True)):
        labels, classes = np.arange(60) % num_classes, tuple(f"c{number}" for number in range(num_classes))
        logits = np.random.default_rng(0).normal(size=(60, num_classes))
        write_run(tmp_path / f"{num_classes}", {"center-8": log_softmax(logits)}, labels, classes=classes)
        write_report([tmp_path / f"{num_classes}"], tmp_path / "page.html")
        assert ("Top-5" in Page(tmp_path / "page.html").text) == is_shown


def test_page_replaces_no_other_file(tiny_run: Path, digit_images: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    evaluate(tmp_path / "run", digit_images)
    (tmp_path / "index.html").write_text("<!doctype html><title>mine</title>")
    with pytest.raises(RunError, match=r"index\.html: this file exists and is not a page of fewsight report"):
        write_report([tmp_path / "run"], tmp_path / "index.html")
    assert "mine" in (tmp_path / "index.html").read_text()


def test_images_that_have_changed_are_not_shown(tiny_run: Path, digit_images: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(digit_images, data)
    shutil.copytree(tiny_run, run)
    evaluate(run, data)
    write_report([run], tmp_path / "page.html", data=data)
    assert Page(tmp_path / "page.html").addresses
    for file in data.glob("test/*/*.png"):
        shutil.copy(next(data.glob("train/one/*.png")), file)
    write_report([run], tmp_path / "page.html", data=data)
    assert Page(tmp_path / "page.html").addresses == []
    assert "are missing or have changed" in Page(tmp_path / "page.html").text


def test_page_says_where_images_are_missing_and_how_to_repeat_the_run(
    tiny_run: Path, digit_images: Path, tmp_path: Path, command: Command
) -> None:
    data, run, page = tmp_path / "new photos", tmp_path / "a run", tmp_path / "page.html"
    shutil.copytree(digit_images, data)
    shutil.copytree(tiny_run, run)
    evaluate(run, data)
    answer = command("report", run, "--out", page, "--data", data)
    assert re.fullmatch(rf"wrote {re.escape(str(page))}: [1-9]\d+ KiB\n", answer.out), answer
    again = ["fewsight", "train", str(data), "--out", "AGAIN", "--recipe", str(run / "recipe.toml")]
    assert shlex.join(again) in Page(page).text
    shutil.rmtree(data / "test")
    answer = command("report", run, "--out", page, "--data", data, "--no-check")
    assert re.search(
        rf"pictures: none of the \d+ images to show were found in {data}: the others are missing", answer.out
    )
    assert f"were found in {data}" in Page(page).text
    lost = command("report", run, "--out", page, "--data", tmp_path / "nowhere")
    assert (lost.code, "does not exist; give the folder with the images" in lost.err) == (2, True)
    facts = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(facts | {"source": str(tmp_path / "gone")}))
    assert command("report", run, "--out", page).code == 0
    assert f"The data was not checked: it was in {tmp_path / 'gone'}" in Page(page).text


@pytest.mark.parametrize("name", ["page.txt", "page"])
def test_page_under_another_name_is_refused(name: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    scored_run(tmp_path / "run")
    assert f"--out {name}: the page is an HTML file; call it page.html" in refused("report", "run", "--out", name)


def test_many_classes_make_a_small_page(tmp_path: Path) -> None:
    classes = tuple(f"<b>{number}" for number in range(200))
    labels = np.random.default_rng(0).integers(0, 200, 2000)
    logits = np.random.default_rng(1).normal(size=(2000, 200))
    logits[np.arange(2000), labels] += 3
    write_run(tmp_path / "run", {"center-8": log_softmax(logits)}, labels, classes=classes)
    write_report([tmp_path / "run"], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 2**20
    assert "b" not in page.tags, "the name of a class is text, not HTML"
    assert "<b>199" in page.text
    assert [address[:15] for address in page.addresses] == ["data:image/png;"]


def test_classes_that_are_confused_are_next_to_each_other(tmp_path: Path) -> None:
    classes = tuple(f"c{number:02d}" for number in range(40))
    labels = np.repeat(np.arange(40), 10)
    predicted = labels.copy()
    predicted[::3] = (labels[::3] + 20) % 40  # c00 and c20, c01 and c21, ...
    logits = np.zeros((400, 40))
    logits[np.arange(400), predicted] = 9
    write_run(tmp_path / "run", {"center-8": log_softmax(logits)}, labels, classes=classes)
    write_report([tmp_path / "run"], tmp_path / "page.html")
    match = re.search(r'id="matrix-data">(.*?)</script>', (tmp_path / "page.html").read_text())
    assert match is not None
    matrix = json.loads(match[1])
    position = {name: number for number, name in enumerate(matrix["names"])}
    assert sorted(position) == list(classes)
    for number in range(20):
        assert abs(position[f"c{number:02d}"] - position[f"c{number + 20:02d}"]) == 1
    own = {name: matrix["cells"][f"{index},{index}"] for name, index in position.items()}
    assert own == {name: int((predicted[labels == number] == number).sum()) for number, name in enumerate(classes)}
    assert sum(matrix["cells"].values()) == 400


def test_run_without_scores_says_how_to_make_them(tiny_run: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    answer = command("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert answer.code == 2
    assert f"fewsight evaluate {tmp_path / 'run'}" in answer.err
    assert not (tmp_path / "page.html").exists()


def test_page_warns_about_training_images(tmp_path: Path) -> None:
    labels = random_labels(0, 20)
    write_run(tmp_path / "run", {"center-8": random_scores(1, labels)}, labels, trained_on=range(7))
    write_report([tmp_path / "run"], tmp_path / "page.html")
    assert "7 of 20 images were in the training set: these figures are optimistic" in " ".join(
        Page(tmp_path / "page.html").text.split()
    )


def test_runs_are_listed_with_their_seeds(tiny_run: Path, tmp_path: Path, command: Command) -> None:
    for name in ("alone", "many/seed0", "many/seed1", "deep/er/run"):
        shutil.copytree(tiny_run, tmp_path / "runs" / name)
    metrics = tmp_path / "runs/many/seed1/metrics.json"
    metrics.write_text(re.sub(r'"value": [\d.]+', '"value": 0.25', metrics.read_text(), count=1))
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    listed = list_runs(tmp_path / "runs")
    assert [str(run.path.relative_to(tmp_path / "runs")) for run in listed] == [
        "alone", "broken", "deep/er/run", "many/seed0", "many/seed1",
    ]  # fmt: skip
    assert listed[1].status == "cannot be read"
    ((path, (mean, sd, count)),) = seed_groups(listed).items()
    own = listed[0].val
    assert own is not None
    assert (path, count) == (tmp_path / "runs" / "many", 2)
    assert mean == pytest.approx((own.value + 0.25) / 2)
    assert sd == pytest.approx(abs(own.value - 0.25) / 2**0.5)
    answer = command("runs", tmp_path / "runs", "--json", tmp_path / "runs.json")
    assert answer.code == 0, answer
    assert "many/seed1" in answer.out
    assert "top-1 on val, centre view" in answer.out
    assert "over 2 seeds (mean ± standard deviation)" in answer.out
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 5


def test_unfinished_run_without_a_process_is_listed_as_interrupted(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    info, log = tmp_path / "run" / "run.json", tmp_path / "run" / "log.jsonl"
    info.write_text(info.read_text().replace('"finished"', '"training"', 1))
    assert list_runs(tmp_path)[0].status == "interrupted at epoch 2 of 2"
    log.write_text('{"kind": "step", "epoch": 1, "step": 1}\n{"kind": "ep')
    assert list_runs(tmp_path)[0].status == "interrupted at epoch 1 of 2"
    for locked in (True, None):
        monkeypatch.setattr(locks, "is_locked", lambda folder, held=locked: held)
        assert list_runs(tmp_path)[0].status == "training, epoch 1 of 2"
    monkeypatch.undo()
    log.unlink()
    assert list_runs(tmp_path)[0].status == "interrupted before its first step"


def test_folder_without_runs_is_refused(tmp_path: Path, digit_images: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        list_runs(digit_images)
    with pytest.raises(RunError, match="is not a folder"):
        list_runs(tmp_path / "nowhere")

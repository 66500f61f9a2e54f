"""The tables of a reproduction against plain float64 numpy on the same scores, whole and with trainings missing."""

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from fewsight.apps.reproduce.answers import Effect, Reproduction, answer
from fewsight.apps.reproduce.answers import TestedRun as Done
from fewsight.apps.reproduce.plan import job_name
from fewsight.apps.reproduce.published import FUSED, MODELS, SIZES, TRAININGS, Training
from fewsight.apps.reproduce.show import show_reproduction, write_reproduction
from fewsight.errors import RunError
from fewsight.recipes import load_recipe
from fewsight.scores.metrics import Proportion, wilson
from fewsight.scores.store import Store
from fewsight.terminal import make_console
from stores import CLASSES, log_softmax, probs_of, random_labels, write_store

COUNT = 160  # images
TESTED = (32, 48, 56, 64)
SMALL = {"ResNeSt": "resnest14", "TResNet": "tresnet_s", "SE-ResNeXt": "seresnext26d"}
BY_RECIPE = {training.recipe: training for training in TRAININGS}
LABELS = random_labels(5, COUNT)


def sizes_of(training: Training) -> tuple[int, ...]:
    return (64,) if training.large else TESTED


def some_views(number: int, training: Training) -> dict[str, np.ndarray]:
    """Scores of one training; its views agree with each other more than with those of another."""
    rng = np.random.default_rng([number, 7])
    run = 0.4 * rng.normal(size=(COUNT, len(CLASSES)))
    run[np.arange(COUNT), LABELS] += 0.1 + 0.05 * number
    views = {}
    for place, px in enumerate(sizes_of(training)):
        for crop in ("center", "random"):
            for ending in ("", "-noflip"):
                noise = rng.normal(size=run.shape) * (0.8 if ending else 0.5 + 0.1 * place)
                views[f"{crop}-{px}{ending}"] = log_softmax(2 * run + noise)
    return views


def write_tested(
    folder: Path,
    recipes: Collection[str] = tuple(BY_RECIPE),
    *,
    unreadable: Collection[int] = (),
    trained_on: Collection[int] = (),
) -> dict[str, Done]:
    found = {}
    for number, training in enumerate(TRAININGS):
        if training.recipe not in recipes:
            continue
        name, train_px = job_name(training, "small"), 64 if training.large else 32
        recipe = load_recipe(
            training.recipe,
            [
                f"model.backbone={SMALL[training.family]}",
                f"augment.train_px={train_px}",
                f"eval.test_px={list(sizes_of(training))}",
            ],
        )
        store = write_store(
            folder / name, some_views(number, training), LABELS, unreadable=unreadable, trained_on=trained_on
        )
        found[training.recipe] = Done(name, recipe, store, training.recipe == "tresnet_xl_ce_triplet")
    return found


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """All eight trainings, one of which collapsed. Do not change them."""
    return write_tested(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def whole(tested: dict[str, Done]) -> Reproduction:
    return answer(tested, "small")


def six_of(tested: Mapping[str, Done]) -> dict[str, Done]:
    return {recipe: one for recipe, one in tested.items() if recipe not in ("resnest101_ce_448", "seresnext101_ce")}


@pytest.fixture(scope="module")
def part(tested: dict[str, Done]) -> Reproduction:
    """Without the 448 px run, and without a run that another starts from."""
    return answer(six_of(tested), "small")


# Plainly, in float64


def mean_of(store: Store, views: Collection[str]) -> np.ndarray:
    found: np.ndarray = np.mean([probs_of(store, view) for view in views], axis=0)
    return found


def row_of(store: Store, px: int) -> np.ndarray:
    """A row of the tables: the mean over both crops, each with its flipped twin in it."""
    return mean_of(store, [f"center-{px}", f"random-{px}"])


def table_rows(tested: Mapping[str, Done]) -> dict[tuple[str, str, int], np.ndarray]:
    """(family, loss, place in SIZES) -> probabilities of the rows that are there."""
    found = {}
    for training in TRAININGS:
        if training.recipe in tested:
            store = tested[training.recipe].store
            places = [3] if training.large else [0, 1, 2] if training.recipe == "resnest101_ce" else [0, 1, 2, 3]
            for place in places:
                found[training.family, training.loss, place] = row_of(store, TESTED[place])
    return found


def hits(probs: np.ndarray) -> np.ndarray:
    found: np.ndarray = (probs.argmax(1) == LABELS).astype(float)
    return found


def run_of(one: Done) -> np.ndarray:
    """All views of a run."""
    return mean_of(one.store, [view for view in one.store.views if not view.endswith("noflip")])


# Rows, means and the fusion


def test_each_row_is_that_of_numpy(whole: Reproduction, tested: dict[str, Done]) -> None:
    rows = table_rows(tested)
    assert len(rows) == len(whole.rows) == 28
    for row in whole.rows:
        place = SIZES.index(row.report_px)
        assert row.top1 == wilson(int(hits(rows[row.family, row.loss, place]).sum()), COUNT)
        assert row.test_px == TESTED[place]
        assert row.model == SMALL[row.family]
        assert row.train_px == (64 if (row.family, row.loss, row.report_px) == ("ResNeSt", "CE", 448) else 32)
        assert row.collapsed == ((row.family, row.loss) == ("TResNet", "CE + triplet"))
    assert len({row.top1 for row in whole.rows}) > 10, "or a row could be another's"


def test_rows_are_in_the_reports_order_with_its_figures(whole: Reproduction) -> None:
    expected = [
        (model.table, model.family, model.loss, px, top1)
        for model in MODELS
        for px, top1 in zip(SIZES, model.top1, strict=True)
    ]
    assert [(one.table, one.family, one.loss, one.report_px, one.report_top1) for one in whole.rows] == expected


def test_each_mean_is_that_of_numpy(whole: Reproduction, tested: dict[str, Done]) -> None:
    """Probabilities are averaged, not hits: the eight results of a model are its four rows of two crops."""
    rows = table_rows(tested)
    assert [(one.family, one.loss) for one in whole.means] == [(model.family, model.loss) for model in MODELS]
    for one in whole.means:
        probs = np.mean([rows[one.family, one.loss, place] for place in range(4)], axis=0)
        assert one.top1 == wilson(int(hits(probs).sum()), COUNT)


def test_fusion_is_uniform_over_28_rows_not_over_runs(whole: Reproduction, tested: dict[str, Done]) -> None:
    rows = list(table_rows(tested).values())
    assert whole.num_rows == len(rows) == 28
    assert whole.fusion == wilson(int(hits(np.mean(rows, axis=0)).sum()), COUNT)
    runs = hits(np.mean([run_of(one) for one in tested.values()], axis=0))
    assert whole.fusion.count != runs.sum(), "here the two differ"
    assert (whole.scale, whole.num_images, whole.num_trained_on) == ("small", COUNT, 0)


# Effects


def expected_effects(tested: Mapping[str, Done]) -> dict[str, tuple[list[np.ndarray], float | None]]:
    """Name -> differences of each pair image by image, and the report's figure worked out by hand."""
    small = [one for recipe, one in tested.items() if not BY_RECIPE[recipe].large]
    runs = {recipe: hits(run_of(one)) for recipe, one in tested.items()}
    sized = {recipe: {px: hits(row_of(one.store, px)) for px in sizes_of(BY_RECIPE[recipe])}
             for recipe, one in tested.items()}  # fmt: skip
    names = [recipe for recipe in tested if not BY_RECIPE[recipe].large]
    found: dict[str, tuple[list[np.ndarray], float | None]] = {}
    for px, theirs, report in [(48, 320, 0.0254), (56, 380, 0.1648 / 7), (64, 448, 0.1193 / 6)]:
        found[f"{theirs} px for 224 px, mean over 7 runs"] = [
            sized[name][px] - sized[name][32] for name in names], report  # fmt: skip
    for crop in ("center", "random"):
        alone = [hits(mean_of(one.store, [f"{crop}-{px}" for px in TESTED])) for one in small]
        pairs = [runs[name] - one for name, one in zip(names, alone, strict=True)]
        found[f"both crops for {crop} crops alone, mean over 7 runs"] = pairs, None
    plain = [hits(mean_of(one.store, [view for view in one.store.views if view.endswith("-noflip")])) for one in small]
    found["with flipped twins for without, mean over 7 runs"] = [
        runs[name] - one for name, one in zip(names, plain, strict=True)], None  # fmt: skip
    for px, theirs in zip(TESTED, SIZES, strict=True):
        found[f"all four for {theirs} px alone, mean over 7 runs"] = [
            runs[name] - sized[name][px] for name in names], None  # fmt: skip
    metric = {
        "ResNeSt, CE + triplet for CE": ("resnest101_ce_triplet", "resnest101_ce", -0.0027 / 3),
        "ResNeSt, CE + ArcFace for CE": ("resnest101_ce_arcface", "resnest101_ce", 0.0260 / 3),
        "TResNet, CE + triplet for CE": ("tresnet_xl_ce_triplet", "tresnet_xl_ce", 0.0470 / 4),
        "SE-ResNeXt, CE + ArcFace for CE": ("seresnext101_ce_arcface", "seresnext101_ce", 0.0218 / 4),
    }
    for name, (more, less, report) in metric.items():
        found[name] = [runs[more] - runs[less]], report
    found["mean over 4 runs"] = (
        [runs[more] - runs[less] for more, less, _ in metric.values()],
        (-0.0027 / 3 + 0.0260 / 3 + 0.0470 / 4 + 0.0218 / 4) / 4,
    )
    found["ResNeSt, CE, for training at 224 px; tested at 448 px"] = [
        sized["resnest101_ce_448"][64] - sized["resnest101_ce"][64]], None  # fmt: skip
    found["TResNet for ResNeSt"] = [runs["tresnet_xl_ce"] - runs["resnest101_ce"]], -0.0563 / 3
    found["SE-ResNeXt for ResNeSt"] = [runs["seresnext101_ce"] - runs["resnest101_ce"]], 0.0018 / 3
    rows = table_rows(tested)
    fusion = hits(np.mean(list(rows.values()), axis=0))
    best = max(rows, key=lambda key: hits(rows[key]).sum())
    found[f"28 rows for the best one ({best[0]}, {best[1]}, {SIZES[best[2]]} px)"] = (
        [fusion - hits(rows[best])],
        0.7015 - 0.6636,
    )
    models = {
        (model.family, model.loss): hits(np.mean([rows[model.family, model.loss, place] for place in range(4)], axis=0))
        for model in MODELS
    }
    model = max(models, key=lambda key: models[key].sum())
    found[f"28 rows for the best model's mean ({model[0]}, {model[1]})"] = [fusion - models[model]], None
    return found


def test_each_effect_is_that_of_numpy(whole: Reproduction, tested: dict[str, Done]) -> None:
    expected = expected_effects(tested)
    assert [one.name for one in whole.effects] == list(expected)
    for one in whole.effects:
        pairs, report = expected[one.name]
        differences = np.mean(pairs, axis=0)
        assert one.gain == pytest.approx(differences.mean(), abs=1e-12), one.name
        assert one.report == (None if report is None else pytest.approx(report, abs=1e-12)), one.name
        error = 1.96 * differences.std() / np.sqrt(COUNT)  # the bootstrap's interval is about that of a normal mean
        assert [one.low, one.high] == pytest.approx([one.gain - error, one.gain + error], abs=0.005), one.name
        assert one.low <= one.gain <= one.high


def test_effects_ask_what_the_report_says_gives_something(whole: Reproduction) -> None:
    assert list(dict.fromkeys(one.question for one in whole.effects)) == [
        "a larger test size",
        "crops",
        "flips",
        "four test sizes",
        "a metric loss (with its second stage)",
        "training at 448 px",
        "another backbone, CE",
        "the fusion",
    ]


def test_effect_is_distinguishable_where_its_interval_excludes_0(whole: Reproduction) -> None:
    def effect(low: float, high: float) -> bool:
        return Effect("", "", 0.0, low, high, None).distinguishable

    assert [effect(0.01, 0.02), effect(-0.02, -0.01), effect(-0.01, 0.01), effect(0.0, 0.01)] == [
        True, True, False, False]  # fmt: skip
    found = {one.distinguishable for one in whole.effects}
    assert found == {True, False}, "these scores have both"


def test_same_scores_give_the_same_answer(whole: Reproduction, tested: dict[str, Done]) -> None:
    assert answer(dict(reversed(tested.items())), "small") == whole


# What is missing


def test_missing_trainings_leave_their_rows_empty(whole: Reproduction, part: Reproduction) -> None:
    empty = [(row.family, row.loss, row.report_px) for row in part.rows if row.top1 is None]
    assert empty == [("ResNeSt", "CE", 448), *(("SE-ResNeXt", "CE", px) for px in SIZES)]
    for row, before in zip(part.rows, whole.rows, strict=True):
        if row.top1 is None:
            assert (row.model, row.train_px, row.test_px, row.collapsed) == ("", None, None, False)
            assert (row.report_px, row.report_top1) == (before.report_px, before.report_top1)
        else:
            assert row == before


def test_fusion_counts_the_rows_that_are_there(part: Reproduction, tested: dict[str, Done]) -> None:
    rows = list(table_rows(six_of(tested)).values())
    assert part.num_rows == len(rows) == 28 - 1 - 4
    assert part.fusion == wilson(int(hits(np.mean(rows, axis=0)).sum()), COUNT)
    first = next(one for one in part.effects if one.question == "the fusion")
    assert first.name.startswith("23 rows for the best one")


def test_mean_of_eight_results_needs_all_eight(whole: Reproduction, part: Reproduction) -> None:
    gone = {("ResNeSt", "CE"), ("SE-ResNeXt", "CE")}
    assert part.means == tuple(one for one in whole.means if (one.family, one.loss) not in gone)


def test_effects_of_what_is_missing_are_left_out(whole: Reproduction, part: Reproduction) -> None:
    told = [(one.question, one.name) for one in part.effects]
    names = [name for _, name in told]
    assert "SE-ResNeXt, CE + ArcFace for CE" not in names
    assert not any(question == "training at 448 px" for question, _ in told)
    assert [name for question, name in told if question == "another backbone, CE"] == ["TResNet for ResNeSt"]
    assert "mean over 3 runs" in names
    assert [name for name in names if name.endswith("mean over 6 runs")] == [
        one.name.replace("7", "6") for one in whole.effects if one.name.endswith("mean over 7 runs")
    ]
    kept = {one.name: one for one in whole.effects}
    assert all(one == kept[one.name] for one in part.effects if one.question == "another backbone, CE")


@pytest.mark.parametrize("recipe", ["resnest101_ce_448", "resnest101_ce", "tresnet_xl_ce_triplet"])
def test_one_training_is_enough_for_tables(recipe: str, tested: dict[str, Done]) -> None:
    found = answer({recipe: tested[recipe]}, "small")
    rows = [row for row in found.rows if row.top1 is not None]
    assert found.num_rows == len(rows) == {"resnest101_ce_448": 1, "resnest101_ce": 3}.get(recipe, 4)
    assert len(found.means) == (1 if len(rows) == 4 else 0)
    assert found.fusion == wilson(
        int(hits(np.mean(list(table_rows({recipe: tested[recipe]}).values()), axis=0)).sum()), COUNT
    )
    assert all(one.low <= one.gain <= one.high for one in found.effects)
    assert any(one.question == "the fusion" for one in found.effects)


def test_unreadable_images_are_left_out_and_training_images_counted(tmp_path: Path) -> None:
    gone = [3, 77]
    recipes = ["resnest101_ce", "resnest101_ce_448"]
    tested = write_tested(tmp_path, recipes, unreadable=gone, trained_on=range(10))
    found, rows = answer(tested, "small"), table_rows(tested)
    assert (found.num_images, found.num_trained_on, found.fusion.total) == (COUNT, 10, COUNT - 2)
    kept = np.delete(np.arange(COUNT), gone)
    for row in found.rows[:4]:
        right = hits(rows[row.family, row.loss, SIZES.index(row.report_px)])[kept]
        assert row.top1 == wilson(int(right.sum()), COUNT - 2)


# What cannot be set side by side


def store_like(folder: Path, **changes: object) -> Store:
    views = some_views(0, TRAININGS[0])
    return write_store(folder / "other", views, **{"labels": LABELS, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digests": [f"{number + 1:016x}" for number in range(COUNT)]}, "hold scores of other images"),
        ({"labels": (LABELS + 1) % len(CLASSES)}, "hold scores of other images"),
        ({"unreadable": [4]}, "hold scores of other images"),
        ({"classes": ("ant", "bee", "cat", "eel")}, "have other classes, .* only one of them has 'dog', 'eel'"),
    ],
)
def test_scores_of_other_images_are_refused(
    changes: dict[str, object], message: str, tested: dict[str, Done], tmp_path: Path
) -> None:
    first = tested["resnest101_ce"]
    other = Done(first.name, first.recipe, store_like(tmp_path, **changes), False)
    with pytest.raises(RunError, match=message):
        answer({**tested, "resnest101_ce": other}, "small")


def test_scores_without_labels_are_refused(tested: dict[str, Done], tmp_path: Path) -> None:
    first = tested["resnest101_ce"]
    with pytest.raises(RunError, match="its images have no labels"):
        answer({"resnest101_ce": Done(first.name, first.recipe, store_like(tmp_path, labels=None), False)}, "small")


# Files and the terminal


@pytest.fixture(params=["whole", "part"])
def shown(request: pytest.FixtureRequest, whole: Reproduction, part: Reproduction) -> Reproduction:
    return whole if request.param == "whole" else part


def four(value: float) -> str:
    return f"{value:.4f}"


def shares(top1: Proportion | None) -> list[str]:
    return ["", "", "", ""] if top1 is None else [*map(four, (top1.value, top1.low, top1.high)), str(top1.total)]


def test_csv_holds_every_row_and_the_fusion(shown: Reproduction, tmp_path: Path) -> None:
    write_reproduction(tmp_path, shown)
    with (tmp_path / "tables.csv").open(newline="", encoding="utf-8") as handle:
        table = list(csv.DictReader(handle))
    assert list(table[0]) == ["models", "loss", "train_px", "test_px", "report_px", "report_top1", "top1", "low",
                              "high", "images"]  # fmt: skip
    *rows, fused = table
    assert len(rows) == 28
    for line, row in zip(rows, shown.rows, strict=True):
        assert line["models"] == (f"{row.family} ({row.model})" if row.model else row.family)
        assert line["loss"] == row.loss + (", collapsed" if row.collapsed else "")
        px = ["" if one is None else str(one) for one in (row.train_px, row.test_px, row.report_px)]
        assert [line["train_px"], line["test_px"], line["report_px"]] == px
        assert line["report_top1"] == four(row.report_top1)
        assert [line[name] for name in ("top1", "low", "high", "images")] == shares(row.top1)
    assert list(fused.values()) == [
        "fusion", f"{shown.num_rows} rows", "", "", "", four(FUSED), *shares(shown.fusion)]  # fmt: skip


def test_effects_csv_holds_every_effect(shown: Reproduction, tmp_path: Path) -> None:
    write_reproduction(tmp_path, shown)
    with (tmp_path / "effects.csv").open(newline="", encoding="utf-8") as handle:
        heading, *lines = csv.reader(handle)
    assert heading == ["question", "what", "gain", "low", "high", "report"]
    assert lines == [
        [one.question, one.name, four(one.gain), four(one.low), four(one.high),
         "" if one.report is None else four(one.report)]
        for one in shown.effects
    ]  # fmt: skip


def test_json_holds_all_of_it(shown: Reproduction, tmp_path: Path) -> None:
    """Every figure whole, so that nothing has to be worked out again."""
    paths = write_reproduction(tmp_path, shown)
    assert [path.name for path in paths] == ["tables.md", "tables.csv", "effects.csv", "tables.json"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert json.loads((tmp_path / "tables.json").read_text(encoding="utf-8")) == json.loads(json.dumps(asdict(shown)))


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The cells of each table, without its heading."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()[2:]]
            for block in blocks]  # fmt: skip


def test_markdown_has_every_row(shown: Reproduction, tmp_path: Path) -> None:
    write_reproduction(tmp_path, shown)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    first, second, effects = markdown_tables(text)
    assert (len(first), len(second)) == (12, 16)
    for cells, row in zip([*first, *second], shown.rows, strict=True):
        assert cells[:2] == [f"{row.family} ({row.model})" if row.model else row.family,
                             row.loss + (", collapsed" if row.collapsed else "")]  # fmt: skip
        assert cells[2:6] == ["-" if row.train_px is None else str(row.train_px),
                              "-" if row.test_px is None else str(row.test_px),
                              str(row.report_px), four(row.report_top1)]  # fmt: skip
        top1 = row.top1
        ours = "not trained" if top1 is None else f"{top1.value:.4f} [{top1.low:.3f}, {top1.high:.3f}]"
        assert cells[6] == ours
    for cells, one in zip(effects, shown.effects, strict=True):
        gain = f"{100 * one.gain:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
        told = gain if one.distinguishable else f"{gain}, not distinguishable"
        assert cells == [one.question, one.name, told, "" if one.report is None else f"{100 * one.report:+.1f}"]
    assert all(f"- {one.family}, {one.loss}: {one.top1}\n" in text for one in shown.means)
    assert f"{shown.num_rows} rows, uniform: **{shown.fusion}**; the report: 0.7015." in text
    assert "small scale" in text.splitlines()[0]
    assert "trained on" not in text


@pytest.mark.parametrize("write", [write_reproduction, None])
def test_figures_on_training_images_are_headed_so(
    write: Callable[[Path, Reproduction], object] | None, whole: Reproduction, tmp_path: Path
) -> None:
    seen = Reproduction(**{**vars(whole), "num_trained_on": 5})
    if write is not None:
        write(tmp_path, seen)
        text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    else:
        show_reproduction(make_console(file := io.StringIO()), seen)
        text = file.getvalue()
    told = f"images it was trained on: 5 of {COUNT}; the figures flatter"
    assert text.index(told) < text.index("Table 1")


def test_terminal_shows_every_row(shown: Reproduction) -> None:
    show_reproduction(make_console(file := io.StringIO()), shown)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    rows = [line for line in lines if re.search(r"  0\.\d{4}  ", line)]
    for line, row in zip(rows, shown.rows, strict=True):
        one = row.top1
        ours = "not trained" if one is None else f"{one.value:.4f} [{one.low:.3f}, {one.high:.3f}]"
        assert line.endswith(f"  {row.report_px}  {row.report_top1:.4f}  {ours}")
    assert f"Table 1. ResNeSt, top-1 on {COUNT} images" in lines
    assert f"Table 2. TResNet and SE-ResNeXt, top-1 on {COUNT} images" in lines
    assert all(f"  {one.family}, {one.loss}: {one.top1}" in lines for one in shown.means)
    assert f"the fusion of {shown.num_rows} rows: {shown.fusion}   (the report, 28 rows: 0.7015)" in lines
    assert all(any(one.name in line for line in lines) for one in shown.effects)
    assert f"  not distinguishable: the interval holds 0 on these {COUNT} images" in lines

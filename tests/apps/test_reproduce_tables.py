"""The tables of a reproduction against float64 numpy on the same scores, complete and with trainings missing."""

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from fewsight.apps.reproduce.plan import job_name
from fewsight.apps.reproduce.published import FUSION_TOP1, MODELS, TEST_SIZES, TRAININGS, Training
from fewsight.apps.reproduce.show import show_reproduction, write_reproduction
from fewsight.apps.reproduce.tables import Effect, Reproduction, build_tables
from fewsight.apps.reproduce.tables import TestedRun as Done
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
    """Scores of a training; its views agree with each other more than with those of other trainings."""
    rng = np.random.default_rng([number, 7])
    run = 0.4 * rng.normal(size=(COUNT, len(CLASSES)))
    run[np.arange(COUNT), LABELS] += 0.1 + 0.05 * number
    views = {}
    for index, px in enumerate(sizes_of(training)):
        for crop in ("center", "random"):
            for ending in ("", "-noflip"):
                noise = rng.normal(size=run.shape) * (0.8 if ending else 0.5 + 0.1 * index)
                views[f"{crop}-{px}{ending}"] = log_softmax(2 * run + noise)
    return views


def write_tested(
    folder: Path,
    recipes: Collection[str] = tuple(BY_RECIPE),
    *,
    unreadable: Collection[int] = (),
    trained_on: Collection[int] = (),
) -> dict[str, Done]:
    tested = {}
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
        tested[training.recipe] = Done(name, recipe, store, training.recipe == "tresnet_xl_ce_triplet")
    return tested


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """All eight trainings, one of which collapsed. Do not change them."""
    return write_tested(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def whole(tested: dict[str, Done]) -> Reproduction:
    return build_tables(tested, "small")


def six_of(tested: Mapping[str, Done]) -> dict[str, Done]:
    return {recipe: run for recipe, run in tested.items() if recipe not in ("resnest101_ce_448", "seresnext101_ce")}


@pytest.fixture(scope="module")
def part(tested: dict[str, Done]) -> Reproduction:
    """Without the 448 px run, and without a run that another one starts from."""
    return build_tables(six_of(tested), "small")


# The definitions, in float64


def mean_of(store: Store, views: Collection[str]) -> np.ndarray:
    mean: np.ndarray = np.mean([probs_of(store, view) for view in views], axis=0)
    return mean


def row_of(store: Store, px: int) -> np.ndarray:
    """A row of the tables: the mean over both crops, in each of which the mirrored view is averaged in."""
    return mean_of(store, [f"center-{px}", f"random-{px}"])


def table_rows(tested: Mapping[str, Done]) -> dict[tuple[str, str, int], np.ndarray]:
    """(family, loss, index in TEST_SIZES) -> probabilities of the rows whose training was tested."""
    rows = {}
    for training in TRAININGS:
        if training.recipe in tested:
            store = tested[training.recipe].store
            indices = [3] if training.large else [0, 1, 2] if training.recipe == "resnest101_ce" else [0, 1, 2, 3]
            for index in indices:
                rows[training.family, training.loss, index] = row_of(store, TESTED[index])
    return rows


def hits(probs: np.ndarray) -> np.ndarray:
    correct: np.ndarray = (probs.argmax(1) == LABELS).astype(float)
    return correct


def run_of(run: Done) -> np.ndarray:
    """The mean over all views of a run."""
    return mean_of(run.store, [view for view in run.store.views if not view.endswith("noflip")])


# Rows, means and the fusion


def test_each_row_is_that_of_numpy(whole: Reproduction, tested: dict[str, Done]) -> None:
    rows = table_rows(tested)
    assert len(rows) == len(whole.rows) == 28
    for row in whole.rows:
        index = TEST_SIZES.index(row.paper_px)
        assert row.top1 == wilson(int(hits(rows[row.family, row.loss, index]).sum()), COUNT)
        assert row.test_px == TESTED[index]
        assert row.model == SMALL[row.family]
        assert row.train_px == (64 if (row.family, row.loss, row.paper_px) == ("ResNeSt", "CE", 448) else 32)
        assert row.collapsed == ((row.family, row.loss) == ("TResNet", "CE + triplet"))
    assert len({row.top1 for row in whole.rows}) > 10, "otherwise rows could be mixed up unnoticed"


def test_rows_are_in_the_papers_order_with_its_figures(whole: Reproduction) -> None:
    expected = [
        (model.table, model.family, model.loss, px, top1)
        for model in MODELS
        for px, top1 in zip(TEST_SIZES, model.top1, strict=True)
    ]
    assert [(row.table, row.family, row.loss, row.paper_px, row.paper_top1) for row in whole.rows] == expected


def test_each_mean_is_that_of_numpy(whole: Reproduction, tested: dict[str, Done]) -> None:
    """The mean is over probabilities, not hits: a model's eight results are its four rows with two crops each."""
    rows = table_rows(tested)
    assert [(mean.family, mean.loss) for mean in whole.means] == [(model.family, model.loss) for model in MODELS]
    for mean in whole.means:
        probs = np.mean([rows[mean.family, mean.loss, index] for index in range(4)], axis=0)
        assert mean.top1 == wilson(int(hits(probs).sum()), COUNT)


def test_fusion_is_uniform_over_28_rows_not_over_runs(whole: Reproduction, tested: dict[str, Done]) -> None:
    rows = list(table_rows(tested).values())
    assert whole.num_rows == len(rows) == 28
    assert whole.fusion == wilson(int(hits(np.mean(rows, axis=0)).sum()), COUNT)
    runs = hits(np.mean([run_of(run) for run in tested.values()], axis=0))
    assert whole.fusion.count != runs.sum(), "with these scores the two differ"
    assert (whole.scale, whole.num_images, whole.num_trained_on) == ("small", COUNT, 0)


# Effects


def expected_effects(tested: Mapping[str, Done]) -> dict[str, tuple[list[np.ndarray], float | None]]:
    """Name -> differences of each pair for each image, and the paper's figure calculated by hand."""
    small = [run for recipe, run in tested.items() if not BY_RECIPE[recipe].large]
    runs = {recipe: hits(run_of(run)) for recipe, run in tested.items()}
    sized = {recipe: {px: hits(row_of(run.store, px)) for px in sizes_of(BY_RECIPE[recipe])}
             for recipe, run in tested.items()}  # fmt: skip
    names = [recipe for recipe in tested if not BY_RECIPE[recipe].large]
    effects: dict[str, tuple[list[np.ndarray], float | None]] = {}
    for px, paper_px, gain in [(48, 320, 0.0254), (56, 380, 0.1648 / 7), (64, 448, 0.1193 / 6)]:
        effects[f"{paper_px} px instead of 224 px, mean over 7 runs"] = [
            sized[name][px] - sized[name][32] for name in names], gain  # fmt: skip
    for crop in ("center", "random"):
        alone = [hits(mean_of(run.store, [f"{crop}-{px}" for px in TESTED])) for run in small]
        pairs = [runs[name] - cropped for name, cropped in zip(names, alone, strict=True)]
        effects[f"both crops instead of {crop} crops alone, mean over 7 runs"] = pairs, None
    plain = [hits(mean_of(run.store, [view for view in run.store.views if view.endswith("-noflip")])) for run in small]
    effects["with mirrored views instead of without, mean over 7 runs"] = [
        runs[name] - unmirrored for name, unmirrored in zip(names, plain, strict=True)], None  # fmt: skip
    for px, paper_px in zip(TESTED, TEST_SIZES, strict=True):
        effects[f"all four instead of {paper_px} px alone, mean over 7 runs"] = [
            runs[name] - sized[name][px] for name in names], None  # fmt: skip
    metric = {
        "ResNeSt, CE + triplet instead of CE": ("resnest101_ce_triplet", "resnest101_ce", -0.0027 / 3),
        "ResNeSt, CE + ArcFace instead of CE": ("resnest101_ce_arcface", "resnest101_ce", 0.0260 / 3),
        "TResNet, CE + triplet instead of CE": ("tresnet_xl_ce_triplet", "tresnet_xl_ce", 0.0470 / 4),
        "SE-ResNeXt, CE + ArcFace instead of CE": ("seresnext101_ce_arcface", "seresnext101_ce", 0.0218 / 4),
    }
    for name, (recipe, start, gain) in metric.items():
        effects[name] = [runs[recipe] - runs[start]], gain
    effects["mean over 4 runs"] = (
        [runs[recipe] - runs[start] for recipe, start, _ in metric.values()],
        (-0.0027 / 3 + 0.0260 / 3 + 0.0470 / 4 + 0.0218 / 4) / 4,
    )
    effects["ResNeSt, CE, at 448 px instead of 224 px; tested at 448 px"] = [
        sized["resnest101_ce_448"][64] - sized["resnest101_ce"][64]], None  # fmt: skip
    effects["TResNet instead of ResNeSt"] = [runs["tresnet_xl_ce"] - runs["resnest101_ce"]], -0.0563 / 3
    effects["SE-ResNeXt instead of ResNeSt"] = [runs["seresnext101_ce"] - runs["resnest101_ce"]], 0.0018 / 3
    rows = table_rows(tested)
    fusion = hits(np.mean(list(rows.values()), axis=0))
    best = max(rows, key=lambda key: hits(rows[key]).sum())
    effects[f"28 rows instead of the best one ({best[0]}, {best[1]}, {TEST_SIZES[best[2]]} px)"] = (
        [fusion - hits(rows[best])],
        0.7015 - 0.6636,
    )
    models = {
        (model.family, model.loss): hits(np.mean([rows[model.family, model.loss, index] for index in range(4)], axis=0))
        for model in MODELS
    }
    model = max(models, key=lambda key: models[key].sum())
    effects[f"28 rows instead of the best model's mean ({model[0]}, {model[1]})"] = [fusion - models[model]], None
    return effects


def test_each_effect_is_that_of_numpy(whole: Reproduction, tested: dict[str, Done]) -> None:
    expected = expected_effects(tested)
    assert [effect.name for effect in whole.effects] == list(expected)
    for effect in whole.effects:
        pairs, gain = expected[effect.name]
        differences = np.mean(pairs, axis=0)
        assert effect.gain == pytest.approx(differences.mean(), abs=1e-12), effect.name
        assert effect.paper_gain == (None if gain is None else pytest.approx(gain, abs=1e-12)), effect.name
        error = 1.96 * differences.std() / np.sqrt(COUNT)  # a bootstrap interval is close to the normal one
        interval = [effect.gain - error, effect.gain + error]
        assert [effect.low, effect.high] == pytest.approx(interval, abs=0.005), effect.name
        assert effect.low <= effect.gain <= effect.high


def test_effects_are_those_of_what_the_paper_adds(whole: Reproduction) -> None:
    assert list(dict.fromkeys(effect.question for effect in whole.effects)) == [
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
    assert {effect.distinguishable for effect in whole.effects} == {True, False}, "these scores have both"


def test_same_scores_give_the_same_tables(whole: Reproduction, tested: dict[str, Done]) -> None:
    assert build_tables(dict(reversed(tested.items())), "small") == whole


# What is missing


def test_missing_trainings_leave_their_rows_empty(whole: Reproduction, part: Reproduction) -> None:
    empty = [(row.family, row.loss, row.paper_px) for row in part.rows if row.top1 is None]
    assert empty == [("ResNeSt", "CE", 448), *(("SE-ResNeXt", "CE", px) for px in TEST_SIZES)]
    for row, before in zip(part.rows, whole.rows, strict=True):
        if row.top1 is None:
            assert (row.model, row.train_px, row.test_px, row.collapsed) == ("", None, None, False)
            assert (row.paper_px, row.paper_top1) == (before.paper_px, before.paper_top1)
        else:
            assert row == before


def test_fusion_has_the_rows_whose_training_was_tested(part: Reproduction, tested: dict[str, Done]) -> None:
    rows = list(table_rows(six_of(tested)).values())
    assert part.num_rows == len(rows) == 28 - 1 - 4
    assert part.fusion == wilson(int(hits(np.mean(rows, axis=0)).sum()), COUNT)
    first = next(effect for effect in part.effects if effect.question == "the fusion")
    assert first.name.startswith("23 rows instead of the best one")


def test_mean_of_eight_results_needs_all_eight(whole: Reproduction, part: Reproduction) -> None:
    missing = {("ResNeSt", "CE"), ("SE-ResNeXt", "CE")}
    assert part.means == tuple(mean for mean in whole.means if (mean.family, mean.loss) not in missing)


def test_effects_of_missing_trainings_are_omitted(whole: Reproduction, part: Reproduction) -> None:
    effects = [(effect.question, effect.name) for effect in part.effects]
    names = [name for _, name in effects]
    assert "SE-ResNeXt, CE + ArcFace instead of CE" not in names
    assert not any(question == "training at 448 px" for question, _ in effects)
    assert [name for question, name in effects if question == "another backbone, CE"] == ["TResNet instead of ResNeSt"]
    assert "mean over 3 runs" in names
    assert [name for name in names if name.endswith("mean over 6 runs")] == [
        effect.name.replace("7", "6") for effect in whole.effects if effect.name.endswith("mean over 7 runs")
    ]
    complete = {effect.name: effect for effect in whole.effects}
    assert all(effect == complete[effect.name] for effect in part.effects if effect.question == "another backbone, CE")


@pytest.mark.parametrize("recipe", ["resnest101_ce_448", "resnest101_ce", "tresnet_xl_ce_triplet"])
def test_one_training_is_enough_for_tables(recipe: str, tested: dict[str, Done]) -> None:
    reproduction = build_tables({recipe: tested[recipe]}, "small")
    rows = [row for row in reproduction.rows if row.top1 is not None]
    assert reproduction.num_rows == len(rows) == {"resnest101_ce_448": 1, "resnest101_ce": 3}.get(recipe, 4)
    assert len(reproduction.means) == (1 if len(rows) == 4 else 0)
    assert reproduction.fusion == wilson(
        int(hits(np.mean(list(table_rows({recipe: tested[recipe]}).values()), axis=0)).sum()), COUNT
    )
    assert all(effect.low <= effect.gain <= effect.high for effect in reproduction.effects)
    assert any(effect.question == "the fusion" for effect in reproduction.effects)


def test_unreadable_images_are_omitted_and_training_images_counted(tmp_path: Path) -> None:
    unreadable = [3, 77]
    recipes = ["resnest101_ce", "resnest101_ce_448"]
    tested = write_tested(tmp_path, recipes, unreadable=unreadable, trained_on=range(10))
    result, rows = build_tables(tested, "small"), table_rows(tested)
    assert (result.num_images, result.num_trained_on, result.fusion.total) == (COUNT, 10, COUNT - 2)
    readable = np.delete(np.arange(COUNT), unreadable)
    for row in result.rows[:4]:
        correct = hits(rows[row.family, row.loss, TEST_SIZES.index(row.paper_px)])[readable]
        assert row.top1 == wilson(int(correct.sum()), COUNT - 2)


# Scores that cannot be compared


def store_like(folder: Path, **changes: object) -> Store:
    views = some_views(0, TRAININGS[0])
    return write_store(folder / "other", views, **{"labels": LABELS, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digests": [f"{number + 1:016x}" for number in range(COUNT)]}, "hold scores of different images"),
        ({"labels": (LABELS + 1) % len(CLASSES)}, "hold scores of different images"),
        ({"unreadable": [4]}, "hold scores of different images"),
        ({"classes": ("ant", "bee", "cat", "eel")}, "have different classes, .* only one of them has 'dog', 'eel'"),
    ],
)
def test_scores_of_other_images_are_refused(
    changes: dict[str, object], message: str, tested: dict[str, Done], tmp_path: Path
) -> None:
    first = tested["resnest101_ce"]
    other = Done(first.name, first.recipe, store_like(tmp_path, **changes), False)
    with pytest.raises(RunError, match=message):
        build_tables({**tested, "resnest101_ce": other}, "small")


def test_scores_without_labels_are_refused(tested: dict[str, Done], tmp_path: Path) -> None:
    first = tested["resnest101_ce"]
    with pytest.raises(RunError, match="its images have no labels"):
        build_tables(
            {"resnest101_ce": Done(first.name, first.recipe, store_like(tmp_path, labels=None), False)}, "small"
        )


# Files and the terminal


@pytest.fixture(params=["whole", "part"])
def shown(request: pytest.FixtureRequest, whole: Reproduction, part: Reproduction) -> Reproduction:
    return whole if request.param == "whole" else part


def four(value: float) -> str:
    return f"{value:.4f}"


def proportion_cells(top1: Proportion | None) -> list[str]:
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
        px = ["" if size is None else str(size) for size in (row.train_px, row.test_px, row.paper_px)]
        assert [line["train_px"], line["test_px"], line["report_px"]] == px
        assert line["report_top1"] == four(row.paper_top1)
        assert [line[name] for name in ("top1", "low", "high", "images")] == proportion_cells(row.top1)
    assert list(fused.values()) == [
        "fusion", f"{shown.num_rows} rows", "", "", "", four(FUSION_TOP1), *proportion_cells(shown.fusion)]  # fmt: skip


def test_effects_csv_holds_every_effect(shown: Reproduction, tmp_path: Path) -> None:
    write_reproduction(tmp_path, shown)
    with (tmp_path / "effects.csv").open(newline="", encoding="utf-8") as handle:
        heading, *lines = csv.reader(handle)
    assert heading == ["question", "what", "gain", "low", "high", "report"]
    assert lines == [
        [effect.question, effect.name, four(effect.gain), four(effect.low), four(effect.high),
         "" if effect.paper_gain is None else four(effect.paper_gain)]
        for effect in shown.effects
    ]  # fmt: skip


def test_json_holds_every_figure(shown: Reproduction, tmp_path: Path) -> None:
    """In full precision, with the keys that older versions wrote and `fewsight report` reads."""
    paths = write_reproduction(tmp_path, shown)
    assert [path.name for path in paths] == ["tables.md", "tables.csv", "effects.csv", "tables.json"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    text = json.dumps(asdict(shown))
    for name, key in (("paper_px", "report_px"), ("paper_top1", "report_top1"), ("paper_gain", "report")):
        text = text.replace(f'"{name}":', f'"{key}":')
    assert json.loads((tmp_path / "tables.json").read_text(encoding="utf-8")) == json.loads(text)


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
                              str(row.paper_px), four(row.paper_top1)]  # fmt: skip
        top1 = row.top1
        ours = "not trained" if top1 is None else f"{top1.value:.4f} [{top1.low:.3f}, {top1.high:.3f}]"
        assert cells[6] == ours
    for cells, effect in zip(effects, shown.effects, strict=True):
        gain = f"{100 * effect.gain:+.1f} [{100 * effect.low:+.1f}, {100 * effect.high:+.1f}]"
        gain = gain if effect.distinguishable else f"{gain}, not distinguishable"
        paper_gain = "" if effect.paper_gain is None else f"{100 * effect.paper_gain:+.1f}"
        assert cells == [effect.question, effect.name, gain, paper_gain]
    assert all(f"- {mean.family}, {mean.loss}: {mean.top1}\n" in text for mean in shown.means)
    assert f"{shown.num_rows} rows, uniform: **{shown.fusion}**; the paper: 0.7015." in text
    assert "small scale" in text.splitlines()[0]
    assert "trained on" not in text


@pytest.mark.parametrize("write", [write_reproduction, None])
def test_warning_is_above_figures_on_training_images(
    write: Callable[[Path, Reproduction], object] | None, whole: Reproduction, tmp_path: Path
) -> None:
    optimistic = Reproduction(**{**vars(whole), "num_trained_on": 5})
    if write is not None:
        write(tmp_path, optimistic)
        text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    else:
        show_reproduction(make_console(file := io.StringIO()), optimistic)
        text = file.getvalue()
    warning = f"5 of {COUNT} images were in the training set: these figures are optimistic"
    assert text.index(warning) < text.index("Table 1")


def test_terminal_shows_every_row(shown: Reproduction) -> None:
    show_reproduction(make_console(file := io.StringIO()), shown)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    rows = [line for line in lines if re.search(r"  0\.\d{4}  ", line)]
    for line, row in zip(rows, shown.rows, strict=True):
        top1 = row.top1
        ours = "not trained" if top1 is None else f"{top1.value:.4f} [{top1.low:.3f}, {top1.high:.3f}]"
        assert line.endswith(f"  {row.paper_px}  {row.paper_top1:.4f}  {ours}")
    assert f"Table 1. ResNeSt, top-1 on {COUNT} images" in lines
    assert f"Table 2. TResNet and SE-ResNeXt, top-1 on {COUNT} images" in lines
    assert all(f"  {mean.family}, {mean.loss}: {mean.top1}" in lines for mean in shown.means)
    assert f"the fusion of {shown.num_rows} rows: {shown.fusion}   (the paper, 28 rows: 0.7015)" in lines
    assert all(any(effect.name in line for line in lines) for effect in shown.effects)
    assert f"  not distinguishable: the interval contains 0 on these {COUNT} images" in lines

"""From stored scores to the paper's tables and the ablation; no model is needed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fewsight.apps.reproduce.plan import mapped_px
from fewsight.apps.reproduce.published import FUSION_TOP1, MODELS, TEST_SIZES, TRAININGS, Training
from fewsight.recipes import Recipe
from fewsight.scores.fusion import correct_top1
from fewsight.scores.members import SizedRun, Weights, check_same_images, restrict, sized_runs, uniform
from fewsight.scores.metrics import Proportion, mean_interval, wilson
from fewsight.scores.store import Store


@dataclass(frozen=True)
class TestedRun:
    """A finished training and its scores."""

    name: str
    recipe: Recipe
    store: Store
    collapsed: bool  # as its loss reported when the training ended


@dataclass(frozen=True)
class TableRow:
    """A row of the paper's tables, with the paper's figure and ours."""

    table: int
    model: str  # the backbone that was trained here, such as resnest14; empty if the training is missing
    family: str
    loss: str
    train_px: int | None  # here; None if the training is missing
    test_px: int | None
    paper_px: int  # the test size in the paper
    paper_top1: float
    top1: Proportion | None
    collapsed: bool


@dataclass(frozen=True)
class Mean:
    """The mean of a model's eight results (four test sizes, two crops)."""

    family: str
    loss: str
    top1: Proportion


@dataclass(frozen=True)
class Effect:
    """A line of the ablation: the mean difference of top-1 over the images, with a bootstrap 95 % interval."""

    question: str
    name: str  # what is compared with what
    gain: float
    low: float
    high: float
    paper_gain: float | None  # the difference in the paper, if its tables hold it

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Reproduction:
    """The paper's tables, the fusion and the ablation."""

    scale: str
    num_images: int
    num_trained_on: int
    rows: tuple[TableRow, ...]
    means: tuple[Mean, ...]
    fusion: Proportion
    num_rows: int  # that were fused; 28 in the paper
    effects: tuple[Effect, ...]


def build_tables(tested: Mapping[str, TestedRun], scale: str) -> Reproduction:
    """Compute the tables and the ablation of the runs that were tested.

    Args:
        tested: by the paper's recipe; some may be missing.
        scale: "full" or "small", for the heading.

    Raises:
        RunError: the scores are of different images, or have no labels.
    """
    check_same_images([run.store for run in tested.values()])
    fusions = _Fusions(tested)
    hits = dict(zip(fusions.weights, correct_top1(list(fusions.weights.values())), strict=True))
    top1 = {key: wilson(int(hit.sum()), len(hit)) for key, hit in hits.items()}
    rows = tuple(
        TableRow(
            model.table,
            tested[recipe].recipe.model.backbone if recipe in tested else "",
            model.family,
            model.loss,
            tested[recipe].recipe.augment.train_px if recipe in tested else None,
            mapped_px(tested[recipe].recipe, index) if recipe in tested else None,
            TEST_SIZES[index],
            model.top1[index],
            top1.get(("row", model.family, model.loss, index)),
            recipe in tested and tested[recipe].collapsed,
        )
        for model in MODELS
        for index, recipe in enumerate(model.recipes)
    )
    means = tuple(
        Mean(model.family, model.loss, top1["model", model.family, model.loss])
        for model in MODELS
        if ("model", model.family, model.loss) in top1
    )
    effects = tuple(_effect(hits, comparison) for comparison in _comparisons(fusions, top1) if comparison.pairs)
    return Reproduction(
        scale,
        len(next(iter(tested.values())).store.images),
        max(run.store.num_trained_on for run in tested.values()),
        rows,
        means,
        top1["fusion",],
        len(fusions.rows),
        effects,
    )


Key = tuple[str | int, ...]
Pair = tuple[Key, Key]  # fusions with and without what the ablation asks about


class _Fusions:
    """Every fusion that the tables and the ablation need, by a key."""

    def __init__(self, tested: Mapping[str, TestedRun]) -> None:
        sized = {recipe: sized_runs(run.name, run.store) for recipe, run in tested.items()}
        self.rows: dict[Key, SizedRun] = {}
        models: dict[Key, list[SizedRun]] = {}
        for model in MODELS:
            for index, recipe in enumerate(model.recipes):
                if recipe in tested:
                    px = mapped_px(tested[recipe].recipe, index)
                    row = next(sized_run for sized_run in sized[recipe] if sized_run.px == px)
                    self.rows["row", model.family, model.loss, index] = row
                    models.setdefault(("model", model.family, model.loss), []).append(row)
        # the mean of a model needs all its eight results
        self.models = {key: rows for key, rows in models.items() if len(rows) == len(TEST_SIZES)}
        self.weights: dict[Key, Weights] = {key: uniform([row]) for key, row in self.rows.items()}
        self.weights |= {key: uniform(rows) for key, rows in self.models.items()}
        self.weights["fusion",] = uniform(list(self.rows.values()))
        for training in TRAININGS:  # each run alone: the 224 px run of ResNeSt, CE has scores at every size
            if training.recipe in tested:
                self._add_run(training.recipe, sized[training.recipe])

    def _add_run(self, recipe: str, sized: Sequence[SizedRun]) -> None:
        whole = uniform(sized)
        self.weights["run", recipe] = whole
        self.weights["unmirrored", recipe] = {result.unmirrored: weight for result, weight in whole.items()}
        for crop in ("center", "random"):
            results = [result for result in whole if result.crop == crop]
            self.weights["crop", recipe, crop] = restrict(whole, results)
        for index, sized_run in enumerate(sized):
            self.weights["size", recipe, index] = uniform([sized_run])


@dataclass(frozen=True)
class _Comparison:
    """Pairs of fusions whose mean difference of top-1 is a line of the ablation."""

    question: str
    name: str
    pairs: list[Pair]
    paper_gain: float | None = None


def _comparisons(fusions: _Fusions, top1: Mapping[Key, Proportion]) -> Iterator[_Comparison]:
    tested = [training for training in TRAININGS if ("run", training.recipe) in fusions.weights]
    small = [training for training in tested if not training.large]
    yield from _view_comparisons([training.recipe for training in small])
    yield from _loss_comparisons([training for training in tested if ("run", training.start) in fusions.weights])
    pair: Pair = ("size", "resnest101_ce_448", 0), ("size", "resnest101_ce", 3)
    if set(pair) <= fusions.weights.keys():
        name = "ResNeSt, CE, at 448 px instead of 224 px; tested at 448 px"
        yield _Comparison("training at 448 px", name, [pair])
    yield from _backbone_comparisons([training for training in small if training.start is None])
    yield from _fusion_comparisons(fusions, top1)


def _view_comparisons(recipes: Sequence[str]) -> Iterator[_Comparison]:
    """Test sizes, crops and mirrored views: means over the runs of the small train size."""
    over = f"mean over {len(recipes)} runs"
    for index, px in enumerate(TEST_SIZES[1:], start=1):
        pairs: list[Pair] = [(("size", recipe, index), ("size", recipe, 0)) for recipe in recipes]
        name = f"{px} px instead of {TEST_SIZES[0]} px, {over}"
        yield _Comparison("a larger test size", name, pairs, _paper_size_gain(index))
    for crop in ("center", "random"):
        pairs = [(("run", recipe), ("crop", recipe, crop)) for recipe in recipes]
        yield _Comparison("crops", f"both crops instead of {crop} crops alone, {over}", pairs)
    pairs = [(("run", recipe), ("unmirrored", recipe)) for recipe in recipes]
    yield _Comparison("flips", f"with mirrored views instead of without, {over}", pairs)
    for index, px in enumerate(TEST_SIZES):
        pairs = [(("run", recipe), ("size", recipe, index)) for recipe in recipes]
        yield _Comparison("four test sizes", f"all four instead of {px} px alone, {over}", pairs)


def _loss_comparisons(trainings: Sequence[Training]) -> Iterator[_Comparison]:
    """Each training with a metric loss against the run that it started from, and their mean."""
    question = "a metric loss (with its second stage)"
    pairs: list[Pair] = [(("run", run.recipe), ("run", str(run.start))) for run in trainings]
    gains = [_paper_gain(training.recipe, str(training.start)) for training in trainings]
    for training, pair, gain in zip(trainings, pairs, gains, strict=True):
        yield _Comparison(question, f"{training.family}, {training.loss} instead of CE", [pair], gain)
    if len(trainings) > 1:
        yield _Comparison(question, f"mean over {len(trainings)} runs", pairs, float(np.mean(gains)))


def _backbone_comparisons(trainings: Sequence[Training]) -> Iterator[_Comparison]:
    """Each training with cross-entropy alone against the first."""
    for training in trainings[1:]:
        first = trainings[0]
        gain = _paper_gain(training.recipe, first.recipe)
        pair: Pair = ("run", training.recipe), ("run", first.recipe)
        yield _Comparison("another backbone, CE", f"{training.family} instead of {first.family}", [pair], gain)


def _fusion_comparisons(fusions: _Fusions, top1: Mapping[Key, Proportion]) -> Iterator[_Comparison]:
    best = max(fusions.rows, key=lambda key: top1[key].value)
    name = f"{len(fusions.rows)} rows instead of the best one ({best[1]}, {best[2]}, {TEST_SIZES[int(best[3])]} px)"
    gain = FUSION_TOP1 - max(max(model.top1) for model in MODELS)
    yield _Comparison("the fusion", name, [(("fusion",), best)], gain)
    if fusions.models:
        best = max(fusions.models, key=lambda key: top1[key].value)
        name = f"{len(fusions.rows)} rows instead of the best model's mean ({best[1]}, {best[2]})"
        yield _Comparison("the fusion", name, [(("fusion",), best)])


def _paper_size_gain(index: int) -> float:
    """The mean gain of a test size over 224 px in the paper's tables, over models whose rows are of one run."""
    gains = [model.top1[index] - model.top1[0] for model in MODELS if model.recipes[index] == model.recipes[0]]
    return float(np.mean(gains))


def _paper_gain(recipe: str, baseline: str) -> float:
    """The mean gain of a run over another in the paper's tables, at the test sizes where both have a row."""
    top1: dict[str, dict[int, float]] = {recipe: {}, baseline: {}}
    for model in MODELS:
        for index, row_recipe in enumerate(model.recipes):
            if row_recipe in top1:
                top1[row_recipe][index] = model.top1[index]
    both = [index for index in top1[recipe] if index in top1[baseline]]
    return float(np.mean([top1[recipe][index] - top1[baseline][index] for index in both]))


def _effect(hits: Mapping[Key, np.ndarray], comparison: _Comparison) -> Effect:
    differences = np.mean([hits[after].astype(float) - hits[before] for after, before in comparison.pairs], axis=0)
    low, high = mean_interval(differences)
    gain = float(differences.mean())
    return Effect(comparison.question, comparison.name, gain, low, high, comparison.paper_gain)

"""From kept scores to the report's tables and what can be read off them; no model is needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fewsight.apps.reproduce.plan import row_px
from fewsight.apps.reproduce.published import FUSED, MODELS, SIZES, TRAININGS
from fewsight.recipes import Recipe
from fewsight.scores.fusion import SizedRun, Weights, check_same_images, correct_top1, restrict, sized_runs, uniform
from fewsight.scores.metrics import Proportion, mean_interval, wilson
from fewsight.scores.store import Store


@dataclass(frozen=True)
class TestedRun:
    """A finished training and its scores."""

    name: str
    recipe: Recipe
    store: Store
    collapsed: bool  # its loss said so


@dataclass(frozen=True)
class TableRow:
    """A row of the report's tables, its figure and ours."""

    table: int
    model: str  # our member: resnest14
    family: str
    loss: str
    train_px: int | None  # here; None where the training is missing
    test_px: int | None
    report_px: int  # the test size in the report
    report_top1: float
    top1: Proportion | None
    collapsed: bool


@dataclass(frozen=True)
class Mean:
    """A model's mean of its eight results."""

    family: str
    loss: str
    top1: Proportion


@dataclass(frozen=True)
class Effect:
    """What one thing gives: the mean difference of top-1 over the images, with a bootstrap 95 % interval."""

    question: str
    name: str
    gain: float
    low: float
    high: float
    report: float | None  # the report's own difference, where its tables hold one

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Reproduction:
    """The tables, the fusion and the effects."""

    scale: str
    num_images: int
    num_trained_on: int
    rows: tuple[TableRow, ...]
    means: tuple[Mean, ...]
    fusion: Proportion
    num_rows: int  # that were fused; the report's 28
    effects: tuple[Effect, ...]


def answer(tested: Mapping[str, TestedRun], scale: str) -> Reproduction:
    """Tables and effects of what is there.

    Args:
        tested: by the report's recipe; some may be missing.

    Raises:
        RunError: the scores are of other images, or without labels.
    """
    check_same_images([one.store for one in tested.values()])
    asked = _Asked(tested)
    hits = dict(zip(asked.weights, correct_top1(list(asked.weights.values())), strict=True))
    shares = {name: wilson(int(hit.sum()), len(hit)) for name, hit in hits.items()}
    rows = tuple(
        TableRow(
            model.table,
            tested[recipe].recipe.model.backbone if recipe in tested else "",
            model.family,
            model.loss,
            tested[recipe].recipe.augment.train_px if recipe in tested else None,
            row_px(tested[recipe].recipe, place) if recipe in tested else None,
            SIZES[place],
            model.top1[place],
            shares.get(("row", model.family, model.loss, place)),
            recipe in tested and tested[recipe].collapsed,
        )
        for model in MODELS
        for place, recipe in enumerate(model.recipes)
    )
    means = tuple(
        Mean(model.family, model.loss, shares["model", model.family, model.loss])
        for model in MODELS
        if ("model", model.family, model.loss) in shares
    )
    effects = [_effect(hits, *one) for one in _questions(asked, shares)]
    first = next(iter(tested.values())).store
    return Reproduction(
        scale,
        len(first.images),
        max(one.store.num_trained_on for one in tested.values()),
        rows,
        means,
        shares["fusion",],
        len(asked.rows),
        tuple(effects),
    )


Key = tuple[str | int, ...]


class _Asked:
    """Every fusion that the tables and effects need, by a key."""

    def __init__(self, tested: Mapping[str, TestedRun]) -> None:
        found = {recipe: sized_runs(one.name, one.store) for recipe, one in tested.items()}
        self.rows: dict[Key, SizedRun] = {}
        self.models: dict[Key, list[SizedRun]] = {}
        self.weights: dict[Key, Weights] = {}
        for model in MODELS:
            for place, recipe in enumerate(model.recipes):
                if recipe in tested:
                    px = row_px(tested[recipe].recipe, place)
                    row = next(row for row in found[recipe] if row.px == px)
                    self.rows["row", model.family, model.loss, place] = row
                    self.models.setdefault(("model", model.family, model.loss), []).append(row)
        self.models = {key: rows for key, rows in self.models.items() if len(rows) == len(SIZES)}  # all eight results
        self.weights |= {key: uniform([row]) for key, row in self.rows.items()}
        self.weights |= {key: uniform(rows) for key, rows in self.models.items()}
        self.weights["fusion",] = uniform(list(self.rows.values()))
        for training in TRAININGS:  # a run by itself: the 224 px run has a row at every size
            if training.recipe in tested:
                self._add_run(training.recipe, found[training.recipe])

    def _add_run(self, recipe: str, rows: Sequence[SizedRun]) -> None:
        whole = uniform(rows)
        results = list(whole)
        self.weights["run", recipe] = whole
        self.weights["plain", recipe] = _without_twins(whole)
        for crop in ("center", "random"):
            self.weights["crop", recipe, crop] = restrict(whole, [one for one in results if one.crop == crop])
        for place, row in enumerate(rows):
            self.weights["size", recipe, place] = uniform([row])


def _without_twins(weights: Weights) -> Weights:
    return {result.unmirrored: weight for result, weight in weights.items()}


Pair = tuple[Key, Key]  # with, without
Question = tuple[str, str, list[Pair], float | None]


def _questions(asked: _Asked, shares: Mapping[Key, Proportion]) -> list[Question]:
    """(what is asked, of what, the pairs whose mean difference answers it, the report's figure)."""
    there = [one for one in TRAININGS if ("run", one.recipe) in asked.weights]
    small = [one for one in there if not one.large]
    found: list[Question] = []
    for place in range(1, len(SIZES)):
        pairs: list[Pair] = [(("size", one.recipe, place), ("size", one.recipe, 0)) for one in small]
        name = f"{SIZES[place]} px for {SIZES[0]} px, mean over {len(pairs)} runs"
        found.append(("a larger test size", name, pairs, _report_size_gain(place)))
    for crop in ("center", "random"):
        pairs = [(("run", one.recipe), ("crop", one.recipe, crop)) for one in small]
        found.append(("crops", f"both crops for {crop} crops alone, mean over {len(pairs)} runs", pairs, None))
    pairs = [(("run", one.recipe), ("plain", one.recipe)) for one in small]
    found.append(("flips", f"with flipped twins for without, mean over {len(pairs)} runs", pairs, None))
    for place in range(len(SIZES)):
        pairs = [(("run", one.recipe), ("size", one.recipe, place)) for one in small]
        name = f"all four for {SIZES[place]} px alone, mean over {len(pairs)} runs"
        found.append(("four test sizes", name, pairs, None))
    metric = [one for one in there if one.start is not None and ("run", one.start) in asked.weights]
    for one in metric:
        pair: Pair = ("run", one.recipe), ("run", str(one.start))
        gain = _report_gain(one.recipe, str(one.start))
        found.append(("a metric loss (with its second stage)", f"{one.family}, {one.loss} for CE", [pair], gain))
    if len(metric) > 1:
        pairs = [(("run", one.recipe), ("run", str(one.start))) for one in metric]
        gain = float(np.mean([_report_gain(one.recipe, str(one.start)) for one in metric]))
        found.append(("a metric loss (with its second stage)", f"mean over {len(metric)} runs", pairs, gain))
    if "resnest101_ce_448" in {one.recipe for one in there}:
        pair = ("size", "resnest101_ce_448", 0), ("size", "resnest101_ce", 3)
        if pair[1] in asked.weights:
            found.append(("training at 448 px", "ResNeSt, CE, for training at 224 px; tested at 448 px", [pair], None))
    plain = [one for one in small if one.start is None]
    for one in plain[1:]:
        pair = ("run", one.recipe), ("run", plain[0].recipe)
        gain = _report_gain(one.recipe, plain[0].recipe)
        found.append(("another backbone, CE", f"{one.family} for {plain[0].family}", [pair], gain))
    best = max(asked.rows, key=lambda key: shares[key].value)
    name = f"{len(asked.rows)} rows for the best one ({best[1]}, {best[2]}, {SIZES[int(best[3])]} px)"
    found.append(("the fusion", name, [(("fusion",), best)], FUSED - max(max(model.top1) for model in MODELS)))
    if asked.models:
        model = max(asked.models, key=lambda key: shares[key].value)
        name = f"{len(asked.rows)} rows for the best model's mean ({model[1]}, {model[2]})"
        found.append(("the fusion", name, [(("fusion",), model)], None))
    return [one for one in found if one[2]]


def _report_size_gain(place: int) -> float:
    """The mean gain of a test size over 224 px in the report's tables, where both rows are of one run."""
    gains = [model.top1[place] - model.top1[0] for model in MODELS if model.recipes[place] == model.recipes[0]]
    return float(np.mean(gains))


def _report_gain(more: str, less: str) -> float:
    """The mean gain of one run over another in the report's tables, at the test sizes that both have rows of."""
    rows: dict[str, dict[int, float]] = {more: {}, less: {}}
    for model in MODELS:
        for place, recipe in enumerate(model.recipes):
            if recipe in rows:
                rows[recipe][place] = model.top1[place]
    return float(np.mean([rows[more][place] - rows[less][place] for place in rows[more] if place in rows[less]]))


def _effect(
    hits: Mapping[Key, np.ndarray], question: str, name: str, pairs: list[Pair], report: float | None
) -> Effect:
    differences = np.mean([hits[more].astype(float) - hits[less] for more, less in pairs], axis=0)
    low, high = mean_interval(differences)
    return Effect(question, name, float(differences.mean()), low, high, report)

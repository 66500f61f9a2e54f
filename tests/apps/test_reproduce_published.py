"""The paper's figures that `reproduce` is compared with, and the trainings behind them."""

import pytest

from fewsight.apps.reproduce.published import FUSION_TOP1, MODELS, TEST_SIZES, TRAININGS, Training
from fewsight.recipes import load_recipe, shipped_recipes

# Tables 1 and 2 of the paper, row by row: table, models, loss, train size, test size, top-1.
TABLES = [
    (1, "ResNest101", "CE", 224, 224, 0.6316),
    (1, "ResNest101", "CE", 224, 320, 0.6518),
    (1, "ResNest101", "CE", 224, 380, 0.65),
    (1, "ResNest101", "CE", 448, 448, 0.6414),
    (1, "ResNest101", "CE+triplet loss", 224, 224, 0.631),
    (1, "ResNest101", "CE+triplet loss", 224, 320, 0.6521),
    (1, "ResNest101", "CE+triplet loss", 224, 380, 0.6476),
    (1, "ResNest101", "CE+triplet loss", 224, 448, 0.6393),
    (1, "ResNest101", "CE+ArcFace loss", 224, 224, 0.6335),
    (1, "ResNest101", "CE+ArcFace loss", 224, 320, 0.6636),
    (1, "ResNest101", "CE+ArcFace loss", 224, 380, 0.6623),
    (1, "ResNest101", "CE+ArcFace loss", 224, 448, 0.6583),
    (2, "TResNet-XL", "CE", 224, 224, 0.6058),
    (2, "TResNet-XL", "CE", 224, 320, 0.6368),
    (2, "TResNet-XL", "CE", 224, 380, 0.6345),
    (2, "TResNet-XL", "CE", 224, 448, 0.6418),
    (2, "TResNet-XL", "CE+triplet loss", 224, 224, 0.6262),
    (2, "TResNet-XL", "CE+triplet loss", 224, 320, 0.6516),
    (2, "TResNet-XL", "CE+triplet loss", 224, 380, 0.6482),
    (2, "TResNet-XL", "CE+triplet loss", 224, 448, 0.6399),
    (2, "SEResNeXt101", "CE", 224, 224, 0.6307),
    (2, "SEResNeXt101", "CE", 224, 320, 0.6526),
    (2, "SEResNeXt101", "CE", 224, 380, 0.6519),
    (2, "SEResNeXt101", "CE", 224, 448, 0.6443),
    (2, "SEResNeXt101", "CE+ArcFace loss", 224, 224, 0.6303),
    (2, "SEResNeXt101", "CE+ArcFace loss", 224, 320, 0.6584),
    (2, "SEResNeXt101", "CE+ArcFace loss", 224, 380, 0.6594),
    (2, "SEResNeXt101", "CE+ArcFace loss", 224, 448, 0.6532),
]
FAMILIES = {"ResNest101": "ResNeSt", "TResNet-XL": "TResNet", "SEResNeXt101": "SE-ResNeXt"}
LOSSES = {"CE": "CE", "CE+triplet loss": "CE + triplet", "CE+ArcFace loss": "CE + ArcFace"}
BACKBONES = {"ResNeSt": "resnest101", "TResNet": "tresnet_xl", "SE-ResNeXt": "seresnext101"}
BY_RECIPE = {training.recipe: training for training in TRAININGS}


def test_tables_are_the_papers() -> None:
    """The train size of a row is that of the run behind it."""
    rows = [
        (
            model.table,
            model.family,
            model.loss,
            load_recipe(model.recipes[index]).augment.train_px,
            TEST_SIZES[index],
            model.top1[index],
        )
        for model in MODELS
        for index in range(4)
    ]
    assert rows == [
        (table, FAMILIES[model], LOSSES[loss], train_px, test_px, top1)
        for table, model, loss, train_px, test_px, top1 in TABLES
    ]
    assert FUSION_TOP1 == 0.7015


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.recipe)
def test_training_is_what_its_recipe_trains(training: Training) -> None:
    assert training.recipe in shipped_recipes()
    recipe = load_recipe(training.recipe)
    assert recipe.model.backbone == BACKBONES[training.family]
    assert recipe.stages[-1].loss == training.loss.lower().replace(" ", "")
    assert recipe.eval.test_px == ([448] if training.large else [224, 320, 380, 448])
    assert recipe.augment.train_px == (448 if training.large else 224)
    assert len(recipe.stages) == (1 if training.start is None else 2)


def test_each_training_is_listed_once() -> None:
    assert len(TRAININGS) == len(BY_RECIPE) == 8


def test_metric_losses_start_from_the_cross_entropy_run_of_their_family() -> None:
    before: list[str] = []
    for training in TRAININGS:
        if training.loss == "CE":
            assert training.start is None
        else:
            assert training.start in before, "a training must come after the one that it starts from"
            start = BY_RECIPE[str(training.start)]
            assert (start.family, start.loss, start.large) == (training.family, "CE", False)
        before.append(training.recipe)
    assert [training.start is None for training in TRAININGS] == [True] * 4 + [False] * 4


def test_models_have_the_runs_of_their_family_and_loss() -> None:
    """Each run gives four rows, except the 448 px run, which gives the last row of ResNeSt101 + CE."""
    for model in MODELS:
        runs = [BY_RECIPE[recipe] for recipe in model.recipes]
        assert {(run.family, run.loss) for run in runs} == {(model.family, model.loss)}
        large = [False, False, False, (model.family, model.loss) == ("ResNeSt", "CE")]
        assert [run.large for run in runs] == large
        assert len(set(model.recipes)) == 1 + large[3]
    assert {recipe for model in MODELS for recipe in model.recipes} == set(BY_RECIPE)

"""Recipes: strict, errors name the nearest key, and the shipped ones have the paper's values."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from fewsight.errors import RecipeError
from fewsight.recipes import (
    Recipe,
    check_keys,
    load_recipe,
    parse_recipe,
    recipe_differences,
    recipe_toml,
    shipped_recipes,
)

VALUES = {
    "model": {"backbone": "resnest14"},
    "augment": {"train_px": 64},
    "stages": [{"epochs": 3, "batch_size": 4}],
}


def test_defaults_are_those_of_the_paper() -> None:
    recipe = parse_recipe(VALUES)
    stage, augment = recipe.stages[0], recipe.augment
    assert (stage.optim.base_lr, stage.optim.momentum, stage.optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert (stage.optim.warmup_epochs, stage.losses.smoothing, stage.optim.nesterov) == (1.0, 0.1, False)
    assert (augment.crop_area, augment.crop_aspect) == ((0.08, 1.0), (3 / 4, 4 / 3))
    assert (augment.policy, augment.num_policies, augment.cutmix_prob) == ("autoaugment", 24, 0.5)


@pytest.mark.parametrize(
    ("name", "backbone", "train_px", "batch_size"),
    [
        ("resnest101_ce", "resnest101", 224, 128),
        ("resnest101_ce_448", "resnest101", 448, 128),
        ("tresnet_xl_ce", "tresnet_xl", 224, 256),
        ("seresnext101_ce", "seresnext101", 224, 128),
    ],
)
def test_shipped_recipe_has_the_values_of_the_paper(name: str, backbone: str, train_px: int, batch_size: int) -> None:
    recipe = load_recipe(name)
    assert (recipe.model.backbone, recipe.augment.train_px) == (backbone, train_px)
    assert [(stage.loss, stage.epochs, stage.batch_size) for stage in recipe.stages] == [("ce", 250, batch_size)]
    assert recipe.data.merge_val
    assert recipe.run.select == "last"


@pytest.mark.parametrize(
    ("name", "first", "loss", "batches"),
    [
        ("resnest101_ce_triplet", "resnest101_ce", "ce+triplet", "pk"),
        ("resnest101_ce_arcface", "resnest101_ce", "ce+arcface", "auto"),
        ("tresnet_xl_ce_triplet", "tresnet_xl_ce", "ce+triplet", "pk"),
        ("seresnext101_ce_arcface", "seresnext101_ce", "ce+arcface", "auto"),
    ],
)
def test_metric_loss_recipe_goes_on_from_its_cross_entropy_run(name: str, first: str, loss: str, batches: str) -> None:
    recipe, ce = load_recipe(name), load_recipe(first)
    assert recipe.model_copy(update={"stages": recipe.stages[:1]}) == ce, "so that --init-from may stand for it"
    last = recipe.stages[1]
    assert (last.loss, last.epochs, last.batches, last.optim) == (loss, 200, batches, ce.stages[0].optim)
    assert (last.batch_size, last.lr_scale) == (ce.stages[0].batch_size, 1.0)
    assert (last.losses.triplet.margin, last.losses.arcface.scale, last.losses.arcface.margin_rad) == (0.3, 30.0, 0.5)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_recipe_survives_toml(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["stages.0.losses.weights.ce=0.5", 'stages.0.losses.triplet.margin="soft"'])
    (tmp_path / "r.toml").write_text(recipe_toml(recipe, "a heading\nof two lines"))
    assert load_recipe(tmp_path / "r.toml") == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.0.optim.bas_lr=1",
            r"unknown key 'stages.0.optim.bas_lr'; did you mean 'stages.0.optim.base_lr'",
        ),
        ("augmnt.train_px=3", r"unknown key 'augmnt.train_px'; did you mean 'augment.train_px'\?"),
        ("epochs=3", r"unknown key 'epochs'; did you mean 'stages.0.epochs'\?"),
        ("augment.margin=1", r"did you mean 'stages.0.losses.triplet.margin'"),
        ("bach_size=3", r"did you mean 'stages.0.batch_size'"),
        ("batch=5", r"did you mean 'stages.0.batch_size' or 'stages.0.optim.lr_batch'\?"),
        ("stages.0.batch=5", r"did you mean 'stages.0.batch_size'\?"),
        ("stages.0.optim.lr=5", r"did you mean 'stages.0.optim.base_lr' or 'stages.0.optim.lr_batch'\?"),
        ("lr=0.1", r"did you mean 'stages.0.lr_scale' or 'stages.0.optim.base_lr'"),
        ("cutmix_prob=0", r"did you mean 'augment.cutmix_prob' or 'stages.0.cutmix_prob'"),
        ("colour=3", r"unknown key 'colour'; keys here: data, model, augment, stages, eval, run"),
        ("augment.train_px=big", r"augment.train_px: .*integer, got 'big'"),
        ("augment.train_px=64.5", r"augment.train_px: .*integer"),
        ("augment.crop_area=[1.0, 0.5]", r"crop_area goes from low to high"),
        ("stages.0.losses.triplet.margn=1", r"did you mean 'stages.0.losses.triplet.margin'"),
        ("stages.0.losses.triplet.margin=inf", r"stages.0.losses.triplet.margin: .*finite number"),
        ("stages.0.losses.weights.ce=inf", r"stages.0.losses.weights.ce: .*finite number"),
        ("stages.0.optim.base_lr=nan", r"stages.0.optim.base_lr: .*finite number"),
        ("stages.0.losses.triplet.margin=0", r"stages.0.losses.triplet.margin: .*greater than 0"),
        ("stages.0.losses.weights.ce=-1", r"stages.0.losses.weights.ce: .*greater than 0"),
        ("stages.0.cutmix_prob=2", r"stages.0.cutmix_prob: expected 'auto' or a finite number from 0 to 1, got 2$"),
        ("data.mean=[0.5,0.5]", r"data.mean: expected 'data' or a list of 3 values, each .*, got \[0.5, 0.5\]$"),
        ("run.threads=many", r"recipe: run.threads: expected 'auto' or an integer of at least 1, got 'many'$"),
        ("run.threads.most=3", r"recipe: run.threads: expected 'auto' or an integer of at least 1, got \{'most': 3\}$"),
        ("eval.test_px=[3]", r"eval.test_px: expected 'auto' or a list of 1 to 16 values, each an integer from 8 to"),
        ("augment.crop_area=[0.1]", r"augment.crop_area: expected a list of 2 values, each a finite number greater"),
        ("stages.3.epochs=2", r"1 stage\(s\), numbered from 0; got '3'"),
        ("run.seed=-1", r"run.seed: .*greater than or equal to 0"),
        ("stages.0.batch_size=1", r"batch_size: .*greater than or equal to 2"),
        ("nothing", r"expected KEY=VALUE"),
        ("run.seed.deeper=1", r"run.seed"),
    ],
)
def test_wrong_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**VALUES, "run": {}}, [override])


def test_override_reaches_into_a_stage() -> None:
    recipe = parse_recipe(VALUES, ["stages.0.optim.base_lr=0.05", "augment.policy=none", "eval.test_px=[64, 92]"])
    assert recipe.stages[0].optim.base_lr == 0.05
    assert recipe.augment.policy == "none"
    assert recipe.eval.test_px == [64, 92]
    assert parse_recipe(VALUES).stages[0].optim.base_lr == 0.1, "the given values are not changed"


def test_missing_key_is_named() -> None:
    with pytest.raises(RecipeError, match=r"augment is missing"):
        parse_recipe({"model": {"backbone": "resnest14"}, "stages": VALUES["stages"]})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch=5", "recipe auto: unknown key 'batch'; did you mean 'stages.0.batch_size'"),
        ("stages.1.optim.bas_lr=1", "unknown key 'stages.1.optim.bas_lr'; did you mean 'stages.1.optim.base_lr'"),
        ("nonsense", "expected KEY=VALUE"),
        ("stages.0.epochs=5", None),
        ("stages.0.epochs=five", None),
    ],
)
def test_keys_are_checked_without_a_recipe(override: str, message: str | None) -> None:
    if message is None:
        check_keys([override], "auto")
        return
    with pytest.raises(RecipeError, match=re.escape(message)):
        check_keys([override], "auto")


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"^recipe: there is no 'resnest101_cee'; did you mean 'resnest101_ce'\?"):
        load_recipe("resnest101_cee")


def test_broken_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[model\n")
    with pytest.raises(RecipeError, match=r"cannot read recipe .*r\.toml"):
        load_recipe(tmp_path / "r.toml")


def test_best_needs_val() -> None:
    with pytest.raises(RecipeError, match="needs a val split"):
        parse_recipe({**VALUES, "data": {"merge_val": True}, "run": {"select": "best"}})


def test_differences_name_each_value() -> None:
    old = parse_recipe(VALUES)
    new = parse_recipe(VALUES, ["stages.0.epochs=9", "run.seed=4"])
    assert recipe_differences(old, new) == ["stages.0.epochs: 3 -> 9", "run.seed: 0 -> 4"]


def value_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of the recipe that has a value of its own, with the first stage for all."""
    for name, field in section.model_fields.items():
        candidates = (field.annotation, *get_args(field.annotation))
        nested = next((part for part in candidates if isinstance(part, type) and issubclass(part, BaseModel)), None)
        if nested is None:
            yield prefix + name
        else:
            yield from value_keys(nested, f"{prefix}{name}." + ("" if nested is field.annotation else "0."))


@pytest.mark.parametrize("key", list(value_keys(Recipe)))
@pytest.mark.parametrize("value", ["{ x = [1] }", "1979-05-27"])
def test_wrong_value_is_refused_in_one_line_with_its_key(key: str, value: str) -> None:
    """A table of lists and a date, which no key of a recipe takes."""
    with pytest.raises(RecipeError) as refusal:
        load_recipe("resnest101_ce_arcface", [f"{key}={value}"])
    assert "\n" not in str(refusal.value)
    assert key in str(refusal.value)


def test_auto_has_no_values_to_read() -> None:
    with pytest.raises(RecipeError, match=r"recipe: 'auto' is planned for the data by `fewsight train`"):
        load_recipe("auto")

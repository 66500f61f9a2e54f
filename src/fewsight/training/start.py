"""The weights that a run starts from, where they are another run's."""

from pathlib import Path

import torch
from torch import Tensor

from fewsight import runs
from fewsight.errors import RunError
from fewsight.losses import build_loss, own_weights
from fewsight.machine import files
from fewsight.models.classifier import initial_model, weights_out, with_stem
from fewsight.recipes import Recipe
from fewsight.runs import Run

NAMED = 5  # classes listed in the account


def read_start(path: Path, seed: int | None = None) -> Run:
    """The finished run to start from: `path`, or `path/seed<N>` where it holds a run for each seed.

    Raises:
        RunError: not a run, or its training did not end.
    """
    if not (path / "run.json").exists() and (there := sorted(path.glob("seed*/run.json"))):
        folder = path / f"seed{seed}"
        if folder / "run.json" not in there:
            names = ", ".join(one.parent.name for one in there)
            wanted = "name one of them" if seed is None else f"there is none for seed {seed}"
            raise RunError(f"{path} holds runs for several seeds ({names}); {wanted}")
        path = folder
    run = runs.read_run(path)
    if not run.finished:
        raise RunError(f"{path} has no weights to start from: {files.why_unfinished(path)}")
    return run


def model_values(run: Run) -> list[str]:
    """The run's backbone and train size as overrides, for a plan that must fit its weights."""
    model, px = run.recipe.model, run.recipe.augment.train_px
    return [
        f"model.backbone={model.backbone}",
        f"model.stem={model.stem}",
        f"model.width={model.width}",
        f"augment.train_px={px}",
    ]


def check_fits(source: Run, recipe: Recipe) -> None:
    """Refuse a recipe whose backbone is not the source's.

    Raises:
        RunError: name, stem or width differ.
    """
    theirs, ours = source.recipe.model, with_stem(recipe).model
    if theirs != ours:
        names = [f"{one.backbone} (stem {one.stem}, width {one.width:g})" for one in (theirs, ours)]
        raise RunError(
            f"{source.path} has the backbone {names[0]}, but this recipe {names[1]}; take another recipe or run, or "
            + " ".join(f"--set {value}" for value in model_values(source)[:3])
        )


def weights_from(source: Run, recipe: Recipe, classes: tuple[str, ...]) -> tuple[dict[str, Tensor], str]:
    """A run's weights as the start of a recipe, and an account of them in words.

    The backbone is taken whole. The linear head is taken class by class, by name; a class that the source does not
    know gets the random row that the recipe's seed draws.

    Raises:
        RunError: not a finished run, damaged, or another backbone.
    """
    check_fits(source, recipe)
    trained, own = runs.read_weights(source), weights_out(initial_model(recipe, len(classes)))
    rows = {name: row for row, name in enumerate(source.classes)}
    known = [(row, rows[name]) for row, name in enumerate(classes) if name in rows]
    weights = {**trained, "head.weight": own["head.weight"], "head.bias": own["head.bias"]}
    for name in ("head.weight", "head.bias"):
        for row, their_row in known:
            weights[name][row] = trained[name][their_row]
    return weights, _account(source, recipe, weights, classes)


def _account(source: Run, recipe: Recipe, weights: dict[str, Tensor], classes: tuple[str, ...]) -> str:
    """What was taken, what is new and what was left behind, in words."""
    fresh = [name for name in classes if name not in source.classes]
    gone = [name for name in source.classes if name not in classes]
    own = [one for number in range(len(recipe.stages)) for one in _loss_weights(recipe, number, weights, classes)]
    new = [f"the head's rows of {_listed(fresh)}"] if fresh else []
    new += [f"the loss's own {one}" for one in own] + ["the optimiser"]
    text = f"starting from {source.path}: {len(weights) - 2} tensors of the backbone and the linear head's rows of "
    text += f"{len(classes) - len(fresh)} of {len(classes)} classes; new: {', '.join(new)}"
    return text + (f"; left behind: the rows of {_listed(gone)}" if gone else "")


def _loss_weights(recipe: Recipe, number: int, weights: dict[str, Tensor], classes: tuple[str, ...]) -> list[str]:
    stage, num_features = recipe.stages[number], weights["head.weight"].shape[1]
    with torch.device("meta"):
        loss = build_loss(stage.loss, stage.losses, num_classes=len(classes), num_features=num_features)
    return own_weights(loss)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more

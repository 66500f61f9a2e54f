"""Initial weights that are taken from another run, or computed from the training images."""

from pathlib import Path

import torch
from torch import Tensor

from fewsight import runs
from fewsight.augment.normalise import Normalise
from fewsight.data.samples import sample_indices
from fewsight.errors import DataError, RunError
from fewsight.losses import build_loss, own_weights
from fewsight.machine import locks
from fewsight.models import Backbone
from fewsight.models.classifier import Classifier, initial_model, weights_out, with_stem
from fewsight.recipes import Recipe
from fewsight.runs import Run
from fewsight.scores.entries import is_ensemble, read_entries
from fewsight.training.feed import AugmentedImages
from fewsight.wording import named


def read_start(path: Path, seed: int | None = None) -> Run:
    """The finished run to start from: `path`, or `path/seed<N>` if it holds a run per seed.

    Raises:
        RunError: not a run, or its training is not finished.
    """
    if not (path / "run.json").exists() and (seed_runs := sorted(path.glob("seed*/run.json"))):
        folder = path / f"seed{seed}"
        if folder / "run.json" not in seed_runs:
            names = ", ".join(file.parent.name for file in seed_runs)
            problem = "name one of them" if seed is None else f"there is none for seed {seed}"
            raise RunError(f"{path} holds runs for several seeds ({names}); {problem}")
        path = folder
    if is_ensemble(path):
        first = path / "runs" / read_entries(path)[0].run
        raise RunError(f"{path} is an ensemble; start from one of its runs, for example --init-from {first}")
    run = runs.read_run(path)
    if not run.finished:
        raise RunError(f"{path} has no weights to start from: {locks.why_unfinished(path)}")
    return run


def model_values(run: Run) -> list[str]:
    """The run's backbone and training size as overrides, so that a plan fits its weights."""
    model, px = run.recipe.model, run.recipe.augment.train_px
    return [
        f"model.backbone={model.backbone}",
        f"model.stem={model.stem}",
        f"model.width={model.width}",
        f"augment.train_px={px}",
    ]


def check_fits(source: Run, recipe: Recipe) -> None:
    """Check that a recipe has the backbone of the run that it starts from.

    Raises:
        RunError: name, stem or width differ.
    """
    theirs, ours = source.recipe.model, with_stem(recipe).model
    if theirs != ours:
        names = [f"{model.backbone} (stem {model.stem}, width {model.width:g})" for model in (theirs, ours)]
        raise RunError(
            f"{source.path} has the backbone {names[0]}, but this recipe {names[1]}; use another recipe or run, or "
            + " ".join(f"--set {value}" for value in model_values(source)[:3])
        )


def weights_from(source: Run, recipe: Recipe, classes: tuple[str, ...]) -> tuple[dict[str, Tensor], str]:
    """A run's weights as the initial weights of a recipe, and a summary of them.

    The whole backbone is copied. The rows of the linear head are copied by class name; a class that the source does
    not have gets the random row that the recipe's seed draws.

    Raises:
        RunError: the source is damaged, or has another backbone.
    """
    check_fits(source, recipe)
    trained, random = runs.read_weights(source), weights_out(initial_model(recipe, len(classes)))
    source_rows = {name: row for row, name in enumerate(source.classes)}
    shared = [(row, source_rows[name]) for row, name in enumerate(classes) if name in source_rows]
    weights = {**trained, "head.weight": random["head.weight"], "head.bias": random["head.bias"]}
    for name in ("head.weight", "head.bias"):
        for row, source_row in shared:
            weights[name][row] = trained[name][source_row]
    return weights, _summary(source, recipe, weights, classes)


def fit_to_images(model: Classifier, images: AugmentedImages, normalise: Normalise) -> None:
    """Set the weights that a backbone computes from training images, as augmented in the first epoch.

    The images are the same in every process of a training. Called with the threads of the recipe, on which last bits of
    the sums may depend.

    Raises:
        DataError: an image can no longer be read.
    """
    if not isinstance(model.backbone, Backbone) or not model.backbone.num_fit_images:
        return
    indices = sample_indices(len(images), model.backbone.num_fit_images, images.seed)
    pixels = images.__getitems__([(0, index, 0) for index in indices.tolist()])
    if isinstance(pixels, DataError):
        raise pixels
    model.backbone.fit_to_images(normalise.of_bytes(torch.from_numpy(pixels)))


def _summary(source: Run, recipe: Recipe, weights: dict[str, Tensor], classes: tuple[str, ...]) -> str:
    """One line on what was copied, what is new and what was not used."""
    new_classes = [name for name in classes if name not in source.classes]
    unused = [name for name in source.classes if name not in classes]
    stages = range(len(recipe.stages))
    loss_weights = [text for number in stages for text in _loss_weights(recipe, number, weights, classes)]
    new = [f"the head's rows of {named(map(repr, new_classes))}"] if new_classes else []
    new += [f"the loss's own {text}" for text in loss_weights] + ["the optimiser"]
    text = f"starting from {source.path}: {len(weights) - 2} tensors of the backbone and the linear head's rows of "
    text += f"{len(classes) - len(new_classes)} of {len(classes)} classes; new: {', '.join(new)}"
    return text + (f"; not used: the rows of {named(map(repr, unused))}" if unused else "")


def _loss_weights(recipe: Recipe, number: int, weights: dict[str, Tensor], classes: tuple[str, ...]) -> list[str]:
    stage, num_features = recipe.stages[number], weights["head.weight"].shape[1]
    with torch.device("meta"):
        loss = build_loss(stage.loss, stage.losses, num_classes=len(classes), num_features=num_features)
    return own_weights(loss)

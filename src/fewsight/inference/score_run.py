"""Score images with a run's model, into memory or into a score store."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fewsight.augment import View
from fewsight.augment.normalise import Normalise
from fewsight.data.memory import open_memory, stamp_of
from fewsight.errors import WeightsError
from fewsight.machine.device import compute_threads, random_state_kept, resolve_run
from fewsight.machine.locks import locked
from fewsight.models import Backbone
from fewsight.models.classifier import Classifier, build_model, build_without_memory, check_weights, load_weights
from fewsight.recipes import Recipe, RunSettings
from fewsight.runs import WEIGHTS, Run, held_out, read_weights, require_weights, trained_on
from fewsight.scores.log_probs import NOT_FINITE
from fewsight.scores.scoring import BATCH, Scorer, Scores, SharedLoads, score_images, store_info
from fewsight.scores.store import ScoredImage, Store, append, begin, finish


@random_state_kept()
def load_model(run: Run, device: torch.device) -> Classifier:
    """The run's trained model for testing: norms folded into convolutions, channels-last layout."""
    settings, num_classes, tensors = run.recipe.model, len(run.classes), read_weights(run)
    shapes = build_without_memory(settings.backbone, num_classes, stem=settings.stem, width=settings.width)
    # a recipe that claims a huge model is refused before memory is allocated for it
    check_weights(shapes, tensors, source=str(run.path / WEIGHTS))
    model = build_model(settings.backbone, num_classes, stem=settings.stem, width=settings.width)
    load_weights(model, tensors)
    if isinstance(model.backbone, Backbone):
        model.backbone.fold()
    return model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def load_scorer(run: Run, recipe: Recipe) -> Scorer:
    """The run's model with its normalisation, in memory, for a recipe of this machine such as `testing_recipe`."""
    device = torch.device(recipe.run.device)
    return Scorer(load_model(run, device), Normalise(run.data.mean, run.data.std).to(device), recipe)


def testing_recipe(run: Run) -> Recipe:
    """The run's recipe for this machine: its device, threads and workers; the trained precision on the same device."""
    trained = run.recipe.run
    settings = _resolved(run, "auto", "auto")
    if settings.device.split(":")[0] == trained.device.split(":")[0] and trained.precision != "auto":
        settings = settings.model_copy(update={"precision": trained.precision})
    return run.recipe.model_copy(update={"run": settings})


def num_threads(recipe: Recipe) -> int:
    """The threads of a recipe that is resolved for this machine."""
    assert recipe.run.threads != "auto", "a resolved recipe has its threads"
    return recipe.run.threads


def exact_recipe(run: Run) -> Recipe:
    """The run's recipe on this machine's CPU in float32."""
    return run.recipe.model_copy(update={"run": _resolved(run, "cpu", "float32")})


def _resolved(run: Run, device: str, precision: str) -> RunSettings:
    values = {"device": device, "precision": precision, "threads": "auto", "workers": "auto"}
    return resolve_run(run.recipe.run.model_copy(update=values))


def run_scores(
    run: Run,
    paths: Sequence[Path],
    views: Sequence[View],
    *,
    features: bool = False,
    pixels: bool = False,
    loads: "SharedLoads | None" = None,
) -> Generator[Scores]:
    """Score images with a run's model on this machine; see `score_images`.

    Raises:
        RunError: the run is not finished.
    """
    recipe = testing_recipe(run)
    scorer = load_scorer(run, recipe)
    with compute_threads(num_threads(recipe)):
        yield from score_images(scorer, paths, views=views, features=features, pixels=pixels, loads=loads)


@dataclass(frozen=True)
class LabelledFile:
    """A file to score, its name in the store, and its label if it has one."""

    file: Path
    name: str
    label: str | None = None


@dataclass(frozen=True)
class ScoringResult:
    """A store that scores were written to."""

    store: Store
    written: int  # images x views that were scored now; the others were in the store


def score_into(
    folder: Path,
    run: Run,
    images: Sequence[LabelledFile],
    views: Sequence[View],
    *,
    loads: "SharedLoads | None" = None,
    reread: bool = False,
) -> Generator[int, None, ScoringResult]:
    """Score images into a store, except what the store has of the same contents; an interrupted scoring is continued.

    Args:
        folder: the store's.
        run: a finished run.
        images: to score.
        views: to score.
        loads: shared by runs that score the same images in turns.
        reread: read every file to compare its contents with those that the store has scores of.

    Yields:
        The number of images that are done, after each batch.

    Raises:
        RunError: the run is not finished; the folder holds other scores or cannot be written.
        WeightsError: scores are not finite.
    """
    require_weights(run)
    stamps = [stamp_of(str(image.file)) for image in images]  # from before the files are read
    listed = [
        (image.name, -1 if stamp is None else stamp[1], image.label)
        for image, stamp in zip(images, stamps, strict=True)
    ]  # -1: there is no such file, and its line in images.jsonl will have the error
    trained, chose = trained_on(run), held_out(run) if run.recipe.run.select == "best" else frozenset()
    with locked(folder, "scoring"), open_memory() as memory:
        names = [view.name for view in views]
        paths = [image.file for image in images]
        store = begin(folder, store_info(run, testing_recipe(run), listed), names, paths, batch=BATCH, reread=reread)
        missing = [view for view in views if view.name in store.views]
        rest = paths[store.done :] if missing else []
        for scores in run_scores(run, rest, missing, pixels=True, loads=loads) if rest else ():
            first = store.done + scores.start
            if NOT_FINITE in scores.errors:
                file = images[first + scores.errors.index(NOT_FINITE)].file
                raise WeightsError(f"{run.path} on {file}: {NOT_FINITE}")
            lines = [
                ScoredImage(*named, error, digest, (image.file, pixels, digest) in trained, pixels in chose)
                for image, named, error, digest, pixels in zip(
                    images[first:], listed[first:], scores.errors, scores.digests, scores.pixels, strict=False
                )
            ]
            append(store, first, scores.results, lines)
            for stamp, digest in zip(stamps[first:], scores.digests, strict=False):
                memory.add_digest(stamp if digest else None, digest)
            yield first + len(lines)
        return ScoringResult(finish(store), len(rest) * len(missing))

"""Images + model -> log-probabilities of the views, each cut from the original image."""

import math
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image as PILImage
from torch import Tensor, nn

from fewsight.augment import View, cut_view, named_views
from fewsight.augment.normalise import Normalise
from fewsight.data import decode_bytes, digest_of_list, file_digest, pixel_digest, read_bytes, take_image
from fewsight.errors import DataError, RecipeError
from fewsight.machine.device import autocast
from fewsight.models.classifier import Classifier
from fewsight.recipes import Recipe
from fewsight.runs import Run
from fewsight.scores.log_probs import NOT_FINITE, finite_images, mean_probs
from fewsight.scores.store import StoreInfo

BATCH = 64  # images that are loaded and scored together
MAX_FORWARD_PIXELS = 64 * 224**2  # of one view, in one forward pass
Source = Path | bytes | PILImage | np.ndarray  # a file, the contents of a file, or an image in memory


@dataclass(frozen=True)
class Scorer:
    """A model that scores images, with what its inputs depend on."""

    model: nn.Module  # in evaluation mode: images [B, 3, px, px] -> (logits [B, K], features [B, D])
    normalise: Normalise
    recipe: Recipe  # resolved


@dataclass(frozen=True)
class Scores:
    """Scores of some images, in the order given."""

    start: int  # position of the first image
    results: np.ndarray  # float32 [V, n, K], natural log-probabilities of each view; NaN for an image with an error
    errors: list[str | None]  # [n], why an image could not be read, or NOT_FINITE
    digests: list[str]  # [n], 64 bits of each file's BLAKE2b in hexadecimal; empty if it could not be read
    pixels: list[str]  # [n], digests of the upright images as a scan computes them, if requested
    features: np.ndarray | None = (
        None  # float32 [n, D], pooled features, mean over the views, if requested; NaN as above
    )

    @property
    def log_probs(self) -> np.ndarray:
        """float32 [n, K]: the mean of the views' probabilities."""
        return mean_probs(self.results)


def views_of(recipe: Recipe, names: str = "center") -> tuple[View, ...]:
    """The views that a value of `--views` stands for in a finished run.

    Raises:
        RecipeError: there is no such view, or the recipe's test sizes are not resolved.
    """
    if recipe.eval.test_px == "auto":
        raise RecipeError(
            'the run\'s recipe.toml has eval.test_px = "auto", which a finished run never has; restore it from a copy'
        )
    return named_views(names, recipe.eval.test_px)


def store_info(run: Run, recipe: Recipe, listed: Sequence[tuple[str, int, str | None]]) -> StoreInfo:
    """What a store of a run's scores holds.

    Args:
        run: with the digest of its weights.
        recipe: by which it scores, resolved.
        listed: the name, size and label of each image.
    """
    return StoreInfo(
        classes=run.classes,
        count=len(listed),
        images_digest=digest_of_list(listed),
        weights_digest=str(run.info.weights_digest),
        view_seed=recipe.eval.view_seed,
        crop_ratio=recipe.eval.crop_ratio,
        flip=recipe.augment.flip_prob > 0,
        precision=str(recipe.run.precision),
    )


@torch.inference_mode()
def score_images(
    scorer: Scorer,
    paths: Sequence[Source],
    *,
    views: Sequence[View] = (),
    batch_size: int = BATCH,
    features: bool = False,
    pixels: bool = False,
    loads: "SharedLoads | None" = None,
) -> Generator[Scores]:
    """Score views of images, batch by batch.

    Where the recipe flips, each view's probabilities are averaged with those of its mirrored view. An image that cannot
    be read, or whose scores are not finite, has an error, and scores of NaN.

    Args:
        scorer: the run's model.
        paths: files or their contents; or images in memory, whose random crops depend on their pixels.
        views: to score; default: the centre view at the recipe's first test size.
        batch_size: images that are loaded and scored together.
        features: also return the pooled features, averaged over views and mirrored views.
        pixels: also return digests of the pixels.
        loads: decoded images, shared by runs that score the same images in turns.
    """
    recipe = scorer.recipe
    views = views or views_of(recipe)
    workers = 1 if recipe.run.workers == "auto" else max(1, recipe.run.workers)
    for start, images in _loaded_batches(paths, distinct_cuts(views), recipe, batch_size, workers, pixels, loads):
        scored = score_cuts(scorer, [image.cuts for image in images], views)
        errors = [image.error or error for image, error in zip(images, scored.errors, strict=True)]
        failed = [error is not None for error in errors]
        scored.log_probs[:, failed] = np.nan
        scored.features[failed] = np.nan
        yield Scores(
            start,
            scored.log_probs,
            errors,
            [image.digest for image in images],
            [image.pixels for image in images],
            scored.features if features else None,
        )


@dataclass(frozen=True)
class CutScores:
    """Scores of some images' cuts."""

    log_probs: np.ndarray  # float32 [V, n, K], finite; NaN for an image with an error
    features: np.ndarray  # float32 [n, D], mean over the views; NaN as above
    errors: list[str | None]  # [n], NOT_FINITE where the model's output is not


ViewOutput = tuple[Tensor, Tensor]  # log-probabilities [n, K] and features [n, D]


def distinct_cuts(views: Sequence[View]) -> list[View]:
    """The views without those that cut the same pixels as another: `center-64-noflip` cuts the same as `center-64`."""
    return list({view.cut: view for view in views}.values())


def cut_all(image: PILImage, digest: str, cuts: Sequence[View], recipe: Recipe) -> list[np.ndarray]:
    """Cut `distinct_cuts` out of an image; uint8 [px, px, 3] each.

    Args:
        image: RGB and upright.
        digest: 64 bits of the file's BLAKE2b in hexadecimal, see `file_digest`.
        cuts: what to cut.
        recipe: whose view seed and crop ratio are used.
    """
    seed, ratio = recipe.eval.view_seed, recipe.eval.crop_ratio
    return [cut_view(image, view, digest, view_seed=seed, ratio=ratio) for view in cuts]


@torch.inference_mode()
def score_cuts(scorer: Scorer, images: Sequence[Sequence[np.ndarray]], views: Sequence[View]) -> CutScores:
    """The model's output for each view, in the order of `views`; here every probability begins, finite or an error.

    Args:
        scorer: the run's model.
        images: for each image its `cut_all`.
        views: to score.
    """
    mirrored = {view.cut for view in views if view.flip and scorer.recipe.augment.flip_prob > 0}
    outputs = {
        cut.cut: _forward_both(scorer, [cuts[index] for cuts in images], cut.cut in mirrored)
        for index, cut in enumerate(distinct_cuts(views))
    }
    by_view = [_mean_output(outputs[view.cut], view.flip) for view in views]
    log_probs = torch.stack([scores for scores, _ in by_view]).cpu().numpy()
    features = torch.stack([output for _, output in by_view]).mean(0).cpu().numpy()
    finite = finite_images(log_probs)
    log_probs[:, ~finite] = np.nan
    features[~finite] = np.nan
    return CutScores(log_probs, features, [None if good else NOT_FINITE for good in finite])


def _forward_both(scorer: Scorer, cuts: Sequence[np.ndarray], mirror: bool) -> tuple[ViewOutput, ViewOutput | None]:
    """The output for the same cut of some images, and for its mirror images; in chunks that fit into memory."""
    px = cuts[0].shape[0]
    size = max(1, MAX_FORWARD_PIXELS // px**2)
    plain, mirrored = list[ViewOutput](), list[ViewOutput]()
    for first in range(0, len(cuts), size):
        images = scorer.normalise.of_bytes(_to_tensor(cuts[first : first + size]))
        plain.append(_forward(scorer, images))
        if mirror:
            mirrored.append(_forward(scorer, images.flip(3)))
    return _concatenated(plain), _concatenated(mirrored) if mirror else None


def _to_tensor(cuts: Sequence[np.ndarray]) -> Tensor:
    """uint8 [px, px, 3] each -> [B, 3, px, px]."""
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def activation_map(scorer: Scorer, cut: np.ndarray, index: int) -> np.ndarray:
    """The class activation map of the class `index`: uint8 [px, px, 3] -> float32 [h, w].

    Raises:
        RunError: the model has no such map, see `Classifier.activation_maps`.
    """
    model, device = scorer.model, torch.device(scorer.recipe.run.device)
    assert isinstance(model, Classifier), "a run's model is a classifier"
    images = scorer.normalise.of_bytes(_to_tensor([cut]))
    with autocast(device, scorer.recipe.run.precision):
        maps = model.activation_maps(images, torch.tensor([index], device=device))
    values: np.ndarray = maps[0].float().cpu().numpy()
    return values


def _concatenated(parts: Sequence[ViewOutput]) -> ViewOutput:
    return torch.cat([log_probs for log_probs, _ in parts]), torch.cat([features for _, features in parts])


def _mean_output(both: tuple[ViewOutput, ViewOutput | None], flip: bool) -> ViewOutput:
    """A view's output: of the cut alone, or the mean with its mirror image."""
    (log_probs, features), mirrored = both
    if mirrored is None or not flip:
        return log_probs, features
    return torch.logaddexp(log_probs, mirrored[0]) - math.log(2), (features + mirrored[1]) / 2


def _forward(scorer: Scorer, images: Tensor) -> ViewOutput:
    """Natural log-probabilities [B, K] and pooled features [B, D], both float32."""
    with autocast(images.device, scorer.recipe.run.precision):
        logits, features = scorer.model(images)
    return torch.log_softmax(logits.float(), dim=1), features.float()


@dataclass(frozen=True)
class _LoadedImage:
    """The cuts of an image and its digests, or the reason why it could not be read."""

    cuts: list[np.ndarray]  # uint8 [px, px, 3] each
    digest: str
    pixels: str
    error: str | None = None


class SharedLoads:
    """The cuts of the last two batches of images, shared by runs that score them in turns: each is decoded once.

    Runs that cut an image differently load it themselves.
    """

    def __init__(self) -> None:
        self._kept: dict[object, OrderedDict[Source, Future[_LoadedImage]]] = {}

    def get(
        self, source: Source, key: object, submit: Callable[[], "Future[_LoadedImage]"], max_images: int
    ) -> "Future[_LoadedImage]":
        """The load of a file that was started before with the same key, else the load that `submit` starts.

        Args:
            source: a file; an image in memory is never shared.
            key: identifies the cuts.
            submit: starts the load.
            max_images: that are kept for each key; beyond it, the oldest is dropped.
        """
        if not isinstance(source, Path):
            return submit()
        kept = self._kept.setdefault(key, OrderedDict())
        if source not in kept:
            kept[source] = submit()
            if len(kept) > max_images:
                kept.popitem(last=False)
        return kept[source]


def _loaded_batches(
    paths: Sequence[Source],
    cuts: Sequence[View],
    recipe: Recipe,
    batch_size: int,
    workers: int,
    pixels: bool,
    loads: SharedLoads | None,
) -> Iterator[tuple[int, list[_LoadedImage]]]:
    """Batches of (position, images); each is decoded once, and the next batch loads while one is scored."""

    def load(source: Source) -> _LoadedImage:
        digest = ""
        try:
            if isinstance(source, Path | bytes):
                data = source if isinstance(source, bytes) else read_bytes(source)
                digest = file_digest(data)
                image = decode_bytes(data, str(source) if isinstance(source, Path) else "image")
            else:
                image, digest = take_image(source, "image")
            return _LoadedImage(cut_all(image, digest, cuts, recipe), digest, pixel_digest(image) if pixels else "")
        except DataError as error:
            return _LoadedImage([np.zeros((cut.px, cut.px, 3), np.uint8) for cut in cuts], digest, "", str(error))

    key = tuple(cut.cut for cut in cuts), recipe.eval.view_seed, recipe.eval.crop_ratio, pixels
    shared = SharedLoads() if loads is None else loads
    with ThreadPoolExecutor(workers) as pool:

        def submit_batch(start: int) -> list[Future[_LoadedImage]]:
            return [
                shared.get(path, key, partial(pool.submit, load, path), 2 * batch_size)
                for path in paths[start : start + batch_size]
            ]

        loading = submit_batch(0)
        for start in range(0, len(paths), batch_size):
            ready, loading = loading, submit_batch(start + batch_size)
            yield start, [future.result() for future in ready]

"""Images + model -> log-probabilities of views cut from the original images."""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
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
from fewsight.data import decode_bytes, pixel_digest, read_bytes, take_image
from fewsight.errors import DataError, RecipeError
from fewsight.machine.device import autocast
from fewsight.models.classifier import Classifier
from fewsight.recipes import Recipe

BATCH = 64  # images that are loaded and scored together
PART_PIXELS = 64 * 224**2  # of one view, that go through the model at a time
Source = Path | bytes | PILImage | np.ndarray  # a file, what a file holds, or an image in memory


@dataclass(frozen=True)
class Scores:
    """Scores of some images, in the order given."""

    start: int  # position of the first
    results: np.ndarray  # float32 [V, n, K], natural log-probabilities of each view; NaN where `errors` says why
    errors: list[str | None]  # [n]
    digests: list[str]  # [n], 64 bits of each file's BLAKE2b in hexadecimal; empty where it cannot be read
    pixels: list[str]  # [n], digests of the upright images as a scan has them, where asked for
    features: np.ndarray | None = None  # float32 [n, D], pooled, the views' mean, where asked for; NaN as above

    @property
    def log_probs(self) -> np.ndarray:
        """float32 [n, K]: the mean of the views' probabilities."""
        return mean_probs(self.results)


def mean_probs(log_probs: np.ndarray) -> np.ndarray:
    """The log of the mean of probabilities over the first axis: float32 [V, ...] -> [...]."""
    peak = log_probs.max(0)
    mean: np.ndarray = peak + np.log(np.exp(log_probs - peak).mean(0))
    return mean


def views_of(recipe: Recipe, names: str = "center") -> tuple[View, ...]:
    """The views that `--views` names for a resolved recipe.

    Raises:
        RecipeError: no such view.
    """
    if recipe.eval.test_px == "auto":
        raise RecipeError(
            'recipe.toml of the run has eval.test_px = "auto", which no finished run has; restore it from a copy'
        )
    return named_views(names, recipe.eval.test_px)


@torch.inference_mode()
def score_images(
    model: nn.Module,
    normalise: Normalise,
    paths: Sequence[Source],
    recipe: Recipe,
    *,
    views: Sequence[View] = (),
    batch_size: int = BATCH,
    features: bool = False,
    pixels: bool = False,
    loads: "SharedLoads | None" = None,
) -> Iterator[Scores]:
    """Score views of each image; where the recipe flips, the flipped twin's probabilities are averaged in each.

    The model must be in evaluation mode. An image that cannot be read gets its error and rows of NaN.

    Args:
        paths: files or what they hold; or images in memory, whose random boxes are drawn by their pixels.
        views: which; none: the centre at the recipe's first test size.
        features: also give the pooled features, the mean over views and flips.
        pixels: also give the digests of the pixels.
        loads: as in `score_into`.
    """
    views = views or views_of(recipe)
    workers = 1 if recipe.run.workers == "auto" else max(1, recipe.run.workers)
    for start, loaded in _loaded(paths, cuts_of(views), recipe, batch_size, workers, pixels, loads):
        seen = score_cuts(model, normalise, [one.cuts for one in loaded], recipe, views)
        failed = [one.error is not None for one in loaded]
        results = np.stack([_rows(log_probs, failed) for log_probs, _ in seen])
        pooled = _rows(torch.stack([one for _, one in seen]).mean(0), failed) if features else None
        yield Scores(
            start,
            results,
            [one.error for one in loaded],
            [one.digest for one in loaded],
            [one.pixels for one in loaded],
            pooled,
        )


ViewOutput = tuple[Tensor, Tensor]  # log-probabilities [n, K] and features [n, D]


def cuts_of(views: Sequence[View]) -> list[View]:
    """What is to be cut out of each image: a view and its twin without flip show the same pixels."""
    return list({view.cut: view for view in views}.values())


def cut_all(image: PILImage, digest: str, cuts: Sequence[View], recipe: Recipe) -> list[np.ndarray]:
    """Each of `cuts_of` some views out of an image; uint8 [px, px, 3] each.

    Args:
        digest: 64 bits of the file's BLAKE2b in hexadecimal, see `file_digest`.
    """
    seed, ratio = recipe.eval.view_seed, recipe.eval.crop_ratio
    return [cut_view(image, view, digest, view_seed=seed, ratio=ratio) for view in cuts]


@torch.inference_mode()
def score_cuts(
    model: nn.Module, normalise: Normalise, images: Sequence[Sequence[np.ndarray]], recipe: Recipe,
    views: Sequence[View],
) -> list[ViewOutput]:  # fmt: skip
    """What the model sees in each view, in the order of `views`.

    Args:
        images: for each its `cut_all`.
    """
    flipped = {view.cut for view in views if view.flip and recipe.augment.flip_prob > 0}
    sides = {
        cut.cut: _sides(model, normalise, [one[number] for one in images], recipe, cut.cut in flipped)
        for number, cut in enumerate(cuts_of(views))
    }
    return [_seen(sides[view.cut], view.flip) for view in views]


def _sides(
    model: nn.Module, normalise: Normalise, cuts: Sequence[np.ndarray], recipe: Recipe, flip: bool
) -> tuple[ViewOutput, ViewOutput | None]:
    """What the model sees in the same cut of some images, and in its flipped twin; in parts that memory holds."""
    px = cuts[0].shape[0]
    part = max(1, PART_PIXELS // px**2)
    plain, flipped = list[ViewOutput](), list[ViewOutput]()
    for first in range(0, len(cuts), part):
        images = normalise.of_bytes(_planes(cuts[first : first + part]))
        plain.append(_forward(model, images, recipe.run.precision))
        if flip:
            flipped.append(_forward(model, images.flip(3), recipe.run.precision))
    return _joined(plain), _joined(flipped) if flip else None


def _planes(cuts: Sequence[np.ndarray]) -> Tensor:
    """uint8 [px, px, 3] each -> [B, 3, px, px]."""
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def activation_map(model: Classifier, normalise: Normalise, cut: np.ndarray, recipe: Recipe, place: int) -> np.ndarray:
    """Where a model looked for the class at position `place`: uint8 [px, px, 3] -> float32 [h, w].

    Raises:
        RunError: the model has no such map, see `Classifier.activation_maps`.
    """
    device = torch.device(recipe.run.device)
    images = normalise.of_bytes(_planes([cut]))
    with autocast(device, recipe.run.precision):
        maps = model.activation_maps(images, torch.tensor([place], device=device))
    found: np.ndarray = maps[0].float().cpu().numpy()
    return found


def _joined(parts: Sequence[ViewOutput]) -> ViewOutput:
    return torch.cat([log_probs for log_probs, _ in parts]), torch.cat([features for _, features in parts])


def _seen(sides: tuple[ViewOutput, ViewOutput | None], flip: bool) -> ViewOutput:
    """A view: one side, or the mean of both."""
    (log_probs, features), twin = sides
    if twin is None or not flip:
        return log_probs, features
    return torch.logaddexp(log_probs, twin[0]) - math.log(2), (features + twin[1]) / 2


def _forward(model: nn.Module, images: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Natural log-probabilities [B, K] and pooled features [B, D], both float32."""
    with autocast(images.device, precision):
        logits, features = model(images)
    return torch.log_softmax(logits.float(), dim=1), features.float()


def _rows(values: Tensor, failed: list[bool]) -> np.ndarray:
    rows: np.ndarray = values.cpu().numpy()
    rows[failed] = np.nan
    return rows


@dataclass(frozen=True)
class _Loaded:
    """The cuts of one file, its digests, or why there are none."""

    cuts: list[np.ndarray]  # uint8 [px, px, 3] each
    digest: str
    pixels: str
    error: str | None = None


def file_digest(data: bytes) -> str:
    """64 bits of the BLAKE2b of what a file holds, in hexadecimal: what draws its random crops."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


class SharedLoads:
    """The cuts of the last two batches of images, for runs that take turns with the same ones: each is decoded once.

    Runs that want other cuts of an image load it themselves.
    """

    def __init__(self) -> None:
        self._kept: dict[object, OrderedDict[Source, Future[_Loaded]]] = {}

    def get(
        self, source: Source, wanted: object, submit: Callable[[], "Future[_Loaded]"], most: int
    ) -> "Future[_Loaded]":
        """What was begun for a file and the same cuts, else what `submit` begins; of over `most` the oldest goes."""
        if not isinstance(source, Path):
            return submit()
        kept = self._kept.setdefault(wanted, OrderedDict())
        if source not in kept:
            kept[source] = submit()
            if len(kept) > most:
                kept.popitem(last=False)
        return kept[source]


def _loaded(
    paths: Sequence[Source],
    cuts: Sequence[View],
    recipe: Recipe,
    batch_size: int,
    workers: int,
    pixels: bool,
    loads: SharedLoads | None,
) -> Iterator[tuple[int, list[_Loaded]]]:
    """Batches of (position, files); each is decoded once, and the next batch loads while one is scored."""

    def load(source: Source) -> _Loaded:
        digest = ""
        try:
            if isinstance(source, Path | bytes):
                data = source if isinstance(source, bytes) else read_bytes(source)
                digest = file_digest(data)
                image = decode_bytes(data, str(source) if isinstance(source, Path) else "image")
            else:
                image, digest = take_image(source, "image")
            return _Loaded(cut_all(image, digest, cuts, recipe), digest, pixel_digest(image) if pixels else "")
        except DataError as error:
            return _Loaded([np.zeros((cut.px, cut.px, 3), np.uint8) for cut in cuts], digest, "", str(error))

    wanted = tuple(cut.cut for cut in cuts), recipe.eval.view_seed, recipe.eval.crop_ratio, pixels
    shared = SharedLoads() if loads is None else loads
    with ThreadPoolExecutor(workers) as pool:

        def begun(start: int) -> list[Future[_Loaded]]:
            return [
                shared.get(path, wanted, partial(pool.submit, load, path), 2 * batch_size)
                for path in paths[start : start + batch_size]
            ]

        waiting = begun(0)
        for start in range(0, len(paths), batch_size):
            ready, waiting = waiting, begun(start + batch_size)
            yield start, [future.result() for future in ready]

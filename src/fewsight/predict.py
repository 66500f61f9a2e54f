"""Images + model -> scores: log-probabilities of views cut from the original image."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewsight.augment import center_view
from fewsight.data import load_image
from fewsight.device import autocast, resolve_run, to_device
from fewsight.errors import DataError
from fewsight.model import Classifier, build_model, load_weights
from fewsight.recipes import Recipe
from fewsight.runs import Run, read_weights


@dataclass(frozen=True)
class Scores:
    """Scores of some images, in the order given."""

    start: int  # position of the first
    log_probs: np.ndarray  # float32 [n, K], natural; rows of NaN where `errors` says why
    errors: list[str | None]  # [n]
    features: np.ndarray | None = None  # float32 [n, D], pooled, where they were asked for; NaN as above


class Normalise(nn.Module):
    """(images - mean) / std, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """float32 [B, 3, H, W] in [0, 1] -> the same, normalised."""
        return (images - self.mean) / self.std


def load_model(run: Run, device: torch.device) -> Classifier:
    """The run's trained model, in evaluation mode and channels-last layout."""
    recipe = run.recipe
    stem = recipe.model.stem
    model = build_model(recipe.model.backbone, len(run.classes), stem=stem, width=recipe.model.width)
    load_weights(model, read_weights(run))
    return model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def testing_recipe(run: Run) -> Recipe:
    """The run's recipe for this machine: its device, threads and workers; the trained precision on the same kind."""
    trained = run.recipe.run
    settings = resolve_run(
        trained.model_copy(update={"device": "auto", "precision": "auto", "threads": "auto", "workers": "auto"})
    )
    if settings.device.split(":")[0] == trained.device.split(":")[0]:
        settings = settings.model_copy(update={"precision": trained.precision})
    return run.recipe.model_copy(update={"run": settings})


def center_px(recipe: Recipe) -> int:
    """The size of the centre view: the first of the recipe's test sizes."""
    assert recipe.eval.test_px != "auto", "a resolved recipe has its test sizes"
    return recipe.eval.test_px[0]


@torch.inference_mode()
def score_images(
    model: nn.Module,
    normalise: Normalise,
    paths: Sequence[Path],
    recipe: Recipe,
    *,
    batch_size: int = 64,
    features: bool = False,
) -> Iterator[Scores]:
    """Score the centre view of each image; where the recipe flips, the flipped twin's probabilities are averaged.

    The model must be in evaluation mode. An image that cannot be read gets its error and a row of NaN.

    Args:
        features: also give the pooled features, those of the flipped twin averaged in.
    """
    device = torch.device(recipe.run.device)
    px, ratio = center_px(recipe), recipe.eval.crop_ratio
    workers = 1 if recipe.run.workers == "auto" else max(1, recipe.run.workers)
    for start, views, errors in _views(paths, px, ratio, batch_size, workers):
        images = normalise(to_device(torch.from_numpy(views), device))
        log_probs, pooled = _forward(model, images, recipe.run.precision)
        if recipe.augment.flip_prob > 0:
            flipped, pooled_flipped = _forward(model, images.flip(3), recipe.run.precision)
            log_probs = torch.logaddexp(log_probs, flipped) - math.log(2)
            pooled = (pooled + pooled_flipped) / 2
        failed = [error is not None for error in errors]
        yield Scores(start, _rows(log_probs, failed), errors, _rows(pooled, failed) if features else None)


def _forward(model: nn.Module, images: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Natural log-probabilities [B, K] and pooled features [B, D], both float32."""
    with autocast(images.device, precision):
        logits, features = model(images)
    return torch.log_softmax(logits.float(), dim=1), features.float()


def _rows(values: Tensor, failed: list[bool]) -> np.ndarray:
    rows: np.ndarray = values.cpu().numpy()
    rows[failed] = np.nan
    return rows


def _views(
    paths: Sequence[Path], px: int, ratio: float, batch_size: int, workers: int
) -> Iterator[tuple[int, np.ndarray, list[str | None]]]:
    """Batches of (position, uint8 [n, px, px, 3], errors); the next batch loads while one is scored."""

    def load(path: Path) -> tuple[np.ndarray, str | None]:
        try:
            return center_view(load_image(path), px, ratio=ratio), None
        except DataError as error:
            return np.zeros((px, px, 3), np.uint8), str(error)

    with ThreadPoolExecutor(workers) as pool:
        starts = range(0, len(paths), batch_size)
        waiting = [[pool.submit(load, path) for path in paths[start : start + batch_size]] for start in starts[:1]]
        for start in starts:
            following = paths[start + batch_size : start + 2 * batch_size]
            waiting.append([pool.submit(load, path) for path in following])
            loaded = [future.result() for future in waiting.pop(0)]
            yield start, np.stack([view for view, _ in loaded]), [error for _, error in loaded]

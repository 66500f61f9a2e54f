"""A run or an ensemble in memory, for programs: images in, probabilities out, those that `fewsight predict` gives."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from fewsight.augment.normalise import Normalise
from fewsight.data import decode_bytes
from fewsight.errors import DataError, RunError
from fewsight.inference.ensemble import open_runs
from fewsight.inference.score_run import exact_recipe, load_model, testing_recipe
from fewsight.machine.device import compute_threads, keep_freed_memory
from fewsight.models.classifier import Classifier
from fewsight.recipes import Recipe
from fewsight.scores.calibration import apply_temperature, calibration_for
from fewsight.scores.scoring import activation_map, cut_all, cuts_of, file_digest, score_cuts, score_images


@dataclass(frozen=True)
class Predictions:
    """What a model makes of some images, in the order given."""

    classes: tuple[str, ...]
    probs: np.ndarray  # float32 [n, K], in the order of `classes`; NaN where an image could not be read
    errors: tuple[str | None, ...]  # [n], why
    threshold: float | None = None  # below which an image is none of the classes, where the run keeps one

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The most probable class of each image, None where it could not be read."""
        return tuple(
            None if error else self.classes[int(row.argmax())]
            for row, error in zip(self.probs, self.errors, strict=True)
        )

    @property
    def none_of_these(self) -> tuple[bool | None, ...]:
        """Whether each image is none of the classes; None where it could not be read, or the run keeps no threshold."""
        return tuple(
            None if error or self.threshold is None else bool(row.max() < self.threshold)
            for row, error in zip(self.probs, self.errors, strict=True)
        )

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """The `k` most probable classes of each image with their probabilities; nothing where it could not be read."""
        return [[] if error else self.top_of(number, k) for number, error in enumerate(self.errors)]

    def top_of(self, number: int, k: int = 5) -> list[tuple[str, float]]:
        """The `k` most probable classes of one image with their probabilities."""
        row = self.probs[number]
        return [(self.classes[place], float(row[place])) for place in np.argsort(-row, kind="stable")[:k]]

    def __len__(self) -> int:
        return len(self.errors)


Cuts = Mapping[str, Sequence[np.ndarray]]  # run -> uint8 [px, px, 3] each, what it is to see of an image


@dataclass(frozen=True)
class ViewPredictions:
    """What a model, its views and its members make of some images."""

    predictions: Predictions
    views: Mapping[tuple[str, str], np.ndarray]  # (run, view) -> float32 [n, K], probabilities before the temperature
    members: Mapping[str, np.ndarray]  # of an ensemble, the same; none for a run


@dataclass(frozen=True)
class Activation:
    """Where one run looked in one view of an image."""

    run: str
    view: str
    cut: np.ndarray  # uint8 [px, px, 3], what it saw
    values: np.ndarray  # float32 [h, w], see `Classifier.activation_maps`


class Model:
    """A run or an ensemble, its weights in memory from the first prediction on.

    Args:
        path: the run folder, or an ensemble's.
        views: center (a run's default), report (an ensemble's) or names with commas.
        exact: on the CPU in float32, whatever the machine and the run's precision are.

    Raises:
        RunError: not a finished run.
        RecipeError: no such view.
    """

    def __init__(self, path: str | Path, views: str | None = None, *, exact: bool = False) -> None:
        self.path, self.exact = Path(path), exact
        self._asked = open_runs(self.path, views)
        self.calibration = calibration_for(self.path, self._asked.view_names)
        self._loaded: dict[str, tuple[Classifier, Normalise, Recipe]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self._asked.classes

    @property
    def views(self) -> tuple[str, ...]:
        """The views whose probabilities are averaged."""
        return self._asked.view_names

    def predict(self, images: Sequence[str | Path | bytes | Image | np.ndarray]) -> Predictions:
        """Probabilities of images.

        Args:
            images: files; what files hold (bytes); images of Pillow in any mode; arrays, uint8 [H, W, 3] or [H, W]
                each. The random crop of an image in memory is drawn by its pixels, of a file by its bytes.

        Returns:
            A row for each; one that cannot be read has its error, the others are as without it.

        Raises:
            DataError: a single path or image instead of several.
        """
        if isinstance(images, (str, Path, bytes, Image)):
            raise DataError("predict takes several images: put the one in a list")
        sources = [Path(one) if isinstance(one, str) else one for one in images]
        probs = np.zeros((len(sources), len(self.classes)), np.float64)
        errors: list[str | None] = [None] * len(sources)
        for name in self._asked.runs:
            model, normalise, recipe = self._model(name)
            weights = self._asked.view_weights(name)
            assert recipe.run.threads != "auto", "a resolved recipe has its threads"
            with compute_threads(recipe.run.threads):
                for scores in score_images(model, normalise, sources, recipe, views=self._asked.views[name]):
                    stop = scores.start + len(scores.errors)
                    probs[scores.start : stop] += np.einsum("v,vnk->nk", weights, np.exp(scores.results))
                    errors[scores.start : stop] = scores.errors
        return Predictions(self.classes, self._calibrated(probs), tuple(errors), self.threshold)

    @property
    def threshold(self) -> float | None:
        """The probability below which an image is none of the classes, where the run keeps one for these views."""
        kept = None if self.calibration is None else self.calibration.threshold
        return None if kept is None else kept.prob

    def _calibrated(self, probs: np.ndarray) -> np.ndarray:
        """float32 [n, K]: the probabilities at the temperature that the run keeps."""
        if self.calibration is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                probs = np.exp(apply_temperature(np.log(probs), self.calibration.temperature))
        return probs.astype(np.float32)

    def load(self) -> None:
        """Take the weights into memory now, not with the first prediction.

        Raises:
            RunError: they are damaged.
        """
        for name in self._asked.runs:
            self._model(name)

    @property
    def members(self) -> tuple[str, ...]:
        """The names of an ensemble's members; none for a run."""
        return tuple(dict.fromkeys(entry.member for entry in self._asked.entries))

    def cut(self, data: bytes, name: str, *, max_pixels: int) -> Cuts:
        """What each run is to see of an image, from what its file holds; `load` comes first. Threads may share it.

        Raises:
            ImageError: it cannot be read, or has more pixels.
        """
        image, digest = decode_bytes(data, name, max_pixels=max_pixels), file_digest(data)
        return {
            run: cut_all(image, digest, cuts_of(self._asked.views[run]), self._model(run)[2])
            for run in self._asked.runs
        }

    def predict_views(self, images: Sequence[Cuts]) -> ViewPredictions:
        """What views, members and the whole make of images: the probabilities that `predict` gives."""
        probs = np.zeros((len(images), len(self.classes)), np.float64)
        views: dict[tuple[str, str], np.ndarray] = {}
        members = {member: np.zeros_like(probs) for member in self.members}
        for run in self._asked.runs:
            model, normalise, recipe = self._model(run)
            assert recipe.run.threads != "auto", "a resolved recipe has its threads"
            with compute_threads(recipe.run.threads):
                seen = score_cuts(model, normalise, [one[run] for one in images], recipe, self._asked.views[run])
            results = np.exp(np.stack([log_probs.cpu().numpy() for log_probs, _ in seen]))
            views |= {(run, view.name): rows for view, rows in zip(self._asked.views[run], results, strict=True)}
            probs += np.einsum("v,vnk->nk", self._asked.view_weights(run), results)
            for member in members:
                members[member] += np.einsum("v,vnk->nk", self._asked.view_weights(run, member), results)
        predictions = Predictions(self.classes, self._calibrated(probs), (None,) * len(images), self.threshold)
        shares = {member: rows / rows.sum(1, keepdims=True) for member, rows in members.items()}
        return ViewPredictions(predictions, views, shares)

    def activations(self, image: Cuts, place: int) -> list[Activation]:
        """Where each run looked for the class at position `place`, in its first centre view, else its first.

        A run whose model has no such map is left out.
        """
        found = []
        for run in self._asked.runs:
            model, normalise, recipe = self._model(run)
            cuts = cuts_of(self._asked.views[run])
            number = next((number for number, view in enumerate(cuts) if view.crop == "center"), 0)
            with contextlib.suppress(RunError):
                values = activation_map(model, normalise, image[run][number], recipe, place)
                found.append(Activation(run, cuts[number].cut, image[run][number], values))
        return found

    def _model(self, name: str) -> tuple[Classifier, Normalise, Recipe]:
        if name not in self._loaded:
            run = self._asked.runs[name]
            recipe = exact_recipe(run) if self.exact else testing_recipe(run)
            device = torch.device(recipe.run.device)
            keep_freed_memory()
            self._loaded[name] = load_model(run, device), Normalise(run.data.mean, run.data.std).to(device), recipe
        return self._loaded[name]


def load(path: str | Path, views: str | None = None, *, exact: bool = False) -> Model:
    """Open a run or an ensemble for predictions; see `Model`."""
    return Model(path, views, exact=exact)

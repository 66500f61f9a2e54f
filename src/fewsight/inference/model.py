"""A run or an ensemble in memory, for programs: images in, probabilities out, the same as `fewsight predict` gives."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL.Image import Image

from fewsight.data import decode_bytes, file_digest
from fewsight.errors import DataError, RunError
from fewsight.inference.fused import fused_batches
from fewsight.inference.opening import open_runs
from fewsight.inference.score_run import exact_recipe, load_scorer, num_threads, testing_recipe
from fewsight.machine.device import compute_threads
from fewsight.scores.calibration import apply_temperature, calibration_for
from fewsight.scores.log_probs import first_errors
from fewsight.scores.scoring import (
    CutScores,
    Scorer,
    activation_map,
    cut_all,
    distinct_cuts,
    score_cuts,
)


@dataclass(frozen=True)
class Predictions:
    """Predictions for some images, in the order given."""

    classes: tuple[str, ...]
    probs: np.ndarray  # float32 [n, K], in the order of `classes`; NaN for an image with an error
    errors: tuple[str | None, ...]  # [n], why an image could not be read, or has no finite scores
    threshold: float | None = None  # below which an image is none of the classes, if the run has one

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The most probable class of each image; None if it could not be read."""
        return tuple(
            None if error else self.classes[int(probs.argmax())]
            for probs, error in zip(self.probs, self.errors, strict=True)
        )

    @property
    def none_of_these(self) -> tuple[bool | None, ...]:
        """Whether each image is none of the classes; None if it could not be read, or the run has no threshold."""
        return tuple(
            None if error or self.threshold is None else bool(probs.max() < self.threshold)
            for probs, error in zip(self.probs, self.errors, strict=True)
        )

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """The `k` most probable classes of each image with their probabilities; empty if it could not be read."""
        return [[] if error else self.top_of(index, k) for index, error in enumerate(self.errors)]

    def top_of(self, index: int, k: int = 5) -> list[tuple[str, float]]:
        """The `k` most probable classes of one image with their probabilities."""
        probs = self.probs[index]
        return [(self.classes[number], float(probs[number])) for number in np.argsort(-probs, kind="stable")[:k]]

    def __len__(self) -> int:
        return len(self.errors)


Cuts = Mapping[str, Sequence[np.ndarray]]  # run -> its cuts of one image, uint8 [px, px, 3] each


@dataclass(frozen=True)
class ViewPredictions:
    """Predictions for some images, also by view and by member."""

    predictions: Predictions
    views: Mapping[tuple[str, str], np.ndarray]  # (run, view) -> float32 [n, K], probabilities before the temperature
    members: Mapping[str, np.ndarray]  # of an ensemble: member -> the same; empty for a run


@dataclass(frozen=True)
class Activation:
    """The class activation map of one run in one view of an image."""

    run: str
    view: str
    cut: np.ndarray  # uint8 [px, px, 3], the model's input
    values: np.ndarray  # float32 [h, w], see `Classifier.activation_maps`


class Model:
    """A run or an ensemble; the weights are loaded with the first prediction.

    Args:
        path: the run folder, or an ensemble's.
        views: center (default for a run), paper or names separated by commas. An ensemble has its own default.
        exact: compute on the CPU in float32, whatever the machine and the run's precision are.

    Raises:
        RunError: the run is not finished.
        RecipeError: there is no such view.
    """

    def __init__(self, path: str | Path, views: str | None = None, *, exact: bool = False) -> None:
        self.path, self.exact = Path(path), exact
        self._opened = open_runs(self.path, views)
        self.calibration = calibration_for(self.path, self._opened.view_names)
        self._loaded: dict[str, Scorer] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self._opened.classes

    @property
    def views(self) -> tuple[str, ...]:
        """The views whose probabilities are averaged."""
        return self._opened.view_names

    def predict(self, images: Sequence[str | Path | bytes | Image | np.ndarray]) -> Predictions:
        """Probabilities of images.

        Args:
            images: files; contents of files (bytes); Pillow images in any mode; arrays, uint8 [H, W, 3] or [H, W] each.
                The random crops of a file depend on its bytes, those of an image in memory on its pixels.

        Returns:
            Predictions in the order of `images`. An image that cannot be read has an error and changes no other.

        Raises:
            DataError: a single path or image instead of several; an array is taken only as uint8 [n, H, W, 3].
        """
        if isinstance(images, (str, Path, bytes, Image)):
            raise DataError("predict takes several images: put the one image in a list")
        dimensions = getattr(images, "ndim", 4)  # of an array or a tensor
        if dimensions < 4:  # [H, W], [H, W, C] or [C, H, W]
            raise DataError(
                f"predict takes several images, and an array of {dimensions} dimensions may be one: put the one image "
                "in a list, or give list(array) for several grey ones"
            )
        sources = [Path(image) if isinstance(image, str) else image for image in images]
        self.load()
        batches = list(fused_batches(self._opened, self._loaded, sources))
        log_probs = [batch.log_probs for batch in batches] or [np.empty((0, len(self.classes)), np.float32)]
        errors = tuple(error for batch in batches for error in batch.errors)
        return Predictions(self.classes, self._probs(np.concatenate(log_probs)), errors, self.threshold)

    @property
    def threshold(self) -> float | None:
        """The probability below which an image is none of the classes, if the run has one for these views."""
        threshold = None if self.calibration is None else self.calibration.threshold
        return None if threshold is None else threshold.prob

    def _probs(self, log_probs: np.ndarray) -> np.ndarray:
        """float32 [n, K]: the probabilities at the run's temperature for these views, from log-probabilities [n, K]."""
        if self.calibration is not None:
            log_probs = apply_temperature(log_probs, self.calibration.temperature)
        probs: np.ndarray = np.exp(log_probs).astype(np.float32)
        return probs

    def load(self) -> None:
        """Load the weights into memory now instead of with the first prediction.

        Raises:
            RunError: they are damaged.
        """
        for name in self._opened.runs:
            self._scorer(name)

    @property
    def members(self) -> tuple[str, ...]:
        """The names of an ensemble's members; empty for a run."""
        return tuple(dict.fromkeys(entry.member for entry in self._opened.entries))

    def cut(self, data: bytes, name: str, *, max_pixels: int) -> Cuts:
        """Each run's cuts of an image. Call `load` first; it is safe to call from several threads.

        Args:
            data: the contents of its file.
            name: of the file, for messages.
            max_pixels: that the image may have.

        Raises:
            ImageError: it cannot be read, or has more pixels.
        """
        image, digest = decode_bytes(data, name, max_pixels=max_pixels), file_digest(data)
        return {
            run: cut_all(image, digest, distinct_cuts(self._opened.views[run]), self._scorer(run).recipe)
            for run in self._opened.runs
        }

    def predict_views(self, images: Sequence[Cuts]) -> ViewPredictions:
        """Probabilities of images by view, by member and as a whole: the same as those of `predict`."""
        scores = {run: self._score(run, images) for run in self._opened.runs}
        log_probs = self._opened.fused({run: of_run.log_probs for run, of_run in scores.items()})
        errors = first_errors([of_run.errors for of_run in scores.values()])
        predictions = Predictions(self.classes, self._probs(log_probs), tuple(errors), self.threshold)
        by_view: dict[tuple[str, str], np.ndarray] = {}
        by_member = {member: np.zeros(log_probs.shape) for member in self.members}
        for run, of_run in scores.items():
            results = np.exp(of_run.log_probs)
            by_view |= {(run, view.name): probs for view, probs in zip(self._opened.views[run], results, strict=True)}
            for member in by_member:
                by_member[member] += np.einsum("v,vnk->nk", self._opened.view_weights(run, member), results)
        normalised = {member: values / values.sum(1, keepdims=True) for member, values in by_member.items()}
        return ViewPredictions(predictions, by_view, normalised)

    def activations(self, image: Cuts, index: int) -> list[Activation]:
        """The class activation maps of the class `index`, for each run in its first centre view, else its first view.

        A run whose model has no such map is left out.
        """
        activations = []
        for run in self._opened.runs:
            scorer = self._scorer(run)
            cuts = distinct_cuts(self._opened.views[run])
            number = next((number for number, view in enumerate(cuts) if view.crop == "center"), 0)
            with contextlib.suppress(RunError):
                values = activation_map(scorer, image[run][number], index)
                activations.append(Activation(run, cuts[number].cut, image[run][number], values))
        return activations

    def _score(self, run: str, images: Sequence[Cuts]) -> CutScores:
        """A run's scores of its cuts."""
        scorer = self._scorer(run)
        with compute_threads(num_threads(scorer.recipe)):
            return score_cuts(scorer, [cuts[run] for cuts in images], self._opened.views[run])

    def _scorer(self, name: str) -> Scorer:
        if name not in self._loaded:
            run = self._opened.runs[name]
            self._loaded[name] = load_scorer(run, exact_recipe(run) if self.exact else testing_recipe(run))
        return self._loaded[name]


def load(path: str | Path, views: str | None = None, *, exact: bool = False) -> Model:
    """Open a run or an ensemble for predictions; see `Model`."""
    return Model(path, views, exact=exact)

"""Comparison of an exported model with `predict` on real images."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from fewsight.apps.export.graph import Cut
from fewsight.apps.export.images import ImageSet, inputs_of
from fewsight.apps.export.onnx_model import run
from fewsight.errors import RunError
from fewsight.inference.model import load

MAX_DIFFERENCE = 1e-4  # of a probability; the most probable class then changes only in ties within twice this
BATCH_SIZE = 16


@dataclass(frozen=True)
class Parity:
    """An exported model compared with `predict`, on the CPU in float32."""

    source: str
    num_images: int
    num_same_top1: int
    largest: float  # the largest difference of a probability
    predict_ms: float  # per image, from the file to the probabilities
    onnxruntime_ms: float


def check_parity(
    session: onnxruntime.InferenceSession,
    cuts: Mapping[str, Cut],
    images: ImageSet,
    expected: np.ndarray,
    predict_ms: float,
    *,
    crop: bool,
) -> Parity:
    """Compare the probabilities of a session with those of `predict`.

    Args:
        expected: float32 [n, K], the probabilities of `predict`.
        predict_ms: its time per image.

    Raises:
        RunError: they differ by more than rounding, or are not finite.
    """
    probs, onnxruntime_ms = exported_probs(session, cuts, images, crop=crop)
    differences = np.abs(probs - expected).max(1)
    largest, same = float(differences.max()), int((probs.argmax(1) == expected.argmax(1)).sum())
    if not largest <= MAX_DIFFERENCE:  # NaN too
        worst = images.files[int(np.nan_to_num(differences, nan=np.inf).argmax())]
        raise RunError(
            f"the exported model differs from predict by {largest:.2g} on {worst} (at most {MAX_DIFFERENCE:g} is "
            f"allowed; the same most probable class on {same:,} of {len(differences):,} images); nothing was written. "
            "Other versions of torch, onnxscript or onnxruntime may fix it"
        )
    return Parity(images.source, len(differences), same, largest, predict_ms, onnxruntime_ms)


def predicted_probs(path: Path, views: str | None, images: ImageSet) -> tuple[np.ndarray, float]:
    """The probabilities of `predict` on the CPU in float32, float32 [n, K], and its milliseconds per image.

    Raises:
        RunError: it has none for an image, since its scores are not finite.
    """
    model = load(path, views, exact=True)
    model.predict(images.files[:1])  # so that reading the weights is not timed
    began = time.perf_counter()
    predictions = model.predict(images.files)
    predict_ms = (time.perf_counter() - began) / len(images.files) * 1e3
    for file, error in zip(images.files, predictions.errors, strict=True):
        if error is not None:
            raise RunError(f"{file}: {error}; nothing was written")
    return predictions.probs, predict_ms


def exported_probs(
    session: onnxruntime.InferenceSession, cuts: Mapping[str, Cut], images: ImageSet, *, crop: bool
) -> tuple[np.ndarray, float]:
    """The probabilities of a session, float32 [n, K], and its milliseconds per image, from the file on."""
    for inputs in inputs_of(images.files[:1], cuts, crop=crop, batch_size=1):
        run(session, inputs)
    began = time.perf_counter()
    probs = [run(session, inputs) for inputs in inputs_of(images.files, cuts, crop=crop, batch_size=BATCH_SIZE)]
    return np.concatenate(probs), (time.perf_counter() - began) / len(images.files) * 1e3

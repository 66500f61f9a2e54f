"""Whether an exported model gives the probabilities that `predict` gives, on real images."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from fewsight.apps.export.graph import Cut
from fewsight.apps.export.images import Images, inputs_of
from fewsight.apps.export.onnx_model import run
from fewsight.errors import RunError
from fewsight.inference.model import load

LARGEST = 1e-4  # difference of a probability; another most probable class then lies in a tie within twice this
BATCH_SIZE = 16


@dataclass(frozen=True)
class Parity:
    """An exported model against predict, on the CPU in float32."""

    source: str
    num_images: int
    num_same_top1: int
    largest: float  # difference of a probability
    predict_ms: float  # an image, from the file to the probabilities
    onnxruntime_ms: float


def check_parity(
    session: onnxruntime.InferenceSession,
    cuts: Mapping[str, Cut],
    images: Images,
    expected: np.ndarray,
    predict_ms: float,
    *,
    crop: bool,
) -> Parity:
    """Compare what a session gives with what predict gives.

    Args:
        expected: float32 [n, K], by `predicted`.

    Raises:
        RunError: they differ.
    """
    found, milliseconds = exported_probs(session, cuts, images, crop=crop)
    gaps = np.abs(found - expected).max(1)
    largest, same = float(gaps.max()), int((found.argmax(1) == expected.argmax(1)).sum())
    if not largest <= LARGEST:  # NaN too
        worst = images.files[int(np.nan_to_num(gaps, nan=np.inf).argmax())]
        raise RunError(
            f"the exported model differs from predict by {largest:.2g} on {worst} (at most {LARGEST:g} is allowed; the "
            f"same most probable class on {same:,} of {len(gaps):,} images); nothing was written. Other versions of "
            "torch, onnxscript or onnxruntime may mend it"
        )
    return Parity(images.source, len(gaps), same, largest, predict_ms, milliseconds)


def predicted(path: Path, views: str | None, images: Images) -> tuple[np.ndarray, float]:
    """What predict gives on the CPU in float32, float32 [n, K], and its milliseconds an image."""
    model = load(path, views, exact=True)
    model.predict(images.files[:1])  # reads the weights
    began = time.perf_counter()
    found = model.predict(images.files).probs
    return found, (time.perf_counter() - began) / len(images.files) * 1e3


def exported_probs(
    session: onnxruntime.InferenceSession, cuts: Mapping[str, Cut], images: Images, *, crop: bool
) -> tuple[np.ndarray, float]:
    """What a session gives, float32 [n, K], and its milliseconds an image, from the file to the probabilities."""
    for inputs in inputs_of(images.files[:1], cuts, crop=crop, batch_size=1):
        run(session, inputs)
    began = time.perf_counter()
    found = [run(session, inputs) for inputs in inputs_of(images.files, cuts, crop=crop, batch_size=BATCH_SIZE)]
    return np.concatenate(found), (time.perf_counter() - began) / len(images.files) * 1e3

"""Static quantisation of convolutions to 8 bits, and its measured effect on predictions."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from onnxruntime import quantization
from scipy.optimize import brentq

from fewsight.apps.export.graph import Cut
from fewsight.apps.export.images import ImageSet, inputs_of
from fewsight.apps.export.onnx_model import quiet
from fewsight.errors import RunError
from fewsight.scores.metrics import Paired, Proportion, paired, wilson
from fewsight.wording import counted

NUM_CALIBRATION = 256  # images
BATCH_SIZE = 16
MAX_LOSS = 0.02  # of top-1; an export that may lose more is refused
Z = 1.959964  # of the normal distribution, for 95 % intervals
MAX_TIMES = 1e4  # more images than there are, in the search for how many would tell
GIVE_UP = "nothing was written; export without --int8"
STEM = ".backbone.stem."  # names weights that stay in float32: little time, and about half of the loss of accuracy


@dataclass(frozen=True)
class Int8Loss:
    """int8 predictions against float32 predictions on the same images."""

    source: str
    num_trained_on: int  # of the images
    agreement: Proportion  # of images with the same most probable class
    largest: float  # the largest difference of a probability
    float32: Proportion | None  # top-1 accuracy; None without labels
    int8: Proportion | None
    gain: Paired | None  # with the score interval of `paired_interval`
    int8_ms: float  # per image, from the file to the probabilities

    def interval(self, times: float = 1.0) -> tuple[float, float]:
        """The 95 % interval of the change in top-1, if `times` as many images had changed in the same proportions.

        Without labels it is the interval of the predictions that changed, which top-1 cannot lose more than.
        """
        if self.gain is not None:
            return paired_interval(self.gain.second_only * times, self.gain.first_only * times, self.gain.total * times)
        kept = wilson(round(self.agreement.count * times), round(self.agreement.total * times))
        return kept.low - 1, kept.high - 1


def quantise(model: onnx.ModelProto, cuts: Mapping[str, Cut], images: ImageSet, *, crop: bool) -> onnx.ModelProto:
    """Quantise the convolutions to int8: weights per channel, activations by their range over `images`.

    The stem and all other operations stay in float32.

    Source: Jacob et al., arXiv:1712.05877; onnxruntime's static quantisation in QDQ form.
    """
    batches = inputs_of(images.files, cuts, crop=crop, batch_size=BATCH_SIZE)
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantization.quantize_static(
            source,
            target,
            SimpleNamespace(get_next=lambda: next(batches, None)),
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[node.name for node in model.graph.node if any(STEM in name for name in node.input)],
            per_channel=True,
            reduce_range=True,  # otherwise 16-bit sums saturate on processors without VNNI
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(target)


def measure_loss(expected: np.ndarray, probs: np.ndarray, images: ImageSet, int8_ms: float) -> Int8Loss:
    """Compare predictions in int8 with those in float32, and both with the labels.

    Args:
        expected: probabilities in float32, [n, K].
        probs: probabilities in int8, [n, K].

    Raises:
        RunError: int8 loses too much accuracy, the images are too few to tell, or a probability is not finite.
    """
    finite = np.isfinite(probs).all(1)
    if not finite.all():
        raise RunError(f"{images.files[int(finite.argmin())]}: the scores in int8 are not finite; {GIVE_UP}")
    before, after = expected.argmax(1), probs.argmax(1)
    agreement = wilson(int((before == after).sum()), len(before))
    largest = float(np.abs(probs - expected).max())
    top1: tuple[Proportion | None, Proportion | None] = (None, None)
    gain = None
    if images.labels:
        correct = [predicted == np.array(images.labels) for predicted in (before, after)]
        top1 = (wilson(int(correct[0].sum()), len(before)), wilson(int(correct[1].sum()), len(before)))
        gain = paired(*correct)
        low, high = paired_interval(gain.second_only, gain.first_only, gain.total)
        gain = replace(gain, low=low, high=high)
    loss = Int8Loss(images.source, images.num_trained_on, agreement, largest, *top1, gain, int8_ms)
    _check(loss)
    return loss


def _check(loss: Int8Loss) -> None:
    """Check that int8 loses at most `MAX_LOSS` of top-1.

    Raises:
        RunError: it loses more, or there are too few images to tell.
    """
    low, high = loss.interval()
    if low >= -MAX_LOSS:
        return
    allowed = f"{100 * MAX_LOSS:g}"
    change = (
        f"top-1 changes by {loss.gain.brief()}"
        if loss.gain is not None
        else f"without labels the predictions decide, of which int8 keeps {loss.agreement}"
    )
    if high < -MAX_LOSS:
        raise RunError(f"int8 loses too much accuracy: {change}; at most {allowed} points are allowed; {GIVE_UP}")
    times = 1.0
    while low < -MAX_LOSS <= high and times < MAX_TIMES:
        times *= 1.05
        low, high = loss.interval(times)
    num_images = counted(loss.agreement.total, "image")
    raise RunError(
        f"{num_images} cannot tell whether int8 loses more than {allowed} points: {change}; about "
        f"{_rounded_up(loss.agreement.total * times):,} would tell (more val images with --num-images, others with "
        f"--images); {GIVE_UP}"
    )


def _rounded_up(number: float) -> int:
    """Up to two digits that are not 0."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return int(math.ceil(number / unit) * unit)


def paired_interval(gained: float, lost: float, total: float) -> tuple[float, float]:
    """The score interval at 95 % of the change in accuracy, (gained - lost) / total, on paired images.

    It does not shrink to a point where no image changed, as a bootstrap does: 0 of n then reach z^2 / (n + z^2).

    Args:
        gained: images that only the second classifies correctly.
        lost: images that only the first classifies correctly.
        total: of all images, at least 1.

    Source: Tango, Statistics in Medicine 17, 1998.
    """
    change, edge = (gained - lost) / total, 1 - 1e-9

    def score(delta: float) -> float:
        b = (2 * total - gained + lost) * delta - gained - lost
        root = math.sqrt(max(0.0, b * b + 8 * total * lost * delta * (1 - delta)))
        variance = total * (2 * (root - b) / (4 * total) + delta * (1 - delta))
        return (gained - lost - total * delta) / math.sqrt(max(variance, 1e-300))

    low = -1.0 if score(-edge) < Z else brentq(lambda delta: score(delta) - Z, -edge, change)
    high = 1.0 if score(edge) > -Z else brentq(lambda delta: score(delta) + Z, change, edge)
    return float(low), float(high)

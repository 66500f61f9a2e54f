"""Static quantisation of convolutions to 8 bits, and its measured effect on predictions."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from onnxruntime import quantization

from fewsight.apps.export.graph import Cut
from fewsight.apps.export.images import ImageSet, inputs_of
from fewsight.apps.export.onnx_model import quiet
from fewsight.errors import RunError
from fewsight.scores.metrics import Paired, Proportion, paired, wilson

NUM_CALIBRATION = 256  # images
BATCH_SIZE = 16
MAX_LOSS = 0.02  # of top-1; a significantly larger loss is refused
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
    gain: Paired | None
    int8_ms: float  # per image, from the file to the probabilities


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
        RunError: int8 loses too much accuracy.
    """
    before, after = expected.argmax(1), probs.argmax(1)
    agreement = wilson(int((before == after).sum()), len(before))
    largest = float(np.abs(probs - expected).max())
    top1: tuple[Proportion | None, Proportion | None] = (None, None)
    gain = None
    if images.labels:
        correct = [predicted == np.array(images.labels) for predicted in (before, after)]
        top1 = (wilson(int(correct[0].sum()), len(before)), wilson(int(correct[1].sum()), len(before)))
        gain = paired(*correct)
        if gain.high < -MAX_LOSS:
            raise RunError(
                f"int8 loses too much accuracy: {gain}; at most {100 * MAX_LOSS:g} points are allowed, so nothing was "
                "written; export without --int8"
            )
    return Int8Loss(images.source, images.num_trained_on, agreement, largest, *top1, gain, int8_ms)

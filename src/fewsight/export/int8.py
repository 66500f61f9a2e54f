"""Convolutions in whole numbers of 8 bits: their ranges from training images, what they cost from others."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from onnxruntime import quantization

from fewsight.export.graph import Cut
from fewsight.export.images import Images, inputs_of
from fewsight.export.onnx_model import quiet
from fewsight.metrics import Paired, Share, paired, wilson

NUM_CALIBRATION = 256  # images
BATCH_SIZE = 16


@dataclass(frozen=True)
class Loss:
    """What 8 bits changed, on the same images."""

    source: str
    num_trained_on: int  # of the images
    agreement: Share  # the same most probable class as in float32
    largest: float  # difference of a probability
    float32: Share | None  # top-1; None without labels
    int8: Share | None
    gain: Paired | None
    int8_ms: float  # an image, from the file to the probabilities


def quantise(model: onnx.ModelProto, cuts: Mapping[str, Cut], images: Images, *, crop: bool) -> onnx.ModelProto:
    """The model with its convolutions in int8: weights by channel, activations by the range that `images` give.

    The other operations stay in float32.

    Source: Jacob et al., arXiv:1712.05877; onnxruntime's static quantisation in QDQ form.
    """
    batches = inputs_of(images.files, cuts, crop=crop, batch_size=BATCH_SIZE)
    with tempfile.TemporaryDirectory() as folder, quiet():
        target = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model,
            target,
            SimpleNamespace(get_next=lambda: next(batches, None)),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            reduce_range=True,  # without it some processors saturate sums of 16 bits
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(target)


def loss_of(expected: np.ndarray, found: np.ndarray, images: Images, milliseconds: float) -> Loss:
    """Probabilities in float32 and in int8, both [n, K], against each other and the labels."""
    before, after = expected.argmax(1), found.argmax(1)
    agreement = wilson(int((before == after).sum()), len(before))
    largest = float(np.abs(found - expected).max())
    if not images.labels:
        return Loss(images.source, images.num_trained_on, agreement, largest, None, None, None, milliseconds)
    labels = np.array(images.labels)
    shares = [wilson(int((one == labels).sum()), len(labels)) for one in (before, after)]
    gain = paired(before == labels, after == labels)
    return Loss(images.source, images.num_trained_on, agreement, largest, *shares, gain, milliseconds)

"""Convolutions in whole numbers of 8 bits: their ranges from training images, what they cost from others."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
from onnxruntime import quantization

from fewsight.apps.export.graph import Cut
from fewsight.apps.export.images import Images, inputs_of
from fewsight.apps.export.onnx_model import quiet
from fewsight.errors import RunError
from fewsight.scores.metrics import Paired, Proportion, paired, wilson

NUM_CALIBRATION = 256  # images
BATCH_SIZE = 16
MOST_LOST = 0.02  # of top-1; more is refused, where these images show it
STEM = ".backbone.stem."  # in the names of weights that stay in float32: they cost little, and the loss is near half


@dataclass(frozen=True)
class Loss:
    """What 8 bits changed, on the same images."""

    source: str
    num_trained_on: int  # of the images
    agreement: Proportion  # the same most probable class as in float32
    largest: float  # difference of a probability
    float32: Proportion | None  # top-1; None without labels
    int8: Proportion | None
    gain: Paired | None
    int8_ms: float  # an image, from the file to the probabilities


def quantise(model: onnx.ModelProto, cuts: Mapping[str, Cut], images: Images, *, crop: bool) -> onnx.ModelProto:
    """The model with its convolutions in int8: weights by channel, activations by the range that `images` give.

    The stem's and all other operations stay in float32.

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
            reduce_range=True,  # without it some processors saturate sums of 16 bits
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(target)


def loss_of(expected: np.ndarray, found: np.ndarray, images: Images, milliseconds: float) -> Loss:
    """Probabilities in float32 and in int8, both [n, K], against each other and the labels.

    Raises:
        RunError: int8 loses too much.
    """
    before, after = expected.argmax(1), found.argmax(1)
    agreement = wilson(int((before == after).sum()), len(before))
    largest = float(np.abs(found - expected).max())
    top1: tuple[Proportion | None, Proportion | None] = (None, None)
    gain = None
    if images.labels:
        right = [one == np.array(images.labels) for one in (before, after)]
        top1 = (wilson(int(right[0].sum()), len(before)), wilson(int(right[1].sum()), len(before)))
        gain = paired(*right)
        if gain.high < -MOST_LOST:
            raise RunError(
                f"int8 loses too much: {gain}; at most {100 * MOST_LOST:g} points are allowed, so nothing was written; "
                "export without --int8"
            )
    return Loss(images.source, images.num_trained_on, agreement, largest, *top1, gain, milliseconds)

"""Tracing a graph to an ONNX model, its metadata, and running it in onnxruntime."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

import fewsight
from fewsight.apps.export.graph import Cut
from fewsight.errors import RunError

MAX_WEIGHT_BYTES = 2**31 - 2**24  # a single ONNX file cannot exceed 2 GiB
EXAMPLE_SIDES = (96, 72)  # height and width of the images that a cropping graph is traced with


def to_onnx(module: nn.Module, cuts: Mapping[str, Cut], *, crop: bool) -> onnx.ModelProto:
    """Trace a `Graph` or a `CroppingGraph`; the batch size is dynamic, and so are the sides of images to be cropped.

    Raises:
        RunError: the weights are too large for one file, or the model cannot be traced.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > MAX_WEIGHT_BYTES:
        raise RunError(f"the weights have {size / 2**30:.1f} GiB, but one ONNX file can have 2; export fewer members")
    batch = torch.export.Dim("batch")
    if crop:
        height, width = (torch.export.Dim(name) for name in ("height", "width"))
        num_random = sum(cut.ratio is None for cut in cuts.values())
        example = [torch.zeros(2, *EXAMPLE_SIDES, 3, dtype=torch.uint8)]
        shapes: Any = ({0: batch, 1: height, 2: width},)
        if num_random:
            example.append(torch.tensor([0.0, 0.0, *EXAMPLE_SIDES[::-1]]).repeat(2, num_random, 1))
            shapes += ({0: batch},)
        names = ["images", "boxes"][: len(example)]
    else:
        example = [torch.zeros(2, cut.px, cut.px, 3, dtype=torch.uint8) for cut in cuts.values()]
        shapes, names = (tuple({0: batch} for _ in cuts),), list(cuts)
    try:
        with quiet():
            program = torch.onnx.export(
                module, tuple(example), input_names=names, output_names=["probs"], dynamic_shapes=shapes,
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise RunError(f"torch cannot export this model to ONNX: {reason}") from error
    assert program is not None, "the dynamo exporter returns a program"
    model: onnx.ModelProto = program.model_proto
    return model


def describe(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Set the model's metadata and its producer."""
    model.producer_name, model.producer_version = "fewsight", fewsight.__version__
    model.graph.name = "fewsight"
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))


def open_session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """Open the model in onnxruntime, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Run a batch: probabilities, float32 [B, K]."""
    outputs: list[np.ndarray] = session.run(None, dict(inputs))
    return outputs[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the logs and warnings of exporters, which do not concern a user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

"""A graph as an ONNX model, with what a user must know of it in its metadata, and as a session of onnxruntime."""

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

MOST_BYTES = 2**31 - 2**24  # of weights: a file of ONNX in one piece ends at 2 GiB
EXAMPLE_SIDES = (96, 72)  # of the images that a graph which crops is traced with


def to_onnx(module: nn.Module, cuts: Mapping[str, Cut], *, crop: bool) -> onnx.ModelProto:
    """Trace a `Graph` or a `CroppingGraph`; the batch, and the sides of images that it crops, may be any.

    Raises:
        RunError: the weights are too large for one file, or the model cannot be traced.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > MOST_BYTES:
        raise RunError(f"the weights have {size / 2**30:.1f} GiB, but one ONNX file holds 2; export fewer members")
    batch = torch.export.Dim("batch")
    if crop:
        height, width = (torch.export.Dim(name) for name in ("height", "width"))
        num_drawn = sum(cut.ratio is None for cut in cuts.values())
        example = [torch.zeros(2, *EXAMPLE_SIDES, 3, dtype=torch.uint8)]
        shapes: Any = ({0: batch, 1: height, 2: width},)
        if num_drawn:
            example.append(torch.tensor([0.0, 0.0, *EXAMPLE_SIDES[::-1]]).repeat(2, num_drawn, 1))
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
    assert program is not None, "the exporter of torch.export gives a program"
    model: onnx.ModelProto = program.model_proto
    return model


def describe(model: onnx.ModelProto, about: Mapping[str, str]) -> None:
    """Put names and values into the model's metadata, and say what made it."""
    model.producer_name, model.producer_version = "fewsight", fewsight.__version__
    model.graph.name = "fewsight"
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(about))


def open_session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """The model in onnxruntime, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Probabilities float32 [B, K]."""
    (probs,) = session.run(None, dict(inputs))
    found: np.ndarray = probs
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters say much that is not for a user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

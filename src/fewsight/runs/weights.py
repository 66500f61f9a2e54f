"""Write, check and read the weights file of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from fewsight.errors import RunError, WeightsError
from fewsight.machine import files, locks
from fewsight.runs.folder import MAX_BYTES, Run, update_info
from fewsight.runs.info import FORMAT

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "weights.safetensors"


def save_weights(run: Run, tensors: "Mapping[str, Tensor]", **notes: Any) -> Run:
    """Write weights.safetensors, and its digest and `notes` to run.json."""
    from safetensors.torch import save

    metadata = json.dumps({"format": FORMAT, "classes": run.classes})
    data = save(dict(tensors), {"fewsight": metadata})  # one entry: safetensors writes several in arbitrary order
    files.write_bytes(run.path / WEIGHTS, data)
    return update_info(run, weights_digest=files.digest_of(data), **notes)


def require_weights(run: Run) -> None:
    """Check that a run has its final weights.

    Raises:
        RunError: its training has not finished, or the file was lost.
    """
    _require_file(run)
    if not run.finished:
        raise RunError(
            f"{run.path} has only the weights of the epoch that was best so far: {locks.why_unfinished(run.path)}"
        )


def _require_file(run: Run) -> None:
    if not (run.path / WEIGHTS).is_file():
        if run.finished:
            raise RunError(f"{run.path} has lost its {WEIGHTS}; restore the file from a copy, or train again")
        raise RunError(f"{run.path} has no weights yet: {locks.why_unfinished(run.path)}")


def read_weights(run: Run) -> "dict[str, Tensor]":
    """Read the run's weights, checked against the digest in run.json; of an unfinished run, those of the best epoch.

    Raises:
        RunError: there are no weights yet.
        WeightsError: the file is damaged, or a weight is not finite.
    """
    _require_file(run)
    data = files.read_inside(run.path / WEIGHTS, MAX_BYTES)
    tensors = _tensors(run.path / WEIGHTS, data, run.info.weights_digest)
    bad = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if bad is not None:
        raise WeightsError(
            f"{run.path / WEIGHTS}: {bad} holds numbers that are not finite, so it gives no probabilities; "
            "train again with a lower learning rate, or restore the file from a copy"
        )
    if _classes_in(data) not in (None, list(run.classes)):
        raise WeightsError(
            f"{run.path / 'classes.json'} does not list the classes of the weights in their order; "
            "restore the file from a copy of the run"
        )
    return tensors


def _classes_in(weights: bytes) -> list[str] | None:
    """The class names that `save_weights` wrote to the file's header; None if there are none."""
    try:
        header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
        classes = json.loads(header["__metadata__"]["fewsight"])["classes"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return classes if isinstance(classes, list) else None


def _tensors(file: Path, data: bytes, digest: str | None) -> "dict[str, Tensor]":
    from safetensors.torch import load

    if digest != files.digest_of(data):
        raise WeightsError(f"{file} is damaged (its digest is not the one that was written); restore it from a copy")
    try:
        return dict(load(data))
    except SafetensorError as error:
        raise WeightsError(f"{file} is not a safetensors file: {error}") from error

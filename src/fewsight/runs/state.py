"""The saved state that an interrupted run resumes from."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.runs.folder import MAX_BYTES
from fewsight.runs.info import WRITER

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StateFile:
    """state/state.json."""

    digest: str  # of the values and of the tensors, which are in the file of that name
    values: dict[str, Any]


def save_state(path: Path, tensors: "Mapping[str, Tensor]", values: Mapping[str, Any]) -> None:
    """Save the state for resuming: the tensors in a new file, then state.json, which names that file.

    A crash at any moment leaves either the previous state or this one, complete. One digest covers both files.
    """
    from safetensors.torch import save

    folder = path / "state"
    files.make_folder(folder)
    data = save(dict(tensors))
    digest = _state_digest(values, data)
    files.write_bytes(folder / f"{digest}.safetensors", data)
    files.write_json(folder / "state.json", asdict(StateFile(digest, dict(values))))
    for old in folder.glob("*.safetensors"):
        if old.stem != digest:
            with contextlib.suppress(OSError):
                old.unlink()


def has_state(path: Path) -> bool:
    """Whether the run has a saved state."""
    return (path / "state" / "state.json").is_file()


def read_state(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
    """Read the last saved state; None if there is none yet.

    Returns:
        Its tensors by name, and its other values.

    Raises:
        RunError: the state is damaged.
    """
    from safetensors.torch import load

    if not has_state(path):
        return None
    file = path / "state" / "state.json"
    state = files.read_json(file, StateFile, WRITER)
    data = files.read_inside(file.with_name(Path(state.digest).name + ".safetensors"), MAX_BYTES)
    if state.digest != _state_digest(state.values, data):
        raise RunError(
            f"{file.parent} is damaged (its digest is not the one that was written); restore it from a copy, "
            "or delete it to start the training again from its beginning"
        )
    return dict(load(data)), state.values


def remove_state(path: Path) -> None:
    """Delete the state of a finished run, whose weights are saved."""
    folder = path / "state"
    remove_leftovers(path)
    for file in [folder / "state.json", *folder.glob("*.safetensors")]:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_leftovers(path: Path) -> None:
    """Delete the temporary files of killed processes; nothing ever reads them."""
    files.remove_parts(path)
    files.remove_parts(path / "state")


def _state_digest(values: Mapping[str, Any], data: bytes) -> str:
    """The digest of the values as JSON and of the tensors."""
    return files.digest_of(json.dumps(values, sort_keys=True).encode() + files.digest_of(data).encode())

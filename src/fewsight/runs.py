"""The run folder: write it, read it, nothing else.

A run holds recipe.toml, classes.json, data.json, images.jsonl, run.json, weights.safetensors, log.jsonl,
metrics.json and state/. No pickle; every file is replaced atomically and checked when it is read.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, FiniteFloat
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import fewsight
from fewsight import files
from fewsight.data import digest_of_list
from fewsight.errors import RunError
from fewsight.recipes import Recipe, load_recipe, recipe_toml
from fewsight.wording import counted

FORMAT = 1  # of the run folder; a newer one is refused
WEIGHTS = "weights.safetensors"
WROTE = "`fewsight train`"
MOST_BYTES = 2**33  # of weights, a state or a list of images: far more than any
BEGUN = ("recipe.toml", "classes.json", "data.json", "images.jsonl", "run.json")  # what a run begins with
TEXT_FILES = (*BEGUN[:-1], "log.jsonl", "metrics.json", BEGUN[-1])  # all but weights, state and scores; run.json last
PREVIEW = "preview.png"  # what `train --preview` leaves; a run may begin beside it


Std = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class RunData:
    """What a run knows of its data (data.json)."""

    source: str  # the data's absolute path when the run began
    layout: str
    digest: str  # BLAKE2b over path, size and label of every training and val image
    counts: dict[str, dict[str, int]]  # split -> class -> images
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]  # of RGB in [0, 1], training images
    std: tuple[Std, Std, Std]
    left_out: list[dict[str, str]]  # {"path", "split", "error"} of images that cannot be read, or leak
    ignored: dict[str, int]  # reason -> other files and folders
    leaks: dict[str, Any] = field(default_factory=dict)  # policy, equal and near pairs with other splits


@dataclass(frozen=True)
class Run:
    """A run folder as it was read."""

    path: Path
    recipe: Recipe
    classes: tuple[str, ...]
    data: RunData
    info: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the training came to its end."""
        return self.info.get("status") == "finished"

    def __repr__(self) -> str:
        model, size = self.recipe.model.backbone, f"{self.recipe.augment.train_px} px"
        classes = counted(len(self.classes), "class")
        return f"Run({str(self.path)!r}: {model}, {size}, {classes}, {self.info.get('status')})"


def check_new(path: Path, *, resumable: bool = True) -> None:
    """Refuse a run folder that would overwrite something.

    Args:
        resumable: the message may advise to continue the run that lies there.

    Raises:
        RunError: `path` exists and is not an empty folder (a preview may lie there).
    """
    if path.is_dir() and all(child.name == PREVIEW for child in path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        kind = "a run" if (path / "run.json").exists() else "not empty" if path.is_dir() else "a file"
        if resumable and (path / "recipe.toml").exists():
            other = f", or continue it with `fewsight train --resume {path}`"
        else:
            other = ", or remove it first" if kind == "a run" else ""
        raise RunError(f"{path} is already there ({kind}); choose another --out{other}. Nothing was changed.")


def create_run(
    path: Path,
    recipe: Recipe,
    classes: tuple[str, ...],
    data: RunData,
    images: Iterable[Mapping[str, Any]],
    notes: str = "",
    start: Mapping[str, Any] | None = None,
) -> Run:
    """Write a new run folder, complete but for its weights; run.json comes last and makes it one.

    Args:
        notes: comment lines on top of recipe.toml.
        start: what is noted of the weights that it starts from; None: random ones.

    Raises:
        RunError: the folder is taken or cannot be written.
    """
    check_new(path)
    files.make_folder(path)
    info = {
        "format": FORMAT,
        "status": "training",
        "fewsight": fewsight.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "commit": _commit(),
        "device": _device_name(recipe.run.device),
        "command": command_line(),
        "seed": recipe.run.seed,
        "started": now(),
        "start": start,
        "recipe": recipe.model_dump(mode="json"),  # what recipe.toml is compared with on resuming
    }
    try:
        files.write_text(path / "recipe.toml", recipe_toml(recipe, notes))
        files.write_json(path / "classes.json", list(classes))
        files.write_json(path / "data.json", asdict(data))
        files.write_text(path / "images.jsonl", "".join(files.json_text(image) + "\n" for image in images))
        files.write_json(path / "run.json", info)
    except RunError:
        _remove_begun(path)
        raise
    return Run(path, recipe, classes, data, info)


def command_line() -> str:
    """What this process was called with, quoted for the shell; code of one's own keeps its name."""
    program = Path(sys.argv[0])
    ours = program.stem == "fewsight" or (program.stem, program.parent.name) == ("__main__", "fewsight")
    return shlex.join(["fewsight" if ours else sys.argv[0], *sys.argv[1:]])


def _remove_begun(path: Path) -> None:
    """Take away what `create_run` wrote before it failed, so that the same command can be run again."""
    for name in BEGUN:
        with contextlib.suppress(OSError):
            (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def update_info(run: Run, **values: Any) -> Run:
    """Replace values of run.json; the others stay as they stand there."""
    info = {**files.read_json(run.path / "run.json"), **values}
    files.write_json(run.path / "run.json", info)
    return Run(run.path, run.recipe, run.classes, run.data, info)


def read_run(path: Path) -> Run:
    """Read a run folder, without its weights.

    Raises:
        RunError: not a run folder, not whole, or of a newer format.
        RecipeError: its recipe was edited into something that is not one.
    """
    if not (path / "run.json").is_file():
        what = "is not there" if not path.exists() else "holds no run.json, so it is not a run folder"
        raise RunError(f"{path} {what}; expected a folder that `fewsight train` wrote")
    info = files.read_json(path / "run.json")
    version = info.get("format") if isinstance(info, dict) else None
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise RunError(
            f"{path}: run format {version!r}, but this fewsight {fewsight.__version__} reads up to {FORMAT}; "
            "upgrade fewsight"
        )
    start = info.get("start")
    if start is not None and not (isinstance(start, dict) and isinstance(start.get("run"), str)):
        raise RunError(f"{path / 'run.json'} is not what {WROTE} wrote: start is {str(start)[:80]!r}")
    data = files.read_json_as(path / "data.json", RunData, WROTE)
    classes = files.read_json_as(path / "classes.json", list[str], WROTE)
    if len(set(classes)) < max(2, len(classes)):
        raise RunError(f"{path / 'classes.json'}: expected the names of two classes or more, each once")
    files.check_inside(path / "recipe.toml", path, most=files.MOST_JSON_BYTES)
    return Run(path, load_recipe(path / "recipe.toml"), tuple(classes), data, info)


def read_images(run: Run) -> list[dict[str, Any]]:
    """The images that a run trains on and selects on: {"split", "path", "label", "size", "pixels"} each.

    Raises:
        RunError: the list is damaged, or is not the one of data.json.
    """
    path = run.path
    try:
        files.check_inside(path / "images.jsonl", path, most=MOST_BYTES)
        text = (path / "images.jsonl").read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.split("\n") if line]
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path / 'images.jsonl'}: {error}") from error
    if not all(isinstance(one, dict) and {"split", "path", "label", "size"} <= one.keys()
               and isinstance(one["path"], str) for one in found):  # fmt: skip
        raise RunError(f"{path / 'images.jsonl'} is not what {WROTE} wrote; restore the file from a copy of the run")
    if digest_of_list((one["path"], one["size"], one["label"]) for one in found) != run.data.digest:
        raise RunError(
            f"{path / 'images.jsonl'} is not the list of images that data.json has the digest of; restore both from a "
            "copy of the run"
        )
    return found


@dataclass(frozen=True)
class TrainedOn:
    """The images that a run was trained on."""

    files: frozenset[Path]  # where its data lay
    pixels: frozenset[str]  # digests of them upright, so that a copy is known too

    def __contains__(self, image: tuple[Path, str]) -> bool:
        """Whether a (file, digest of its pixels) is one of them."""
        file, pixels = image
        return pixels in self.pixels or file.resolve() in self.files


def trained_on(run: Run) -> TrainedOn:
    """The images that the run was trained on, by their places and their pixels."""
    root = Path(run.data.source)
    root = root if root.is_dir() else root.parent
    lines = [one for one in read_images(run) if one["split"] == "train"]
    return TrainedOn(
        frozenset((root / one["path"]).resolve() for one in lines),
        frozenset(str(one["pixels"]) for one in lines if one.get("pixels")),
    )


def held_out(run: Run) -> frozenset[str]:
    """The digests of the pixels of the images that the run selects on, its val."""
    return frozenset(str(one["pixels"]) for one in read_images(run) if one["split"] == "val" and one.get("pixels"))


def save_weights(run: Run, tensors: Mapping[str, Tensor], **notes: Any) -> Run:
    """Write weights.safetensors and note its digest in run.json."""
    described = json.dumps({"format": FORMAT, "classes": run.classes})
    data = save(dict(tensors), {"fewsight": described})  # one entry: safetensors writes several in any order
    files.write_bytes(run.path / WEIGHTS, data)
    return update_info(run, weights_digest=files.digest_of(data), **notes)


def require_weights(run: Run) -> None:
    """Refuse a run that has no weights.

    Raises:
        RunError: its training did not end, or they were lost.
    """
    if not (run.path / WEIGHTS).is_file():
        if run.finished:
            raise RunError(f"{run.path} has lost its {WEIGHTS}; restore the file from a copy, or train anew")
        raise RunError(f"{run.path} has no weights yet: {files.why_unfinished(run.path)}")


def read_weights(run: Run) -> dict[str, Tensor]:
    """The run's weights, checked against run.json.

    Raises:
        RunError: no weights yet, or the file is damaged.
    """
    require_weights(run)
    data = _read_bytes(run.path / WEIGHTS)
    tensors = _tensors(run.path / WEIGHTS, data, run.info.get("weights_digest"))
    if _classes_in(data) not in (None, list(run.classes)):
        raise RunError(
            f"{run.path / 'classes.json'} does not name the classes that the weights were trained for, in their order; "
            "restore the file from a copy of the run"
        )
    return tensors


def save_state(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write the state for resuming: tensors under a new name, then state.json, which names them.

    A crash at any moment leaves the state before or this one, whole. One digest covers both files.
    """
    folder = path / "state"
    files.make_folder(folder)
    data = save(dict(tensors))
    digest = _state_digest(values, data)
    files.write_bytes(folder / f"{digest}.safetensors", data)
    files.write_json(folder / "state.json", {"digest": digest, "values": values})
    for old in folder.glob("*.safetensors"):
        if old.stem != digest:
            with contextlib.suppress(OSError):
                old.unlink()


def has_state(path: Path) -> bool:
    """Whether a state was saved since the run began."""
    return (path / "state" / "state.json").is_file()


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The last saved state, or None where there is none yet.

    Raises:
        RunError: the state is damaged.
    """
    if not has_state(path):
        return None
    file = path / "state" / "state.json"
    state = files.read_json(file)
    if (
        not isinstance(state, dict)
        or not isinstance(state.get("digest"), str)
        or not isinstance(state.get("values"), dict)
    ):
        raise RunError(f"{file} is damaged: it is not what `fewsight train` wrote; restore it from a copy")
    digest, values = state["digest"], state["values"]
    data = _read_bytes(file.with_name(Path(digest).name + ".safetensors"))
    if digest != _state_digest(values, data):
        raise RunError(
            f"{file.parent} is damaged (its digest is not the one that was written); restore it from a copy, "
            "or delete it to begin the run anew"
        )
    return dict(load(data)), values


def remove_state(path: Path) -> None:
    """Delete the state of a finished run: its weights are saved."""
    folder = path / "state"
    remove_leftovers(path)
    for file in [folder / "state.json", *folder.glob("*.safetensors")]:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_leftovers(path: Path) -> None:
    """Delete what a killed process was still writing; nothing ever reads it."""
    files.remove_parts(path)
    files.remove_parts(path / "state")


def cut_log(path: Path, num_bytes: int) -> None:
    """Drop from log.jsonl what came after the state: those steps are run again."""
    log = path / "log.jsonl"
    size = log.stat().st_size if log.is_file() else 0
    if size < num_bytes:
        raise RunError(f"{log} is shorter than when the state was saved; restore it from a copy")
    if size == num_bytes:
        return
    try:
        os.truncate(log, num_bytes)
    except OSError as error:
        files.refuse(log, error)


def append_log(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line to log.jsonl."""
    log = path / "log.jsonl"
    try:
        with log.open("ab") as handle:
            handle.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        files.refuse(log, error)


def sync_log(path: Path) -> int:
    """Flush log.jsonl to the disk, so that no state is ahead of it; returns its size in bytes."""
    log = path / "log.jsonl"
    try:
        with log.open("ab") as handle:
            os.fsync(handle.fileno())
            return handle.tell()
    except OSError as error:
        files.refuse(log, error)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_bytes(file: Path) -> bytes:
    files.check_inside(file, file.parent, most=MOST_BYTES)
    try:
        return file.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}") from error


def _state_digest(values: Mapping[str, Any], data: bytes) -> str:
    """Of the values as JSON keeps them and of the tensors."""
    return files.digest_of(json.dumps(values, sort_keys=True).encode() + files.digest_of(data).encode())


def _classes_in(weights: bytes) -> list[str] | None:
    """The names of the classes that `save_weights` noted in the file's header; None where there are none."""
    try:
        header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
        found = json.loads(header["__metadata__"]["fewsight"])["classes"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _tensors(file: Path, data: bytes, digest: str | None) -> dict[str, Tensor]:
    if digest != files.digest_of(data):
        raise RunError(f"{file} is damaged (its digest is not the one that was written); restore it from a copy")
    try:
        return dict(load(data))
    except SafetensorError as error:
        raise RunError(f"{file} is not a safetensors file: {error}") from error


def _commit() -> str | None:
    """The commit of a fewsight that runs from its git checkout."""
    folder = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(folder), "rev-parse", "HEAD", "--show-toplevel"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        commit, top = answer.stdout.split("\n")[:2]
        return commit if folder.parents[1] == Path(top).resolve() else None
    return None


def _device_name(device: str) -> str:
    kind = torch.device(device)
    return f"{device} ({torch.cuda.get_device_name(kind)})" if kind.type == "cuda" else device

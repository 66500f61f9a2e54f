"""The run folder: write it, read it, nothing else.

A run holds recipe.toml, classes.json, data.json, images.jsonl, run.json, weights.safetensors, log.jsonl,
metrics.json and state/. No pickle; every file is replaced atomically and checked when it is read.
"""

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import fewsight
from fewsight.data.training_set import RunData
from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.recipes import Recipe, load_recipe, recipe_toml
from fewsight.wording import counted

FORMAT = 1  # of the run folder; a newer one is refused
WROTE = "`fewsight train`"
MOST_BYTES = 2**33  # of weights, a state or a list of images: far more than any
BEGUN = ("recipe.toml", "classes.json", "data.json", "images.jsonl", "run.json")  # what a run begins with
TEXT_FILES = (*BEGUN[:-1], "log.jsonl", "metrics.json", BEGUN[-1])  # all but weights, state and scores; run.json last
PREVIEW = "preview.png"  # what `train --preview` leaves; a run may begin beside it


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


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_inside(file: Path) -> bytes:
    files.check_inside(file, file.parent, most=MOST_BYTES)
    try:
        return file.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}") from error


def _commit() -> str | None:
    """The commit of a fewsight that runs from its git checkout."""
    folder = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(folder), "rev-parse", "HEAD", "--show-toplevel"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        commit, top = answer.stdout.split("\n")[:2]
        return commit if folder.parents[2] == Path(top).resolve() else None
    return None


def _device_name(device: str) -> str:
    kind = torch.device(device)
    return f"{device} ({torch.cuda.get_device_name(kind)})" if kind.type == "cuda" else device

"""Create, read and update a run folder.

A run consists of recipe.toml, classes.json, data.json, images.jsonl, run.json, weights.safetensors, log.jsonl,
metrics.json, state/ and, with a temperature, calibration.json. There are no pickles; every file is replaced atomically
and checked when it is read.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fewsight
from fewsight.data.training_set import ListedImage, RunData
from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.recipes import Recipe, load_recipe, recipe_toml
from fewsight.runs.conditions import conditions_here
from fewsight.runs.info import FORMAT, WRITER, Origin, RunInfo, read_info
from fewsight.wording import counted, shell_command

MAX_BYTES = 2**33  # of weights, a state or a list of images: more than any of them has
FIRST_FILES = ("recipe.toml", "classes.json", "data.json", "images.jsonl", "run.json")  # in the order of writing
# all but weights, state and scores; a run may lack some
TEXT_FILES = (*FIRST_FILES[:-1], "log.jsonl", "metrics.json", "calibration.json", "run.json")
PREVIEW = "preview.png"  # written by `train --preview`; a run may begin in the same folder


@dataclass(frozen=True)
class Run:
    """A run folder, except for its weights and state."""

    path: Path
    recipe: Recipe
    classes: tuple[str, ...]
    data: RunData
    info: RunInfo

    @property
    def finished(self) -> bool:
        """Whether the training has finished."""
        return self.info.status == "finished"

    def __repr__(self) -> str:
        model, size = self.recipe.model.backbone, f"{self.recipe.augment.train_px} px"
        classes = counted(len(self.classes), "class")
        return f"Run({str(self.path)!r}: {model}, {size}, {classes}, {self.info.status})"


def check_new(path: Path, *, resumable: bool = True) -> None:
    """Check that a new run folder would not overwrite anything.

    Args:
        path: the folder of the new run.
        resumable: whether the message may advise to continue the run that is already in it.

    Raises:
        RunError: `path` exists and is not an empty folder (it may contain a preview).
    """
    if path.is_dir() and all(child.name == PREVIEW for child in path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        kind = "a run" if (path / "run.json").exists() else "not empty" if path.is_dir() else "a file"
        if resumable and (path / "recipe.toml").exists():
            command = shell_command(["fewsight", "train", "--resume", str(path)])
            alternative = f", or continue it with `{command}`"
        else:
            alternative = ", or remove it first" if kind == "a run" else ""
        raise RunError(f"{path} already exists ({kind}); choose another --out{alternative}. Nothing was changed.")


def check_out(out: Path, folders: Sequence[Path]) -> None:
    """Check, before the images are read, that the run folders can be written.

    Raises:
        RunError: one of them exists, or no folder can be created there.
    """
    if folders and folders[0] != out and (out / "run.json").exists():
        check_new(out)  # raises: `out` itself is a run
    for folder in folders:
        check_new(folder)
    existing = next(parent for parent in (out, *out.absolute().parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise RunError(f"--out {out}: {existing} is a file, not a folder; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunError(f"--out {out}: the folder {existing} is not writable; choose another folder")


def create_run(
    path: Path,
    recipe: Recipe,
    classes: tuple[str, ...],
    data: RunData,
    images: Iterable[ListedImage],
    notes: str = "",
    start: Origin | None = None,
    processes: int = 1,
) -> Run:
    """Write a new run folder without weights; run.json is written last, so that a run folder is complete.

    Args:
        path: the folder, new or empty.
        recipe: the resolved recipe.
        classes: the class names, in the order of the logits.
        data: the record of its data.
        images: the training and val images.
        notes: comment lines at the top of recipe.toml.
        start: the run whose weights it starts from; None: they are random.
        processes: that share each batch.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
    """
    check_new(path)
    files.make_folder(path)
    conditions = conditions_here(recipe, processes)
    values = {
        "format": FORMAT,
        "status": "training",
        "fewsight": fewsight.__version__,
        "torch": conditions.torch,
        "python": sys.version.split()[0],
        "commit": _commit(),
        "device": conditions.device,
        "command": command_line(),
        "seed": recipe.run.seed,
        "started": now(),
        "start": None if start is None else asdict(start),
        "conditions": asdict(conditions),
        "recipe": recipe.model_dump(mode="json"),  # resuming compares recipe.toml with it
    }
    try:
        files.write_text(path / "recipe.toml", recipe_toml(recipe, notes))
        files.write_json(path / "classes.json", list(classes))
        files.write_json(path / "data.json", asdict(data))
        files.write_text(path / "images.jsonl", "".join(files.json_text(asdict(image)) + "\n" for image in images))
        files.write_json(path / "run.json", values)
    except RunError:
        _remove_first_files(path)
        raise
    return Run(path, recipe, classes, data, read_info(path))


def command_line() -> str:
    """The command line of this process, quoted for the shell; a script that calls fewsight is named as it is."""
    program = Path(sys.argv[0])
    is_fewsight = program.stem == "fewsight" or (program.stem, program.parent.name) == ("__main__", "fewsight")
    return shell_command(["fewsight" if is_fewsight else sys.argv[0], *sys.argv[1:]])


def _remove_first_files(path: Path) -> None:
    """Delete what `create_run` wrote before it failed, so that the same command can be run again."""
    for name in FIRST_FILES:
        with contextlib.suppress(OSError):
            (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.rmdir()


def update_info(run: Run, **values: Any) -> Run:
    """Set values of run.json; the other values in the file stay, those of other versions of fewsight too."""
    file = run.path / "run.json"
    files.write_json(file, {**files.read_json(file, dict[str, Any], WRITER), **values})
    return replace(run, info=read_info(run.path))


def record_source(run: Run, source: Path) -> Run:
    """Set the place of the run's data, which was moved, in data.json."""
    file, place = run.path / "data.json", str(source.resolve())
    files.write_json(file, {**files.read_json(file, dict[str, Any], WRITER), "source": place})
    return replace(run, data=replace(run.data, source=place))


def read_run(path: Path) -> Run:
    """Read a run folder, without its weights.

    Raises:
        RunError: not a run folder, incomplete, or of a newer format.
        RecipeError: its recipe was edited and is no longer valid.
    """
    if not (path / "run.json").is_file():
        fault = "does not exist" if not path.exists() else "holds no run.json, so it is not a run folder"
        raise RunError(f"{path} {fault}; expected a folder that {WRITER} wrote")
    info = read_info(path)
    data = files.read_json(path / "data.json", RunData, WRITER)
    classes = files.read_json(path / "classes.json", list[str], WRITER)
    if len(set(classes)) < max(2, len(classes)):
        raise RunError(f"{path / 'classes.json'}: expected the names of two or more classes, each once")
    files.check_inside(path / "recipe.toml", path, max_bytes=files.MAX_JSON_BYTES)
    return Run(path, load_recipe(path / "recipe.toml"), tuple(classes), data, info)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """The commit of fewsight if it runs from its git checkout."""
    folder = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(folder), "rev-parse", "HEAD", "--show-toplevel"]
        completed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        commit, top = completed.stdout.split("\n")[:2]
        return commit if folder.parents[2] == Path(top).resolve() else None
    return None

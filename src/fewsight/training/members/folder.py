"""The runs of an ensemble's members and their places."""

from pathlib import Path

from fewsight import runs
from fewsight.errors import RunError
from fewsight.machine import files
from fewsight.runs import Run
from fewsight.training.members.recipes import member_recipe


def member_paths(run: Run) -> list[Path]:
    """The run folders of an ensemble's members."""
    return [run.path / "runs" / f"member{number + 1}" for number in range(run.recipe.run.members)]


def is_member(path: Path) -> bool:
    """Whether a run is one of an ensemble's."""
    folder = path.resolve().parent
    return folder.name == "runs" and (folder.parent / "run.json").is_file()


def create_members(run: Run) -> list[Run]:
    """The members' runs; those that do not exist yet are created with the ensemble's data and start.

    Raises:
        RunError: a folder cannot be written, is not what fewsight has written, or lies outside the ensemble's.
    """
    paths = member_paths(run)
    for number, path in enumerate(paths):
        if (path / "run.json").is_file():
            continue
        if not path.resolve().is_relative_to(run.path.resolve()):
            raise RunError(f"{path} is a link to {path.resolve()}, outside {run.path}; replace it by the folder itself")
        files.remove_parts(path)
        for name in runs.FIRST_FILES:  # of a process that was killed while it wrote them
            (path / name).unlink(missing_ok=True)
        recipe, notes = member_recipe(run.recipe, number), f"member {number + 1} of {len(paths)}"
        runs.create_run(path, recipe, run.classes, run.data, runs.read_images(run), notes, run.info.start)
    return [runs.read_run(path) for path in paths]

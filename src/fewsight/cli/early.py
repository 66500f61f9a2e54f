"""Plain checks of arguments before a command loads torch, so that a mistyped path is answered at once.

Each raises what the command itself would raise.
"""

from collections.abc import Sequence
from pathlib import Path


def check_run(path: Path, data: Path | None = None) -> None:
    """Check that `path` is a run or an ensemble, and that there can be a dataset at `data`.

    Raises:
        DataError, RunError: it is neither, or there cannot.
    """
    from fewsight import runs
    from fewsight.scores.entries import is_ensemble

    if not is_ensemble(path):
        runs.read_run(path)
    if data is not None:
        check_data(data)


def check_exists(path: Path) -> None:
    """Check that there is something where a run should be, which may be a folder of runs.

    Raises:
        RunError: there is nothing.
    """
    if not path.exists():
        check_run(path)


def check_members(texts: Sequence[str]) -> None:
    """Check that there is something where the runs of an ensemble's members should be.

    Raises:
        RunError: there is nothing.
    """
    from fewsight.inference.member_text import parse_member

    for text in texts:
        for path, _ in parse_member(text)[1]:
            check_exists(path)


def check_scored(path: Path) -> None:
    """Check that there is something where a run with scores should be, which may be a reproduction.

    Raises:
        RunError: there is nothing.
    """
    from fewsight.scores.opening import open_scored

    if not path.exists():
        open_scored(path, "test")


def check_data(path: Path) -> None:
    """Check that there can be a dataset at `path`.

    Raises:
        DataError: there cannot.
    """
    from fewsight.data import check_source

    check_source(path)


def check_training(
    data: Path, out: Path, folders: Sequence[Path], recipe: str, hours: float | None, overrides: Sequence[str]
) -> None:
    """Check the arguments of a new training, as far as that is possible without its images.

    Args:
        folders: the run folders to write; empty for a preview.

    Raises:
        DataError, RecipeError, RunError: as `fewsight.train`.
    """
    from fewsight import runs
    from fewsight.recipes import check_keys, load_recipe
    from fewsight.recipes.options import check_hours

    if hours is not None:
        check_hours(hours)
    runs.check_out(out, folders)
    if recipe == "auto":
        check_keys(overrides, recipe)
    else:
        load_recipe(recipe, overrides)
    check_data(data)

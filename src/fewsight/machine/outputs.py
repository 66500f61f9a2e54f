"""Files that a user names for a result: only an earlier result of the same kind is replaced."""

from dataclasses import dataclass
from pathlib import Path

from fewsight.errors import RunError
from fewsight.machine import files

ENDS = 2**18  # bytes at the start and at the end of a file in which its marks are looked for


@dataclass(frozen=True)
class Kind:
    """What a command writes, and how it is told from other files."""

    name: str  # with its article: a page of fewsight report
    marks: tuple[bytes, ...]  # every file of the kind has all of them near its start or its end


def check_output(path: Path, option: str, kind: Kind) -> None:
    """Check before the work begins that a result can be written to a file that a user named.

    Raises:
        RunError: as `files.check_target`; or there is a file that is no earlier result, such as an image or a table of
            labels.
    """
    files.check_target(path, option)
    if path.exists() and not _is_of(path, kind):
        raise RunError(f"{option} {path}: this file exists and is not {kind.name}; give another name, or remove it")


def _is_of(path: Path, kind: Kind) -> bool:
    """Whether a file is empty or has all marks of the kind."""
    with path.open("rb") as handle:
        start = handle.read(ENDS)
        handle.seek(max(len(start), path.stat().st_size - ENDS))
        ends = start + handle.read()
    return not ends or all(mark in ends for mark in kind.marks)

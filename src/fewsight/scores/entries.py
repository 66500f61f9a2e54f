"""ensemble.json: the runs of an ensemble at their test sizes, with their members and weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from fewsight.errors import RunError
from fewsight.machine import files

Views = Literal["center", "paper"]  # at an ensemble's sizes: the centre crop, or both crops
ENSEMBLE = "ensemble.json"  # marks a run folder, or a folder of scores, as an ensemble's


@dataclass(frozen=True)
class EnsembleEntry:
    """An entry of ensemble.json: a run at a test size, its member and its weight."""

    member: str
    run: str  # a folder in the ensemble's runs/
    px: int
    weight: float


@dataclass(frozen=True)
class EnsembleFile:
    """ensemble.json."""

    rows: tuple[EnsembleEntry, ...]
    views: Views = "paper"  # by default


def is_ensemble(path: Path) -> bool:
    """Whether `path` is an ensemble's folder."""
    return (path / ENSEMBLE).is_file()


def read_entries(path: Path) -> tuple[EnsembleEntry, ...]:
    """The entries of an ensemble's ensemble.json.

    Raises:
        RunError: ensemble.json is not what fewsight wrote.
    """
    entries = files.read_json(path / ENSEMBLE, EnsembleFile, "`fewsight ensemble`").rows
    bad_name = any(entry.run in ("", "..") or Path(entry.run).name != entry.run for entry in entries)
    if not entries or bad_name or not all(0 < entry.weight <= 1 for entry in entries):
        raise RunError(
            f"{path / ENSEMBLE} is not what `fewsight ensemble` wrote: no rows, or invalid weights or names of runs"
        )
    return entries


def read_views(path: Path) -> Views:
    """The views that an ensemble uses by default.

    Raises:
        RunError: as `read_entries`.
    """
    return files.read_json(path / ENSEMBLE, EnsembleFile, "`fewsight ensemble`").views


def write_entries(path: Path, entries: Sequence[EnsembleEntry], views: Views = "paper") -> None:
    """Write ensemble.json."""
    files.write_json(path / ENSEMBLE, asdict(EnsembleFile(tuple(entries), views)))

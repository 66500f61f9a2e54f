"""The record of a run in run.json: its status, how it was started and what its weights are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewsight.machine import files
from fewsight.runs.conditions import Conditions

FORMAT = 2  # version of the run folder; newer versions are refused, older ones are read but not resumed
WRITER = "`fewsight train`"  # named in error messages


@dataclass(frozen=True)
class Origin:
    """The run whose weights a training started from."""

    run: str  # its absolute path at that time
    weights_digest: str | None = None


@dataclass(frozen=True)
class RunInfo:
    """run.json of a run, or of an ensemble."""

    format: int
    status: str  # training, finished
    fewsight: str | None = None  # versions
    torch: str | None = None
    python: str | None = None
    commit: str | None = None  # of fewsight, if it ran from its git checkout
    device: str | None = None
    command: str = ""
    seed: int | None = None
    started: str = ""  # UTC, ISO 8601
    start: Origin | None = None  # None: random initial weights
    conditions: Conditions | None = None  # None: written before they were recorded
    other_conditions: tuple[str, ...] = ()  # what changed when it was resumed: its bits are not those of one go
    recipe: dict[str, Any] | None = None  # as the run began
    weights_digest: str | None = None
    best_epoch: int | None = None
    finished: str | None = None
    collapsed: bool = False  # whether the loss had collapsed at the end
    members: dict[str, str] = field(default_factory=dict)  # of an ensemble: name -> path of the run


def read_info(path: Path) -> RunInfo:
    """Read run.json of the run or ensemble `path`.

    Raises:
        RunError: it is missing or damaged, or of a newer format.
    """
    return files.read_json(path / "run.json", RunInfo, WRITER, newest_format=FORMAT)

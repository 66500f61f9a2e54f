"""The training log `log.jsonl`: one line per step or epoch."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewsight.errors import RunError
from fewsight.machine import files


@dataclass(frozen=True)
class LogLine:
    """What is read back from a line of log.jsonl."""

    kind: str = ""  # step, epoch, ...
    epoch: int | None = None
    step: int | None = None
    val_top1: float | None = None
    train_loss: float | None = None  # of an epoch


def read_log(path: Path, *, tail_bytes: int | None = None) -> list[LogLine]:
    """Read log.jsonl, or only its last `tail_bytes` bytes; without such a file it is empty.

    Lines that are cut off, by a kill or by the beginning of the tail, are skipped.

    Raises:
        RunError: it is not a regular file in the run folder.
    """
    log = path / "log.jsonl"
    if not log.is_file():
        return []
    files.check_inside(log, path, max_bytes=files.MAX_JSON_BYTES if tail_bytes is None else None)
    with log.open("rb") as handle:
        if tail_bytes is not None:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - tail_bytes))
        lines = handle.read(tail_bytes if tail_bytes is not None else -1).split(b"\n")
    parsed = []
    for line in lines:
        with contextlib.suppress(ValueError):
            parsed += files.parse_json_lines([line], LogLine)
    return parsed


def cut_log(path: Path, num_bytes: int) -> None:
    """Cut log.jsonl back to its size when the state was saved: the steps after it will run again.

    Raises:
        RunError: it is shorter than that.
        WriteError: it cannot be cut.
    """
    log = path / "log.jsonl"
    size = log.stat().st_size if log.is_file() else 0
    if size < num_bytes:
        raise RunError(f"{log} is shorter than when the state was saved; restore it from a copy")
    if size == num_bytes:
        return
    try:
        os.truncate(log, num_bytes)
    except OSError as error:
        files.raise_write_error(log, error)


def append_log(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line to log.jsonl.

    Raises:
        WriteError: it cannot be written.
    """
    log = path / "log.jsonl"
    try:
        with log.open("ab") as handle:
            handle.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        files.raise_write_error(log, error)


def sync_log(path: Path) -> int:
    """Flush log.jsonl to the disk, so that no saved state is ahead of it; returns its size in bytes.

    Raises:
        WriteError: it cannot be written.
    """
    log = path / "log.jsonl"
    try:
        with log.open("ab") as handle:
            os.fsync(handle.fileno())
            return handle.tell()
    except OSError as error:
        files.raise_write_error(log, error)

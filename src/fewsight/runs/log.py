"""The training log `log.jsonl`: one line per step or epoch."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewsight.errors import RunError
from fewsight.machine import files


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

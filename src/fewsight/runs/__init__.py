"""The run folder, which `train` writes and every other command reads."""

from fewsight.runs.conditions import Conditions, changed_conditions, conditions_here
from fewsight.runs.folder import (
    FIRST_FILES,
    PREVIEW,
    TEXT_FILES,
    Run,
    check_new,
    check_out,
    command_line,
    create_run,
    now,
    read_run,
    record_source,
    update_info,
)
from fewsight.runs.info import FORMAT, WRITER, Origin, RunInfo, read_info
from fewsight.runs.log import LogLine, append_log, cut_log, read_log, sync_log
from fewsight.runs.state import has_state, read_state, remove_leftovers, remove_state, save_state
from fewsight.runs.trained_on import TrainedOn, held_out, read_images, trained_on
from fewsight.runs.weights import WEIGHTS, read_weights, require_weights, save_weights

__all__ = [
    "FIRST_FILES",
    "FORMAT",
    "PREVIEW",
    "TEXT_FILES",
    "WEIGHTS",
    "WRITER",
    "Conditions",
    "LogLine",
    "Origin",
    "Run",
    "RunInfo",
    "TrainedOn",
    "append_log",
    "changed_conditions",
    "check_new",
    "check_out",
    "command_line",
    "conditions_here",
    "create_run",
    "cut_log",
    "has_state",
    "held_out",
    "now",
    "read_images",
    "read_info",
    "read_log",
    "read_run",
    "read_state",
    "read_weights",
    "record_source",
    "remove_leftovers",
    "remove_state",
    "require_weights",
    "save_state",
    "save_weights",
    "sync_log",
    "trained_on",
    "update_info",
]

"""The processes that load images: how they start, and whether this process may start any."""

import multiprocessing
import sys
from multiprocessing.context import BaseContext


def loading_context() -> BaseContext:
    """How loading processes start: by fork on Linux, where they share the memory of decoded images.

    It is named here, since `multiprocessing.get_context()` would settle the host process's own start method.
    """
    return multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")


def may_start_processes() -> bool:
    """Whether this process may start others: a daemonic one, as the workers of pools and task queues are, may not."""
    return not multiprocessing.current_process().daemon

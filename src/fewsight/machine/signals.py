"""Ctrl-C and SIGTERM during training: recorded at once, acted on between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopFlag:
    """Set by the first Ctrl-C or SIGTERM."""

    signal_number: int = 0


@contextmanager
def signals_that_stop() -> Iterator[StopFlag]:
    """Inside the block the first SIGINT or SIGTERM sets the flag; a second SIGINT ends at once."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # only the main thread may take signals
        return

    def take(number: int, _frame: object) -> None:
        if flag.signal_number:
            signal.default_int_handler(signal.SIGINT, None)
        flag.signal_number = number

    before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

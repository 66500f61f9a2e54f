"""Ctrl-C and SIGTERM during training: recorded at once, handled between two steps."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

STOPPING = "stopping after this step; again to stop at once without saving"
_STDERR = 2


@dataclass
class StopFlag:
    """Whether a signal to stop has arrived."""

    signal_number: int = 0  # of the first Ctrl-C or SIGTERM; 0: none yet


@contextmanager
def signals_that_stop(*, announced: bool = True) -> Iterator[StopFlag]:
    """Inside the block the first SIGINT or SIGTERM sets the flag; a second signal raises KeyboardInterrupt.

    Args:
        announced: whether the first signal is answered with a line on standard error.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # only the main thread may handle signals
        return

    def handle(number: int, _frame: object) -> None:
        if flag.signal_number:
            signal.default_int_handler(signal.SIGINT, None)
        flag.signal_number = number
        if announced:
            _announce()

    before = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not None  # a handler outside Python could not be put back
    }
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce() -> None:
    """Write STOPPING past Python's buffers, whose locks the interrupted code may hold."""
    with suppress(OSError):
        os.write(_STDERR, b"\n" * os.isatty(_STDERR) + STOPPING.encode() + b"\n")  # below "^C" and a progress bar

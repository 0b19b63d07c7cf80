"""Ways to end a process that cannot wait for its threads, or need not say anything."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from typing import Final, NoReturn

INTERRUPTED_STATUS: Final = 130
"""Exit status after Ctrl-C, as shells count: 128 and the number of the signal."""


def end_process(status: int) -> NoReturn:
    """End the process immediately, with what it has written.

    Not by the interpreter's own end: that aborts where another thread is inside a library, which is how a thread that
    loads a model spends its time.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):  # nobody reads it; it is closed; a signal came in mid-write
            stream.flush()
    os._exit(status)


def exit_on_signals() -> None:
    """Let SIGINT and SIGTERM end the process immediately, with status 130 and 0. Call it in the main thread.

    For a server that has nothing in flight yet: Linux ignores a signal for which the first process of a container has
    no handler. Not by the interpreter's own end, which can crash in a library that another thread is loading.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED_STATUS))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

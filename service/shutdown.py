"""Ending a process without waiting for its threads, or without a traceback."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

INTERRUPTED_STATUS: Final = 130
"""Exit status after Ctrl-C by the convention of shells: 128 plus the number of the signal."""


def end_process(status: int) -> NoReturn:
    """Flush the log and the standard streams, then end the process immediately.

    The interpreter's own shutdown is not used: it aborts if another thread is inside a native library, as a thread
    that loads a model mostly is.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):  # no reader, a closed stream, or a signal during a write
            stream.flush()
    os._exit(status)


def uninterrupted(command: Callable[[], int]) -> int:
    """Run a command and return its exit status. Ctrl-C ends the process without a traceback."""
    try:
        return command()
    except KeyboardInterrupt:
        end_process(INTERRUPTED_STATUS)

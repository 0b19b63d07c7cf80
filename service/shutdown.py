"""Ending a process without waiting for its threads, or without a traceback."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

log = logging.getLogger(__name__)

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


def end_process_after(seconds: float, status: Callable[[], int]) -> None:
    """End the process when its shutdown has used its time, whatever its threads still do.

    Args:
        seconds: time from now.
        status: returns the exit status.
    """

    def end() -> None:
        log.warning("the shutdown has used its %g seconds (SHUTDOWN_GRACE_S): ending without the rest", seconds)
        end_process(status())

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def exit_on_signals() -> None:
    """Let SIGINT and SIGTERM end the process immediately, with status 130 and 0. Call it in the main thread.

    For a server that has nothing in flight yet: Linux ignores a signal for which the first process of a container has
    no handler. Not by the interpreter's own end, which can crash in a library that another thread is loading.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED_STATUS))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

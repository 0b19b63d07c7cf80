"""Ending a process without waiting for its threads, or without a traceback."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
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


def end_process_after(
    seconds: float,
    status: Callable[[], int],
    *,
    begun: threading.Event | None = None,
    rest: Callable[[], str] = lambda: "the rest",
) -> None:
    """End the process when its shutdown has used its time, whatever its threads still do.

    Args:
        seconds: time from now, or from `begun`.
        status: returns the exit status.
        begun: is set when the shutdown begins, as a handler of a signal may do, which may start no thread; None if it
            has begun.
        rest: returns what is cut, for the log.
    """

    def end() -> None:
        if begun is not None:
            begun.wait()
        time.sleep(seconds)
        log.warning("the shutdown has used its %g seconds (SHUTDOWN_GRACE_S): ending without %s", seconds, rest())
        end_process(status())

    threading.Thread(target=end, name="shutdown", daemon=True).start()


def exit_on_signals() -> None:
    """Let SIGINT and SIGTERM end the process immediately, with status 130 and 0. Call it in the main thread.

    For a server that has nothing in flight yet: Linux ignores a signal for which the first process of a container has
    no handler. Not by the interpreter's own end, which can crash in a library that another thread is loading.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED_STATUS))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

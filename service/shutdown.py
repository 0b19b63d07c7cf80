"""Ways to end a process that cannot wait for its threads, or need not say anything."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
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


def uninterrupted(command: Callable[[], int]) -> int:
    """The exit status of a command that a person runs; after Ctrl-C the process ends without a traceback."""
    try:
        return command()
    except KeyboardInterrupt:
        end_process(INTERRUPTED_STATUS)

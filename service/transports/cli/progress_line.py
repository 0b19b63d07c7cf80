"""The progress of a load: on a terminal one line that is rewritten, otherwise a line at intervals."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from threading import Lock
from typing import Final, TextIO

from service.bulk.reading import ReadProgress
from service.bulk.report import LoadReport

TERMINAL_INTERVAL_S: Final = 0.2
"""Minimum time between two versions of the line on a terminal."""

LOG_INTERVAL_S: Final = 10.0
"""Minimum time between two lines where the standard error is not a terminal."""

_CLEAR: Final = "\r\x1b[K"


class ProgressLine:
    """Prints messages and, between them, the progress. Thread-safe.

    Args:
        read: how far the input is read.
        stream: where to print.
        clock: monotonic clock in seconds.
    """

    def __init__(self, read: ReadProgress, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._stream = stream
        self._clock = clock
        self._is_terminal = stream.isatty()
        self._interval_s = TERMINAL_INTERVAL_S if self._is_terminal else LOG_INTERVAL_S
        self._shown_at = clock()
        self._line = ""
        self._lock = Lock()

    def say(self, text: str) -> None:
        """Print a message on a line of its own."""
        with self._lock:
            self._print(f"{_CLEAR if self._line else ''}{text}\n{self._line}")

    def show(self, report: LoadReport) -> None:
        """Print the progress, unless it was printed just now."""
        with self._lock:
            now = self._clock()
            if now - self._shown_at < self._interval_s:
                return
            self._shown_at = now
            text = described(report, self._read)
            if self._is_terminal:
                self._line = text
                self._print(f"{_CLEAR}{text}")
            else:
                self._print(f"{text}\n")

    def close(self) -> None:
        """Remove the line from a terminal."""
        with self._lock:
            if self._line:
                self._line = ""
                self._print(_CLEAR)

    def _print(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def described(report: LoadReport, read: ReadProgress) -> str:
    """The progress in words: the part that is done, lines, points, rates and the time that is left.

    Of the lines that were read, some wait to be stored, so that the part that is done is smaller than what was read.
    What an earlier run has done says nothing about the time that is left, and neither does a wait for other loads.
    """
    seconds = max(report.working_seconds, 1e-3)
    parts = [
        f"{report.lines} lines",
        f"{report.submitted} points",
        f"{report.submitted / seconds:.0f} points/s",
        f"{report.tokens / seconds:.0f} tokens/s",
    ]
    of_input = report.lines * (1 if report.shard is None else report.shard.count)
    done = None if read.fraction is None else read.fraction * min(of_input / max(read.lines, 1), 1.0)
    if done and report.lines > report.passed:
        new = done * (report.lines - report.passed) / report.lines
        left = timedelta(seconds=round(seconds * (1 - done) / new))
        parts = [f"{100 * done:.0f} %", *parts, f"{left} left"]
    return ", ".join(parts)

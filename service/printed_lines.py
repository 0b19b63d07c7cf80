"""What libraries print becomes log lines, so that a server's output is nothing but log lines."""

from __future__ import annotations

import io
import logging
import sys
import threading
from types import TracebackType
from typing import TextIO

from embedder import whereabouts

log = logging.getLogger(__name__)


class PrintedLines(io.TextIOBase):
    """A stream whose lines are log records.

    Lines of different threads do not mix. Needs no lock, which a log handler that reports its own failure would wait
    for while another thread holds it.

    Args:
        stream: the stream that this one stands for.
        level: of the records.
    """

    def __init__(self, stream: TextIO, level: int) -> None:
        super().__init__()
        self.stream = stream
        self._level = level
        self._logger = logging.getLogger(stream.name.strip("<>"))
        self._thread = threading.local()

    def write(self, text: str) -> int:
        """Log the lines that the text completes; a progress bar ends its lines with a carriage return."""
        *lines, self._thread.rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            self._log(line)
        return len(text)

    def flush(self) -> None:
        """Log what this thread has printed since its last line."""
        rest, self._thread.rest = self._rest, ""
        self._log(rest)

    def writable(self) -> bool:
        """Always true."""
        return True

    def fileno(self) -> int:
        """The file of the stream underneath, to which native code writes."""
        return self.stream.fileno()

    @property
    def _rest(self) -> str:
        return getattr(self._thread, "rest", "")

    def _log(self, line: str) -> None:
        # A handler that cannot write reports that on this very stream.
        if line.strip() and not getattr(self._thread, "is_logging", False):
            self._thread.is_logging = True
            try:
                self._logger.log(self._level, "%s", line.rstrip())
            finally:
                self._thread.is_logging = False


def capture() -> None:
    """Log what is printed from now on, warnings, and exceptions that nothing catches. Repeated calls change nothing."""
    if isinstance(sys.stdout, PrintedLines):
        return
    sys.stdout = PrintedLines(sys.stdout, logging.INFO)
    sys.stderr = PrintedLines(sys.stderr, logging.WARNING)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda failed: _uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)
    sys.unraisablehook = lambda failed: _uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException | None, _traceback: TracebackType | None) -> None:
    """Log the type and place: a traceback may quote a user's text."""
    log.critical("uncaught exception: %s", kind.__name__ if error is None else whereabouts(error))

"""The rejected lines of a load: what is printed of them, and the two files about them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, BinaryIO, Final

from service.bulk.line import BadLine, Line, as_json, position
from service.bulk.report import LoadReport

REJECTIONS_PRINTED_MAX: Final = 10
"""Maximum rejections that are printed if there is no file for them."""


class Rejections:
    """Takes rejected lines. Thread-safe.

    Args:
        reasons: file for the reasons, one JSON object per rejection; None prints the first ones.
        lines: file for the lines themselves, to correct and to load again; None for none.
        say: prints a message.
        fail: ends the load with a reason.
        report: counts the rejections.
    """

    def __init__(
        self,
        reasons: BinaryIO | None,
        lines: BinaryIO | None,
        say: Callable[[str], None],
        fail: Callable[[str], None],
        report: LoadReport,
    ) -> None:
        self._reasons = reasons
        self._lines = lines
        self._say = say
        self._fail = fail
        self._last: Line | BadLine | None = None
        self._lock = Lock()  # a second thread reads the lines
        self._report = report

    def add(self, line: Line | BadLine, code: str, message: str, *, chunk: int | None = None) -> None:
        """Take a rejected line.

        Args:
            line: the line.
            code: code of the error.
            message: why it was rejected, without quoting it.
            chunk: number of its chunk if only that was rejected.
        """
        with self._lock:
            self._report.rejected += 1
            if self._lines is not None and line is not self._last:  # the chunks of a line come one after the other
                self._last = line
                raw = as_json(line)
                if raw is not None and not self._written(self._lines, raw, "--rejected-lines"):
                    self._lines = None
            where = position(line, chunk)
            if self._reasons is None:
                self._print(where, message)
                return
            rejection = json.dumps({**where, "code": code, "message": message}, ensure_ascii=False)
            if not self._written(self._reasons, rejection.encode(errors="replace"), "--rejects"):
                self._reasons = None

    def _written(self, file: BinaryIO, line: bytes, option: str) -> bool:
        """Write a line. False if that fails, which ends the load."""
        try:
            file.write(line + b"\n")
            file.flush()
        except OSError as error:
            self._fail(f"{option} cannot be written ({error.strerror})")
            return False
        return True

    def _print(self, where: Mapping[str, Any], message: str) -> None:
        if self._report.rejected <= REJECTIONS_PRINTED_MAX:
            named = ", ".join(str(value) if name == "file" else f"{name} {value}" for name, value in where.items())
            self._say(f"{named}: {message}" if named else message)
        elif self._report.rejected == REJECTIONS_PRINTED_MAX + 1:
            self._say("further rejections are not shown; use --rejects FILE for all")

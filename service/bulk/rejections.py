"""The lines that a load has not stored as they were given: what is printed of them, and the two files about them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, BinaryIO, Final

from service.bulk.line import BadLine, Line, as_json, position
from service.bulk.line_index import LostLine
from service.bulk.report import LoadReport

REJECTIONS_PRINTED_MAX: Final = 10
"""Maximum rejections, and lines that another replaced, that are printed if there is no file for them."""


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
        self._printed: Counter[str] = Counter()
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
            self._name("rejected", position(line, chunk), {"code": code, "message": message})

    def lost(self, line: LostLine, code: str, message: str) -> None:
        """Take a line whose point is stored with the text or the payload of another line.

        Args:
            line: the line and the other one.
            code: `replaced` or `differing`.
            message: why it is not stored as it was given, without quoting it.
        """
        other = {} if line.other is None else {"other": position(line.other)}
        with self._lock:
            self._name(code, position(line.line), {"code": code, "message": message, **other})

    def _name(self, kind: str, where: Mapping[str, Any], reason: Mapping[str, Any]) -> None:
        if self._reasons is None:
            self._print(kind, where, reason["message"])
            return
        rejection = json.dumps({**where, **reason}, ensure_ascii=False)
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

    def _print(self, kind: str, where: Mapping[str, Any], message: str) -> None:
        self._printed[kind] += 1
        if self._printed[kind] <= REJECTIONS_PRINTED_MAX:
            place = ", ".join(str(value) if name == "file" else f"{name} {value}" for name, value in where.items())
            self._say(f"{place}: {message}" if place else message)
        elif self._printed[kind] == REJECTIONS_PRINTED_MAX + 1:
            what = "rejections" if kind == "rejected" else f"{kind} lines"
            self._say(f"further {what} are not shown; use --rejects FILE for all")

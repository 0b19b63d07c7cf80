"""Batching of lines: each batch is one ingest of a bulk load."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, KeysView
from typing import Final

from service.bulk.line import Line

BATCH_MAX_TEXTS: Final = 500
BATCH_MAX_CHARACTERS: Final = 1_000_000
BATCH_MAX_BYTES: Final = 8_000_000
"""Maximum bytes of the lines of a batch: enough to keep the model busy, and few enough to repeat after a failure."""


class LineBatch:
    """Lines that are ingested together. If a point occurs twice, its lines are the same document.

    Args:
        scope: name from which ids are derived.
        max_texts: maximum number of lines.
    """

    def __init__(self, scope: str, max_texts: int = BATCH_MAX_TEXTS) -> None:
        self.lines: list[Line] = []
        self._first_lines: dict[Hashable, Line] = {}
        self._scope = scope
        self._max_texts = max_texts
        self._characters = 0
        self._bytes = 0

    @property
    def keys(self) -> KeysView[Hashable]:
        """The keys of the points of all lines; see `Line.key`."""
        return self._first_lines.keys()

    def add(self, line: Line) -> bool:
        """Add a line. False if it does not fit into the batch; an empty batch takes any line."""
        key = line.key(self._scope)
        if self.lines and not self._takes(line, key):
            return False
        self.lines.append(line)
        self._first_lines.setdefault(key, line)
        self._characters += len(line.text)
        self._bytes += line.size
        return True

    def _takes(self, line: Line, key: Hashable) -> bool:
        fits = (
            len(self.lines) < self._max_texts
            and self._characters + len(line.text) <= BATCH_MAX_CHARACTERS
            and self._bytes + line.size <= BATCH_MAX_BYTES
        )
        first = self._first_lines.get(key)
        return fits and (first is None or line.repeats(first))


def batches(lines: Iterable[Line], scope: str, *, max_texts: int = BATCH_MAX_TEXTS) -> Iterator[LineBatch]:
    """Divide lines into batches. Different lines of one point are in two batches, in their order.

    Args:
        lines: the lines.
        scope: name from which ids are derived.
        max_texts: maximum number of lines in a batch.
    """
    batch = LineBatch(scope, max_texts)
    for line in lines:
        if not batch.add(line):
            yield batch
            batch = LineBatch(scope, max_texts)
            batch.add(line)
    if batch.lines:
        yield batch

"""Batching of lines: each batch is one ingest of a bulk load."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Final

from service.bulk.line import Line

BATCH_MAX_TEXTS: Final = 500
BATCH_MAX_CHARACTERS: Final = 1_000_000
BATCH_MAX_BYTES: Final = 8_000_000
"""Maximum bytes of the lines of a batch: enough to keep the model busy, and few enough to repeat after a failure."""


class LineBatch:
    """Lines that are ingested together. No point occurs twice.

    Args:
        scope: name from which ids are derived.
        max_texts: maximum number of lines.
    """

    def __init__(self, scope: str, max_texts: int = BATCH_MAX_TEXTS) -> None:
        self.lines: list[Line] = []
        self.keys: set[Hashable] = set()
        self._scope = scope
        self._max_texts = max_texts
        self._characters = 0
        self._bytes = 0

    def takes(self, line: Line) -> bool:
        """Whether the line fits into the batch; an empty batch takes any line."""
        if not self.lines:
            return True
        fits = (
            len(self.lines) < self._max_texts
            and self._characters + len(line.text) <= BATCH_MAX_CHARACTERS
            and self._bytes + line.size <= BATCH_MAX_BYTES
        )
        return fits and line.key(self._scope) not in self.keys

    def add(self, line: Line) -> None:
        """Add a line."""
        self.lines.append(line)
        self.keys.add(line.key(self._scope))
        self._characters += len(line.text)
        self._bytes += line.size


def batches(lines: Iterable[Line], scope: str, *, max_texts: int = BATCH_MAX_TEXTS) -> Iterator[LineBatch]:
    """Divide lines into batches. If a point occurs twice, its lines are in two batches, in their order.

    Args:
        lines: the lines.
        scope: name from which ids are derived.
        max_texts: maximum number of lines in a batch.
    """
    batch = LineBatch(scope, max_texts)
    for line in lines:
        if not batch.takes(line):
            yield batch
            batch = LineBatch(scope, max_texts)
        batch.add(line)
    if batch.lines:
        yield batch

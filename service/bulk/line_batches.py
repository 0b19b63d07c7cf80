"""Batching of lines: each batch is one ingest of a bulk load."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Final

from service.bulk.json_lines import Line

BATCH_MAX_TEXTS: Final = 500
BATCH_MAX_CHARACTERS: Final = 1_000_000
BATCH_MAX_BYTES: Final = 8_000_000
"""Maximum bytes of the lines of a batch: enough to keep the model busy, and few enough to repeat after a failure."""


class LineBatch:
    """Lines that are ingested together. Either all have ids or none has, and no point occurs twice.

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
        return fits and not self.has(line)

    def has(self, line: Line) -> bool:
        """Whether the batch has a line of the same point."""
        return line.key(self._scope) in self.keys

    def add(self, line: Line) -> None:
        """Add a line."""
        self.lines.append(line)
        self.keys.add(line.key(self._scope))
        self._characters += len(line.text)
        self._bytes += line.size


def batches(lines: Iterable[Line], scope: str, *, max_texts: int = BATCH_MAX_TEXTS) -> Iterator[LineBatch]:
    """Divide lines into batches. Lines with ids and lines without are in different batches.

    If a point occurs twice, its lines are in two batches, in their order.

    Args:
        lines: the lines.
        scope: name from which ids are derived.
        max_texts: maximum number of lines in a batch.
    """
    filling = {True: LineBatch(scope, max_texts), False: LineBatch(scope, max_texts)}
    for line in lines:
        has_id = line.id is not None
        for kind, full in ((has_id, not filling[has_id].takes(line)), (not has_id, filling[not has_id].has(line))):
            if full:
                yield filling[kind]
                filling[kind] = LineBatch(scope, max_texts)
        filling[has_id].add(line)
    yield from (batch for batch in filling.values() if batch.lines)

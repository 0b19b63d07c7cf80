"""Splitting of texts into requests of bounded size, from iterables that are read no further than needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bge_m3_qdrant_client.calls import encoded
from bge_m3_qdrant_client.errors import InvalidOption

PointId = int | str | None
Payload = Mapping[str, Any] | None
_Row = tuple[str, PointId, Payload]


@dataclass(frozen=True)
class Part:
    """Consecutive texts that are one request.

    Attributes:
        offset: index of the first text among all texts.
        texts: the texts.
        ids: their ids; None if the call has none.
        payloads: their payloads; None if the call has none.
    """

    offset: int
    texts: Sequence[str]
    ids: Sequence[PointId] | None = None
    payloads: Sequence[Payload] | None = None

    def split(self, size: int) -> Iterator[Part]:
        """Yield parts of at most `size` texts."""
        for start in range(0, len(self.texts), size):
            rows = slice(start, start + size)
            yield Part(
                self.offset + start,
                self.texts[rows],
                None if self.ids is None else self.ids[rows],
                None if self.payloads is None else self.payloads[rows],
            )


class Texts:
    """The texts of a call with their ids and payloads, read part by part.

    Args:
        texts: the texts, or one text.
        ids: an id for each; None without.
        payloads: a payload for each; None without.
        max_texts: maximum texts of a part, which may be lowered while parts are read.
        max_bytes: bytes of JSON up to which texts are put into one part. A single larger one is a part of its own.

    Attributes:
        total: number of texts; None if they come from an iterator.

    Raises:
        InvalidOption: the lengths differ; for iterators only when the shorter one ends.
    """

    def __init__(
        self,
        texts: Iterable[str],
        ids: Iterable[PointId] | None = None,
        payloads: Iterable[Payload] | None = None,
        *,
        max_texts: int,
        max_bytes: int,
    ) -> None:
        self._columns: list[Iterable[Any]] = [[texts] if isinstance(texts, str) else texts]
        self._with_ids, self._with_payloads = ids is not None, payloads is not None
        self._columns += [column for column in (ids, payloads) if column is not None]
        self.max_texts = max_texts
        self._max_bytes = max_bytes
        self.total = len(self._columns[0]) if isinstance(self._columns[0], Sequence) else None
        lengths = {len(column) for column in self._columns if isinstance(column, Sequence)}
        if len(lengths) > 1:
            raise InvalidOption("ids and payloads must be as many as texts")

    def parts(self) -> Iterator[Part]:
        """Yield the parts in order."""
        offset, size = 0, 0
        rows: list[_Row] = []
        for row in self._rows():
            bytes_ = len(encoded(row))
            if rows and (len(rows) >= self.max_texts or size + bytes_ > self._max_bytes):
                yield self._part(offset, rows)
                offset, size, rows = offset + len(rows), 0, []
            rows.append(row)
            size += bytes_
        if rows:
            yield self._part(offset, rows)

    def _rows(self) -> Iterator[_Row]:
        iterators = [iter(column) for column in self._columns]
        for text in iterators[0]:
            others: list[Any] = [next(iterator, _END) for iterator in iterators[1:]]
            if any(other is _END for other in others):
                raise InvalidOption("ids and payloads must be as many as texts, and end before")
            yield text, others[0] if self._with_ids else None, others[-1] if self._with_payloads else None
        if any(next(iterator, _END) is not _END for iterator in iterators[1:]):
            raise InvalidOption("ids and payloads must be as many as texts, and go on after them")

    def _part(self, offset: int, rows: Sequence[_Row]) -> Part:
        texts, ids, payloads = zip(*rows, strict=True)
        return Part(offset, texts, ids if self._with_ids else None, payloads if self._with_payloads else None)


_END = object()

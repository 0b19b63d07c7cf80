"""Read payloads and vectors of points in portions, so that an answer that becomes too large ends early.

What a point weighs is known only after it was read. So the first portion of a collection has few points, and the
next ones have as many as fit into `PORTION_MAX_BYTES` by the largest point that was seen. A search whose hits are known
to be few and small gets their parts in the answer to the search itself, without a further call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from embedder.cancellation import check_cancelled
from embedder.vectors import Kind
from qdrant_sink.errors import AnswerTooLarge
from qdrant_sink.points import PointId, Stored, Vectors, WithPayload
from qdrant_sink.schema import VectorNames
from qdrant_sink.searching.plan import Hit

PORTION_FIRST_POINTS: Final = 4
"""Number of points in the first portion, where nothing is known of the collection."""

PORTION_MAX_BYTES: Final = 4_000_000
"""Size of a portion in bytes, unless its points are larger than all that were read recently."""

PORTION_MAX_POINTS: Final = 64
"""Maximum number of points in a portion, which bounds it where small points are followed by large ones."""

KEY_PORTION_MAX_POINTS: Final = 512
"""Maximum number of points whose group keys are read by one call."""

INLINE_MAX_BYTES: Final = 1_000_000
"""Maximum size of parts that come with the answer to a search, by the largest point that was read recently."""

INLINE_MAX_HITS: Final = 64
"""Maximum number of hits whose parts come with the answer to a search."""

LARGEST_DECAY: Final = 0.9
"""Factor by which the largest known size shrinks with every read, so that a single large point is forgotten."""

SIZES_MAX: Final = 1024
"""Maximum number of collections and selections whose sizes are remembered."""

HIT_BYTES: Final = 512
"""Memory of a hit without parts in bytes, with its entries in the tables of a ranking."""

HELD_FACTOR: Final = 4
"""Memory of parts and of the answer with them, by their size: strings take up to four bytes per character."""

_HIT_MIN_BYTES: Final = 15
"""Fewest bytes of a hit in JSON beside its id, its score and its group. Exponents have up to two characters less."""

_NUMBER_BYTES: Final = 4
"""Memory of a number of a vector in bytes."""

_WEIGHT_MIN_BYTES: Final = 6
"""Fewest bytes of a sparse weight and its index in JSON, such as `7,` and `0.1,`."""

Admit = Callable[[int, int], None]
"""Check of the size of an answer by lower bounds: the bytes of its JSON without dense and ColBERT vectors, and the
numbers of these. It raises if the answer is too large."""

Parts = tuple[WithPayload, tuple[Kind, ...], VectorNames]
"""The parts of points to read: payload, vectors, and the names of these."""


class Fetches(Protocol):
    """The part of `Store` that reads points."""

    def fetch(
        self,
        collection: str,
        ids: Sequence[PointId],
        with_payload: WithPayload,
        with_vectors: Sequence[Kind],
        /,
        *,
        names: VectorNames,
    ) -> dict[PointId, Stored]:
        """Return the requested parts of these points by id. Missing points are left out."""
        ...


class PartSizes:
    """The largest recent size of the parts of a point, by collection and selection. Thread-safe."""

    def __init__(self) -> None:
        self._largest: dict[tuple[str, WithPayload, tuple[Kind, ...]], float] = {}  # most recent last
        self._lock = threading.Lock()

    def largest(self, collection: str, parts: Parts) -> float | None:
        """Return the largest recent size in bytes; None if none is known."""
        return self._largest.get((collection, *parts[:2]))

    def observe(self, collection: str, parts: Parts, largest: int) -> None:
        """Record the largest size of a read in bytes."""
        key = (collection, *parts[:2])
        with self._lock:
            previous = self._largest.pop(key, 0.0)
            self._largest[key] = max(float(largest), previous * LARGEST_DECAY)
            if len(self._largest) > SIZES_MAX:
                del self._largest[next(iter(self._largest))]


class PartReader:
    """Reads the parts of points for one request.

    Args:
        sizes: what is known of the sizes of points.
        admit: check that is called with the size of the answer so far.
        hold: reservation of further bytes of memory. It raises if there are not as many.
    """

    def __init__(
        self,
        sizes: PartSizes,
        *,
        admit: Admit = lambda _size, _numbers: None,
        hold: Callable[[int], None] = lambda _size: None,
    ) -> None:
        self._sizes = sizes
        self._admit = admit
        self._hold = hold
        self._answered_bytes = self._answered_numbers = 0

    def largest(self, collection: str, parts: Parts) -> float | None:
        """Return the largest recent size of these parts of a point in bytes; None if none is known."""
        return self._sizes.largest(collection, parts)

    def hold_hits(self, count: int) -> None:
        """Reserve the memory of hits without parts."""
        self._hold(count * HIT_BYTES)

    def add_hits(self, hits: Sequence[Hit]) -> None:
        """Count the hits of a page without parts."""
        if hits:
            self._answered_bytes += sum(
                _HIT_MIN_BYTES
                + len(str(hit.id))
                + len(repr(hit.score))
                + (0 if hit.group is None else len(str(hit.group)))
                for hit in hits
            )
            self._admit(self._answered_bytes, self._answered_numbers)

    def add_inline(
        self,
        collection: str,
        parts: Parts,
        points: Sequence[tuple[Mapping[str, Any] | None, Vectors | None]],
        *,
        is_answered: bool = True,
    ) -> None:
        """Count parts that came with the hits of a search, and that the answer has unless it only needs them."""
        sizes = [PartSize.of(payload, vectors) for payload, vectors in points]
        if sizes:
            self._add(collection, parts, [(size, int(is_answered)) for size in sizes])

    def add_again(self, points: Sequence[tuple[Stored, int]]) -> None:
        """Count parts that were read before, each with how often the answer has them once more."""
        sizes = [(PartSize.of(stored.payload, stored.vectors), count) for stored, count in points]
        if sizes:
            self._answer(sizes)

    def fetch(
        self,
        store: Fetches,
        collection: str,
        counts: Mapping[PointId, int],
        parts: Parts,
        *,
        points_max: int = PORTION_MAX_POINTS,
    ) -> dict[PointId, Stored]:
        """Read the parts of points in portions. Missing points are left out.

        Args:
            store: store of the points.
            collection: name of the collection.
            counts: how often each point is in the answer; 0 if it is only needed to compute it.
            parts: parts to read.
            points_max: maximum number of points in a portion.

        Raises:
            Cancelled: the caller has gone.
            WorkerError: the answer or the memory of the request became too large, or the store fails.
        """
        payload, kinds, names = parts
        ids, start = list(counts), 0
        largest = self._sizes.largest(collection, parts)
        size = PORTION_FIRST_POINTS if largest is None else _points_within(largest, points_max)
        points: dict[PointId, Stored] = {}
        while start < len(ids):
            check_cancelled()
            try:
                portion = store.fetch(collection, ids[start : start + size], payload, kinds, names=names)
            except AnswerTooLarge:
                if size == 1:
                    raise
                size //= 2
                continue
            start += size
            if portion:
                sizes = [
                    (PartSize.of(stored.payload, stored.vectors), counts[point]) for point, stored in portion.items()
                ]
                largest = max(largest or 0.0, self._add(collection, parts, sizes))
                size = min(_points_within(largest, points_max), 4 * size)
            points |= portion
        return points

    def _add(self, collection: str, parts: Parts, sizes: Sequence[tuple[PartSize, int]]) -> int:
        """Count parts of these sizes, each with how often it is in the answer, and return the largest size."""
        largest = max(size.held_bytes for size, _ in sizes)
        self._sizes.observe(collection, parts, largest)
        self._hold(HELD_FACTOR * sum(size.held_bytes for size, _ in sizes))
        self._answer(sizes)
        return largest

    def _answer(self, sizes: Sequence[tuple[PartSize, int]]) -> None:
        """Count parts that are in the answer so often."""
        self._answered_bytes += sum(size.json_bytes * count for size, count in sizes)
        self._answered_numbers += sum(size.numbers * count for size, count in sizes)
        self._admit(self._answered_bytes, self._answered_numbers)


def read_parts(
    store: Fetches, collection: str, counts: Mapping[PointId, int], parts: Parts, reader: PartReader | None
) -> dict[PointId, Stored]:
    """Return the parts of points: in portions by a reader (see `PartReader.fetch`), or by one call without one."""
    if reader is not None:
        return reader.fetch(store, collection, counts, parts)
    payload, kinds, names = parts
    return store.fetch(collection, list(counts), payload, kinds, names=names)


class InlineBudget:
    """What the answer to one call of the store may have in payloads and vectors.

    Args:
        reader: reader of the request; None if the answer may have any size.
        collection: name of the collection.
        is_closed: whether a reader takes nothing.
    """

    def __init__(self, reader: PartReader | None, collection: str, *, is_closed: bool) -> None:
        self._reader = reader
        self._collection = collection
        self._is_closed = is_closed
        self._hits = 0
        self._bytes = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was taken, by a reader that could refuse it."""
        return self._reader is None or not self._hits

    def takes(self, parts: Parts, hits: int, *, hits_max: int = INLINE_MAX_HITS) -> bool:
        """Whether the parts of so many further hits are known to be small enough. If so, they are counted."""
        if self._reader is None or not (parts[0] or parts[1]):
            return True
        largest = None if self._is_closed else self._reader.largest(self._collection, parts)
        if largest is None or self._hits + hits > hits_max or self._bytes + hits * largest > INLINE_MAX_BYTES:
            return False
        self._hits += hits
        self._bytes += hits * largest
        return True


class PartSize(NamedTuple):
    """Lower bounds on the size of the parts of a point.

    Attributes:
        json_bytes: bytes of the JSON of payload and sparse vector, a byte per character.
        numbers: numbers of the dense vector and the ColBERT rows.
    """

    json_bytes: int
    numbers: int

    @property
    def held_bytes(self) -> int:
        """Memory of the parts in bytes."""
        return self.json_bytes + _NUMBER_BYTES * self.numbers

    @classmethod
    def of(cls, payload: Mapping[str, Any] | None, vectors: Vectors | None) -> PartSize:
        """Return the size of these parts."""
        size = 0 if payload is None else _json_bytes(payload)
        if vectors is None:
            return cls(size, 0)
        weights = 0 if vectors.sparse is None else vectors.sparse.values.size
        arrays = [array for array in (vectors.dense, vectors.colbert) if array is not None]
        return cls(size + _WEIGHT_MIN_BYTES * weights, sum(array.size for array in arrays))


def _json_bytes(payload: Mapping[str, Any]) -> int:
    size, parts = 0, [payload]
    while parts:
        part: Any = parts.pop()
        size += len(part)
        if type(part) is not list:
            size += sum(map(len, part)) + 2 * len(part)
            part = part.values()
        for value in part:
            kind = type(value)
            if kind is str:
                size += len(value)
            elif kind is dict or kind is list:
                parts.append(value)
    return size


def _points_within(largest: float, points_max: int) -> int:
    return max(1, min(points_max, int(PORTION_MAX_BYTES / max(largest, 1.0))))

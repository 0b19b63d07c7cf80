"""Copy the points of one collection into another one that has vectors of more kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Final, Protocol

from embedder.vectors import Kind
from qdrant_sink.completing.pages import Scrolls, pages
from qdrant_sink.completing.report import NAMED_MAX, UnfinishedPoint
from qdrant_sink.points import Draft, PointId, Stored, Vectors, WithPayload
from qdrant_sink.schema import CollectionSchema, VectorNames
from qdrant_sink.writing import Destination, Rejection, Writer, existing_ids
from qdrant_sink.writing.existing import Existing

COPY_PAGE_POINTS: Final = 1000
"""Points that are looked up in the new collection with one request."""

_ROUND_POINTS: Final = 256
_ROUND_POINTS_WITH_ROWS: Final = 16
"""Maximum number of points that are read with one request: of dense and sparse vectors, and of ColBERT rows too, of
which a point has up to 4 MB."""


class CopyStore(Scrolls, Destination, Existing, Protocol):
    """The part of `Store` that copies points."""

    def fetch(
        self,
        collection: str,
        ids: Sequence[PointId],
        with_payload: WithPayload,
        with_vectors: Sequence[Kind],
        /,
        *,
        names: VectorNames,
        patient: bool,
    ) -> dict[PointId, Stored]:
        """Return the requested parts of these points by id."""
        ...


class PointCopy:
    """A copy of points that can be repeated: a point that the new collection has is left as it is.

    Args:
        store: store of both collections.
        source: collection to read.
        target: collection to write.
        schema: schema of the new collection, whose vectors have the names of the old ones.
        kinds: kinds of vectors that the old collection has.
        senders: threads that send batches.
        check: callback before each page, which raises to end the copy.

    Attributes:
        copied: number of points that were written so far.
        uncopied: number of points of the latest pass that could not be written.
        unfinished: the first of them.
    """

    def __init__(
        self,
        store: CopyStore,
        source: str,
        target: str,
        *,
        schema: CollectionSchema,
        kinds: Sequence[Kind],
        senders: Executor,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._source = source
        self._target = target
        self._schema = schema
        self._kinds = kinds
        self._senders = senders
        self._check = check
        self.copied = 0
        self.uncopied = 0
        self.unfinished: list[UnfinishedPoint] = []

    def run(self) -> int:
        """Copy the points that the new collection lacks, and return how many were copied.

        Raises:
            WorkerError: the store failed, or `check` raised.
        """
        self.uncopied, self.unfinished = 0, []
        before = self.copied
        nothing: WithPayload = False
        for page in pages(self._store, self._source, {}, nothing, limit=COPY_PAGE_POINTS):
            self._check()
            existing = existing_ids(self._store, self._target, list(page))
            self._copy([point for point in page if point not in existing])
        return self.copied - before

    def _copy(self, ids: Sequence[PointId]) -> None:
        if not ids:
            return
        writer = Writer(self._store, self._target, self._schema, self._senders)
        report = writer.write(self._portions(ids))
        self.copied += report.stored
        if report.failure is not None:
            raise report.failure
        self.uncopied += len(report.rejected)
        room = max(0, NAMED_MAX - len(self.unfinished))
        self.unfinished += [UnfinishedPoint(ids[point.index], point.cause) for point in report.rejected[:room]]

    def _portions(self, ids: Sequence[PointId]) -> Iterator[Sequence[Draft | Rejection]]:
        """Yield the points as they are stored. Points that were deleted since their page was read are left out."""
        size = _ROUND_POINTS_WITH_ROWS if "colbert" in self._kinds else _ROUND_POINTS
        indices = {point: index for index, point in enumerate(ids)}
        for start in range(0, len(ids), size):
            whole: WithPayload = True
            stored = self._store.fetch(
                self._source, ids[start : start + size], whole, self._kinds, names=self._schema.names, patient=True
            )
            yield [
                Draft(indices[point], point, held.payload or {}, held.vectors or Vectors())
                for point, held in stored.items()
            ]

"""Copy the points of one collection into another one, of the same store or of another.

Several threads read ranges of ids. A point that the new collection has is left as it is, so that a copy can be repeated
after an interruption, and to add what was written meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass
from threading import Lock
from typing import Final, Protocol

from embedder.vectors import Kind
from qdrant_sink.copying.id_ranges import IdRanges
from qdrant_sink.copying.pages import PageReader, Scrolls
from qdrant_sink.copying.unfinished import NAMED_MAX, UnfinishedPoint
from qdrant_sink.errors import AnswerTooLarge
from qdrant_sink.points import Draft, PointId, Stored, Vectors, WithPayload
from qdrant_sink.schema import CollectionSchema, VectorNames
from qdrant_sink.writing import Destination, Rejection, Writer, existing_ids
from qdrant_sink.writing.existing import Existing

COPY_PAGE_POINTS: Final = 1000
"""Points that are looked up in the new collection with one request."""

COPY_WORKERS: Final = 4
"""Default number of threads that read and write concurrently."""

_ROUND_POINTS: Final = 256
_ROUND_POINTS_WITH_ROWS: Final = 16
"""Maximum number of points that are read with one request: of dense and sparse vectors, and of ColBERT rows too, of
which a point has up to 4 MB."""


class CopySource(Scrolls, Protocol):
    """The part of `Store` that reads the points to copy."""

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


class CopyTarget(Destination, Existing, Protocol):
    """The part of `Store` that looks up and writes the copies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPaths:
    """Where points are copied from, and where to.

    Attributes:
        source: store of the collection to read.
        collection: name of that collection.
        kinds: kinds of vectors to read.
        names: names of these vectors in that collection.
        target: store of the collection to write.
        into: name of that collection.
        schema: schema of that collection.
    """

    source: CopySource
    collection: str
    kinds: Sequence[Kind]
    names: VectorNames
    target: CopyTarget
    into: str
    schema: CollectionSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Points that are written together, as they become ready.

    Attributes:
        ids: ids of the points, by the index of their drafts.
        portions: drafts, and rejections of points that cannot be copied.
        release: callback with the indices of drafts whose vectors are not held any more.
        wake: callback that makes `portions` yield, an empty portion if need be.
    """

    ids: Sequence[PointId]
    portions: Iterable[Sequence[Draft | Rejection]]
    release: Callable[[Sequence[int]], None] = lambda _indices: None
    wake: Callable[[], None] = lambda: None


Rounds = Callable[[Mapping[PointId, Stored]], Generator[Round]]
"""Function that yields the rounds of points that were read. Threads call it concurrently, and close what it returns."""


def as_stored(points: Mapping[PointId, Stored]) -> Generator[Round]:
    """Yield the points with the payloads and the vectors that they have."""
    drafts = [
        Draft(index, point, stored.payload or {}, stored.vectors or Vectors())
        for index, (point, stored) in enumerate(points.items())
    ]
    yield Round(ids=list(points), portions=[drafts])


class PointCopy:
    """A copy of points that can be repeated: a point that the new collection has is left as it is.

    Args:
        paths: the two collections.
        senders: threads that send batches.
        workers: number of threads that read.
        rounds: function that makes drafts of the points that were read.
        pools: whether ColBERT rows that a multivector cannot hold are pooled instead of refused.
        check: callback before each page, which raises to end the copy.
        observer: callback with the number of points that the present pass has met, from a thread of the copy.

    Attributes:
        copied: number of points that were written so far.
        existing: number of points that the new collection had when the latest pass met them.
        uncopied: number of points of the latest pass that could not be written.
        unfinished: the first of them.
    """

    def __init__(
        self,
        paths: CopyPaths,
        *,
        senders: Executor,
        workers: int = COPY_WORKERS,
        rounds: Rounds = as_stored,
        pools: bool = False,
        check: Callable[[], None] = lambda: None,
        observer: Callable[[int], None] = lambda _met: None,
    ) -> None:
        self._paths = paths
        self._senders = senders
        self._workers = workers
        self._rounds = rounds
        self._pools = pools
        self._check = check
        self._observer = observer
        self._pages = PageReader(paths.source, paths.collection, {}, with_payload=False, limit=COPY_PAGE_POINTS)
        self._round_points = _ROUND_POINTS_WITH_ROWS if "colbert" in paths.kinds else _ROUND_POINTS
        self._lock = Lock()  # guards the attributes below
        self._met = 0
        self.copied = 0
        self.existing = 0
        self.uncopied = 0
        self.unfinished: list[UnfinishedPoint] = []

    def run(self) -> int:
        """Copy the points that the new collection lacks, and return how many were copied.

        Raises:
            WorkerError: the store failed, or `check` raised.
        """
        self._met = self.existing = self.uncopied = 0
        self.unfinished = []
        before = self.copied
        ranges = IdRanges()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="copy") as threads:
            running = [threads.submit(copy_context().run, self._read, ranges) for _ in range(self._workers)]
        for worker in running:
            worker.result()
        return self.copied - before

    def _read(self, ranges: IdRanges) -> None:
        """Copy range after range, in a thread of its own. An error ends the other threads too."""
        try:
            while (taken := ranges.take()) is not None:
                has_more = True
                while has_more:
                    self._check()
                    page, following = self._pages.page(taken.start)
                    ids, has_more = ranges.advance(taken, page, following)
                    self._copy_page(ids)
        except BaseException:
            ranges.stop()
            raise

    def _copy_page(self, page: Sequence[PointId]) -> None:
        existing = existing_ids(self._paths.target, self._paths.into, page)
        with self._lock:
            self.existing += len(existing)
        self._observe(len(existing))
        ids = [point for point in page if point not in existing]
        for start in range(0, len(ids), self._round_points):
            self._check()
            for points in self._fetched(ids[start : start + self._round_points]):
                with closing(self._rounds(points)) as rounds:
                    for part in rounds:
                        self._write(part)
                self._observe(len(points))

    def _observe(self, points: int) -> None:
        with self._lock:
            self._met += points
            met = self._met
        self._observer(met)

    def _fetched(self, ids: Sequence[PointId]) -> Iterator[Mapping[PointId, Stored]]:
        """Yield the points as they are stored. Those that were deleted since their page was read are left out."""
        paths = self._paths
        whole: WithPayload = True
        parts = [ids]
        while parts:
            part = parts.pop()
            try:
                points = paths.source.fetch(paths.collection, part, whole, paths.kinds, names=paths.names, patient=True)
            except AnswerTooLarge:
                if len(part) == 1:
                    raise
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
            else:
                yield points

    def _write(self, part: Round) -> None:
        paths = self._paths
        writer = Writer(
            paths.target,
            paths.into,
            paths.schema,
            self._senders,
            pools=self._pools,
            release=part.release,
            wake=part.wake,
        )
        report = writer.write(part.portions)
        rejected = [point for point in report.rejected if point.cause is not report.failure]
        with self._lock:
            self.copied += report.stored
            self.uncopied += len(rejected)
            room = max(0, NAMED_MAX - len(self.unfinished))
            self.unfinished += [UnfinishedPoint(part.ids[point.index], point.cause) for point in rejected[:room]]
        if report.failure is not None:
            raise report.failure

"""The completion of the points of one collection, in a thread of its own.

for each page of points that lack vectors: tokenize -> for each portion of the stream: draft -> writer -> check

The texts of a part are embedded while those of the next one are read and tokenized, and while the vectors of the one
before are written.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import Any, Final

from embedder import (
    KINDS,
    Cancelled,
    DeviceLost,
    Embedder,
    EncodedText,
    Kind,
    ModelFailure,
    Result,
    ResultStream,
    WorkerError,
)
from qdrant_sink import (
    BATCH_MAX_POINTS,
    CollectionSchema,
    Draft,
    PayloadKeys,
    Point,
    PointId,
    Refusal,
    Rejection,
    Store,
    Vectors,
    Writer,
    path_of_key,
    rows_max,
    text_key_of,
    text_of,
    too_many_rows,
)
from qdrant_sink.completing import (
    CompletionReport,
    CompletionTally,
    kinds_lacking,
    of_all_kinds,
    of_any_lacking,
    of_exactly_lacking,
)
from qdrant_sink.copying import UnfinishedPoint, pages
from service.operations.load_values import INTERRUPTED
from service.operations.passage_stream import passage_stream

log = logging.getLogger(__name__)

PASSES_MAX: Final = 5
"""Maximum number of passes over a collection. A further pass completes the points that were written meanwhile."""

CONCURRENT_PARTS_MAX: Final = 2
"""Parts that are embedded and written concurrently, so that the model does not wait for the end of a part."""

PART_MAX_POINTS: Final = 1000
"""Maximum number of points of a part."""

_SPECIAL_TOKENS: Final = 2
"""Tokens of an empty text."""


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    """A point that lacks vectors, its text, and the tokens of that."""

    point: PointId
    text: str
    encoded: EncodedText


class CompletionJob:
    """The completion of the points of a collection that has the vectors already, or of as many as there are.

    Args:
        collection: name of the collection.
        schema: schema of the collection, whose layout and text key say where texts are.
        kinds: kinds of vectors that every point is to have.
        embedder: the loaded model.
        store: the store.
        senders: threads that send batches.
        max_length: tokens beyond which a text is truncated.
        pool_colbert: whether ColBERT rows that a multivector cannot hold are pooled instead of refused.
        stopping: event that ends the job after the parts that are running.
        observer: callback with the number of points that are done, from a thread of the job.
    """

    def __init__(
        self,
        collection: str,
        schema: CollectionSchema,
        kinds: Sequence[Kind],
        *,
        embedder: Embedder,
        store: Store,
        senders: Executor,
        max_length: int,
        pool_colbert: bool,
        stopping: Event,
        observer: Callable[[int], None],
    ) -> None:
        self._collection = collection
        self._schema = schema
        self._kinds = tuple(kind for kind in KINDS if kind in kinds)
        self._embedder = embedder
        self._store = store
        self._senders = senders
        self._payload_keys = PayloadKeys((path_of_key(text_key_of(schema.layout, schema.text_key)),))
        self._max_length = max_length
        self._pool_colbert = pool_colbert
        self._stopping = stopping
        self._observer = observer
        self._rows_max = None if pool_colbert or schema.colbert is None else rows_max(schema.colbert.size)

    def run(self) -> CompletionReport:
        """Complete all points, with further passes for those that are written meanwhile. Blocks.

        An error of the store or the model ends the job and is in the report.
        """
        already = 0
        tally = CompletionTally(0)
        try:
            already = self._store.count(self._collection, of_all_kinds(self._kinds, self._schema.names), patient=True)
            tally = CompletionTally(already)
            pending = 0
            for _ in range(PASSES_MAX):
                tally.begin_pass()
                self._pass(tally)
                lacking = of_any_lacking(self._kinds, self._schema.names)
                pending = max(0, self._store.count(self._collection, lacking, patient=True) - tally.left)
                if not pending:
                    break
            return tally.report(self._collection, pending=pending)
        except WorkerError as error:
            return tally.report(self._collection, failure=error)

    def check_running(self) -> None:
        """Raise Cancelled if the job is to end."""
        if self._stopping.is_set():
            raise Cancelled(INTERRUPTED)

    def _pass(self, tally: CompletionTally) -> None:
        with ThreadPoolExecutor(CONCURRENT_PARTS_MAX, thread_name_prefix="complete") as threads:
            running: deque[Future[None]] = deque()
            try:
                for lacking in kinds_lacking(self._kinds):
                    for part in self._parts(lacking, tally):
                        running.append(threads.submit(copy_context().run, self._complete, part, lacking, tally))
                        while len(running) > CONCURRENT_PARTS_MAX:
                            running.popleft().result()
                        self.check_running()
                    self.check_running()
                while running:
                    running.popleft().result()
            except BaseException:
                for future in running:
                    future.cancel()
                raise

    def _parts(self, lacking: Sequence[Kind], tally: CompletionTally) -> Iterator[Sequence[_Text]]:
        """Yield the points that lack exactly these kinds, in parts that the model's queue holds."""
        part: list[_Text] = []
        tokens = 0
        where = of_exactly_lacking(lacking, self._kinds, self._schema.names)
        for page in pages(self._store, self._collection, where, self._payload_keys):
            texts = {point: self._text_of(stored.payload or {}) for point, stored in page.items()}
            for text in self._embeddable(texts, lacking, tally):
                if part and (tokens + len(text.encoded) > self._embedder.window or len(part) >= PART_MAX_POINTS):
                    yield part
                    part, tokens = [], 0
                part.append(text)
                tokens += len(text.encoded)
            self._observer(tally.done)
        if part:
            yield part

    def _text_of(self, payload: Mapping[str, Any]) -> str | None:
        return text_of(self._schema.layout, payload, self._schema.text_key)

    def _embeddable(
        self, texts: Mapping[PointId, str | None], lacking: Sequence[Kind], tally: CompletionTally
    ) -> list[_Text]:
        """Tokenize the texts of points, and count those that need no model: without a text, tokens or room."""
        key = text_key_of(self._schema.layout, self._schema.text_key)
        no_text = Refusal("invalid_payload", f"payload: must have a text under {key!r}, got none")
        present = [(point, text) for point, text in texts.items() if text is not None]
        tally.leave_without_text(UnfinishedPoint(point, no_text) for point, text in texts.items() if text is None)
        encoded = self._embedder.tokenize([text for _, text in present], self._max_length) if present else []
        result = []
        for (point, text), tokens in zip(present, encoded, strict=True):
            if tuple(lacking) == ("sparse",) and len(tokens) <= _SPECIAL_TOKENS:
                tally.leave_without_weights(1)
            elif "colbert" in lacking and self._rows_max is not None and len(tokens) - 1 > self._rows_max:
                size = 0 if self._schema.colbert is None else self._schema.colbert.size
                tally.reject([UnfinishedPoint(point, too_many_rows(len(tokens) - 1, size))])
            else:
                result.append(_Text(point, text, tokens))
        return result

    def _complete(self, part: Sequence[_Text], lacking: Sequence[Kind], tally: CompletionTally) -> None:
        """Embed and write a part, until all points have the vectors of the text that they have."""
        while part:
            job = _PartJob(self, part, lacking, tally)
            part = self._embeddable(self._changed(job, job.run(), tally), lacking, tally)
        self._observer(tally.done)

    def _changed(self, job: _PartJob, written: Sequence[_Text], tally: CompletionTally) -> Mapping[PointId, str | None]:
        """Return the points whose text another client replaced before their vectors were written; count the others."""
        changed: dict[PointId, str | None] = {}
        for start in range(0, len(written), BATCH_MAX_POINTS):
            some = written[start : start + BATCH_MAX_POINTS]
            stored = self._store.fetch(
                self._collection, [text.point for text in some], self._payload_keys, (), patient=True
            )
            present = [text for text in some if text.point in stored]
            tally.vanish(len(some) - len(present))
            unchanged = []
            for text in present:
                current = self._text_of(stored[text.point].payload or {})
                if current == text.text:
                    unchanged.append(text)
                else:
                    changed[text.point] = current
            job.count(unchanged)
        return changed

    def stream(self, part: Sequence[_Text], lacking: Sequence[Kind]) -> ResultStream:
        """Queue the texts of a part, and wait while the queue of the model is full."""
        return passage_stream(
            self._embedder,
            [text.encoded for text in part],
            lacking,
            self._schema,
            stopping=self._stopping,
            check_running=self.check_running,
        )

    def update(self, points: Sequence[Point]) -> set[PointId]:
        """Set vectors of existing points, and return the ids that do not exist."""
        return self._store.update_vectors(self._collection, points)

    def writer(self, part: _PartJob, lacking: Sequence[Kind], stream: ResultStream) -> Writer:
        """Create the writer of a part."""
        others: dict[str, Any] = {kind: None for kind in KINDS if kind not in lacking}
        return Writer(
            part,
            self._collection,
            replace(self._schema, **others),
            self._senders,
            pools=self._pool_colbert,
            release=stream.release,
            wake=stream.wake,
        )


class _PartJob:
    """The embedding and writing of one part. It is the destination of its writer.

    Attributes:
        without_weights: written points that got no sparse vector, because their text has no lexical weights.
    """

    def __init__(
        self, job: CompletionJob, part: Sequence[_Text], lacking: Sequence[Kind], tally: CompletionTally
    ) -> None:
        self._job = job
        self._part = part
        self._lacking = lacking
        self._tally = tally
        self._lock = Lock()
        self._vanished: set[PointId] = set()
        self.without_weights: set[PointId] = set()

    def run(self) -> Sequence[_Text]:
        """Write the vectors of all points, count those that get none, and return the others.

        Raises:
            WorkerError: the store or the model failed. What was written before is counted.
        """
        with self._job.stream(self._part, self._lacking) as stream:
            writer = self._job.writer(self, self._lacking, stream)
            with closing(self._portions(stream)) as portions:
                report = writer.write(portions)
        rejected = [point for point in report.rejected if point.cause is not report.failure]
        self._tally.reject(UnfinishedPoint(self._part[point.index].point, point.cause) for point in rejected)
        written = [self._part[index] for index in report.indices if self._part[index].point not in self._vanished]
        self._tally.vanish(len(report.indices) - len(written))
        if report.failure is not None:
            self.count(written)
            raise report.failure
        return written

    def count(self, written: Sequence[_Text]) -> None:
        """Count points that have their vectors."""
        whole = [text for text in written if text.point not in self.without_weights]
        self._tally.complete(len(whole), truncated=sum(text.encoded.truncated for text in whole))
        self._tally.leave_without_weights(len(written) - len(whole))

    def upsert(self, _collection: str, points: Sequence[Point], /, *, insert_only: bool = False) -> None:  # noqa: ARG002
        """Set the vectors of these points, as `Destination` asks."""
        vanished = self._job.update(points)
        with self._lock:
            self._vanished |= vanished

    def _portions(self, stream: ResultStream) -> Generator[Sequence[Draft | Rejection]]:
        for portion in stream:
            drafts = self._drafts(portion, stream)
            del portion
            yield drafts
            del drafts  # during the wait for the next portion, only the writer holds vectors

    def _drafts(self, portion: Sequence[tuple[int, Result]], stream: ResultStream) -> list[Draft | Rejection]:
        drafts: list[Draft | Rejection] = []
        for index, result in portion:
            if isinstance(result, DeviceLost):
                raise result
            if isinstance(result, ModelFailure):
                drafts.append(Rejection(index, result))
                continue
            sparse = result.sparse
            if sparse is not None and not sparse.values.any():
                if tuple(self._lacking) == ("sparse",):
                    self._tally.leave_without_weights(1)
                    stream.release([index])
                    continue
                self.without_weights.add(self._part[index].point)
            drafts.append(Draft(index, self._part[index].point, {}, Vectors.of(result)))
        return drafts

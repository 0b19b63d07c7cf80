"""The ingest operation: it embeds texts and stores points concurrently, and reports every point.

plan -> admit -> resolve the collection -> for each portion of the stream: draft -> writer -> report
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from embedder import (
    PLANS,
    QUICK,
    QUICK_TEXT_MAX_CHARACTERS,
    Embedder,
    Embedding,
    InvalidRequest,
    Kind,
    ModelFailure,
    NotFound,
    Outputs,
    Result,
    WorkerError,
)
from qdrant_sink import (
    BATCH_MAX_BYTES,
    BATCH_MAX_POINTS,
    IN_FLIGHT_MAX,
    TEXT_KEY,
    CollectionSchema,
    DocumentLocks,
    Recognised,
    Taken,
    VersionedCollections,
    WriteReport,
    existing_ids,
    text_key_of,
)
from service.memory_budget import MemoryBudget, Reservation, SharedReservation
from service.operations.collections import Collections
from service.operations.embed import LengthLimits
from service.operations.ingest_job import Drafts, IngestJob, priority_of, report_of
from service.operations.ingest_plan import IngestPlan
from service.operations.ingest_values import (
    IngestedText,
    IngestFailed,
    IngestProgress,
    IngestReport,
    IngestRequest,
    IngestResult,
)
from service.operations.model_check import ModelCheck
from service.operations.store_access import SENDER_THREADS, IngestSlot, StoreAccess
from service.operations.vector_memory import TEXT_BYTES, VectorMemory
from service.validation import invalid_field

log = logging.getLogger(__name__)

T = TypeVar("T")

AdmitVectors = Callable[[Sequence[int], Sequence[Kind]], None]
"""Callback with the lengths of the points and the kinds of their vectors.

An error that it raises ends the operation.
"""

AdmitTexts = Callable[[Sequence[IngestedText], int], None]
"""Callback with the texts as known before any point is stored, and the number of points.

An error that it raises ends the operation.
"""

SENT_FACTOR: Final = 6
"""Memory of points that are sent by their own size: as JSON, or as numbers of Python, they are several times as large.
"""

SENDING_MAX_BYTES: Final = SENDER_THREADS * SENT_FACTOR * BATCH_MAX_BYTES
"""Maximum memory of the points that all ingests send at the same time, in bytes."""

_JOB_FAILED_MESSAGE = "not stored; see the error of the job"
"""Message of every point of a failed job; the job's own message stands only once, in its error."""


def admit_all_vectors(_lengths: Sequence[int], _kinds: Sequence[Kind]) -> None:
    """Accept any vectors."""


def admit_all_texts(_texts: Sequence[IngestedText], _points: int) -> None:
    """Accept any texts."""


@dataclass(frozen=True, slots=True, eq=False)
class _Target:
    """What a job writes to its collection.

    Attributes:
        request: the request with its kinds of vectors.
        schema: schema of the collection, with the layout and the text key to write by.
        taken: what of it was taken from the collection rather than from the config.
        collection: the collection that the name of the request leads to.
    """

    request: IngestRequest
    schema: CollectionSchema
    taken: Taken
    collection: str

    @classmethod
    def guessed(cls, request: IngestRequest, guess: Recognised) -> _Target:
        """The target if the collection is as it was, or new. It is good for a plan, and not for writing."""
        kinds = request.vectors or guess.schema.kinds
        return cls(replace(request, vectors=kinds), guess.read_by(request.text_key), Taken(), guess.collection)

    @classmethod
    def of(cls, request: IngestRequest, recognised: Recognised, collection: str) -> _Target:
        """The target in the collection that the name of the request leads to.

        Raises:
            InvalidRequest: the collection lacks a kind of vector that the request names.
            SchemaMismatch: a kind, the layout or the text key is ambiguous.
        """
        recognised.require(request.vectors or recognised.kinds)
        _check_kinds(request.vectors, recognised.schema.kinds)
        kinds = request.vectors or recognised.schema.kinds
        schema, taken = recognised.written_by(request.text_key), recognised.taken_with(request.text_key)
        return cls(replace(request, vectors=kinds), schema, taken, collection)

    @property
    def planning(self) -> tuple[object, ...]:
        """What a plan depends on."""
        return tuple(self.request.vectors), self.schema.layout, self.schema.text_key


class Ingest:
    """The ingest operation. Usable from any event loop.

    Args:
        embedder: the loaded model.
        store: access to the store.
        collections: the collections of the worker.
        model_check: check of the model of collections.
        limits: default limits on the lengths of texts.
        memory: the memory that requests may hold together.
        batch_points: maximum number of points, or ids, in one request to the store.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: StoreAccess,
        collections: Collections,
        model_check: ModelCheck,
        limits: LengthLimits,
        *,
        memory: MemoryBudget,
        batch_points: int = BATCH_MAX_POINTS,
    ) -> None:
        self._embedder = embedder
        self._memory = memory
        self._vectors = VectorMemory(embedder.hidden_size, embedder.colbert_size)
        self._window = SharedReservation(memory, window_max_bytes(self._vectors, embedder.window))
        self._sending = SharedReservation(memory, SENDING_MAX_BYTES)
        self._store = store
        self._collections = collections
        self._model_check = model_check
        self._limits = limits
        self._batch_points = batch_points
        self._documents = DocumentLocks()
        self._versioned = VersionedCollections()

    def check(self, request: IngestRequest) -> None:
        """Validate a request against the config of collections.

        Raises:
            InvalidRequest: the payload layout of the config has another text key, or the config lacks a kind of
                vector.
        """
        _check_kinds(request.vectors, self._collections.wanted.kinds)
        layout = self._collections.wanted.layout
        if layout != "plain" and request.text_key not in (None, TEXT_KEY):
            key = text_key_of(layout, TEXT_KEY)
            message = f"must be left out: the payload layout '{layout}' has the text under '{key}', got another key"
            raise invalid_field(f"{request.path}textKey", message)

    async def planned(self, request: IngestRequest) -> IngestPlan:
        """The points of a request for a new collection, and those that are rejected already. The store is not asked.

        Raises:
            InvalidRequest: the request is invalid.
            Overloaded: the plan does not fit into memory now.
        """
        self.check(request)
        name = self._collections.named(request.collection, f"{request.path}collection")
        target = _Target.guessed(request, Recognised.new(name, self._collections.wanted))
        with self._memory.joined() as held:
            return await self._planned(target, name, held)

    async def __call__(
        self,
        request: IngestRequest,
        *,
        admit: AdmitVectors = admit_all_vectors,
        admit_texts: AdmitTexts = admit_all_texts,
        progress: Callable[[IngestProgress], None] | None = None,
    ) -> IngestResult:
        """Embed and store all texts. Requests that are invalid are rejected before the model runs.

        Args:
            request: the texts.
            admit: callback before the model runs; only if vectors are returned.
            admit_texts: callback with the texts before any point is stored.
            progress: callback from a thread of the ingest when points are done.

        Raises:
            InvalidRequest: the request is invalid. No point is stored.
            Overloaded: the plan does not fit into memory now. No point is stored.
            IngestFailed: the job failed as a whole. Its report lists the points that are not stored.
        """
        with self._memory.joined() as held:
            return await self._ingested(request, admit, admit_texts, progress, held)

    async def _ingested(
        self,
        request: IngestRequest,
        admit: AdmitVectors,
        admit_texts: AdmitTexts,
        progress: Callable[[IngestProgress], None] | None,
        held: Reservation,
    ) -> IngestResult:
        self.check(request)
        name = self._collections.named(request.collection, f"{request.path}collection")
        started = time.perf_counter()
        guess = self._collections.catalogue.guess(name) or Recognised.new(name, self._collections.wanted)
        guessed = _Target.guessed(request, guess)
        received_bytes = held.size_bytes
        plan = await self._planned(guessed, name, held)
        planned_bytes = held.size_bytes - received_bytes
        if not request.return_vectors:
            await self._in_thread(request, lambda: admit_texts(_outline(request, plan, {}), len(plan.points)))
        planned = time.perf_counter()
        try:
            with self._store.ingest_slot() as slot:
                target = await slot.run(lambda: self._target(request, name), stage="store")
                if target.planning != guessed.planning:
                    held.shrink(planned_bytes)
                    plan = await self._planned(target, name, held)
                result = await self._embed_and_store(
                    slot, target, plan, held, received_bytes, admit=admit, admit_texts=admit_texts, progress=progress
                )
        except IngestFailed:
            raise
        except WorkerError as error:
            raise IngestFailed(error, _nothing_stored(plan, error)) from error
        report = result.report
        log.info(
            "ingest finished: %d of %d points stored, %d skipped, %d rejected; plan %.2f s, embed and store %.2f s",
            report.stored,
            len(plan.points),
            report.skipped,
            len(report.rejected),
            planned - started,
            time.perf_counter() - planned,
        )
        return result

    async def _embed_and_store(
        self,
        slot: IngestSlot,
        target: _Target,
        plan: IngestPlan,
        held: Reservation,
        received_bytes: int,
        *,
        admit: AdmitVectors,
        admit_texts: AdmitTexts,
        progress: Callable[[IngestProgress], None] | None,
    ) -> IngestResult:
        request, schema = target.request, target.schema
        outputs, lengths = Outputs.of(tuple(request.vectors)), [len(point.encoded) for point in plan.points]
        vectors_bytes = self._vectors.of(lengths, outputs)
        # Payloads and texts are values of the request, whose memory is known, or chunks of these.
        points_bytes = received_bytes + vectors_bytes + sum(4 * len(text) for text in request.texts)
        sending = self._sending.used(SENT_FACTOR * min(points_bytes, IN_FLIGHT_MAX * BATCH_MAX_BYTES))
        await self._model_check.admit(target.collection, schema, schema.text_key, request.vectors)
        job = await slot.run(lambda: self._prepare(target, plan, progress), stage="store")
        if not request.return_vectors:
            with self._window.used(vectors_bytes), sending:
                report = await _run(slot, job, job.stream)
            tokens = sum(len(plan.points[index].encoded) for index in job.wanted)
            return IngestResult(_outline(request, plan, job.failures), tokens, report)
        admit(lengths, request.vectors)
        held.grow(vectors_bytes)
        results = await self._embedded(request, plan)
        texts = [
            replace(text, result=result, tokens=result.tokens if isinstance(result, Embedding) else 0)
            for text, result in zip(_outline(request, plan, {}), results, strict=True)
        ]
        await self._in_thread(request, lambda: admit_texts(texts, len(plan.points)))
        with sending:
            report = await _run(slot, job, lambda: job.from_results(results))
        tokens = sum(result.tokens for result in results if isinstance(result, Embedding))
        return IngestResult(texts, tokens, report)

    async def _embedded(self, request: IngestRequest, plan: IngestPlan) -> Sequence[Result]:
        try:
            return await self._embedder.embed_tokens(
                [point.encoded for point in plan.points],
                Outputs.of(tuple(request.vectors)),
                priority=priority_of(request),
                batch_size=request.batch_size,
            )
        except InvalidRequest as error:
            raise error.at("texts") from None

    async def _planned(self, target: _Target, name: str, held: Reservation) -> IngestPlan:
        """Plan the points, for which memory is reserved before they are created."""
        request = target.request
        held.grow(len(request.texts) * TEXT_BYTES)
        max_length = request.max_length or self._limits.of(request.role)
        return await self._in_thread(
            request,
            lambda: IngestPlan.of(
                request, name, self._embedder, max_length=max_length, schema=target.schema, hold=held.grow
            ),
        )

    async def _in_thread(self, request: IngestRequest, call: Callable[[], T]) -> T:
        """Run a part of the planning: of a small request among quick work, else in the threads of plans."""
        characters = sum(map(len, request.texts))
        threads = QUICK if characters <= QUICK_TEXT_MAX_CHARACTERS else PLANS
        return await threads.run(call, characters=characters)

    def _target(self, request: IngestRequest, name: str) -> _Target:
        """Resolve the collection and recognise it. Blocks for the store."""
        catalogue = self._collections.catalogue
        collection = catalogue.resolve(name)
        recognised = catalogue.to_write(name, collection)
        return _Target.of(request, recognised or Recognised.new(name, self._collections.wanted), collection)

    def _prepare(
        self, target: _Target, plan: IngestPlan, progress: Callable[[IngestProgress], None] | None
    ) -> IngestJob:
        """Prepare the job and, with `insert_only`, look up the existing points. Blocks for the store."""
        request, collection = target.request, target.collection
        skipped: set[int] = set()
        store = self._store.opened()
        if request.insert_only and request.chunk is None:
            try:
                ids = [plan.points[owner].id for owner in plan.owners]
                existing = existing_ids(store, collection, ids, batch_points=self._batch_points)
            except NotFound:
                existing = set()
            skipped = {owner for owner in plan.owners if plan.points[owner].id in existing}
        return IngestJob(
            request,
            plan,
            collection,
            schema=target.schema,
            taken=target.taken,
            embedder=self._embedder,
            store=self._store,
            collections=self._collections,
            documents=self._documents,
            versioned=self._versioned,
            skipped=skipped,
            progress=progress,
            batch_points=self._batch_points,
        )


def window_max_bytes(vectors: VectorMemory, window: int) -> int:
    """Maximum memory in bytes of the vectors that wait to be stored, of all ingests.

    Args:
        vectors: the sizes of vectors.
        window: maximum tokens of these vectors; a text has at least 2.
    """
    return vectors.max_bytes(window // 2, window, Outputs())


async def _run(slot: IngestSlot, job: IngestJob, source: Callable[[], Generator[Drafts]]) -> IngestReport:
    """Run the job. If it is interrupted, its texts that wait for the model are dropped."""
    try:
        return await slot.run(lambda: job.run(source), stage="ingest")
    except BaseException:
        job.cancel()
        raise


def _outline(request: IngestRequest, plan: IngestPlan, failures: Mapping[int, ModelFailure]) -> list[IngestedText]:
    """The result of each text without its vectors, before or after it is embedded."""
    texts = []
    for text, indices in enumerate(plan.spans):
        identity = None if text in plan.unidentified else plan.ids[text]
        embedded = [plan.points[index].encoded for index in indices if index not in failures]
        tokens = sum(map(len, embedded))
        if request.chunk is not None:
            texts.append(IngestedText(identity, tokens, truncated=False, chunks=len(indices)))
        else:
            truncated = any(encoded.truncated for encoded in embedded)
            texts.append(IngestedText(identity, tokens, truncated, result=failures.get(indices[0])))
    return texts


def _nothing_stored(plan: IngestPlan, error: WorkerError) -> IngestReport:
    failure_of_point = error.saying(_JOB_FAILED_MESSAGE)
    written = WriteReport((), tuple(plan.rejected), failure=failure_of_point).completed(len(plan.points))
    return report_of(plan, written, Taken())


def _check_kinds(vectors: Sequence[Kind], kinds: Sequence[Kind]) -> None:
    for index, kind in enumerate(vectors):
        if kind not in kinds:
            message = f"must be a kind of vector that the collection has ({', '.join(kinds)}), got '{kind}'"
            raise invalid_field(f"vectors[{index}]", message)

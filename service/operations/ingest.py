"""The ingest operation: it embeds texts and stores points concurrently, and reports every point.

plan -> admit -> resolve the collection -> for each portion of the stream: draft -> writer -> report
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
    Outputs,
    Result,
    WorkerError,
)
from qdrant_sink import BATCH_MAX_BYTES, BATCH_MAX_POINTS, IN_FLIGHT_MAX
from service.memory_budget import MemoryBudget, Reservation, SharedReservation
from service.operations.collections import Collections
from service.operations.embed import LengthLimits
from service.operations.ingest_job import priority_of
from service.operations.ingest_jobs import IngestJobs, nothing_stored, run_job
from service.operations.ingest_plan import IngestPlan
from service.operations.ingest_target import IngestTarget
from service.operations.ingest_values import (
    IngestedText,
    IngestFailed,
    IngestProgress,
    IngestRequest,
    IngestResult,
)
from service.operations.model_check import ModelCheck
from service.operations.store_access import SENDER_THREADS, IngestSlot, StoreAccess
from service.operations.vector_memory import TEXT_BYTES, VectorMemory

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


def admit_all_vectors(_lengths: Sequence[int], _kinds: Sequence[Kind]) -> None:
    """Accept any vectors."""


def admit_all_texts(_texts: Sequence[IngestedText], _points: int) -> None:
    """Accept any texts."""


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
        self._jobs = IngestJobs(store, collections, batch_points=batch_points)

    def check(self, request: IngestRequest) -> None:
        """Validate a request against the config of collections.

        Raises:
            InvalidRequest: the payload layout of the config has another text key, or the config lacks a kind of
                vector.
        """
        self._jobs.check(request)

    async def planned(self, request: IngestRequest) -> IngestPlan:
        """The points of a request for a new collection, and those that are rejected already. The store is not asked.

        Raises:
            InvalidRequest: the request is invalid.
            Overloaded: the plan does not fit into memory now.
        """
        self.check(request)
        name = self._collections.named(request.collection, f"{request.path}collection")
        target = self._jobs.new(request, name)
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
        guessed = self._jobs.guessed(request, name)
        received_bytes = held.size_bytes
        plan = await self._planned(guessed, name, held)
        planned_bytes = held.size_bytes - received_bytes
        if not request.return_vectors:
            await self._in_thread(request, lambda: admit_texts(_outline(request, plan, {}), len(plan.points)))
        planned = time.perf_counter()
        try:
            with self._store.ingest_slot() as slot:
                target = await slot.run(lambda: self._jobs.target(request, name), stage="store")
                if target.planning != guessed.planning:
                    held.shrink(planned_bytes)
                    plan = await self._planned(target, name, held)
                result = await self._embed_and_store(
                    slot, target, plan, held, received_bytes, admit=admit, admit_texts=admit_texts, progress=progress
                )
        except IngestFailed:
            raise
        except WorkerError as error:
            raise IngestFailed(error, nothing_stored(plan, error)) from error
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
        target: IngestTarget,
        plan: IngestPlan,
        held: Reservation,
        received_bytes: int,
        *,
        admit: AdmitVectors,
        admit_texts: AdmitTexts,
        progress: Callable[[IngestProgress], None] | None,
    ) -> IngestResult:
        request, schema = target.request, target.schema
        outputs, lengths = Outputs.of(tuple(request.vectors)), [len(encoded) for encoded in plan.encoded]
        vectors_bytes = self._vectors.of(lengths, outputs)
        # Payloads and texts are values of the request, whose memory is known, or chunks of these.
        points_bytes = received_bytes + vectors_bytes + sum(4 * len(text) for text in request.texts)
        sending = self._sending.used(SENT_FACTOR * min(points_bytes, IN_FLIGHT_MAX * BATCH_MAX_BYTES))
        await self._model_check.admit(target.collection, schema, schema.text_key, request.vectors)
        job = await slot.run(lambda: self._jobs.prepare(target, plan, progress), stage="store")
        if not request.return_vectors:
            with self._window.used(vectors_bytes), sending:
                report = await run_job(slot, job, lambda: job.stream(self._embedder))
            tokens = sum(len(plan.encoded[index]) for index in job.wanted)
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
            report = await run_job(slot, job, lambda: job.from_results(results))
        tokens = sum(result.tokens for result in results if isinstance(result, Embedding))
        return IngestResult(texts, tokens, report)

    async def _embedded(self, request: IngestRequest, plan: IngestPlan) -> Sequence[Result]:
        try:
            return await self._embedder.embed_tokens(
                plan.encoded,
                Outputs.of(tuple(request.vectors)),
                priority=priority_of(request),
                batch_size=request.batch_size,
            )
        except InvalidRequest as error:
            raise error.at("texts") from None

    async def _planned(self, target: IngestTarget, name: str, held: Reservation) -> IngestPlan:
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


def window_max_bytes(vectors: VectorMemory, window: int) -> int:
    """Maximum memory in bytes of the vectors that wait to be stored, of all ingests.

    Args:
        vectors: the sizes of vectors.
        window: maximum tokens of these vectors; a text has at least 2.
    """
    return vectors.max_bytes(window // 2, window, Outputs())


def _outline(request: IngestRequest, plan: IngestPlan, failures: Mapping[int, ModelFailure]) -> list[IngestedText]:
    """The result of each text without its vectors, before or after it is embedded."""
    texts = []
    for text, indices in enumerate(plan.spans):
        identity = None if text in plan.unidentified else plan.ids[text]
        embedded = [plan.encoded[index] for index in indices if index not in failures]
        tokens = sum(map(len, embedded))
        if request.chunk is not None:
            texts.append(IngestedText(identity, tokens, truncated=False, chunks=len(indices)))
        else:
            truncated = any(encoded.truncated for encoded in embedded)
            texts.append(IngestedText(identity, tokens, truncated, result=failures.get(indices[0])))
    return texts

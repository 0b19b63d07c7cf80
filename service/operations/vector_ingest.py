"""The ingest of vectors that are computed already: the same points as of an ingest, without a model.

plan -> resolve the collection and compare its model -> drafts -> writer -> report
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedder import Kind, WorkerError
from qdrant_sink import BATCH_MAX_POINTS, Difference, ModelIdentity, ModelMismatch, Vectors
from service.operations.collections import Collections
from service.operations.ingest_jobs import IngestJobs, nothing_stored, run_job
from service.operations.ingest_plan import IngestPlan
from service.operations.ingest_target import IngestTarget
from service.operations.ingest_values import IngestFailed, IngestReport, IngestRequest
from service.operations.store_access import IngestSlot, StoreAccess
from service.operations.text_pieces import Piece


@dataclass(frozen=True, slots=True, eq=False)
class GivenPoint:
    """A point to store, with its vectors.

    Attributes:
        piece: the span of its text in the request.
        vectors: its vectors; those of a kind that is not stored are left out.
    """

    piece: Piece
    vectors: Vectors


class VectorIngest:
    """The ingest of given vectors. Usable from any event loop.

    Args:
        store: access to the store.
        collections: the collections.
        kinds: kinds of vectors that the points have.
        model: model of the vectors; None if it is unknown.
        verify_model: whether a collection of another model, or of a model where that of the vectors is unknown, is
            refused.
        batch_points: maximum number of points, or ids, in one request to the store.

    Attributes:
        kinds: kinds of vectors that the points have.
    """

    def __init__(
        self,
        store: StoreAccess,
        collections: Collections,
        *,
        kinds: Sequence[Kind],
        model: ModelIdentity | None,
        verify_model: bool = True,
        batch_points: int = BATCH_MAX_POINTS,
    ) -> None:
        self._store = store
        self._collections = collections
        self.kinds = tuple(kinds)
        self._model = model
        self._verify_model = verify_model
        self._jobs = IngestJobs(store, collections, batch_points=batch_points)
        self._verified: set[str] = set()

    def check(self, request: IngestRequest) -> None:
        """Validate a request against the config of collections; see `IngestJobs.check`."""
        self._jobs.check(request)

    async def check_model(self, collection: str) -> None:
        """Check that a collection has vectors of the same model. One that does not exist passes.

        Raises:
            ModelMismatch: the collection has the vectors of another model, or of one where that of the vectors is
                unknown.
            StoreError: the store refuses or does not answer.
        """
        await self._store.patient_call(lambda: self._verify(collection))

    def planned(self, request: IngestRequest, points: Sequence[GivenPoint], *, is_chunked: bool = False) -> IngestPlan:
        """The points of a request for a new collection, and those that are rejected already. The store is not asked.

        The arguments are those of a call.

        Raises:
            InvalidRequest: the request is invalid.
        """
        self.check(request)
        name = self._collections.named(request.collection, f"{request.path}collection")
        return _planned(self._jobs.new(request, name, self.kinds), name, points, is_chunked=is_chunked)

    async def __call__(
        self, request: IngestRequest, points: Sequence[GivenPoint], *, is_chunked: bool = False
    ) -> IngestReport:
        """Store all points. Those whose id, payload or vectors are invalid are rejected one by one.

        Args:
            request: the texts, ids and payloads. Of its other fields, those that concern the model have no effect.
            points: the points, in the order of the texts.
            is_chunked: whether the texts are documents, and the points chunks of them.

        Raises:
            InvalidRequest: the request is invalid. No point is stored.
            IngestFailed: the job failed as a whole. Its report lists the points that are not stored.
        """
        self.check(request)
        name = self._collections.named(request.collection, f"{request.path}collection")
        guessed = self._jobs.guessed(request, name, self.kinds)
        plan = _planned(guessed, name, points, is_chunked=is_chunked)
        try:
            with self._store.ingest_slot() as slot:
                target = await slot.run(lambda: self._target(request, name), stage="store")
                if target.planning != guessed.planning:
                    plan = _planned(target, name, points, is_chunked=is_chunked)
                return await self._stored(slot, target, plan, points)
        except IngestFailed:
            raise
        except WorkerError as error:
            raise IngestFailed(error, nothing_stored(plan, error)) from error

    async def _stored(
        self, slot: IngestSlot, target: IngestTarget, plan: IngestPlan, points: Sequence[GivenPoint]
    ) -> IngestReport:
        colbert = target.schema.colbert
        colbert_type = "float32" if colbert is None else colbert.datatype
        vectors = [_of_kinds(point.vectors, target.request.vectors, colbert_type) for point in points]
        job = await slot.run(lambda: self._jobs.prepare(target, plan), stage="store")
        return await run_job(slot, job, lambda: job.from_vectors(vectors))

    def _target(self, request: IngestRequest, name: str) -> IngestTarget:
        target = self._jobs.target(request, name, self.kinds)
        if target.collection not in self._verified:
            self._verify(target.collection)
        return target

    def _verify(self, collection: str) -> None:
        """Compare the model of a collection with that of the vectors. Blocks for the store."""
        store = self._store.opened()
        resolved = store.collection_of(collection, patient=True)
        if resolved is None:
            return
        stored = store.describe(resolved).model
        if self._verify_model and stored is not None:
            _check_model(collection, stored, self._model)
        self._verified.add(resolved)


def _check_model(collection: str, stored: ModelIdentity, given: ModelIdentity | None) -> None:
    remedy = (
        "use another collection, or set verifyModel to false in QDRANT_COLLECTION_CONFIG if the vectors are those of "
        "one model"
    )
    if given is None:
        raise ModelMismatch(
            f"collection {collection!r} was made for the model {stored.shown!r}, and the files do not say whose "
            f"vectors they have; name it with --vectors-model, {remedy}",
            collection=collection,
            differences=[Difference("model", stored.shown, "unknown")],
        )
    if not stored.has_name_of(given):
        raise ModelMismatch(
            f"collection {collection!r} was made for the model {stored.shown!r}, and the files have vectors of "
            f"{given.shown!r}; {remedy}",
            collection=collection,
            differences=[Difference("model", stored.shown, given.shown)],
        )
    if None not in (stored.revision, given.revision) and stored.revision != given.revision:
        raise ModelMismatch(
            f"collection {collection!r} was made for revision {_short(stored)} of the model {stored.shown!r}, and the "
            f"files have vectors of revision {_short(given)}; {remedy}",
            collection=collection,
            differences=[Difference("revision", _short(stored), _short(given))],
        )


def _short(model: ModelIdentity) -> str:
    return (model.revision or "")[:12]


def _planned(target: IngestTarget, name: str, points: Sequence[GivenPoint], *, is_chunked: bool) -> IngestPlan:
    pieces = [point.piece for point in points]
    rows = [0 if point.vectors.colbert is None else len(point.vectors.colbert) for point in points]
    return IngestPlan.of_pieces(target.request, name, pieces, rows, schema=target.schema, is_chunked=is_chunked)


def _of_kinds(vectors: Vectors, kinds: Sequence[Kind], colbert_type: str) -> Vectors:
    """The vectors that are stored, with ColBERT in the type in which an ingest would have computed it."""
    colbert = vectors.colbert if "colbert" in kinds else None
    if colbert is not None and colbert_type == "float16":
        colbert = colbert.astype("float16", copy=False)
    return Vectors(
        dense=vectors.dense if "dense" in kinds else None,
        sparse=vectors.sparse if "sparse" in kinds else None,
        colbert=colbert,
    )

"""From embedded texts to stored points: where each goes, and an account of every one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from embedder.errors import Internal, InvalidRequest, NotFound, StoreUnavailable, WorkerError, whereabouts
from embedder.forward import Result
from embedder.vectors import Embedding
from qdrant_sink.points import Draft, PointId, is_derived, payload_for, point_id, text_id
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.store import Store
from qdrant_sink.writer import Rejection, UpsertReport, write
from service.requests import QdrantTarget
from service.responses import Json, upsert_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the texts of a job go.

    Attributes:
        collection: name of the collection.
        ids: one per text.
        payloads: one per text, with what the worker writes into it.
        insert_only: leave points that exist untouched.
    """

    collection: str
    ids: Sequence[PointId]
    payloads: Sequence[Json]
    insert_only: bool

    @classmethod
    def of(cls, texts: Sequence[str], target: QdrantTarget, collection: str) -> Destination:
        """Derive ids and payloads from a request.

        Raises:
            InvalidRequest: a caller's key collides with one that the worker writes.
        """
        ids: list[PointId] = []
        payloads: list[Json] = []
        for index, text in enumerate(texts):
            written: Json = {target.text_key: text}
            if target.ids is None:
                ids.append(text_id(text, collection))
            else:
                raw = target.ids[index]
                ids.append(point_id(raw, collection, field=f"qdrant.ids[{index}]"))
                if is_derived(raw):
                    if target.text_key == "id":
                        raise InvalidRequest("qdrant.textKey: 'id' keeps the caller's own ids; choose another key")
                    written["id"] = raw
            given = target.payloads[index] if target.payloads is not None else {}
            payloads.append(payload_for(given, written, field=f"qdrant.payloads[{index}]"))
        return cls(collection, ids, payloads, insert_only=target.mode == "insertOnly")


class Ingest:
    """Stores the texts of jobs. Blocking and thread-safe.

    Args:
        opened: gives the store, and opens it on first use.
        schema: of the collections that are written to.
    """

    def __init__(self, opened: Callable[[], Store], schema: CollectionSchema) -> None:
        self._opened = opened
        self._schema = schema
        self._ensured: set[str] = set()

    def verify(self, collection: str) -> None:
        """Check, once per collection, that it has the model's schema if it exists; creates nothing.

        Raises:
            StoreError: it has another, or the store does not answer.
        """
        if collection not in self._ensured and self._opened().verify(collection, self._schema):
            self._ensured.add(collection)

    def prepare(self, destination: Destination) -> None:
        """As `verify`, so that a job that cannot be stored fails before it is embedded.

        Raises:
            StoreError: `details["upsert"]` says that nothing is stored.
        """
        try:
            self.verify(destination.collection)
        except WorkerError as error:
            raise _accounted(error, destination.collection, _lost(error, range(len(destination.ids)))) from error

    def store(self, destination: Destination, results: Sequence[Result]) -> UpsertReport:
        """Store what the model produced; texts that it failed on are among the rejected.

        Raises:
            StoreError: the store gave out; `details["upsert"]` accounts for every text.
            Internal: the store raised what no store should; likewise.
        """
        drafts = [
            Draft(index, destination.ids[index], destination.payloads[index], result)
            for index, result in enumerate(results)
            if isinstance(result, Embedding)
        ]
        failed = tuple(
            Rejection(index, result.code, result.message)
            for index, result in enumerate(results)
            if not isinstance(result, Embedding)
        )
        try:
            report = self._written(destination, drafts)
        except Exception as error:
            if not isinstance(error, WorkerError):
                log.error("the store failed unexpectedly: %s", whereabouts(error))
            known = error if isinstance(error, WorkerError) else Internal(f"internal error ({type(error).__name__})")
            lost = _lost(known, [draft.index for draft in drafts])
            raise _accounted(known, destination.collection, _joined(lost, failed)) from error
        report = _joined(report, failed)
        unavailable = [one for one in report.rejected if one.code == StoreUnavailable.code]
        if unavailable:
            message = f"{len(unavailable)} of {report.submitted} points were not acknowledged: {unavailable[0].message}"
            raise _accounted(StoreUnavailable(message), destination.collection, report)
        return report

    def _ensure(self, collection: str) -> None:
        if collection not in self._ensured:
            self._opened().ensure(collection, self._schema)
            self._ensured.add(collection)

    def _written(self, destination: Destination, drafts: Sequence[Draft]) -> UpsertReport:
        self._ensure(destination.collection)
        report = self._write(destination, drafts)
        gone = {one.index for one in report.rejected if one.code == NotFound.code}
        if not gone:
            return report
        # Someone deleted the collection since it was ensured. Make it again, once, and store what it refused.
        self._ensured.discard(destination.collection)
        self._ensure(destination.collection)
        again = self._write(destination, [draft for draft in drafts if draft.index in gone])
        kept = [one for one in report.rejected if one.index not in gone]
        return UpsertReport(
            report.submitted,
            report.stored + again.stored,
            report.skipped + again.skipped,
            _by_index([*kept, *again.rejected]),
        )

    def _write(self, destination: Destination, drafts: Sequence[Draft]) -> UpsertReport:
        store, collection = self._opened(), destination.collection
        return write(store, collection, drafts, self._schema, insert_only=destination.insert_only)


def _lost(error: WorkerError, indices: Sequence[int]) -> UpsertReport:
    return UpsertReport(len(indices), 0, 0, tuple(Rejection(index, error.code, error.message) for index in indices))


def _joined(report: UpsertReport, failed: Sequence[Rejection]) -> UpsertReport:
    """The report with the texts that never became a point."""
    rejected = _by_index([*report.rejected, *failed])
    return UpsertReport(report.submitted + len(failed), report.stored, report.skipped, rejected)


def _by_index(rejected: Sequence[Rejection]) -> tuple[Rejection, ...]:
    return tuple(sorted(rejected, key=lambda one: one.index))


def _accounted(error: WorkerError, collection: str, report: UpsertReport) -> WorkerError:
    return type(error)(error.message, details={**error.details, "upsert": upsert_json(collection, report)})

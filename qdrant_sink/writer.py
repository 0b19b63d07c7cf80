"""Write the drafts of a job: prove each, batch by bytes, upsert, and account for every one of them.

    conform -> claims -> batches -> store -> report

A batch that the store refuses is split until the point at fault stands alone; its neighbours are stored.
When the store no longer answers, what was not acknowledged is reported so, and `stored + rejected ==
submitted` holds in every case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from embedder.errors import NotFound, StoreRejected, StoreUnavailable, WorkerError
from qdrant_sink.conformance import Refusal, conform
from qdrant_sink.points import Claim, Draft, Point, claims
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.store import Store

BATCH_BYTES = 4_000_000
"""Of one upsert. Small enough for the 32 MiB that REST takes after JSON has grown it about fivefold."""

BATCH_POINTS = 1000


@dataclass(frozen=True, slots=True)
class Rejection:
    """One point that is not stored, and why: a code of conformance or of an error, and its message."""

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class UpsertReport:
    """What became of a job's points; `stored + len(rejected) == submitted`.

    Attributes:
        submitted: drafts handed in.
        stored: of those, in the collection now; includes `skipped` and merged duplicates.
        skipped: of those stored, already there and left untouched (insert_only).
        rejected: the others, by ascending index.
    """

    submitted: int
    stored: int
    skipped: int
    rejected: tuple[Rejection, ...]


def write(
    store: Store,
    collection: str,
    drafts: Sequence[Draft],
    schema: CollectionSchema,
    *,
    insert_only: bool = False,
) -> UpsertReport:
    """Store the drafts in a collection that `store.ensure` has seen, and say what became of each.

    Blocking: call it in a thread. A draft's `index` is unique within `drafts`. Errors of the store end up
    in the report and are not raised; points that merged into another (`points.claims`) share its fate.
    """
    rejected: list[Rejection] = []
    proven: list[tuple[int, Point]] = []
    for draft in drafts:
        outcome = conform(draft, schema)
        if isinstance(outcome, Refusal):
            rejected.append(Rejection(outcome.index, outcome.code, outcome.message))
        else:
            proven.append((draft.index, outcome))
    claimed, duplicates = claims(proven)
    rejected += [Rejection(index, error.code, error.message) for index, error in duplicates]

    stored = skipped = 0
    failure: WorkerError | None = None
    for batch in _batches(claimed):
        if failure is not None:
            rejected += _reject(batch, failure)
            continue
        try:
            present = store.existing(collection, [c.point.id for c in batch]) if insert_only else set()
            there = sum(len(c.indices) for c in batch if c.point.id in present)
            stored, skipped = stored + there, skipped + there
            missing = [c for c in batch if c.point.id not in present]
        except (StoreUnavailable, NotFound, StoreRejected) as error:
            failure = error
            rejected += _reject(batch, error)
            continue
        done, lost, failure = _upsert(store, collection, missing, insert_only=insert_only)
        stored += done
        rejected += lost
    rejected.sort(key=lambda rejection: rejection.index)
    return UpsertReport(len(drafts), stored, skipped, tuple(rejected))


def _upsert(
    store: Store, collection: str, batch: Sequence[Claim], *, insert_only: bool
) -> tuple[int, list[Rejection], WorkerError | None]:
    """Positions stored, positions refused, and the error after which nothing more can be sent."""
    stored = 0
    rejected: list[Rejection] = []
    failure: WorkerError | None = None
    pending = [batch] if batch else []
    while pending:
        part = pending.pop()
        if failure is not None:
            rejected += _reject(part, failure)
            continue
        try:
            store.upsert(collection, [claim.point for claim in part], insert_only=insert_only)
        except StoreRejected as error:
            if len(part) == 1:
                rejected += _reject(part, error)
            else:
                middle = len(part) // 2
                pending += [part[middle:], part[:middle]]
        except (StoreUnavailable, NotFound) as error:
            failure = error
            rejected += _reject(part, error)
        else:
            stored += sum(len(claim.indices) for claim in part)
    return stored, rejected, failure


def _reject(batch: Sequence[Claim], error: WorkerError) -> list[Rejection]:
    return [Rejection(index, error.code, error.message) for claim in batch for index in claim.indices]


def _batches(claimed: Sequence[Claim]) -> Iterator[list[Claim]]:
    batch: list[Claim] = []
    size = 0
    for claim in claimed:
        nbytes = claim.point.nbytes
        if batch and (size + nbytes > BATCH_BYTES or len(batch) >= BATCH_POINTS):
            yield batch
            batch, size = [], 0
        batch.append(claim)
        size += nbytes
    if batch:
        yield batch

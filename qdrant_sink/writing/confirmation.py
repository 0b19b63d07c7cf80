"""Confirm that acknowledged points are still in the collection at the end of a job.

A collection can be deleted and created again while a job writes, by another client or by an operator. All later batches
are then acknowledged, too, and the earlier ones are gone. A point of each request tells, since a request is stored as a
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdrant_sink.points import PointId
from qdrant_sink.writing.batches import BATCH_MAX_POINTS
from qdrant_sink.writing.existing import Existing, existing_ids


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A batch of points that the store acknowledged.

    Attributes:
        points: id of each point and the indices in the job that it stands for.
        requests: number of requests in which the batch was sent.
    """

    points: Sequence[tuple[PointId, tuple[int, ...]]]
    requests: int


def missing_indices(
    store: Existing, collection: str, batches: Sequence[Acknowledged], *, batch_points: int = BATCH_MAX_POINTS
) -> set[int]:
    """Return the indices of acknowledged points that the collection no longer has. The call blocks.

    Raises:
        WorkerError: see the table in `qdrant_sink.store`.
    """
    whole = [batch for batch in batches if batch.requests == 1]
    samples = [batch.points[0][0] for batch in whole]
    present = existing_ids(store, collection, samples, batch_points=batch_points)
    suspects = [batch for batch in whole if batch.points[0][0] not in present]
    suspects += [batch for batch in batches if batch.requests > 1]
    ids = [point for batch in suspects for point, _ in batch.points]
    present |= existing_ids(store, collection, ids, batch_points=batch_points)
    return {index for batch in suspects for point, indices in batch.points if point not in present for index in indices}

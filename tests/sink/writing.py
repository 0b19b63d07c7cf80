"""Write a whole job, for tests that need stored points or a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from qdrant_sink.conformance import Refusal
from qdrant_sink.points import Draft
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.writing import BATCH_MAX_POINTS, IN_FLIGHT_MAX, Destination, Writer, WriteReport


def write(
    store: Destination,
    collection: str,
    drafts: Sequence[Draft],
    schema: CollectionSchema,
    *,
    insert_only: bool = False,
    merged: Mapping[int, tuple[int, ...]] | None = None,
    batch_points: int = BATCH_MAX_POINTS,
) -> WriteReport:
    """Write all drafts as one portion and return the report. The keywords are those of `Writer`.

    The collection must exist, and the ids must differ.
    """
    with ThreadPoolExecutor(IN_FLIGHT_MAX) as senders:
        writer = Writer(
            store, collection, schema, senders, insert_only=insert_only, merged=merged, batch_points=batch_points
        )
        return writer.write([drafts])


def causes(report: WriteReport) -> list[tuple[int, str]]:
    """Return the index and the cause of every rejected point: a code of conformance or the name of an error class."""
    return [
        (
            rejection.index,
            rejection.cause.code if isinstance(rejection.cause, Refusal) else type(rejection.cause).__name__,
        )
        for rejection in report.rejected
    ]

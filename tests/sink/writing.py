"""A whole job through the writer, for tests that need points in a collection or an account of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from qdrant_sink.points import Draft
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.store import Store
from qdrant_sink.writer import IN_FLIGHT, UpsertReport, Writer


def write(
    store: Store,
    collection: str,
    drafts: Sequence[Draft],
    schema: CollectionSchema,
    *,
    insert_only: bool = False,
    merged: Mapping[int, tuple[int, ...]] | None = None,
) -> UpsertReport:
    """Offer all drafts, run the writer, and say what became of each; `merged` as the writer takes it.

    The collection must be there, and the ids must differ.
    """
    with ThreadPoolExecutor(IN_FLIGHT) as senders:
        writer = Writer(store, collection, schema, senders, insert_only=insert_only, merged=merged)
        for draft in drafts:
            writer.offer(draft)
        writer.end()
        writer.run()
    submitted = sum(len((merged or {}).get(draft.index, (draft.index,))) for draft in drafts)
    return UpsertReport.of(submitted, writer.stored, [], writer.rejected)

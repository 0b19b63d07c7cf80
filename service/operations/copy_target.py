"""The check of a collection into which points are copied."""

from __future__ import annotations

from itertools import islice
from typing import Final

from qdrant_sink import Store, WithPayload
from qdrant_sink.copying import pages
from service.validation import invalid_field

SAMPLE_POINTS: Final = 64
"""Points of the collection of which at least one must be a copy."""


def target_exists(store: Store, into: str, source: Store, collection: str) -> bool:
    """Whether a collection exists that an earlier run has begun to copy into; False if it is to be created.

    Args:
        store: store of the new collection.
        into: name of the new collection.
        source: store of the old collection.
        collection: name of the old collection.

    Raises:
        InvalidRequest: the name is that of the old collection or of an alias, or the collection has other points.
        WorkerError: a store fails.
    """
    if into == collection and store is source:
        raise invalid_field("into", f"must be another collection, got {into!r}")
    existing = store.collection_of(into, patient=True)
    if existing is None:
        return False
    if existing != into:
        raise invalid_field("into", f"must not be an alias, got {into!r}; give another name")
    whole: WithPayload = True
    page = next(islice(pages(store, into, {}, whole, limit=SAMPLE_POINTS), 1), {})
    originals = source.fetch(collection, list(page), whole, (), patient=True)
    if page and not any(point in originals and originals[point].payload == page[point].payload for point in page):
        raise invalid_field(
            "into",
            f"must be a new collection or an unfinished copy, and none of the first {len(page)} points of {into!r} "
            f"is one of {collection!r}; give another name",
        )
    return True

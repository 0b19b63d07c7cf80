"""The loads into a collection that have not stored all their lines, and what must wait for their end."""

from __future__ import annotations

from collections.abc import Sequence

from qdrant_sink import Store
from qdrant_sink.loading import LoadRecord, in_force, lacking_lines, records_of
from service.operations.load_values import described
from service.validation import invalid_field


def check_loads_ended(store: Store, collection: str, field: str) -> None:
    """Check that no load into a collection is under way or was interrupted.

    Args:
        store: the store.
        collection: name of the collection.
        field: field of the request that names it.

    Raises:
        InvalidRequest: one is, or was.
    """
    _refuse([record for record in _records(store, collection) if not record.has_ended], collection, field)


def check_loads_complete(store: Store, collection: str, field: str) -> None:
    """Check that no line of the loads into a collection is missing, and that those in shards were compared.

    Args:
        store: the store.
        collection: name of the collection.
        field: field of the request that names it.

    Raises:
        InvalidRequest: lines are missing, or shards were not compared.
    """
    _refuse(incomplete_loads(store, collection), collection, field)


def incomplete_loads(store: Store, collection: str) -> Sequence[LoadRecord]:
    """The loads into a collection of which lines are missing, or whose shards were not compared."""
    return lacking_lines(_records(store, collection), finishing=False)


def _records(store: Store, collection: str) -> list[LoadRecord]:
    return in_force(records_of(store.metadata(collection)).values())


def _refuse(records: Sequence[LoadRecord], collection: str, field: str) -> None:
    if not records:
        return
    first = records[0]
    name = first.load if first.shard is None else first.shard.name_of(first.load)
    more = "" if len(records) == 1 else f" and {len(records) - 1} more"
    raise invalid_field(
        field,
        f"must have no load that is not finished, and {described(first)}{more} into {collection!r} is not; "
        f"run it to its end and bulk --finish, or give its lines up with bulk --finish --drop-load {name}",
    )

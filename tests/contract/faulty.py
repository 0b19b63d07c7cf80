"""Faults of the store: scripted calls of the server double, and a failing store in front of Qdrant Edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import grpc  # type: ignore[import-untyped,unused-ignore]

from qdrant_sink import (
    DOCUMENT_CHUNKS,
    DOCUMENT_KEY,
    DOCUMENT_VERSION,
    AccessDenied,
    Point,
    Store,
    StoreRejected,
    StoreUnavailable,
    chunk_id,
    new_version,
)
from tests.contract.steps import Fault
from tests.sink.grpc_double import GrpcDouble

RETRY_AFTER_S: Final = 7
"""The pause that a server with a limited rate asks for."""

REFUSED_ID: Final = 7
"""The point that `refuses 7` is about."""

_METHODS: Final = (
    "Get", "List", "Create", "Update", "UpdateAliases", "ListAliases", "CollectionExists", "Upsert", "Query",
    "QueryBatch", "Count", "Delete", "CreateFieldIndex", "Scroll",
)  # fmt: skip

_CODES: Final[Mapping[Fault, grpc.StatusCode]] = {
    "away": grpc.StatusCode.UNAVAILABLE,
    "busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "denied": grpc.StatusCode.PERMISSION_DENIED,
    "rejects": grpc.StatusCode.INVALID_ARGUMENT,
}

_ERRORS: Final[Mapping[Fault, Exception]] = {
    "away": StoreUnavailable("Qdrant does not answer: UNAVAILABLE"),
    "busy": StoreUnavailable("Qdrant limits the request rate", retry_after_s=float(RETRY_AFTER_S)),
    "denied": AccessDenied("Qdrant does not let the worker in: PERMISSION_DENIED"),
    "rejects": StoreRejected("Qdrant refused the request: INVALID_ARGUMENT"),
    "defect": LookupError("a defect of the store"),
}

_CALLS: Final = frozenset(
    {
        "ensure",
        "verify",
        "collection_of",
        "collections",
        "aliases",
        "describe",
        "description",
        "alias",
        "upsert",
        "existing",
        "fetch",
    }
    | {"scroll", "scroll_ordered", "query", "delete", "count"}
)


def script(double: GrpcDouble, fault: Fault) -> None:
    """Make every call of the double fail with this fault until its script is cleared."""
    if fault == "refuses 7":
        double.refused_ids.add(REFUSED_ID)
        return
    more = {"retry_after": RETRY_AFTER_S} if fault == "busy" else {}
    for method in _METHODS:
        double.fail(method, _CODES[fault], times=1_000_000, **more)


class FaultyStore:
    """A store that raises while it has a fault, and otherwise delegates every call.

    Args:
        store: the store that does the work.

    Attributes:
        fault: the current fault.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fault: Fault | None = None

    def close(self) -> None:
        """Do nothing: the stage closes the store, which outlives the operations."""

    def upsert(self, collection: str, points: Any, *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        if self.fault == "refuses 7":
            if any(point.id == REFUSED_ID for point in points):
                raise StoreRejected("Qdrant refused the request: INVALID_ARGUMENT")
        elif self.fault is not None and self.fault in _ERRORS:
            raise _ERRORS[self.fault]
        self._store.upsert(collection, points, insert_only=insert_only)
        if self.fault == "another writer":
            self._store.upsert(collection, [_in_a_later_version(points[0])])

    def __getattr__(self, name: str) -> Any:
        if self.fault is not None and self.fault in _ERRORS and name in _CALLS:
            raise _ERRORS[self.fault]
        return getattr(self._store, name)


def _in_a_later_version(chunk: Point) -> Point:
    """Return a document of one chunk that another worker stores meanwhile."""
    version = new_version(chunk.payload[DOCUMENT_VERSION])
    payload = {**chunk.payload, DOCUMENT_VERSION: version, DOCUMENT_CHUNKS: 1}
    return replace(chunk, id=chunk_id(chunk.payload[DOCUMENT_KEY], version, 0), payload=payload)

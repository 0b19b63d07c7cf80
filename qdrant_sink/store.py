"""The seam to the store: what the sink and the search ask of it, and nothing of how it answers.

Two implementations: `qdrant_sink.server.ServerStore` (a Qdrant server over gRPC) and
`qdrant_sink.edge.EdgeStore` (Qdrant Edge in process). Both are blocking and thread-safe: call them
from a worker thread. Vendor exceptions never pass this seam; every method raises only:

    StoreUnavailable   no answer, a time-out, a rate limit: the same call may succeed later
    StoreRejected      the content was refused: repeating it does not help
    NothingTaken       likewise, but whatever the content is: a smaller part of it is refused too
    NotFound           the collection does not exist (every method but `ensure`, and `verify`, which returns False)
    SchemaMismatch     ensure() and verify(): the collection exists with another schema
    InvalidRequest     a filter that is not Qdrant's, a deletion without ids or condition, a name
    ConfigurationError what takes a schema: this store cannot have it at all (its vector names, shards)

Every method takes an alias where it takes a collection, but for `alias` itself.

An empty question asks nothing, and needs no collection: `upsert` of no points, `existing` and `fetch` of no ids, and
`query` of searches that can find nothing (sparse alone, without weights) go nowhere and raise no NotFound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from embedder.errors import InvalidRequest
from embedder.vectors import Kind
from qdrant_sink.points import Point, PointId
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.search import Hit, Search, Stored, WithPayload

Filter = Mapping[str, Any]
"""A filter in Qdrant's own JSON form: {"must": [...], "should": [...], "must_not": [...]}."""

COLLECTION_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"
"""Of a collection in every store: it can be a directory, and a part of a URL."""


def check_collection(name: str) -> None:
    """Raise `InvalidRequest` unless `name` can be that of a collection in every store."""
    if not re.fullmatch(COLLECTION_NAME, name):
        raise InvalidRequest(f"collection: 1 to 128 of A-Z a-z 0-9 _ . - not starting with . or -, got {len(name)}")


class Store(Protocol):
    """A place that keeps conformant points and answers hybrid searches."""

    @property
    def label(self) -> str:
        """What a person is told about the store, without host or path: "Qdrant Edge (embedded)"."""
        ...

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """Create the collection with this schema, or verify field by field that it has it.

        Payload indexes that an existing collection lacks are created. Workers may do this at the same time.
        """
        ...

    def verify(self, collection: str, schema: CollectionSchema) -> bool:
        """Whether the collection exists with all that `ensure` would give it; creates nothing.

        False: `ensure` would create it, or a payload index. SchemaMismatch: it exists with another schema.
        """
        ...

    def defer_index(self, collection: str, schema: CollectionSchema) -> None:
        """Before a bulk load: build no HNSW graph while points arrive.

        Nothing is remembered but by the collection itself, so that `build_index` of any later process undoes it.
        """
        ...

    def build_index(self, collection: str, schema: CollectionSchema, *, timeout_s: float) -> None:
        """After a bulk load: build the graph as the schema has it; returns when the collection is ready.

        StoreUnavailable, naming its state, if it is not ready after `timeout_s` seconds.
        """
        ...

    def collection_of(self, name: str) -> str | None:
        """The collection that a name leads to: its own, that of an alias, or None if it is neither's."""
        ...

    def alias(self, alias: str, collection: str) -> None:
        """Point an alias at a collection; whoever uses the alias sees the one before or this one, never none.

        InvalidRequest: a collection has that name. NotFound: the collection does not exist.
        """
        ...

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Store all points, durable on return. With `insert_only`, points that exist stay untouched."""
        ...

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """Which of these ids are stored."""
        ...

    def query(self, collection: str, searches: Sequence[Search]) -> list[list[Hit]]:
        """Answer all searches: one list of hits per search, best first.

        One batch asks for all of them, several where `qdrant_sink.grouping` needs them: vectors that are too large for
        one request, or groups that are looked for deeper.
        """
        ...

    def fetch(
        self, collection: str, ids: Sequence[PointId], with_payload: WithPayload, with_vectors: Sequence[Kind]
    ) -> dict[PointId, Stored]:
        """What is asked for of these points, by id; those that are not stored are left out.

        `with_payload` as in `Search`; a payload that is not asked for is None.
        """
        ...

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """Delete by ids or by filter; returns how many points were there."""
        ...

    def count(self, collection: str, where: Filter | None = None) -> int:
        """The exact number of points that match."""
        ...

    def close(self) -> None:
        """Flush and release; calling it twice is harmless."""
        ...

"""The seam to Qdrant: what one Qdrant can do, with no policy.

Two implementations: `qdrant_sink.server.ServerStore` (a Qdrant server over gRPC) and
`qdrant_sink.edge.EdgeStore` (Qdrant Edge in process). Both are blocking and thread-safe: call them
from a worker thread. Vendor exceptions never pass this seam; every method raises only errors of
`embedder.errors` and `qdrant_sink.errors`:

    StoreUnavailable   no answer, a time-out, a rate limit: the same call may succeed later
    StoreRejected      the content was refused: repeating it does not help
    NothingTaken       any content is refused, a smaller part of it too
    AccessDenied       any call is refused: the credentials do not suffice
    NotFound           the collection does not exist (every method but `ensure` and `collection_of`, and `verify`, which
                       returns False)
    SchemaMismatch     ensure() and verify(): the collection exists with another schema
    InvalidRequest     an invalid filter or collection name, a deletion without ids or condition
    ConfigurationError methods with a schema: this store cannot have it at all (its vector names, shards)

Every method accepts an alias in place of a collection, except `alias` itself.

An empty question asks nothing, and needs no collection: `upsert` of no points, `existing` and `fetch` of no ids, and
`query` of no plans go nowhere and raise no NotFound.

Batches of queries, pages, groups and payloads of grouped hits are made above the seam, by `qdrant_sink.searching`;
batches of points by `qdrant_sink.writing`. Both ask for the part of the seam that they use.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol

from embedder.errors import InvalidRequest
from embedder.vectors import Kind
from qdrant_sink.filters import Filter
from qdrant_sink.points import Point, PointId, Stored, WithPayload
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.searching.plan import Hit, Plan

COLLECTION_NAME: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"
"""Pattern of a collection name in every store: it can be a directory, and a part of a URL."""


def check_collection(name: str) -> None:
    """Raise `InvalidRequest` unless `name` can be that of a collection in every store."""
    if not re.fullmatch(COLLECTION_NAME, name):
        raise InvalidRequest(f"collection: 1 to 128 of A-Z a-z 0-9 _ . - not starting with . or -, got {len(name)}")


class Store(Protocol):
    """Collections of conformant points that answer hybrid searches."""

    @property
    def label(self) -> str:
        """Name of the store for a person, without host or path: "Qdrant Edge (embedded)"."""
        ...

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """Create the collection with this schema, or verify field by field that it has it.

        Payload indexes that an existing collection lacks are created. Workers may do this concurrently.
        """
        ...

    def verify(self, collection: str, schema: CollectionSchema) -> bool:
        """Whether the collection exists with all that `ensure` would give it; creates nothing.

        False: `ensure` would create it, or a payload index. SchemaMismatch: it exists with another schema.
        """
        ...

    def defer_index(self, collection: str, schema: CollectionSchema) -> None:
        """Before a bulk load: build no HNSW graph while points arrive.

        Only the collection itself remembers it, so that `build_index` of any later process undoes it.
        """
        ...

    def build_index(self, collection: str, schema: CollectionSchema, *, timeout_s: float) -> None:
        """After a bulk load: build the graph as the schema has it; returns when the collection is ready.

        StoreUnavailable, naming its state, if it is not ready after `timeout_s` seconds.
        """
        ...

    def collection_of(self, name: str, *, patient: bool = False) -> str | None:
        """The collection that a name stands for: its own, that of an alias, or None for an unknown name.

        With `patient` a store that is away is waited for as long as for a write, otherwise as for a search.
        """
        ...

    def alias(self, alias: str, collection: str) -> None:
        """Point an alias at a collection, atomically: users of the alias see the previous collection or this one.

        InvalidRequest: a collection has that name. NotFound: the collection does not exist.
        """
        ...

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Store all points, durable on return. With `insert_only`, points that exist stay untouched."""
        ...

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """The ids among these that are stored."""
        ...

    def query(self, collection: str, plans: Sequence[Plan]) -> list[list[Hit]]:
        """The hits of each plan as the store returns them, in one request; their order is the store's own."""
        ...

    def fetch(
        self, collection: str, ids: Sequence[PointId], with_payload: WithPayload, with_vectors: Sequence[Kind]
    ) -> dict[PointId, Stored]:
        """The requested parts of these points, by id; missing points are left out.

        A payload that is not requested is None.
        """
        ...

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """Delete by ids or by filter; returns how many points existed."""
        ...

    def count(self, collection: str, where: Filter | None = None) -> int:
        """The exact number of points that match."""
        ...

    def close(self) -> None:
        """Flush and release; calling it twice is harmless."""
        ...

"""The `Store` protocol: the operations of a Qdrant, without any policy.

It has two implementations: `qdrant_sink.server.ServerStore` (a Qdrant server over gRPC) and
`qdrant_sink.edge.EdgeStore` (Qdrant Edge in this process). Both block and are thread-safe; call them from a worker
thread. Vendor exceptions do not escape: every method raises only errors of `embedder.errors` and `qdrant_sink.errors`:

    StoreUnavailable   no answer, a timeout or a rate limit: the same call may succeed later
    StoreRejected      the content was refused: repeating the call does not help
    IndexRequired      a filter needs a payload index that the collection lacks (strict mode of a server)
    LimitExceeded      a number of the request exceeds a limit of the server
    AnswerTooLarge     the answer of a server is larger than this side receives
    NothingTaken       every request is refused, a smaller one too
    AccessDenied       every call is refused, because the credentials do not suffice
    FeatureMissing     the server is too old for the request
    NotFound           the collection does not exist; not raised by `ensure`, `collection_of` and `verify`
    SchemaMismatch     the collection exists with another schema; raised by `ensure` and `verify`
    InvalidRequest     a filter or a collection name is invalid, or a deletion has neither ids nor a condition
    ConfigurationError the store cannot satisfy the schema (shards); raised by methods with a schema

A store knows no names of vectors. Schemas, points and plans carry them, so that every collection can have its own.

Every method accepts an alias in place of a collection, except `alias` itself and `drop`.

An empty request is not sent and needs no collection: `upsert` and `update_vectors` without points, `existing` and
`fetch` without ids, and `query` without plans return immediately and do not raise NotFound.

`qdrant_sink.searching` builds batches of queries, pages, groups and the payloads of grouped hits on top of this
protocol, and `qdrant_sink.writing` builds batches of points. Each declares the part of the protocol that it uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from embedder.errors import InvalidRequest
from embedder.vectors import Kind
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.filters import Filter
from qdrant_sink.point_order import PointOrder
from qdrant_sink.points import Point, PointId, Stored, WithPayload
from qdrant_sink.schema import NAMES, CollectionSchema, PayloadIndex, VectorNames
from qdrant_sink.schema_diff import CollectionDescription
from qdrant_sink.searching.plan import Hit, Plan

_NAME_EXCLUDES: Final = r'<>:"/\\|?*\x00-\x1f\x7f-\x9f\u2028\u2029'
"""Characters that no collection name has, in the syntax of a pattern: a server refuses them, or they break lines."""

COLLECTION_NAME: Final = (
    rf"^(?:[^.{_NAME_EXCLUDES}][^{_NAME_EXCLUDES}]{{0,254}}"
    rf"|\.[^.{_NAME_EXCLUDES}][^{_NAME_EXCLUDES}]{{0,253}}"
    rf"|\.\.[^{_NAME_EXCLUDES}]{{1,253}})$"
)
"""Pattern of a collection name, or an alias, in every store. `.` and `..` are the names of directories already."""

COLLECTION_NAME_RULE: Final = (
    'have 1 to 255 characters other than < > : " / \\ | ? *, control characters and line separators, and must not be '
    '"." or ".."'
)
"""The rule of `COLLECTION_NAME` in words, after "must"."""


Metadata = Mapping[str, Any]
"""Metadata of a collection: JSON values by key."""


def is_collection_name(name: str) -> bool:
    """Whether `name` is a valid collection name in every store. A lone surrogate is not valid Unicode."""
    is_unicode = not any("\ud800" <= character <= "\udfff" for character in name)
    return is_unicode and re.fullmatch(COLLECTION_NAME, name) is not None


def check_collection(name: str) -> None:
    """Raise `InvalidRequest` unless `name` is a valid collection name in every store."""
    if not is_collection_name(name):
        raise InvalidRequest(f"collection: a name must {COLLECTION_NAME_RULE}, got {len(name)} characters")


class Store(Protocol):
    """Collections of conformant points, which can be searched."""

    @property
    def label(self) -> str:
        """Human-readable name of the store without host or path, such as "Qdrant Edge (embedded)"."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether other processes can use the store at the same time."""
        ...

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """Create the collection with this schema, or verify every field of the existing one.

        A new collection has the model of the schema in its metadata, if the store keeps metadata. Payload indexes that
        an existing collection lacks are created. Several workers may call this concurrently.
        """
        ...

    def verify(
        self, collection: str, schema: CollectionSchema, description: CollectionDescription | None = None
    ) -> bool:
        """Whether the collection exists and `ensure` would have nothing to create. This method creates nothing.

        It returns False if the collection or a payload index is missing, and raises SchemaMismatch if the collection
        exists with another schema. A description that `description` has just returned saves the call to the store.
        """
        ...

    def ensure_index(self, collection: str, key: str, index: PayloadIndex) -> None:
        """Create a payload index unless the collection has one on this key.

        It raises SchemaMismatch if the existing index has another type, and StoreRejected or AccessDenied if the store
        does not allow another index.
        """
        ...

    def defer_index(self, collection: str, schema: CollectionSchema) -> None:
        """Defer the HNSW graph, so that a bulk load does not build it while points arrive.

        The collection itself stores this state, so that any later process can end it with `restore_index`.
        """
        ...

    def restore_index(self, collection: str, schema: CollectionSchema) -> None:
        """End what `defer_index` began: the store builds the graph of the schema from now on. It does not wait."""
        ...

    def build_index(self, collection: str, schema: CollectionSchema, *, timeout_s: float) -> None:
        """Build the graph after a bulk load unless it is deferred, and return when the collection is ready.

        It raises StoreUnavailable with the state of the collection if that is not ready after `timeout_s` seconds.
        """
        ...

    def metadata(self, collection: str) -> Metadata:
        """Return the metadata of a collection, which all programs that use the collection share."""
        ...

    def update_metadata(self, collection: str, changes: Metadata) -> None:
        """Set these keys of the metadata, and remove those whose value is None. Other keys are left unchanged.

        It raises FeatureMissing if the store keeps no metadata, and AccessDenied if the credentials do not allow it.
        """
        ...

    def collection_of(self, name: str, *, patient: bool = False) -> str | None:
        """Resolve a name to its collection: the name itself, the target of an alias, or None for an unknown name.

        With `patient`, the call is retried for as long as a write, otherwise for as long as a search.
        """
        ...

    def collections(self) -> list[str]:
        """Return the names of all collections that the credentials may see, in alphabetical order."""
        ...

    def aliases(self) -> dict[str, str]:
        """Return the collections of all aliases that the credentials may see, by alias in alphabetical order."""
        ...

    def describe(self, collection: str) -> CollectionState:
        """Return what the store holds under a name: vectors, payload indexes, number of points, status and model."""
        ...

    def description(self, collection: str) -> CollectionDescription:
        """Return the vectors and payload indexes of a collection. Unlike `describe`, this counts nothing."""
        ...

    def alias(self, alias: str, collection: str) -> None:
        """Point an alias at a collection atomically: users of the alias see either the previous collection or this one.

        It raises InvalidRequest if a collection has that name, and NotFound if the collection does not exist.
        """
        ...

    def drop(self, collection: str) -> None:
        """Delete a collection with all its points, and the aliases that lead to it.

        It raises InvalidRequest if the name is that of an alias.
        """
        ...

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Store all points; they are durable on return. With `insert_only`, existing points are left unchanged."""
        ...

    def add_vectors(self, collection: str, schema: CollectionSchema, kinds: Sequence[Kind]) -> None:
        """Add the vectors of these kinds that an existing collection lacks. No point has them at first.

        The settings of a vector without rows become those of the schema, so that an earlier call that was interrupted
        is completed. A vector with rows is verified. It raises SchemaMismatch if a vector of the name differs, and
        FeatureMissing if the store cannot add vectors.
        """
        ...

    def update_vectors(self, collection: str, points: Sequence[Point]) -> set[PointId]:
        """Set the vectors of existing points, and return the ids that do not exist; no point is created.

        Payloads and other vectors of the points are left unchanged. All vectors are durable on return.
        """
        ...

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """Return the subset of these ids that is stored."""
        ...

    def query(self, collection: str, plans: Sequence[Plan]) -> list[list[Hit]]:
        """Return the hits of each plan, with one request, in the order in which the store returns them."""
        ...

    def fetch(
        self,
        collection: str,
        ids: Sequence[PointId],
        with_payload: WithPayload,
        with_vectors: Sequence[Kind],
        *,
        names: VectorNames = NAMES,
        patient: bool = False,
    ) -> dict[PointId, Stored]:
        """Return the requested parts of these points by id. Missing points are left out.

        A payload that is not requested is None. `names` are the names of the vectors in the collection. With
        `patient`, the call is retried for as long as a write, otherwise for as long as a search.
        """
        ...

    def scroll(
        self,
        collection: str,
        where: Filter,
        with_payload: WithPayload,
        *,
        limit: int,
        after: PointId | None = None,
        interactive: bool = False,
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """Return a page of the matching points in the order of their ids.

        Args:
            collection: name of the collection.
            where: filter of the points.
            with_payload: part of the payload to return.
            limit: maximum number of points of the page.
            after: second result of the call for the previous page; None for the first page.
            interactive: whether the call is retried for as long as a search, otherwise for as long as a write.

        Returns:
            The points by id, and the id at which the next page begins; None for the last page.
        """
        ...

    def scroll_ordered(
        self, collection: str, where: Filter, order: PointOrder, *, limit: int
    ) -> list[tuple[PointId, float]]:
        """Return the ids of the first matching points of an order, each with the number that orders it.

        The number of a date is microseconds since 1970. Points of the same number come in any order, and a point with
        several values comes once for each; see `scrolling.ordered_page`. It raises StoreRejected if the key has no
        payload index of one of the types `ORDERED_TYPES`.
        """
        ...

    def set_payload(self, collection: str, ids: Sequence[PointId], path: str, value: Any) -> None:
        """Set one value in the payload of these points. The path leads through objects; see `payload_path`."""
        ...

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """Delete points by ids or by filter, and return how many of them existed."""
        ...

    def count(self, collection: str, where: Filter | None = None, *, patient: bool = False) -> int:
        """Return the exact number of matching points.

        With `patient`, the call is retried for as long as a write, otherwise for as long as a search.
        """
        ...

    def close(self) -> None:
        """Flush and close the store. Closing it twice is harmless."""
        ...

"""A Qdrant server or cluster behind the `Store` seam."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

from qdrant_client import QdrantClient, models
from qdrant_client import grpc as messages

from embedder.errors import InvalidRequest
from embedder.vectors import Kind
from qdrant_sink.filters import Filter, matches_all
from qdrant_sink.points import Point, PointId, Stored, WithPayload
from qdrant_sink.schema import NAMES, CollectionSchema, VectorNames
from qdrant_sink.searching.plan import Hit, Plan
from qdrant_sink.server.collections import ServerCollections
from qdrant_sink.server.connection import ServerConnection, Transport, unfinished
from qdrant_sink.server.models import (
    client_filter,
    client_id,
    hit,
    payload_selector,
    points_list,
    query_request,
    sink_id,
    stored,
)
from qdrant_sink.server.protobuf import upsert_request
from qdrant_sink.store import check_collection

T = TypeVar("T")


class ServerStore:
    """Collections on a server. Thread-safe; connects on the first call.

    Calls that fail for a passing reason are repeated, see `ServerConnection`. Repeating is harmless: every call
    leaves the same state when done twice.

    Args:
        url: `http://host:6333` or `https://…`, with a path prefix where a proxy wants one.
        api_key: sent with every call; never shown.
        prefer_grpc: use REST only where gRPC does not get through.
        grpc_port: where gRPC listens.
        timeout_s: whole seconds that one attempt may take.
        deadline_s: seconds after which no further attempt starts; three attempts that time out fit in.
        patience_s: the same for calls that someone waits for: `verify`, `collection_of` unless it is patient, `query`,
            `fetch` and `count`.
        names: of the vectors, in every collection.
        pause_s: the most seconds before the second attempt; later pauses are up to twice the one before.
        retried: called before each further attempt; must not raise.

    Raises:
        ConfigurationError: the URL is invalid.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        prefer_grpc: bool = True,
        grpc_port: int = 6334,
        timeout_s: int = 20,
        deadline_s: float = 70.0,
        patience_s: float = 10.0,
        names: VectorNames = NAMES,
        pause_s: float = 0.2,
        retried: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection = ServerConnection(
            url,
            api_key,
            prefer_grpc=prefer_grpc,
            grpc_port=grpc_port,
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            patience_s=patience_s,
            pause_s=pause_s,
            retried=retried,
        )
        self._call = self._connection.call
        self._names = names
        self._collections = ServerCollections(self._on_client, self._connection.pause, names)
        self._looks = ServerCollections(functools.partial(self._on_client, soon=True), self._connection.pause, names)

    @property
    def label(self) -> str:
        """Name of the store for a person."""
        over_grpc = self._connection.over_grpc
        if over_grpc is None:
            return "Qdrant server"
        return "Qdrant server (gRPC)" if over_grpc else "Qdrant server (REST)"

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """Create the collection, or verify it; one that another worker creates meanwhile is verified."""
        self._collections.ensure(collection, schema)

    def verify(self, collection: str, schema: CollectionSchema) -> bool:
        """Whether the collection has all that `ensure` would give it; raises SchemaMismatch."""
        return self._looks.verify(collection, schema)

    def defer_index(self, collection: str, schema: CollectionSchema) -> None:
        """Build no HNSW graph until `build_index` is called, by whatever process."""
        self._collections.defer_index(collection, schema)

    def build_index(self, collection: str, schema: CollectionSchema, *, timeout_s: float) -> None:
        """Build the graph as the schema has it; returns when the collection is green."""
        self._collections.build_index(collection, schema, timeout_s=timeout_s)

    def collection_of(self, name: str, *, patient: bool = False) -> str | None:
        """See `Store.collection_of`."""
        return (self._collections if patient else self._looks).collection_of(name)

    def alias(self, alias: str, collection: str) -> None:
        """Point an alias at a collection, atomically."""
        self._collections.alias(alias, collection)

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Store all points; returns when they are durable and searchable (wait=True)."""
        check_collection(collection)
        if not points:
            return

        @functools.cache  # once, not per attempt
        def request() -> bytes:
            return upsert_request(collection, points, insert_only=insert_only, names=self._names)

        def send(transport: Transport) -> None:
            if transport.over_grpc:
                done = self._connection.upsert(request()).status == messages.UpdateStatus.Completed
            else:
                mode = models.UpdateMode.INSERT_ONLY if insert_only else models.UpdateMode.UPSERT
                rows = points_list(points, self._names)
                result = transport.client.upsert(collection, rows, wait=True, update_mode=mode)
                done = result.status == models.UpdateStatus.COMPLETED
            if not done:
                raise unfinished("Qdrant took the points and has not stored them yet")

        self._call(collection, send)

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """The ids among these that are stored."""
        check_collection(collection)
        if not ids:
            return set()
        wanted = [client_id(point_id) for point_id in ids]
        records = self._call(
            collection,
            lambda transport: transport.client.retrieve(collection, wanted, with_payload=False, with_vectors=False),
        )
        return {sink_id(record.id) for record in records}

    def query(self, collection: str, plans: Sequence[Plan]) -> list[list[Hit]]:
        """The hits of each plan, in one request."""
        check_collection(collection)
        if not plans:
            return []
        requests = [query_request(plan, self._names) for plan in plans]
        answers = self._call(
            collection, lambda transport: transport.client.query_batch_points(collection, requests), soon=True
        )
        return [
            [hit(point, with_payload=plan.with_payload, names=self._names) for point in response.points]
            for plan, response in zip(plans, answers, strict=True)
        ]

    def fetch(
        self, collection: str, ids: Sequence[PointId], with_payload: WithPayload, with_vectors: Sequence[Kind]
    ) -> dict[PointId, Stored]:
        """The requested parts of these points, by id."""
        check_collection(collection)
        if not ids:
            return {}
        wanted = [client_id(point_id) for point_id in ids]
        names = [self._names.of(kind) for kind in with_vectors]
        selector = payload_selector(with_payload)
        records = self._call(
            collection,
            lambda transport: transport.client.retrieve(
                collection, wanted, with_payload=selector, with_vectors=names or False
            ),
            soon=True,
        )
        return {sink_id(record.id): stored(record, with_payload=with_payload, names=self._names) for record in records}

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """Delete by ids or by a filter with at least one condition; returns how many points existed.

        They are counted in a call of its own just before, so the number can be off by what others write in
        between.
        """
        check_collection(collection)
        if bool(ids) == (where is not None):
            raise InvalidRequest("delete: exactly one of ids and filter")
        selector: models.FilterSelector | models.PointIdsList
        if where is not None:
            selector = models.FilterSelector(filter=client_filter(where))
            if matches_all(where):
                raise InvalidRequest("filter: must have at least one condition to delete by, got none")
            existed = self.count(collection, where)
        else:
            selector = models.PointIdsList(points=[client_id(point_id) for point_id in ids])
            existed = len(self.existing(collection, ids))

        def send(transport: Transport) -> None:
            result = transport.client.delete(collection, selector, wait=True)
            if result.status != models.UpdateStatus.COMPLETED:
                raise unfinished("Qdrant took the deletion and has not done it yet")

        self._call(collection, send)
        return existed

    def count(self, collection: str, where: Filter | None = None) -> int:
        """The exact number of points that match."""
        check_collection(collection)
        condition = None if where is None else client_filter(where)
        result = self._call(
            collection, lambda transport: transport.client.count(collection, condition, exact=True), soon=True
        )
        return result.count

    def close(self) -> None:
        """Close the connection; calling it twice is harmless. Calls that wait for it end immediately."""
        self._connection.close()

    def _on_client(self, collection: str, call: Callable[[QdrantClient], T], *, soon: bool = False) -> T:
        return self._call(collection, lambda transport: call(transport.client), soon=soon)

"""A Qdrant server or cluster as a `Store`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from qdrant_client import QdrantClient, models
from qdrant_client import grpc as messages

from embedder.errors import ConfigurationError, InvalidRequest
from embedder.vectors import Kind
from qdrant_sink.address import ServerAddress, ServerUrl, TransportChoice
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.errors import PointMissing, StoreUnavailable
from qdrant_sink.filters import Filter, matches_all
from qdrant_sink.payload_path import PayloadPath
from qdrant_sink.point_order import PointOrder
from qdrant_sink.points import Point, PointId, Stored, WithPayload
from qdrant_sink.schema import NAMES, CollectionSchema, PayloadIndex, VectorNames
from qdrant_sink.schema_diff import CollectionDescription
from qdrant_sink.searching.plan import Hit, Plan
from qdrant_sink.server.added_vectors import AddedVectors
from qdrant_sink.server.collections import ServerCollections
from qdrant_sink.server.connection import ServerConnection, Transport, unfinished
from qdrant_sink.server.graph_warnings import GraphWarnings
from qdrant_sink.server.models import (
    client_filter,
    client_id,
    hit,
    order_by,
    payload_selector,
    point_vectors,
    points_list,
    query_request,
    sink_id,
    stored,
)
from qdrant_sink.server.protobuf import update_vectors_request, upsert_request
from qdrant_sink.server.versions import (
    ADD_VECTORS,
    INSERT_ONLY,
    METADATA,
    Feature,
    ServerVersion,
    filter_features,
    plan_features,
)
from qdrant_sink.store import Metadata, check_collection

T = TypeVar("T")

UPDATES_MAX: Final = 10
"""Maximum number of attempts to set vectors of points of which some are deleted meanwhile."""

REBUILDING_TIMEOUT_S: Final = 3600.0
"""Time in seconds that a server may take to rebuild a collection whose vectors have new settings."""


def address_of(url: str | ServerUrl, transport: TransportChoice, grpc_port: int | None) -> ServerAddress:
    """The ports of a server, and which of them are used.

    Raises:
        ConfigurationError: the URL is invalid, or the port of gRPC is needed and unknown.
    """
    try:
        parsed = url if isinstance(url, ServerUrl) else ServerUrl.parse(url)
        return ServerAddress.of(parsed, transport, grpc_port)
    except ValueError as error:
        raise ConfigurationError(f"QDRANT_URL: {error}") from None


class ServerStore:
    """Collections on a server. The store is thread-safe and connects on the first call.

    Calls that fail with a transient fault are retried; see `ServerConnection`. All calls are idempotent.

    Args:
        url: `http://host:6333` or `https://…`, with a path prefix if a proxy needs one.
        api_key: API key, which is sent with every call and never logged.
        transport: `auto`, `grpc` or `rest`; see `qdrant_sink.address`.
        grpc_port: port of gRPC; None for 6334 if the URL names port 6333 or no port, and for REST if it names another.
        timeout_s: timeout of one attempt in whole seconds.
        deadline_s: seconds after which no further attempt starts. The default allows for three timeouts.
        interactive_deadline_s: deadline and timeout of calls on which a user waits: `verify`, `query`, `fetch`,
            `count`, and `collection_of` unless it is patient.
        pause_s: maximum pause before the second attempt in seconds. It doubles with every further attempt.
        retried: callback before each further attempt; it must not raise.

    Raises:
        ConfigurationError: the URL is invalid, or the port of gRPC is needed and unknown.
    """

    def __init__(
        self,
        url: str | ServerUrl,
        api_key: str | None = None,
        *,
        transport: TransportChoice = "auto",
        grpc_port: int | None = None,
        timeout_s: int = 20,
        deadline_s: float = 70.0,
        interactive_deadline_s: float = 10.0,
        pause_s: float = 0.2,
        retried: Callable[[], None] = lambda: None,
    ) -> None:
        address = address_of(url, transport, grpc_port)
        self._connection = ServerConnection(
            address,
            api_key,
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            interactive_deadline_s=interactive_deadline_s,
            pause_s=pause_s,
            retried=retried,
        )
        self._call = self._connection.call
        self._version = ServerVersion()
        self._warnings = GraphWarnings()
        self._collections = ServerCollections(self._on_client, self._connection.pause, self._warnings)
        self._added = AddedVectors(self._on_client)
        self._interactive_collections = ServerCollections(
            functools.partial(self._on_client, interactive=True), self._connection.pause, self._warnings
        )

    @property
    def label(self) -> str:
        """Human-readable name of the store."""
        over_grpc = self._connection.over_grpc
        if over_grpc is None:
            return "Qdrant server"
        return "Qdrant server (gRPC)" if over_grpc else "Qdrant server (REST)"

    @property
    def is_shared(self) -> bool:
        """True: any number of processes can use a server."""
        return True

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """Create or verify the collection. A collection that another worker creates concurrently is verified."""
        self._collections.ensure(collection, schema)

    def verify(
        self, collection: str, schema: CollectionSchema, description: CollectionDescription | None = None
    ) -> bool:
        """Whether `ensure` would have nothing to create. Raises SchemaMismatch; see `Store.verify`."""
        return self._interactive_collections.verify(collection, schema, description)

    def ensure_index(self, collection: str, key: str, index: PayloadIndex) -> None:
        """Create a payload index unless the collection has one on this key."""
        self._collections.ensure_index(collection, key, index)

    def defer_index(self, collection: str, schema: CollectionSchema) -> None:
        """Defer the HNSW graph until any process calls `restore_index`."""
        self._collections.defer_index(collection, schema)

    def restore_index(self, collection: str, schema: CollectionSchema) -> None:
        """Let the server build the graph of the schema, if it was deferred."""
        self._collections.restore_index(collection, schema)

    def build_index(self, collection: str, schema: CollectionSchema, *, timeout_s: float) -> None:  # noqa: ARG002
        """Return when the collection is green: the server builds the graph by itself."""
        self._collections.wait_until_green(collection, timeout_s=timeout_s)

    def metadata(self, collection: str) -> Metadata:
        """Return the metadata of a collection; empty before Qdrant 1.16."""
        return self._collections.metadata(collection)

    def update_metadata(self, collection: str, changes: Metadata) -> None:
        """Set keys of the metadata, or remove them; see `Store.update_metadata`."""
        self._require(collection, [METADATA], interactive=False)
        self._collections.update_metadata(collection, changes)

    def collection_of(self, name: str, *, patient: bool = False) -> str | None:
        """See `Store.collection_of`."""
        return (self._collections if patient else self._interactive_collections).collection_of(name)

    def collections(self) -> list[str]:
        """Return the names of all collections that the API key may see."""
        return self._interactive_collections.names()

    def aliases(self) -> dict[str, str]:
        """Return the collections of all aliases that the API key may see, by alias."""
        return self._interactive_collections.aliases()

    def describe(self, collection: str) -> CollectionState:
        """Return the server's info of a collection."""
        return self._interactive_collections.describe(collection)

    def description(self, collection: str) -> CollectionDescription:
        """Return the vectors and payload indexes of a collection."""
        return self._interactive_collections.description(collection)

    def alias(self, alias: str, collection: str) -> None:
        """Point an alias at a collection atomically."""
        self._collections.alias(alias, collection)

    def drop(self, collection: str) -> None:
        """Delete a collection with all its points, and the aliases that lead to it."""
        self._collections.drop(collection)

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Store all points, and return when they are durable and searchable (wait=True)."""
        check_collection(collection)
        if not points:
            return
        if insert_only:
            self._require(collection, [INSERT_ONLY], interactive=False)

        @functools.cache  # serialise once and not per attempt
        def request() -> bytes:
            return upsert_request(collection, points, insert_only=insert_only)

        def send(transport: Transport) -> None:
            if transport.over_grpc:
                completed = self._connection.upsert(request()).status == messages.UpdateStatus.Completed
            else:
                mode = models.UpdateMode.INSERT_ONLY if insert_only else models.UpdateMode.UPSERT
                result = transport.client.upsert(collection, points_list(points), wait=True, update_mode=mode)
                completed = result.status == models.UpdateStatus.COMPLETED
            if not completed:
                raise unfinished("Qdrant accepted the points but has not stored them yet; retry later")

        self._call(collection, send)

    def add_vectors(self, collection: str, schema: CollectionSchema, kinds: Sequence[Kind]) -> None:
        """Add the vectors of these kinds that the collection lacks; see `Store.add_vectors`."""
        if self._added.missing(collection, schema, kinds):
            self._require(collection, [ADD_VECTORS], interactive=False)
        if self._added.add(collection, schema, kinds):
            # Qdrant 1.18.3 mixes up rows that are written during the rebuilding if it is killed soon after.
            self._collections.wait_until_green(collection, timeout_s=REBUILDING_TIMEOUT_S)

    def update_vectors(self, collection: str, points: Sequence[Point]) -> set[PointId]:
        """Set the vectors of existing points, and return the ids that do not exist."""
        check_collection(collection)
        remaining = {point.id: point for point in points}
        missing: set[PointId] = set()
        for _ in range(UPDATES_MAX):
            if not remaining:
                return missing
            try:
                self._update_vectors(collection, list(remaining.values()))
            except PointMissing:  # other points may be written, and are written again
                missing |= remaining.keys() - self.existing(collection, list(remaining))
                remaining = {point: vectors for point, vectors in remaining.items() if point not in missing}
            else:
                return missing
        raise StoreUnavailable(f"points of collection {collection!r} are being deleted; retry later")

    def _update_vectors(self, collection: str, points: Sequence[Point]) -> None:
        @functools.cache  # serialise once and not per attempt
        def request() -> bytes:
            return update_vectors_request(collection, points)

        def send(transport: Transport) -> None:
            if transport.over_grpc:
                completed = self._connection.update_vectors(request()).status == messages.UpdateStatus.Completed
            else:
                result = transport.client.update_vectors(collection, point_vectors(points), wait=True)
                completed = result.status == models.UpdateStatus.COMPLETED
            if not completed:
                raise unfinished("Qdrant accepted the vectors but has not stored them yet; retry later")

        self._call(collection, send)

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """Return the subset of these ids that is stored."""
        check_collection(collection)
        if not ids:
            return set()
        client_ids = [client_id(point_id) for point_id in ids]
        records = self._call(
            collection,
            lambda transport: transport.client.retrieve(collection, client_ids, with_payload=False, with_vectors=False),
        )
        return {sink_id(record.id) for record in records}

    def query(self, collection: str, plans: Sequence[Plan]) -> list[list[Hit]]:
        """Return the hits of each plan, with one request."""
        check_collection(collection)
        if not plans:
            return []
        self._warnings.searched(collection)
        requests = [query_request(plan) for plan in plans]
        self._require(collection, plan_features(plans))

        def send(transport: Transport) -> list[models.QueryResponse]:
            answers = transport.client.query_batch_points(collection, requests)
            if len(answers) != len(requests):  # while the collection is being created
                raise unfinished(f"Qdrant answered {len(answers)} of {len(requests)} queries; retry later")
            return answers

        answers = self._call(collection, send, interactive=True)
        return [
            [hit(point, with_payload=plan.with_payload, names=plan.names) for point in response.points]
            for plan, response in zip(plans, answers, strict=True)
        ]

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
        """Return the requested parts of these points by id."""
        check_collection(collection)
        if not ids:
            return {}
        client_ids = [client_id(point_id) for point_id in ids]
        vectors = [names.of(kind) for kind in with_vectors] or False
        selector = payload_selector(with_payload)
        records = self._call(
            collection,
            lambda transport: transport.client.retrieve(
                collection, client_ids, with_payload=selector, with_vectors=vectors
            ),
            interactive=not patient,
        )
        return {sink_id(record.id): stored(record, with_payload=with_payload, names=names) for record in records}

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
        """Return a page of the matching points in the order of their ids; see `Store.scroll`."""
        check_collection(collection)
        condition, selector = client_filter(where), payload_selector(with_payload)
        offset = None if after is None else client_id(after)
        self._require(collection, filter_features(where), interactive=interactive)
        records, following = self._call(
            collection,
            lambda transport: transport.client.scroll(
                collection, condition, limit=limit, offset=offset, with_payload=selector, with_vectors=False
            ),
            interactive=interactive,
        )
        page = {sink_id(record.id): stored(record, with_payload=with_payload) for record in records}
        return page, None if following is None else _next_id(following)

    def scroll_ordered(
        self, collection: str, where: Filter, order: PointOrder, *, limit: int
    ) -> list[tuple[PointId, float]]:
        """Return the ids of the first matching points of an order, each with the number that orders it."""
        check_collection(collection)
        condition, by = client_filter(where), order_by(order)
        self._require(collection, filter_features(where))
        records, _ = self._call(
            collection,
            lambda transport: transport.client.scroll(
                collection, condition, limit=limit, order_by=by, with_payload=False, with_vectors=False
            ),
            interactive=True,
        )
        return [(sink_id(record.id), record.order_value) for record in records if record.order_value is not None]

    def set_payload(self, collection: str, ids: Sequence[PointId], path: str, value: Any) -> None:
        """Set one value in the payload of these points."""
        check_collection(collection)
        target = PayloadPath.parse(path)
        parent = None if target.parent is None else str(target.parent)
        points: list[models.ExtendedPointId] = [client_id(point_id) for point_id in ids]

        def send(transport: Transport) -> None:
            result = transport.client.set_payload(
                collection, {str(target.parts[-1]): value}, points, key=parent, wait=True
            )
            if result.status != models.UpdateStatus.COMPLETED:
                raise unfinished("Qdrant accepted the payload but has not stored it yet; retry later")

        self._call(collection, send)

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """Delete points by ids or by a filter with at least one condition, and return how many of them existed.

        The points are counted by a separate call before the deletion, so that concurrent writes can make the number
        inexact.
        """
        check_collection(collection)
        if bool(ids) == (where is not None):
            raise InvalidRequest(f"delete: must have exactly one of ids and filter, got {'both' if ids else 'neither'}")
        selector: models.FilterSelector | models.PointIdsList
        if where is not None:
            selector = models.FilterSelector(filter=client_filter(where))
            if matches_all(where):
                raise InvalidRequest("filter: must have at least one condition to delete by, got none")
            existed = self.count(collection, where)  # which also checks that the server knows each condition
        else:
            selector = models.PointIdsList(points=[client_id(point_id) for point_id in ids])
            existed = len(self.existing(collection, ids))

        def send(transport: Transport) -> None:
            result = transport.client.delete(collection, selector, wait=True)
            if result.status != models.UpdateStatus.COMPLETED:
                raise unfinished("Qdrant accepted the deletion but has not applied it yet; retry later")

        self._call(collection, send)
        return existed

    def count(self, collection: str, where: Filter | None = None, *, patient: bool = False) -> int:
        """Return the exact number of matching points."""
        check_collection(collection)
        condition = None if where is None else client_filter(where)
        self._require(collection, filter_features(where), interactive=not patient)
        result = self._call(
            collection,
            lambda transport: transport.client.count(collection, condition, exact=True),
            interactive=not patient,
        )
        return result.count

    def close(self) -> None:
        """Close the connection. Waiting calls end immediately. Closing it twice is harmless."""
        self._connection.close()

    def _require(self, collection: str, features: Iterable[Feature], *, interactive: bool = True) -> None:
        """Check that the server is new enough; see `ServerVersion.require`."""
        self._version.require(
            lambda: self._on_client(collection, lambda client: client.info().version, interactive=interactive), features
        )

    def _on_client(self, collection: str, call: Callable[[QdrantClient], T], *, interactive: bool = False) -> T:
        return self._call(collection, lambda transport: call(transport.client), interactive=interactive)


def _next_id(following: Any) -> PointId:
    """Convert the offset of the next page. Over gRPC the client returns the message of the id."""
    if isinstance(following, messages.PointId):
        return following.num if following.HasField("num") else sink_id(following.uuid)
    return sink_id(following)

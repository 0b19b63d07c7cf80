"""A Qdrant server or cluster behind the `Store` seam: gRPC, or REST where gRPC does not get through.

REST goes to the port of the URL, 6333 where it has none; gRPC to `grpc_port`, 6334 unless it is given. With
`prefer_grpc` the first call asks the gRPC port; where that does not answer and REST does (a proxy that
passes only HTTP), REST is used from then on, with a warning: it is several times slower for ColBERT. Calls
that come meanwhile wait for the same answer.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped,unused-ignore]
import tenacity
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as messages
from qdrant_client.connection import get_channel
from qdrant_client.http.exceptions import UnexpectedResponse

from embedder.errors import (
    ConfigurationError,
    InvalidRequest,
    StoreUnavailable,
    WorkerError,
)
from embedder.vectors import Kind
from qdrant_sink.client_models import (
    client_filter,
    client_id,
    hit,
    payload_selector,
    points_list,
    query_request,
    sink_id,
    stored,
)
from qdrant_sink.faults import RAISED_BY_CLIENT, Fault, fault_of
from qdrant_sink.filters import matches_all
from qdrant_sink.grouping import answer
from qdrant_sink.points import Point, PointId
from qdrant_sink.protobuf import upsert_request
from qdrant_sink.schema import NAMES, CollectionSchema, VectorNames
from qdrant_sink.search import Hit, Plan, Search, Stored, WithPayload
from qdrant_sink.server_collections import ServerCollections
from qdrant_sink.store import Filter, check_collection

T = TypeVar("T")

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S: Final = 5
"""For the first answer of the gRPC port."""

_NO_GRPC: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
_LONGEST_PAUSE_S: Final = 8
_RECONNECT: Final = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 2_000}
"""While a channel waits to connect again its calls fail at once. By default it comes to wait 120 s, six times
the deadline of a call: a server that is back would go unnoticed for job after job."""


@dataclass(frozen=True, slots=True)
class _Connection:
    client: QdrantClient
    over_grpc: bool


class _FaultError(Exception):
    """Carries a fault to the retry loop, which unwraps it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.error.message)
        self.fault = fault


def _unfinished(message: str) -> _FaultError:
    """Of what waits in the server's queue: the same call again waits behind it and changes nothing, insert_only too."""
    return _FaultError(Fault(StoreUnavailable(message), retry=True))


class ServerStore:
    """Collections on a server. Thread-safe; connects on the first call.

    A call that fails for a passing reason is repeated with growing pauses, or after as long as the server
    asks, until `deadline_s` would be over; then it raises. What is retried and how faults are read is the
    table in `qdrant_sink.faults`. Repeating is harmless: every call leaves the same state when done twice.

    Args:
        url: `http://host:6333` or `https://…`, with a path prefix where a proxy wants one.
        api_key: sent with every call; never shown.
        prefer_grpc: see the module.
        grpc_port: where gRPC listens.
        timeout_s: whole seconds that one attempt may take.
        deadline_s: seconds after which no further attempt starts; three attempts that time out fit in.
        patience_s: likewise of what someone waits for: `verify`, `query`, `fetch` and `count`.
        names: of the vectors, in every collection.
        pause_s: the most seconds before the second attempt; later pauses are up to twice the one before.
        retried: called before each further attempt; must not raise.

    Raises:
        ConfigurationError: the URL is none.
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
        self._new_client = functools.partial(
            QdrantClient,
            url=url,
            api_key=api_key,
            grpc_port=grpc_port,
            timeout=timeout_s,
            check_compatibility=False,
        )
        try:
            if not url.startswith(("http://", "https://")):
                raise ValueError("no scheme")
            client = self._new_client(prefer_grpc=prefer_grpc, grpc_options=dict(_RECONNECT))  # it writes into them
            self._first = _Connection(client, prefer_grpc)
        except ValueError as exc:
            raise ConfigurationError("QDRANT_URL: must be http://host:port or https://host:port") from exc
        # A channel of its own: the client's stub would parse the bytes of a request and write them out again.
        self._channel = get_channel(
            host=urlsplit(url).hostname or "",
            port=grpc_port,
            ssl=url.startswith("https://"),
            metadata=[] if api_key is None else [("api-key", api_key)],
            options=dict(_RECONNECT),
        )
        # Made here and not by the first call, so that `close` finds the client's channels whenever it comes.
        self._exists = client.grpc_collections.CollectionExists if prefer_grpc else None
        self._send = self._channel.unary_unary(
            "/qdrant.Points/Upsert", response_deserializer=messages.PointsOperationResponse.FromString
        )
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._patience_s = min(patience_s, deadline_s)
        self._retried = retried
        self._back_off = tenacity.wait_random_exponential(multiplier=pause_s, max=_LONGEST_PAUSE_S)
        self._guard = threading.Lock()  # of the next two; never held while the server is asked
        self._connecting: Future[_Connection] | None = None
        self._closed = threading.Event()
        self._names = names
        self._collections = ServerCollections(self._on_client, self._closed.wait, names)
        self._looks = ServerCollections(functools.partial(self._on_client, soon=True), self._closed.wait, names)

    @property
    def label(self) -> str:
        """What a person is told about the store."""
        connection = self._connected()
        if connection is None:
            return "Qdrant server"
        return "Qdrant server (gRPC)" if connection.over_grpc else "Qdrant server (REST)"

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

    def collection_of(self, name: str) -> str | None:
        """See `Store.collection_of`."""
        return self._collections.collection_of(name)

    def alias(self, alias: str, collection: str) -> None:
        """Point an alias at a collection, in one step for everybody who uses it."""
        self._collections.alias(alias, collection)

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Store all points; returns when they are durable and searchable (wait=True)."""
        check_collection(collection)
        if not points:
            return

        @functools.cache  # once, not per attempt
        def request() -> bytes:
            return upsert_request(collection, points, insert_only=insert_only, names=self._names)

        def send(connection: _Connection) -> None:
            if connection.over_grpc:
                status = self._send(request(), timeout=self._timeout_s).result.status
                done = status == messages.UpdateStatus.Completed
            else:
                mode = models.UpdateMode.INSERT_ONLY if insert_only else models.UpdateMode.UPSERT
                rows = points_list(points, self._names)
                result = connection.client.upsert(collection, rows, wait=True, update_mode=mode)
                done = result.status == models.UpdateStatus.COMPLETED
            if not done:
                raise _unfinished("Qdrant took the points and has not stored them yet")

        self._call(collection, send)

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """Which of these ids are stored."""
        check_collection(collection)
        if not ids:
            return set()
        wanted = [client_id(point_id) for point_id in ids]
        found = self._call(
            collection,
            lambda c: c.client.retrieve(collection, wanted, with_payload=False, with_vectors=False),
        )
        return {sink_id(record.id) for record in found}

    def query(self, collection: str, searches: Sequence[Search]) -> list[list[Hit]]:
        """Answer all searches, in one request unless they are large or grouped; hits per search, best first."""
        check_collection(collection)

        def ask(plans: Sequence[Plan]) -> list[list[Hit]]:
            requests = [query_request(planned, self._names) for planned in plans]
            answers = self._call(collection, lambda c: c.client.query_batch_points(collection, requests), soon=True)
            return [
                [hit(scored, with_payload=planned.with_payload, names=self._names) for scored in response.points]
                for planned, response in zip(plans, answers, strict=True)
            ]

        return answer(searches, ask, lambda ids, payload, kinds: self.fetch(collection, ids, payload, kinds))

    def fetch(
        self, collection: str, ids: Sequence[PointId], with_payload: WithPayload, with_vectors: Sequence[Kind]
    ) -> dict[PointId, Stored]:
        """What is asked for of these points, by id."""
        check_collection(collection)
        if not ids:
            return {}
        wanted = [client_id(point_id) for point_id in ids]
        names = [self._names.of(kind) for kind in with_vectors]
        selector = payload_selector(with_payload)
        found = self._call(
            collection,
            lambda c: c.client.retrieve(collection, wanted, with_payload=selector, with_vectors=names or False),
            soon=True,
        )
        return {sink_id(record.id): stored(record, with_payload=with_payload, names=self._names) for record in found}

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """Delete by ids or by a filter with at least one condition; returns how many points were there.

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
            there = self.count(collection, where)
        else:
            selector = models.PointIdsList(points=[client_id(point_id) for point_id in ids])
            there = len(self.existing(collection, ids))

        def send(connection: _Connection) -> None:
            result = connection.client.delete(collection, selector, wait=True)
            if result.status != models.UpdateStatus.COMPLETED:
                raise _unfinished("Qdrant took the deletion and has not done it yet")

        self._call(collection, send)
        return there

    def count(self, collection: str, where: Filter | None = None) -> int:
        """The exact number of points that match."""
        check_collection(collection)
        condition = None if where is None else client_filter(where)
        return self._call(collection, lambda c: c.client.count(collection, condition, exact=True), soon=True).count

    def close(self) -> None:
        """Close the connections; calling it twice is harmless. Calls that wait for the first connection end at once."""
        with self._guard:
            if self._closed.is_set():
                return
            self._closed.set()
            if self._connecting is not None:
                self._connecting.cancel()
        for connection in {id(c): c for c in (self._first, self._connected()) if c}.values():
            connection.client.close()
        self._channel.close()

    def _on_client(self, collection: str, call: Callable[[QdrantClient], T], *, soon: bool = False) -> T:
        return self._call(collection, lambda connection: call(connection.client), soon=soon)

    def _call(self, collection: str, call: Callable[[_Connection], T], *, soon: bool = False) -> T:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            wait=self._pause,
            stop=tenacity.stop_before_delay(self._patience_s if soon else self._deadline_s),
            before_sleep=self._report,
            sleep=tenacity.sleep_using_event(self._closed),
            reraise=True,
        )
        try:
            result: T = retrying(self._attempt, collection, call)
        except _FaultError as fault:
            raise fault.fault.error from fault.__cause__
        return result

    def _report(self, state: tenacity.RetryCallState) -> None:
        fault = _fault(state)
        if fault is not None:
            log.warning(
                "%s; attempt %d, next in %.1f s", fault.error.message, state.attempt_number, state.upcoming_sleep
            )
            self._retried()

    def _pause(self, state: tenacity.RetryCallState) -> float:
        fault = _fault(state)
        return max(self._back_off(state), (fault and fault.retry_after_s) or 0.0)

    def _attempt(self, collection: str, call: Callable[[_Connection], T]) -> T:
        try:
            return call(self._connection(collection))
        except WorkerError:
            raise
        except RAISED_BY_CLIENT as exc:
            if self._closed.is_set():
                raise StoreUnavailable("the store is closed") from exc
            raise _FaultError(fault_of(exc, collection)) from exc

    def _connection(self, collection: str) -> _Connection:
        """The connection; where there is none yet, of all calls at once one asks the server and the others wait.

        Raises:
            StoreUnavailable: the store is closed, or is while this waits.
            Exception: one of `RAISED_BY_CLIENT`: the server did not answer. The next call asks again.
        """
        with self._guard:
            if self._closed.is_set():
                raise StoreUnavailable("the store is closed")
            connecting = self._connecting
            if connecting is None:
                connecting = Future()
                # A thread of its own: `close` frees the callers, and nothing interrupts a request over REST.
                args = (connecting, collection)
                threading.Thread(target=self._connect, args=args, name="connect", daemon=True).start()
                self._connecting = connecting
        try:
            return connecting.result()
        except CancelledError as exc:
            raise StoreUnavailable("the store is closed") from exc

    def _connected(self) -> _Connection | None:
        connecting = self._connecting
        if connecting is None or not connecting.done() or connecting.cancelled() or connecting.exception():
            return None
        return connecting.result()

    def _connect(self, connecting: Future[_Connection], collection: str) -> None:
        """Ask the server; whatever happens, who waits for the answer hears of it."""
        try:
            connection = self._answering(collection)
        except BaseException as exc:  # noqa: BLE001 - raised by the calls that wait
            with self._guard:
                self._connecting = None
                if not connecting.cancelled():
                    connecting.set_exception(exc)
            return
        with self._guard:
            if not connecting.cancelled():
                connecting.set_result(connection)
                return
        connection.client.close()

    def _answering(self, collection: str) -> _Connection:
        """The first connection if its transport answers; REST if only that does.

        Raises:
            Exception: one of `RAISED_BY_CLIENT`: neither does, or what does asks for patience.
        """
        if self._exists is None:
            return self._first
        request = messages.CollectionExistsRequest(collection_name=collection)
        try:
            self._exists(request, timeout=PROBE_TIMEOUT_S)
        except grpc.RpcError as exc:
            if exc.code() in _NO_GRPC:
                if not self._rest_answers(collection):
                    raise
                log.warning("the gRPC port of Qdrant does not answer; using REST, which is slower")
                return _Connection(self._new_client(prefer_grpc=False), over_grpc=False)
        return self._first

    def _rest_answers(self, collection: str) -> bool:
        client = self._new_client(prefer_grpc=False)
        try:
            client.collection_exists(collection)
        except UnexpectedResponse as exc:
            return exc.status_code in (401, 403)
        except RAISED_BY_CLIENT:
            return False
        finally:
            client.close()
        return True


def _may_pass(exc: BaseException) -> bool:
    return isinstance(exc, _FaultError) and exc.fault.retry


def _fault(state: tenacity.RetryCallState) -> Fault | None:
    exc = state.outcome.exception() if state.outcome else None
    return exc.fault if isinstance(exc, _FaultError) else None

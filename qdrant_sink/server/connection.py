"""The connection to a Qdrant server: gRPC, or REST where gRPC does not get through; and calls that are repeated.

REST goes to the port of the URL, 6333 where it has none; gRPC to `grpc_port`, 6334 unless it is given. With
`prefer_grpc` the first call asks the gRPC port; where that does not answer and REST does (a proxy that
passes only HTTP), REST is used from then on, with a warning: it is several times slower for ColBERT. Calls
that come meanwhile wait for the same answer.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped,unused-ignore]
import tenacity
from qdrant_client import QdrantClient
from qdrant_client import grpc as messages
from qdrant_client.connection import get_channel
from qdrant_client.http.exceptions import UnexpectedResponse

from embedder.errors import ConfigurationError, WorkerError
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.server.faults import RAISED_BY_CLIENT, Fault, fault_of

T = TypeVar("T")

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S: Final = 5
"""Time for the first answer of the gRPC port."""

_NO_GRPC: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
_PAUSE_MAX_S: Final = 8
_RECONNECT: Final = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 2_000}
"""While a channel waits to connect again its calls fail immediately. By default it comes to wait 120 s, six times
the deadline of a call: a server that is back would go unnoticed for job after job."""


@dataclass(frozen=True, slots=True)
class Transport:
    """A client of the server, and whether it speaks gRPC."""

    client: QdrantClient
    over_grpc: bool


class _FaultError(Exception):
    """Carries a fault to the retry loop, which unwraps it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.error.message)
        self.fault = fault


class ServerConnection:
    """The connection to one server. Thread-safe; connects on the first call.

    A call that fails for a passing reason is repeated with growing pauses, or after as long as the server
    asks, until its deadline would pass; then it raises. What is retried and how faults are read is the
    table in `server.faults`.

    Args:
        url: `http://host:6333` or `https://…`, with a path prefix where a proxy wants one.
        api_key: sent with every call; never shown.
        prefer_grpc: see the module.
        grpc_port: where gRPC listens.
        timeout_s: whole seconds that one attempt may take.
        deadline_s: seconds after which no further attempt starts.
        patience_s: the same for calls that someone waits for (`soon`).
        pause_s: the most seconds before the second attempt; later pauses are up to twice the one before.
        retried: called before each further attempt; must not raise.
        new_client: makes the clients.

    Raises:
        ConfigurationError: the URL is invalid.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        prefer_grpc: bool,
        grpc_port: int,
        timeout_s: int,
        deadline_s: float,
        patience_s: float,
        pause_s: float,
        retried: Callable[[], None],
        new_client: Callable[..., QdrantClient] = QdrantClient,
    ) -> None:
        self._new_client = functools.partial(
            new_client,
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
            self._first = Transport(client, prefer_grpc)
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
        self._upsert = self._channel.unary_unary(
            "/qdrant.Points/Upsert", response_deserializer=messages.PointsOperationResponse.FromString
        )
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._patience_s = min(patience_s, deadline_s)
        self._retried = retried
        self._back_off = tenacity.wait_random_exponential(multiplier=pause_s, max=_PAUSE_MAX_S)
        self._guard = threading.Lock()  # of the next two; never held while the server is asked
        self._connecting: Future[Transport] | None = None
        self._closed = threading.Event()

    @property
    def over_grpc(self) -> bool | None:
        """Whether calls go over gRPC; None before the first answer."""
        transport = self._connected()
        return None if transport is None else transport.over_grpc

    def call(self, collection: str, call: Callable[[Transport], T], *, soon: bool = False) -> T:
        """The result of a call about a collection, repeated as described.

        Args:
            collection: what errors name.
            call: may run several times.
            soon: someone waits for it.

        Raises:
            WorkerError: as `server.faults` reads what the client raises.
        """
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

    def upsert(self, request: bytes) -> Any:
        """The gRPC answer to the bytes of an UpsertPoints; for a `call` over gRPC."""
        return self._upsert(request, timeout=self._timeout_s).result

    def pause(self, seconds: float) -> bool:
        """Wait; true if the connection was closed meanwhile."""
        return self._closed.wait(seconds)

    def close(self) -> None:
        """Close the connection; calling it twice is harmless. Calls that wait for it end immediately."""
        with self._guard:
            if self._closed.is_set():
                return
            self._closed.set()
            if self._connecting is not None:
                self._connecting.cancel()
        for transport in {id(used): used for used in (self._first, self._connected()) if used}.values():
            transport.client.close()
        self._channel.close()

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

    def _attempt(self, collection: str, call: Callable[[Transport], T]) -> T:
        try:
            return call(self._transport(collection))
        except WorkerError:
            raise
        except RAISED_BY_CLIENT as exc:
            if self._closed.is_set():
                raise StoreUnavailable("the store is closed") from exc
            raise _FaultError(fault_of(exc, collection)) from exc

    def _transport(self, collection: str) -> Transport:
        """The transport; before there is one, the first of concurrent calls asks the server and the others wait.

        Raises:
            StoreUnavailable: the connection is closed, or is closed while this waits.
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

    def _connected(self) -> Transport | None:
        connecting = self._connecting
        if connecting is None or not connecting.done() or connecting.cancelled() or connecting.exception():
            return None
        return connecting.result()

    def _connect(self, connecting: Future[Transport], collection: str) -> None:
        """Ask the server, and answer those that wait whatever happens."""
        try:
            transport = self._answering(collection)
        except BaseException as exc:  # noqa: BLE001 - raised by the calls that wait
            with self._guard:
                self._connecting = None
                if not connecting.cancelled():
                    connecting.set_exception(exc)
            return
        with self._guard:
            if not connecting.cancelled():
                connecting.set_result(transport)
                return
        transport.client.close()

    def _answering(self, collection: str) -> Transport:
        """The first transport if it answers; REST if only that does.

        Raises:
            Exception: one of `RAISED_BY_CLIENT`: neither answers, or what answers asks for patience.
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
                return Transport(self._new_client(prefer_grpc=False), over_grpc=False)
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


def unfinished(message: str) -> Exception:
    """The error of a call whose work waits in the server's queue.

    The same call again waits behind it and changes nothing, with insert_only too.
    """
    return _FaultError(Fault(StoreUnavailable(message), retry=True))


def _may_pass(exc: BaseException) -> bool:
    return isinstance(exc, _FaultError) and exc.fault.retry


def _fault(state: tenacity.RetryCallState) -> Fault | None:
    exc = state.outcome.exception() if state.outcome else None
    return exc.fault if isinstance(exc, _FaultError) else None

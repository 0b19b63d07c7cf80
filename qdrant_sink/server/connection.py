"""Connection to a Qdrant server over gRPC, or over REST if gRPC is not reachable, with retries.

`qdrant_sink.address` says which ports are those of the server that the URL names; no other port is ever contacted.
Where both APIs may be used, the first call probes the gRPC port. If it does not answer and REST does, as behind a proxy
that forwards only HTTP, all calls use REST and a warning is logged, because REST is several times slower for ColBERT.
Concurrent first calls share one probe.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc  # type: ignore[import-untyped,unused-ignore]
import tenacity
from qdrant_client import QdrantClient
from qdrant_client import grpc as messages
from qdrant_client.connection import get_channel
from qdrant_client.http.exceptions import UnexpectedResponse

from embedder.errors import WorkerError
from qdrant_sink.address import ServerAddress
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.server.answer_limit import GRPC_OPTIONS, bound_answer
from qdrant_sink.server.faults import CLIENT_EXCEPTIONS, Fault, fault_of

T = TypeVar("T")

# Whether a key may travel over http is the operator's setting; the client warns on loopback, too.
warnings.filterwarnings("ignore", "Api key is used with an insecure connection", UserWarning)

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S: Final = 5
"""Timeout of the probe of the gRPC port, and of the REST API after it."""

_GRPC_UNREACHABLE_CODES: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
_PAUSE_MAX_S: Final = 8
_RECONNECT_OPTIONS: Final = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 2_000}
"""Options that shorten the reconnect backoff. While a channel waits to reconnect, its calls fail immediately. The
default backoff grows to 120 s, six times the timeout of a call, so that jobs would fail long after a restart."""


@dataclass(frozen=True, slots=True)
class Transport:
    """A client of the server, and whether it uses gRPC."""

    client: QdrantClient
    over_grpc: bool


@dataclass(frozen=True, slots=True)
class _Transports:
    """The transport of calls on which a user waits, whose attempts end earlier, and that of all others."""

    interactive: Transport
    patient: Transport

    def close(self) -> None:
        """Close both clients."""
        self.interactive.client.close()
        self.patient.client.close()


class _FaultError(Exception):
    """Carries a fault to the retry loop, which raises the error of the fault instead."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.error.message)
        self.fault = fault


class ServerConnection:
    """Connection to one server. It is thread-safe and connects on the first call.

    A call that fails with a transient fault is retried with growing pauses, or after the time that the server requests,
    until the deadline would pass; then the error is raised. The table in `server.faults` lists the faults that are
    retried.

    Args:
        address: the ports of the server, and which of them are used.
        api_key: API key, which is sent with every call and never logged.
        timeout_s: timeout of one attempt in whole seconds.
        deadline_s: seconds after which no further attempt starts.
        interactive_deadline_s: deadline of calls on which a user waits (`interactive`), and timeout of their attempts.
        pause_s: maximum pause before the second attempt in seconds. It doubles with every further attempt.
        retried: callback before each further attempt; it must not raise.
        is_trial: whether another connection to the server follows, which is the one to log how it is reached.
        new_client: function that creates the clients.
    """

    def __init__(
        self,
        address: ServerAddress,
        api_key: str | None,
        *,
        timeout_s: int,
        deadline_s: float,
        interactive_deadline_s: float,
        pause_s: float,
        retried: Callable[[], None],
        is_trial: bool = False,
        new_client: Callable[..., QdrantClient] = QdrantClient,
    ) -> None:
        url = address.url
        self._new_client = functools.partial(
            new_client,
            url=str(url),
            api_key=api_key,
            check_compatibility=False,
            event_hooks={"response": [bound_answer]},
        )
        self._is_trial = is_trial
        if address.warning is not None and not is_trial:
            log.warning("%s", address.warning)
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._interactive_deadline_s = min(interactive_deadline_s, deadline_s)
        self._interactive_timeout_s = math.ceil(self._interactive_deadline_s)
        self._is_single = address.grpc_port is None or address.transport == "grpc"
        self._channel: grpc.Channel | None = None
        if address.grpc_port is None:
            self._first = self._transports(over_grpc=False)
        else:
            self._first = self._transports(over_grpc=True, grpc_port=address.grpc_port)
            # The stubs are created now and not by the first call, so that `close` always closes the clients' channels.
            self._exists = self._first.patient.client.grpc_collections.CollectionExists
            _ = self._first.interactive.client.grpc_collections
            # Writes of vectors have their own channel, because the client's stub would parse and serialise them again.
            self._channel = get_channel(
                host=url.authority,
                port=address.grpc_port,
                ssl=url.https,
                metadata=[] if api_key is None else [("api-key", api_key)],
                options=dict(_RECONNECT_OPTIONS),
            )
            self._upsert = self._channel.unary_unary(
                "/qdrant.Points/Upsert", response_deserializer=messages.PointsOperationResponse.FromString
            )
            self._update_vectors = self._channel.unary_unary(
                "/qdrant.Points/UpdateVectors", response_deserializer=messages.PointsOperationResponse.FromString
            )
        self._retried = retried
        self._back_off = tenacity.wait_random_exponential(multiplier=pause_s, max=_PAUSE_MAX_S)
        self._guard = threading.Lock()  # guards the next two attributes; not held during calls of the server
        self._connecting: Future[_Transports] | None = None
        self._closed = threading.Event()

    @property
    def over_grpc(self) -> bool | None:
        """Whether calls use gRPC; None before the first answer."""
        transports = self._connected()
        return None if transports is None else transports.patient.over_grpc

    def call(self, collection: str, call: Callable[[Transport], T], *, interactive: bool = False) -> T:
        """Call the server, with retries, and return the result.

        Args:
            collection: name of the collection for errors.
            call: function that calls the server; it may be called several times.
            interactive: whether a user waits for the result, so that attempts and their repetition end earlier.

        Raises:
            WorkerError: error to which `server.faults` maps the exception of the client.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_retryable),
            wait=self._pause_s,
            stop=tenacity.stop_before_delay(self._interactive_deadline_s if interactive else self._deadline_s),
            before_sleep=self._before_retry,
            sleep=tenacity.sleep_using_event(self._closed),
            reraise=True,
        )
        try:
            result: T = retrying(self._attempt, collection, call, interactive)
        except _FaultError as fault:
            raise fault.fault.error from fault.__cause__
        return result

    def try_once(self, collection: str, call: Callable[[Transport], T]) -> T:
        """Call the server without a retry, as long as a user waits for a result; see `call`."""
        try:
            return self._attempt(collection, call, interactive=True)
        except _FaultError as fault:
            raise fault.fault.error from fault.__cause__

    def upsert(self, request: bytes) -> Any:
        """Send a serialised UpsertPoints over gRPC and return the answer. Use it inside `call`."""
        return self._upsert(request, timeout=self._timeout_s).result

    def update_vectors(self, request: bytes) -> Any:
        """Send a serialised UpdatePointVectors over gRPC and return the answer. Use it inside `call`."""
        return self._update_vectors(request, timeout=self._timeout_s).result

    def pause(self, seconds: float) -> bool:
        """Wait, and return whether the connection was closed in the meantime."""
        return self._closed.wait(seconds)

    def close(self) -> None:
        """Close the connection. Waiting calls end immediately. Closing it twice is harmless."""
        with self._guard:
            if self._closed.is_set():
                return
            self._closed.set()
            if self._connecting is not None:
                self._connecting.cancel()
        transports = (self._first, self._connected())
        for pair in {id(pair): pair for pair in transports if pair}.values():
            pair.close()
        if self._channel is not None:
            self._channel.close()

    def _before_retry(self, state: tenacity.RetryCallState) -> None:
        fault = _fault(state)
        if fault is not None:
            log.warning(
                "%s; attempt %d failed, next attempt in %.1f s",
                fault.error.message,
                state.attempt_number,
                state.upcoming_sleep,
            )
            self._retried()

    def _pause_s(self, state: tenacity.RetryCallState) -> float:
        fault = _fault(state)
        return max(self._back_off(state), (fault and fault.retry_after_s) or 0.0)

    def _attempt(self, collection: str, call: Callable[[Transport], T], interactive: bool) -> T:  # noqa: FBT001 - by tenacity
        try:
            transports = self._connect_once(collection)
            return call(transports.interactive if interactive else transports.patient)
        except WorkerError:
            raise
        except CLIENT_EXCEPTIONS as exc:
            if self._closed.is_set():
                raise StoreUnavailable("the store is closed") from exc
            raise _FaultError(fault_of(exc, collection)) from exc

    def _transports(self, *, over_grpc: bool, **options: Any) -> _Transports:
        def transport(timeout_s: int) -> Transport:
            if over_grpc:
                options["grpc_options"] = {
                    **_RECONNECT_OPTIONS,
                    **GRPC_OPTIONS,
                }  # a copy, because the client modifies it
            return Transport(self._new_client(prefer_grpc=over_grpc, timeout=timeout_s, **options), over_grpc)

        return _Transports(transport(self._interactive_timeout_s), transport(self._timeout_s))

    def _connect_once(self, collection: str) -> _Transports:
        """Return the transports. The first of several concurrent calls probes the server, and the others wait for it.

        Raises:
            StoreUnavailable: the connection is closed, or was closed during the wait.
            Exception: one of `CLIENT_EXCEPTIONS`, because the server did not answer. The next call probes again.
        """
        with self._guard:
            if self._closed.is_set():
                raise StoreUnavailable("the store is closed")
            connecting = self._connecting
            if connecting is None:
                connecting = Future()
                # The probe has its own thread: `close` can release its callers but cannot interrupt a REST request.
                args = (connecting, collection)
                threading.Thread(target=self._connect, args=args, name="connect", daemon=True).start()
                self._connecting = connecting
        try:
            return connecting.result()
        except CancelledError as exc:
            raise StoreUnavailable("the store is closed") from exc

    def _connected(self) -> _Transports | None:
        connecting = self._connecting
        if connecting is None or not connecting.done() or connecting.cancelled() or connecting.exception():
            return None
        return connecting.result()

    def _connect(self, connecting: Future[_Transports], collection: str) -> None:
        """Probe the server, and pass the result or the exception to the waiting calls."""
        try:
            transports = self._choose_transports(collection)
        except BaseException as exc:  # noqa: BLE001 - the waiting calls raise it
            with self._guard:
                self._connecting = None
                if not connecting.cancelled():
                    connecting.set_exception(exc)
            return
        with self._guard:
            if not connecting.cancelled():
                connecting.set_result(transports)
                return
        transports.close()

    def _choose_transports(self, collection: str) -> _Transports:
        """Return the first transports if the server answers them, or REST if only REST answers.

        Raises:
            Exception: one of `CLIENT_EXCEPTIONS`, because neither answers or the server asks to retry later.
        """
        if self._is_single:
            return self._first
        request = messages.CollectionExistsRequest(collection_name=collection)
        try:
            self._exists(request, timeout=min(PROBE_TIMEOUT_S, self._timeout_s))
        except grpc.RpcError as exc:
            if exc.code() in _GRPC_UNREACHABLE_CODES:
                if not self._rest_answers(collection):
                    raise
                if not self._is_trial:
                    log.warning("the gRPC port of Qdrant does not answer; using REST, which is slower")
                return self._transports(over_grpc=False)
        return self._first

    def _rest_answers(self, collection: str) -> bool:
        client = self._new_client(prefer_grpc=False, timeout=min(PROBE_TIMEOUT_S, self._timeout_s))
        try:
            client.collection_exists(collection)
        except UnexpectedResponse as exc:
            return exc.status_code in (401, 403)
        except CLIENT_EXCEPTIONS:
            return False
        finally:
            client.close()
        return True


def unfinished(message: str) -> Exception:
    """Create the error of a call whose work is still in the server's queue, or that was answered in part.

    It is retried: a repeated write waits for the first one and changes nothing, with insert_only too.
    """
    return _FaultError(Fault(StoreUnavailable(message), retry=True))


def _is_retryable(exc: BaseException) -> bool:
    return isinstance(exc, _FaultError) and exc.fault.retry


def _fault(state: tenacity.RetryCallState) -> Fault | None:
    exc = state.outcome.exception() if state.outcome else None
    return exc.fault if isinstance(exc, _FaultError) else None

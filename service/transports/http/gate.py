"""Middleware of every HTTP request: request id, API key, log line and metrics."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedder import WorkerError
from service.api_keys import ApiKeys
from service.error_frames import forget_frames
from service.logs import CALLER, REQUEST_ID
from service.transports.http.cors import Cors
from service.transports.http.hosts import Hosts, check_origin
from service.transports.http.paths import PROBES, normalized
from service.transports.http.state import ServerState
from service.wire import Answer, error_answer, error_form, error_reply
from service.wire.body import Body
from service.wire.errors import ShuttingDown, Unauthorized
from service.wire.instrumentation import defect, log_defect
from service.wire.qdrant_inference import INFERENCE, as_server_reads
from service.wire.streamed import Streamed

log = logging.getLogger(__name__)

PUBLIC_PATHS: Final = frozenset({"/", "/docs", "/ping", "/health", "/livez", "/readyz"})
"""Paths that need no API key and are answered during a shutdown."""

JOBS_PREFIX: Final = "/jobs/"
"""Prefix of the paths of accepted jobs."""

CHUNK_MIN_BYTES: Final = 256 * 1024
"""Minimum size of the chunks of an answer."""

_STREAMED_CHUNK_MIN_BYTES: Final = 1024 * 1024
"""Minimum size of the chunks of an answer that threads write, so that the changes of threads cost little."""

_CODE_KEY: Final = "error_code"
"""Key of the error code in the ASGI message from an error response to the gate, which removes it."""

CLIENT_CLOSED_REQUEST: Final = 499
"""Status that is logged and counted if the client has disconnected."""

_OTHER: Final = "other"
"""Name of all unknown paths in metrics and logs."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Gate:
    """The outermost ASGI middleware, which every request passes.

    Args:
        app: the application.
        state: the state of the server.
        paths: paths that are counted and logged by name, and templates such as `/collections/{name}`; all other paths
            are `other`.
        routes: the method and the path of each route.
    """

    def __init__(
        self, app: ASGIApp, state: ServerState, paths: Collection[str], routes: Collection[tuple[str, str]]
    ) -> None:
        self._app = app
        self._state = state
        self._paths = frozenset(paths)
        self._routes = frozenset(routes)
        self._templates = [(path.partition("{")[0], path.rpartition("}")[2], path) for path in paths if "{" in path]
        self._keys = state.settings.api_key
        self._cors = Cors(state.settings.cors_origins)
        self._hosts = Hosts.of(state.settings)
        self._root_path = state.settings.root_path or ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Every exception becomes an answer here."""
        scope = self._without_root(normalized(scope))
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        request_id = client_id if _REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex
        token, caller_token = REQUEST_ID.set(request_id), CALLER.set("anyone")
        status, code = 0, None

        async def send_with_headers(message: Message) -> None:
            nonlocal status, code
            if message["type"] == "http.response.start":
                status, code = message["status"], message.pop(_CODE_KEY, None)
                response_headers = MutableHeaders(scope=message)
                response_headers["X-Request-ID"] = request_id
                response_headers["X-Content-Type-Options"] = "nosniff"
                response_headers["Cache-Control"] = "no-store"
                response_headers.update(self._cors.headers(headers))
                if self._cors.varies:
                    response_headers.add_vary_header("Origin")
            await send(message)

        started = time.perf_counter()
        try:
            await self._serve(scope, receive, send_with_headers, headers)
        except WorkerError as error:
            refusal = error_response(error, scope["path"])
            forget_frames(error)
            await refusal(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            if status or not self._state.is_cut:
                status = CLIENT_CLOSED_REQUEST
                raise
            _uncancel()
            end = ShuttingDown("the worker has stopped before the end of the request; retry on another worker")
            await error_response(end, scope["path"])(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001 - uvicorn would log it with its message, which may quote a text
            log_defect(error)
            if not status:
                await error_response(defect(error), scope["path"])(scope, receive, send_with_headers)
        finally:
            route = self._route(scope["path"])
            if self._state.operations is not None:
                self._state.operations.metrics.responded(route, status)
            level = logging.DEBUG if route in PUBLIC_PATHS and scope["method"] != "POST" else logging.INFO
            outcome = f"{status} {code}" if code else status
            seconds = time.perf_counter() - started
            log.log(level, "%s %s, %.0f ms", route, outcome, 1e3 * seconds, extra={"error_code": code})
            REQUEST_ID.reset(token)
            CALLER.reset(caller_token)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        is_public = scope["path"] in PUBLIC_PATHS and scope["method"] != "POST"  # POST / embeds texts
        if not (is_public and scope["path"] in PROBES):
            self._hosts.check(headers)
        preflight = self._cors.preflight(scope["method"], headers)
        if preflight is not None:
            await preflight(scope, receive, send)
            return
        if is_public:
            await self._app(scope, receive, send)
            return
        if self._keys is None:
            check_origin(headers, is_allowed=self._cors.allows(headers.get("origin", "")))
        if self._keys is not None and scope["path"] != INFERENCE:  # whose key may be in the body: see `InferenceKey`
            CALLER.set(_caller(self._keys, headers))
        operations = self._state.operations
        with nullcontext() if operations is None else operations.memory.reserve():  # until the answer is sent
            await self._served(scope, receive, send)

    async def _served(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(JOBS_PREFIX):  # answered during a shutdown, which waits for the jobs themselves
            await self._app(scope, receive, send)
            return
        with ExitStack() as running:
            running.enter_context(self._state.admitted(self._route(scope["path"])))

            async def send_and_release(message: Message) -> None:
                running.close()  # the work is done; uvicorn's shutdown timeout limits how long the client reads
                await send(message)

            await self._app(scope, receive, send_and_release)

    def _without_root(self, scope: Scope) -> Scope:
        """The request with a path below `ROOT_PATH`, whether or not the proxy has removed that prefix.

        The prefix may also be the beginning of a route: behind a proxy that removes `/search`, the route `/search` is
        `/search/search` for clients, and `/search` here.
        """
        path = scope["path"]
        if not self._root_path or not (path == self._root_path or path.startswith(self._root_path + "/")):
            return scope
        shorter = path.removeprefix(self._root_path) or "/"
        is_route = (scope["method"], path) in self._routes
        if is_route or (self._route(shorter) == _OTHER != self._route(path)):
            return scope
        return {**scope, "path": shorter}

    def _route(self, path: str) -> str:
        """The path, the template that it matches, or `other`. A name in a path is neither counted nor logged."""
        if path in self._paths:
            return path
        for prefix, suffix, template in self._templates:
            if path.startswith(prefix) and path.endswith(suffix):
                return template
        return _OTHER


def _caller(keys: ApiKeys, headers: Headers) -> str:
    """The name of the key that a request has sent: the bearer token, or the `api-key` of Azure's clients."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    sent = (token if scheme.lower() == "bearer" else "", headers.get("api-key", ""))
    # Headers are decoded as Latin-1; keys are ASCII. Both are compared, whichever matches.
    names = [keys.name_of(key.strip().encode("latin-1", "replace")) for key in sent]
    name = next((name for name in names if name is not None), None)
    if name is None:
        raise Unauthorized(
            "Authorization must be 'Bearer API_KEY', or the header api-key API_KEY, with the API_KEY of this worker"
        )
    return name


def _uncancel() -> None:
    """Let the current task go on after its cancellation."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


class _Refusal(Response):
    """An error response, which passes its code to the gate."""

    def __init__(self, code: str, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(body, status, headers, "application/json")
        self._code = code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""

        async def send_with_code(message: Message) -> None:
            await send({**message, _CODE_KEY: self._code} if message["type"] == "http.response.start" else message)

        await super().__call__(scope, receive, send_with_code)


class _Chunked(Response):
    """A response that is encoded in chunks, as fast as the client reads."""

    def __init__(self, content: Body, status: int, warnings: Sequence[str]) -> None:
        headers = {"content-length": str(len(content))}
        if warnings:
            headers["X-Warning"] = "; ".join(warnings)
        super().__init__(status_code=status, headers=headers, media_type="application/json")
        self._content = content

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the response."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for chunk in self._content.chunks(CHUNK_MIN_BYTES):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def response(answer: Answer) -> Response:
    """The HTTP response for an answer."""
    if answer.code is None:
        written = answer.written
        if isinstance(written, Streamed):
            chunks = written.chunks(_STREAMED_CHUNK_MIN_BYTES)  # in threads, as fast as the client reads
            return StreamingResponse(chunks, answer.status, media_type="application/json")
        return _Chunked(written, answer.status, answer.warnings)
    headers = {}
    if answer.retry_after_s is not None:
        headers["Retry-After"] = str(answer.retry_after_s)
    if answer.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _Refusal(answer.code, answer.body, answer.status, headers)


def error_response(error: WorkerError, path: str) -> Response:
    """The HTTP response for an error of the server, in the form of the path."""
    reply = error_reply(error, error_form(path))
    return response(as_server_reads(reply) if path == INFERENCE else reply)


class ErrorResponses:
    """The answers of the worker to clients that it refuses, for its connections."""

    def raw(self, error: WorkerError) -> tuple[int, bytes]:
        """The status and the JSON of an error."""
        answer = error_reply(error, error_answer)
        return answer.status, answer.body

    def response(self, error: WorkerError, path: str) -> ASGIApp:
        """The application that answers with an error, in the form of the path."""
        return error_response(error, path)

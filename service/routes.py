"""The routes of the HTTP door: the same operations as on the queue, the same answers, the same errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, NoReturn

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from embedder.errors import InvalidRequest, WorkerError
from service.door import Door
from service.gate import Gate, defect, error_response, json_response
from service.metrics import CONTENT_TYPE
from service.openai import MODELS
from service.openapi import EMBEDDINGS, EMBEDDINGS_EXAMPLE, ROUTES, Route, answers, body, components, reads, schema_name
from service.page import Page
from service.responses import Json
from service.statuses import BodyStalled, BodyTooLarge, NoSuchPath, NotJson, WrongMethod

MOST_BYTES: Final = 30_000_000
"""Of a body: what RunPod's load balancer carries."""

BODY_PATIENCE: Final = 30.0
"""Seconds for which a part of a body is waited for: a client that stalls must not hold a worker that is to end."""

_LARGE: Final = 100_000
"""Bytes of a body above which it is parsed in a thread."""

_CLIENT_GONE: Final = 499
"""Logged and counted; nobody reads it."""

Endpoint = Callable[[Request], Awaitable[Response]]


def application(door: Door, *, most_bytes: int = MOST_BYTES, patience: float = BODY_PATIENCE) -> ASGIApp:
    """The door's ASGI application.

    Args:
        door: its state.
        most_bytes: of a request's body.
        patience: seconds between two parts of a body at most.
    """
    app = FastAPI(
        title="BGE-M3 for Qdrant",
        version="0.1.0",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    endpoints = _Endpoints(door, most_bytes, patience)
    for route in ROUTES:
        app.add_api_route(
            route.path,
            _named(partial(endpoints.operation, route), route.path),
            methods=["POST"],
            summary=route.summary,
            responses=answers(route.path),
            openapi_extra=body(schema_name(route), route.example),
        )
    app.add_api_route(
        EMBEDDINGS,
        endpoints.embeddings,
        methods=["POST"],
        summary="OpenAI's embeddings: dense vectors",
        responses=answers(EMBEDDINGS),
        openapi_extra=body("EmbeddingsRequest", EMBEDDINGS_EXAMPLE),
    )
    described: tuple[tuple[str, Endpoint, str], ...] = (
        (MODELS, endpoints.models, "The model that is served"),
        ("/health", endpoints.health, "The state of the worker, for a person"),
        ("/ping", endpoints.ping, "200 ready, 204 loading, 503 draining or lost; without a body"),
        ("/collections", endpoints.collections, "Collections that may be named, where the operator has listed them"),
        ("/metrics", endpoints.metrics, "Prometheus' text format"),
        ("/openapi.json", endpoints.description, "This description"),
    )
    for path, endpoint, summary in described:
        app.add_api_route(
            path, endpoint, methods=["GET"], summary=summary, responses=reads(path), response_class=Response
        )
    for path, endpoint in (("/ping", endpoints.ping), ("/health", endpoints.health)):  # as some monitors ask
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/", endpoints.page, methods=["GET"], include_in_schema=False)
    app.add_api_route(MODELS + "/{model:path}", endpoints.models, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(WorkerError, _worker_error)
    app.add_exception_handler(Exception, _defect)
    endpoints.describe = partial(_described, app)
    paths = ["/"] + [route.path for route in ROUTES] + [EMBEDDINGS] + [path for path, _, _ in described]
    return Gate(app, door, paths)


class _Endpoints:
    """One method per kind of route."""

    def __init__(self, door: Door, most_bytes: int, patience: float) -> None:
        self._door = door
        self._most_bytes = most_bytes
        self._patience = patience
        self.describe: Callable[[], Json] = dict

    async def operation(self, route: Route, request: Request) -> Response:
        """An operation of the job contract."""
        operations = self._door.ready()
        raw = await self._json(request)
        if isinstance(raw, dict):
            raw = _completed(route, raw)
        return await _while_wanted(request, operations.answer(raw))

    async def embeddings(self, request: Request) -> Response:
        """OpenAI's."""
        operations = self._door.ready()
        raw = await self._json(request)
        return await _while_wanted(request, operations.answer({"openai_route": EMBEDDINGS, "openai_input": raw}))

    async def models(self, request: Request) -> Response:
        """OpenAI's list of models, or one of it."""
        return json_response(await self._door.ready().answer({"openai_route": request.url.path}), request.url.path)

    async def ping(self, _request: Request) -> Response:
        """For a load balancer."""
        return Response(status_code={"loading": 204, "ready": 200}.get(self._door.state, 503))

    async def health(self, _request: Request) -> Response:
        """For a person."""
        state, operations = self._door.state, self._door.operations
        told: Json = {"status": state} if operations is None else {"status": state, "model": operations.model_label}
        response = json_response(told)
        response.status_code = 200 if state in ("loading", "ready") else 503
        return response

    async def collections(self, _request: Request) -> Response:
        """What the settings name; no collection is looked up."""
        settings = self._door.settings
        return json_response({"collections": list(settings.qdrant_collections), "default": settings.qdrant_collection})

    async def page(self, _request: Request) -> Response:
        """The search page."""
        page = Page.load()
        headers = {"Content-Security-Policy": page.policy, "Referrer-Policy": "no-referrer"}
        return Response(page.body, headers=headers, media_type="text/html; charset=utf-8")

    async def metrics(self, _request: Request) -> Response:
        """For Prometheus."""
        return Response(self._door.ready().metrics.exposed(), media_type=CONTENT_TYPE)

    async def description(self, _request: Request) -> Response:
        """OpenAPI."""
        return json_response(self.describe())

    async def _json(self, request: Request) -> Any:
        """The body.

        Raises:
            NotJson: the content type is another, so that no page of another site can post without asking.
            BodyStalled: the client sends no more, and not the end.
            BodyTooLarge: refused by its announced length, or as soon as it is longer.
            InvalidRequest: it is not JSON.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise NotJson("Content-Type must be application/json")
        announced = request.headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > self._most_bytes:
            raise BodyTooLarge(f"the body must have at most {self._most_bytes} bytes, got {announced[:20]}")
        parts, size = [], 0
        stream = request.stream()
        while (part := await self._next(stream)) is not None:
            size += len(part)
            if size > self._most_bytes:
                raise BodyTooLarge(f"the body must have at most {self._most_bytes} bytes, got more")
            parts.append(part)
        raw = b"".join(parts)
        return await asyncio.to_thread(_parsed, raw) if size > _LARGE else _parsed(raw)

    async def _next(self, stream: AsyncIterator[bytes]) -> bytes | None:
        """The next part of a body; None at its end."""
        try:
            async with asyncio.timeout(self._patience):
                return await anext(stream, None)
        except TimeoutError:
            raise BodyStalled(f"the body stopped coming: nothing for {self._patience:g} seconds") from None


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON (line {error.lineno}, column {error.colno})") from None
    except ValueError:  # NaN and its like, or an integer of thousands of digits
        raise InvalidRequest("the body is not JSON (a number that has no form in it)") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _completed(route: Route, raw: Json) -> Json:
    """The body as the input of a job: the path says the operation."""
    if raw.get("operation", route.operation) != route.operation:
        raise InvalidRequest(f"operation must be '{route.operation}' on {route.path}, or be left out")
    if route.passages and raw.get("qdrant") is None:
        raise InvalidRequest("qdrant is required")
    defaults = {"isPassage": True} if route.passages else {}
    return {**defaults, **raw, "operation": route.operation}


async def _while_wanted(request: Request, work: Coroutine[Any, Any, Json]) -> Response:
    """The response, unless the client goes away first: then the work is dropped."""
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return json_response(working.result(), request.url.path)
        return Response(status_code=_CLIENT_GONE)
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.gather(gone, working, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _http_exception(request: Request, error: Exception) -> Response:
    """FastAPI's own refusals, in our form."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        response = error_response(WrongMethod("the method is not allowed on this path"), request.url.path)
        response.headers.update(error.headers or {})
        return response
    return error_response(NoSuchPath("there is no such path"), request.url.path)


async def _worker_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, WorkerError):
        raise error
    return error_response(error, request.url.path)


async def _defect(request: Request, error: Exception) -> Response:
    """Starlette raises it again behind this answer, for the gate to log."""
    return error_response(defect(error), request.url.path)


def _named(endpoint: Endpoint, path: str) -> Endpoint:
    """FastAPI names a route by its function."""

    async def run(request: Request) -> Response:
        return await endpoint(request)

    run.__name__ = path.strip("/").replace("/", "_")
    return run


def _described(app: FastAPI) -> Json:
    described = app.openapi()
    schemas = described.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components())
    described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    described["security"] = [{"key": []}, {}]
    return described

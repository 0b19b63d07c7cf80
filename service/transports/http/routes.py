"""The HTTP routes, with the same operations, answers and errors as the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from embedder import WorkerError
from service import __version__
from service.error_frames import forget_frames
from service.memory_budget import Reservation
from service.metrics import CONTENT_TYPE
from service.transports.http.body import BODY_MAX_BYTES, BODY_PART_TIMEOUT_S, Received, read_body
from service.transports.http.compression import Compression
from service.transports.http.decoder import CODINGS
from service.transports.http.gate import CLIENT_CLOSED_REQUEST, JOBS_PREFIX, Gate, error_response, response
from service.transports.http.inference_key import InferenceKey
from service.transports.http.jobs import Job, Jobs, prefers_async
from service.transports.http.openapi import (
    EMBEDDINGS_EXAMPLE,
    INFERENCE_EXAMPLE,
    PREFER,
    RERANK_EXAMPLE,
    ROUTES,
    TEI_EXAMPLE,
    Route,
    body,
    description,
    get_responses,
    job_responses,
    path_parameter,
    post_responses,
    schema_name,
)
from service.transports.http.page import Page
from service.transports.http.paths import nearest
from service.transports.http.probes import Probes
from service.transports.http.state import ServerState
from service.validation import shown
from service.wire import Answer, Codec, Progress, error_answer, error_form, error_reply
from service.wire.body import Body
from service.wire.errors import BodyTooLarge, MethodNotAllowed, UnknownCoding, UnknownPath
from service.wire.instrumentation import defect
from service.wire.json_limits import JsonLimits
from service.wire.openai import AZURE_MODELS, DEPLOYMENT, EMBEDDINGS, MODELS
from service.wire.parsing import completed
from service.wire.qdrant_inference import INFERENCE
from service.wire.rerank import PATHS as RERANK_PATHS
from service.wire.rerank import RERANK
from service.wire.tei import EMBED, EMBED_SPARSE, INFO, ROOT, is_tei_embed

COLLECTION: Final = "/collections/{name}"
"""Template of the path that describes a collection."""

JOB: Final = JOBS_PREFIX + "{id}"
"""Template of the path of an accepted job."""

MODEL: Final = MODELS + "/{model}"
"""Template of the path that describes a model."""

_POLL_INTERVAL_S: Final = "1"
"""`Retry-After` of a job that has not ended."""

Endpoint = Callable[[Request], Awaitable[Response]]


def application(
    state: ServerState, *, body_max_bytes: int = BODY_MAX_BYTES, body_part_timeout_s: float = BODY_PART_TIMEOUT_S
) -> ASGIApp:
    """The ASGI application.

    Args:
        state: the state of the server.
        body_max_bytes: maximum size of a request body.
        body_part_timeout_s: maximum wait for the next part of a body.
    """
    app = FastAPI(
        title="BGE-M3 for Qdrant",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    endpoints = _Endpoints(state, body_max_bytes, body_part_timeout_s)
    for route in ROUTES:
        app.add_api_route(
            route.path,
            _named(partial(endpoints.operation, route), route.path),
            methods=["POST"],
            summary=route.summary,
            responses=post_responses(route.path, accepts_jobs=route.passages),
            openapi_extra=body(schema_name(route), route.example, *route.other_schemas)
            | (PREFER if route.passages else {}),
        )
    app.add_api_route(
        EMBEDDINGS,
        endpoints.embeddings,
        methods=["POST"],
        summary="Embed texts as dense vectors (OpenAI)",
        responses=post_responses(EMBEDDINGS),
        openapi_extra=body("EmbeddingsRequest", EMBEDDINGS_EXAMPLE),
    )
    app.add_api_route(
        DEPLOYMENT.replace("}", ":path}"),  # a model name may have slashes
        endpoints.deployment,
        methods=["POST"],
        summary="Embed texts as dense vectors (Azure OpenAI)",
        responses=post_responses(DEPLOYMENT),
        openapi_extra={
            **body("EmbeddingsRequest", EMBEDDINGS_EXAMPLE),
            **path_parameter("model", "name of the model, percent-encoded"),
        },
    )
    app.add_api_route(
        INFERENCE,
        endpoints.inference,
        methods=["POST"],
        summary="Embed texts for a Qdrant server (inference.address)",
        responses=post_responses(INFERENCE),
        openapi_extra=body("InferenceRequest", INFERENCE_EXAMPLE),
    )
    for path in RERANK_PATHS:
        tei = ("TeiRerankRequest",) if path == RERANK else ()
        app.add_api_route(
            path,
            endpoints.rerank,
            methods=["POST"],
            summary="Rank documents by their relevance to a query (Cohere, Jina" + (", TEI)" if tei else ")"),
            responses=post_responses(path),
            openapi_extra=body("RerankRequest", RERANK_EXAMPLE, *tei),
        )
    for path, schema, kind in ((ROOT, "TeiEmbedRequest", "dense"), (EMBED_SPARSE, "TeiSparseRequest", "sparse")):
        app.add_api_route(
            path,
            endpoints.tei,
            methods=["POST"],
            summary=f"Embed texts as {kind} vectors (TEI)",
            responses=post_responses(path),
            openapi_extra=body(schema, TEI_EXAMPLE),
        )
    get_routes: tuple[tuple[str, Endpoint, str], ...] = (
        (MODELS, endpoints.models, "List the names of the model"),
        (AZURE_MODELS, endpoints.models, "List the names of the model (Azure OpenAI)"),
        ("/health", endpoints.health, "The state of the worker as JSON"),
        ("/ping", endpoints.ping, "The state of the worker as a status: 200 ready, 204 loading, 503 draining or lost"),
        ("/livez", endpoints.livez, "Whether the process lives"),
        ("/readyz", endpoints.readyz, "Whether the worker can answer, with the reason, and the state of its store"),
        (INFO, endpoints.tei_info, "The model and its limits (TEI)"),
        ("/collections", endpoints.collections, "List the collections and aliases"),
        ("/metrics", endpoints.metrics, "Metrics in Prometheus' text format"),
        ("/openapi.json", endpoints.description, "This OpenAPI document"),
    )
    for path, endpoint, summary in get_routes:
        app.add_api_route(
            path, endpoint, methods=["GET"], summary=summary, responses=get_responses(path), response_class=Response
        )
    app.add_api_route(
        COLLECTION.replace("}", ":path}"),  # so that a slash in a name is an invalid name rather than an unknown path
        endpoints.collection,
        methods=["GET"],
        summary="Describe a collection",
        responses=get_responses(COLLECTION),
        response_class=Response,
        openapi_extra=path_parameter("name", "name of the collection or of an alias, percent-encoded"),
    )
    for method, job_endpoint, summary in (
        ("GET", endpoints.job, "Describe an accepted job, with its answer when it has ended"),
        ("DELETE", endpoints.job_deletion, "Cancel an accepted job, and forget its answer"),
    ):
        app.add_api_route(
            JOB,
            job_endpoint,
            methods=[method],
            summary=summary,
            responses=job_responses(),
            response_class=Response,
            openapi_extra=path_parameter("id", "id of the job, from the answer with status 202"),
        )
    app.add_api_route(JOB, endpoints.job, methods=["HEAD"], include_in_schema=False)
    pages = (("/", endpoints.page), ("/docs", endpoints.docs), (MODEL.replace("}", ":path}"), endpoints.models))
    for path, endpoint in pages:
        app.add_api_route(path, endpoint, methods=["GET"], include_in_schema=False)
    for path, endpoint in (*((path, endpoint) for path, endpoint, _ in get_routes), *pages):
        if path != "/collections":  # which asks the store
            app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    app.add_exception_handler(WorkerError, _worker_error)
    app.add_exception_handler(ClientDisconnect, _client_disconnected)
    app.add_exception_handler(Exception, _defect)
    endpoints.app = app
    paths = [ROOT, "/docs", EMBEDDINGS, MODEL, DEPLOYMENT, INFERENCE, COLLECTION, JOB, EMBED_SPARSE, *RERANK_PATHS]
    paths += [route.path for route in ROUTES] + [path for path, _, _ in get_routes]
    app.add_exception_handler(HTTPException, partial(_http_exception, [path for path in paths if path != AZURE_MODELS]))
    # A Qdrant server that asks for vectors is near, and waits for hundreds of megabytes of numbers.
    served = Compression(app, plain_paths=[INFERENCE]) if state.settings.compress_responses else app
    api_routes = [route for route in app.routes if isinstance(route, APIRoute)]
    routes = [(method, route.path) for route in api_routes for method in route.methods or ()]
    return Gate(served, state, paths, routes)


class _Endpoints:
    """The endpoints, one method per kind of route."""

    app: FastAPI

    def __init__(self, state: ServerState, body_max_bytes: int, body_part_timeout_s: float) -> None:
        self._state = state
        self._body_max_bytes = body_max_bytes
        self._body_part_timeout_s = body_part_timeout_s
        self._probes = Probes(state)
        self._jobs = Jobs(state)
        self._inference_key = InferenceKey(state.settings)

    async def operation(self, route: Route, request: Request) -> Response:
        """Run an operation."""
        codec = self._state.ready()
        with codec.core.memory.joined() as memory:
            received = await self._received(request, memory, self._body_max_bytes)
            raw = await received.parsed()
            is_tei = route.path == EMBED and is_tei_embed(raw)
            if not is_tei:
                raw = completed(raw, route.operation, passages=route.passages, path=route.path)
            if route.passages and prefers_async(request.headers):
                await codec.check(raw)
                work, size = partial(self._work, route, received.content), len(received.content)
                job = self._jobs.accept(work, size, codec.core.metrics, codec.core.memory)
                received.discard()
                return self._accepted(job)
            received.discard()
            return response(await (codec.tei(raw, EMBED) if is_tei else codec.answer(raw)))

    async def _work(self, route: Route, content: bytearray, progress: Progress) -> Answer:
        """Run an operation as a job, which waits as bytes, since parsed JSON may have twenty times their size."""
        codec = self._state.ready()
        limits = JsonLimits.of(self._state.settings.json_max_nodes, self._body_max_bytes)
        with codec.core.memory.joined() as memory:
            try:
                raw = await Received(content, memory, limits).parsed()
                raw = completed(raw, route.operation, passages=route.passages, path=route.path)
            except WorkerError as error:  # its memory is taken by others, until the next turn
                return error_reply(error, error_answer)
            return await codec.answer(raw, progress)

    async def embeddings(self, request: Request) -> Response:
        """Embed texts as OpenAI does."""
        return await self._answered(request, lambda codec, raw: codec.openai_embeddings(raw))

    async def deployment(self, request: Request) -> Response:
        """Embed texts as Azure OpenAI does."""
        return await self._answered(
            request, lambda codec, raw: codec.openai_embeddings(raw, request.path_params["model"])
        )

    async def inference(self, request: Request) -> Response:
        """Embed texts for a Qdrant server."""
        codec = self._state.ready()
        max_bytes = self._state.settings.inference_max_request_bytes
        is_known = self._inference_key.is_outside_body(request)
        with codec.core.memory.joined() as memory:
            with nullcontext() if is_known else self._inference_key.awaited() as also:
                try:
                    received = await self._received(request, memory, max_bytes, also)
                except BodyTooLarge as error:
                    remedy = "(INFERENCE_MAX_REQUEST_MB); send fewer points in a request"
                    raise error.saying(f"{error.message} {remedy}") from None
            if not is_known:
                self._inference_key.check_bytes(received.content)
            raw = await received.parsed()
            if not is_known:
                self._inference_key.check(raw)
            received.discard()
            return response(await codec.qdrant_inference(raw))

    async def rerank(self, request: Request) -> Response:
        """Rank documents as Cohere, Jina and TEI do."""
        return await self._answered(request, lambda codec, raw: codec.rerank(raw, request.url.path))

    async def tei(self, request: Request) -> Response:
        """Embed texts as TEI does."""
        return await self._answered(request, lambda codec, raw: codec.tei(raw, request.url.path))

    async def tei_info(self, _request: Request) -> Response:
        """Describe the model as TEI does."""
        return response(await self._state.ready().tei_info())

    async def models(self, request: Request) -> Response:
        """List the model as OpenAI does, or return one model."""
        return response(await self._state.ready().openai_models(request.url.path))

    async def ping(self, _request: Request) -> Response:
        """Return the state as a status, for load balancers."""
        return Response(status_code={"loading": 204, "ready": 200}.get(self._state.state, 503))

    async def health(self, _request: Request) -> Response:
        """Return the state as JSON."""
        state, operations = self._state.state, self._state.operations
        health = {"status": state} if operations is None else {"status": state, "model": operations.model_label}
        return response(Answer(Body.of(health), 200 if state in ("loading", "ready") else 503))

    async def livez(self, _request: Request) -> Response:
        """Return 200 for as long as the event loop turns."""
        return response(Answer(Body.of({"status": "alive"})))

    async def readyz(self, _request: Request) -> Response:
        """Return whether the worker can answer, with the reason."""
        ready, report = await self._probes.readiness()
        return response(Answer(Body.of(report), 200 if ready else 503))

    async def collections(self, _request: Request) -> Response:
        """List the collections."""
        return response(await self._state.ready().answer({"operation": "collections"}))

    async def collection(self, request: Request) -> Response:
        """Describe one collection."""
        name = request.path_params["name"]
        return response(await self._state.ready().answer({"operation": "collections", "collection": name}))

    async def job(self, request: Request) -> Response:
        """Describe an accepted job."""
        memory = self._state.ready().core.memory
        with memory.joined() as held:
            job = self._jobs.get(request.path_params["id"])
            held.grow(job.size if job.has_ended else 0)
            return _described(job)

    async def job_deletion(self, request: Request) -> Response:
        """Cancel an accepted job, and forget it."""
        metrics = self._state.ready().core.metrics
        # To its end, whether or not the client is still there: a cancelled job must not stay among the running ones.
        return _described(await asyncio.shield(self._jobs.cancel(request.path_params["id"], metrics)))

    def _accepted(self, job: Job) -> Response:
        accepted = _described(job, 202)
        root_path = self._state.settings.root_path or ""
        accepted.headers.update({"Location": root_path + JOBS_PREFIX + job.id, "Preference-Applied": "respond-async"})
        return accepted

    async def page(self, _request: Request) -> Response:
        """Return the search page."""
        return _html(Page.search(reranks="colbert" in self._state.settings.qdrant_collection_config.kinds))

    async def docs(self, _request: Request) -> Response:
        """Return the page that shows the OpenAPI document."""
        return _html(Page.docs())

    async def metrics(self, _request: Request) -> Response:
        """Return the metrics."""
        return Response(self._state.ready().core.metrics.exposed(), media_type=CONTENT_TYPE)

    async def description(self, _request: Request) -> Response:
        """Return the OpenAPI document."""
        return response(Answer(Body.of(description(self.app, self._state.settings.root_path))))

    async def _answered(self, request: Request, work: Callable[[Codec, Any], Awaitable[Answer]]) -> Response:
        """Read a body and do its work, with the memory of both reserved."""
        codec = self._state.ready()
        with codec.core.memory.joined() as memory:
            received = await self._received(request, memory, self._body_max_bytes)
            raw = await received.parsed()
            received.discard()
            return response(await work(codec, raw))

    async def _received(
        self, request: Request, memory: Reservation, max_bytes: int, also: Callable[[int], None] | None = None
    ) -> Received:
        return await read_body(
            request,
            memory,
            max_bytes=max_bytes,
            max_nodes=self._state.settings.json_max_nodes,
            part_timeout_s=self._body_part_timeout_s,
            also=also,
        )


def _described(job: Job, status: int = 200) -> Response:
    described = response(Answer(job.content, status))
    if job.state in ("queued", "running"):
        described.headers["Retry-After"] = _POLL_INTERVAL_S
    return described


def _html(page: Page) -> Response:
    headers = {"Content-Security-Policy": page.policy, "Referrer-Policy": "no-referrer"}
    return Response(page.body, headers=headers, media_type="text/html; charset=utf-8")


async def _http_exception(paths: Sequence[str], request: Request, error: Exception) -> Response:
    """Answer FastAPI's own errors in the worker's form."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "that of the Allow header")
        message = f"the method must be {allowed}, got {shown(request.method)}"
        refusal = error_response(MethodNotAllowed(message), request.url.path)
        refusal.headers.update(error.headers or {})
        return refusal
    meant = nearest(request.url.path, paths)
    question = "" if meant is None else f"did you mean {meant}? "
    message = f"the path is unknown; {question}GET /openapi.json lists all paths"
    # Clients of a dialect show a message in its form alone: OpenAI's, for instance, at `/embeddings` without `/v1`.
    path = request.url.path if meant is None or error_form(meant) is error_answer else meant
    return error_response(UnknownPath(message), path)


async def _worker_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, WorkerError):
        raise error
    refusal = error_response(error, request.url.path)
    forget_frames(error)
    if isinstance(error, UnknownCoding):
        refusal.headers["Accept-Encoding"] = ", ".join(CODINGS)
    return refusal


async def _client_disconnected(_request: Request, _error: Exception) -> Response:
    """Answer a disconnect within the body with the status that the gate counts for every other one."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _defect(request: Request, error: Exception) -> Response:
    """Answer an unexpected exception. Starlette raises it again afterwards, and the gate logs it."""
    return error_response(defect(error), request.url.path)


def _named(endpoint: Endpoint, path: str) -> Endpoint:
    """The endpoint as a function named after its path, since FastAPI names routes after functions."""

    async def run(request: Request) -> Response:
        return await endpoint(request)

    run.__name__ = path.strip("/").replace("/", "_")
    return run

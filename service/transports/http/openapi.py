"""The OpenAPI document: routes, schemas and examples, generated from the types of requests and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from service.wire.fields import or_null
from service.wire.openai_requests import EmbeddingsRequest
from service.wire.parsing import request_type
from service.wire.qdrant_inference import INFERENCE, InferenceRequest
from service.wire.rerank import RerankRequest
from service.wire.schemas import ANSWERS, JOB, REFERENCE, error_schemas
from service.wire.schemas import schemas as answer_schemas
from service.wire.tei_requests import TeiEmbedRequest, TeiRerankRequest, TeiSparseRequest

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Route:
    """A path that runs an operation.

    Attributes:
        path: path of the URL.
        operation: name of the operation in a job.
        summary: summary in one line.
        example: a valid request body.
        passages: whether texts are passages by default and a `qdrant` block is required.
        other_schemas: schemas of bodies in the form of a dialect.
    """

    path: str
    operation: str
    summary: str
    example: Json
    passages: bool = False
    other_schemas: tuple[str, ...] = ()


ROUTES: Final = (
    Route(
        "/embed",
        "embed",
        "Embed texts; TEI with inputs",
        {"texts": ["How do I copy only the changed parts of files?"]},
        other_schemas=("TeiEmbedRequest",),
    ),
    Route(
        "/points",
        "embed",
        "Embed texts and store them as points",
        {
            "texts": ["rsync copies only the changed parts of files to another machine."],
            "qdrant": {"collection": "notes", "ids": ["rsync"], "payloads": [{"topic": "backup"}]},
        },
        passages=True,
    ),
    Route(
        "/search",
        "search",
        "Search for the stored points nearest to each query",
        {"collection": "notes", "queries": ["send only what changed"], "rerank": "colbert", "limit": 3},
    ),
    Route(
        "/score",
        "score",
        "Score pairs of a query and a passage",
        {"pairs": [["send only what changed", "rsync copies only the changed parts of files."]]},
    ),
    Route(
        "/points/count",
        "count",
        "Count points",
        {"collection": "notes", "filter": {"must": [{"key": "topic", "match": {"value": "backup"}}]}},
    ),
    Route("/points/get", "points", "Read points by id or by page", {"collection": "notes", "ids": ["rsync", "tar"]}),
    Route("/points/delete", "delete", "Delete points", {"collection": "notes", "ids": ["rsync"]}),
    Route(
        "/loads",
        "load",
        "Begin, end or finish a load, with ALLOW_LOADS",
        {"action": "begin", "collection": "articles-v2", "alias": "articles"},
    ),
)

EMBEDDINGS_EXAMPLE: Final[Json] = {
    "input": ["rsync copies only the changed parts of files."],
    "encoding_format": "float",
}

INFERENCE_EXAMPLE: Final[Json] = {
    "inputs": [
        {
            "data": "rsync copies only the changed parts of files.",
            "data_type": "text",
            "model": "BAAI/bge-m3",
            "options": {"output": "sparse"},
        }
    ],
    "inference": "update",
    "token": None,
}

_INFERENCE_STATUSES: Final = (400, 401, 429, 500, 503)
"""Statuses of errors in the form that a Qdrant server reads, to which every other client error is 400."""
RERANK_EXAMPLE: Final[Json] = {
    "query": "send only what changed",
    "documents": ["rsync copies only the changed parts of files.", "tar packs files into an archive."],
    "top_n": 1,
}
TEI_EXAMPLE: Final[Json] = {"inputs": ["rsync copies only the changed parts of files."]}

_TEI_STATUSES: Final = {
    422: "Validation, in TEI's form: the request is invalid, or the answer would be too large",
    424: "Backend, in TEI's form: the model failed",
}
"""Further statuses of errors in TEI's form."""

_DIALECT_REQUESTS: Final = (
    EmbeddingsRequest,
    InferenceRequest,
    RerankRequest,
    TeiEmbedRequest,
    TeiRerankRequest,
    TeiSparseRequest,
)
"""The types of requests that are no operations of a job."""


_STATUSES: Final = {
    400: "invalid_request: the request is invalid",
    401: "invalid_request: the key is missing or wrong",
    404: "not_found: the collection, the model or the path does not exist",
    408: "invalid_request: the client stopped sending the body",
    409: "schema_mismatch: the collection has another schema",
    413: "invalid_request: the body is too large; response_too_large: the answer would be too large",
    415: "invalid_request: Content-Type must be application/json, or Content-Encoding is unknown",
    429: "overloaded: the queue is full; Retry-After says when to retry",
    500: "model_failure: the model failed; internal: a defect of the worker",
    502: "store_rejected: Qdrant rejected the request",
    503: "store_unavailable, or the worker is loading or shutting down; Retry-After says when to retry",
}

_GET_STATUSES: Final = (400, 401, 404, 413, 500, 502, 503)
"""Statuses of errors of a GET path that asks the store."""


PREFER: Final[Json] = {
    "parameters": [
        {
            "name": "Prefer",
            "in": "header",
            "required": False,
            "description": "respond-async: answer 202 immediately, and run the request as a job",
            "schema": {"type": "string"},
        }
    ]
}
"""The header that asks for a job, as an addition to FastAPI's description of a route."""


def post_responses(path: str, *, accepts_jobs: bool = False) -> dict[int | str, dict[str, Any]]:
    """The responses of a POST path by status, in FastAPI's form.

    Args:
        path: the path.
        accepts_jobs: whether the path answers 202 where `Prefer` asks for it.
    """
    accepted: dict[int | str, dict[str, Any]] = (
        {202: _job_response("the request runs as a job")} if accepts_jobs else {}
    )
    return {200: _answer_response(path), **accepted, **_error_responses(path)}


def job_responses() -> dict[int | str, dict[str, Any]]:
    """The responses of the path of a job by status, in FastAPI's form."""
    errors = _error_responses("")
    return {200: _job_response("the job"), **{status: errors[status] for status in (401, 404, 500, 503)}}


def get_responses(path: str) -> dict[int | str, dict[str, Any]]:
    """The responses of a GET path by status, in FastAPI's form."""
    json = {"content": {"application/json": {"schema": {"type": "object"}}}}
    if path == "/ping":
        descriptions = {200: "ready", 204: "the model is loading", 503: "shutting down, or the last device is lost"}
        return {status: {"description": text} for status, text in descriptions.items()}
    if path == "/health":
        return {200: {"description": "loading or ready", **json}, 503: {"description": "draining or lost", **json}}
    if path == "/livez":
        return {200: {"description": "the process lives", **json}}
    if path == "/readyz":
        return {200: {"description": "ready", **json}, 503: {"description": "loading, draining or lost", **json}}
    errors = _error_responses(path)
    if path in ANSWERS:
        return {200: _answer_response(path), **{status: errors[status] for status in _GET_STATUSES}}
    content = {"content": {"text/plain": {"schema": {"type": "string"}}}} if path == "/metrics" else json
    return {200: {"description": "the answer", **content}, 401: errors[401], 503: errors[503]}


def path_parameter(name: str, meaning: str) -> Json:
    """A parameter of a path, as an addition to FastAPI's description of a route."""
    schema = {"type": "string"}
    return {"parameters": [{"name": name, "in": "path", "required": True, "description": meaning, "schema": schema}]}


def _job_response(text: str) -> dict[str, Any]:
    content = {"schema": _one_of(*JOB.names), "example": JOB.example}
    return {"description": text, "content": {"application/json": content}}


def _answer_response(path: str) -> dict[str, Any]:
    described = ANSWERS[path]
    content = {"schema": _one_of(*described.names), "example": described.example}
    return {"description": "the answer", "content": {"application/json": content}}


def _one_of(*schemas: str) -> Json:
    """A value that has one of these schemas of the components."""
    references = [{"$ref": REFERENCE.format(model=schema)} for schema in schemas]
    return references[0] if len(references) == 1 else {"anyOf": references}


def body(schema: str, example: Json, *others: str) -> Json:
    """A JSON request body with a schema of the components, as an addition to FastAPI's description of a route.

    Args:
        schema: the schema of the example.
        example: a valid body.
        others: schemas of bodies in the form of a dialect.
    """
    content = {"schema": _one_of(schema, *others), "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def schema_name(route: Route) -> str:
    """Of a route's body among the components."""
    return "PointsRequest" if route.passages else request_type(route.operation).__name__


def components() -> Json:
    """All schemas of the components by name."""
    kinds = dict.fromkeys([*(request_type(route.operation) for route in ROUTES), *_DIALECT_REQUESTS], "validation")
    _, definitions = models_json_schema(list(kinds.items()), ref_template=REFERENCE)  # type: ignore[arg-type]
    schemas: Json = definitions["$defs"]
    for route in ROUTES:
        name = schema_name(route)
        described = schemas[request_type(route.operation).__name__]
        properties = {
            **described["properties"],
            "operation": or_null({"const": route.operation, "description": "that of the path; may be omitted"}),
            "timings": or_null({"type": "boolean", "default": False, "description": "answer with seconds per stage"}),
        }
        required = [field for field in described.get("required", []) if field != "operation"]
        if route.passages:
            properties["qdrant"] = {"$ref": REFERENCE.format(model="QdrantTarget")}
            properties["isPassage"] = {**properties["isPassage"], "default": True}
            required = [*required, "qdrant"]
        schemas[name] = {**described, "title": name, "properties": properties, "required": required}
    return {**schemas, **answer_schemas()}


def _error_responses(path: str) -> dict[int | str, dict[str, Any]]:
    forms = error_schemas(path)
    statuses = {**_STATUSES, **_TEI_STATUSES} if "TeiError" in forms else _STATUSES
    if path == INFERENCE:
        statuses = {status: _STATUSES[status] for status in _INFERENCE_STATUSES}
    return {
        status: {"description": text, "content": {"application/json": {"schema": _one_of(*forms)}}}
        for status, text in statuses.items()
    }


def description(app: FastAPI, root_path: str | None) -> Json:
    """The OpenAPI document of an application.

    Args:
        app: the application.
        root_path: prefix below which a proxy serves the application; None for no prefix.
    """
    described = app.openapi()
    if root_path is not None:
        described["servers"] = [{"url": root_path}]
    schemas = described.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components())
    described["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "api-key"},
    }
    described["security"] = [{"key": []}, {"header": []}, {}]
    return described

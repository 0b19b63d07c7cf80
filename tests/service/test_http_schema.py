"""The server conforms to its OpenAPI document, tested with schemathesis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.transports.http.openapi import ROUTES
from tests.service.client import ENVIRONMENT
from tests.service.served import Served

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


DESCRIPTION = "/collections/{name}"
JOB = "/jobs/{id}"


@pytest.fixture(scope="module")
def served(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a point in its store."""
    store = EdgeStore(tmp_path_factory.mktemp("schema"))
    operations = Operations(Settings.from_environment({**ENVIRONMENT, "ALLOW_LOADS": "true"}), embedder, store)
    with Served(operations) as opened, opened.client() as client:
        client.post("/points", json={"texts": ["one"], "qdrant": {"collection": "notes", "ids": [1]}})
        yield opened
    store.close()


def test_get_paths_conform_to_the_description(served: Served) -> None:
    """Every GET path has a status, a content type and a schema of the description."""
    with served.client() as client:
        document = client.get("/openapi.json").json()
    read = {path: methods["get"]["responses"] for path, methods in document["paths"].items() if "get" in methods}
    public = {"/ping", "/health", "/livez", "/readyz"}
    with_key = {"/info", "/metrics", "/v1/models", "/openai/models", "/collections", "/openapi.json"}
    assert public | with_key == set(read) - {DESCRIPTION, JOB}
    assert {"200", "204", "503"} == set(read["/ping"])
    assert all("401" in read[path] for path in read.keys() - public)
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=served.url)
    with requests.Session() as session:
        session.trust_env = False
        for path in read.keys() - {DESCRIPTION, JOB}:
            schema[path]["GET"].Case().call_and_validate(session=session, checks=CHECKS[:4])
        raw = {"texts": ["a"], "qdrant": {"collection": "notes"}}
        with served.client(Prefer="respond-async") as client:
            accepted = client.post("/points", json=raw).json()
        for identity in (accepted["id"], "absent"):
            case = schema[JOB]["GET"].Case(path_parameters={"id": identity})
            case.call_and_validate(session=session, checks=CHECKS[:4])
            case = schema[JOB]["DELETE"].Case(path_parameters={"id": identity})
            case.call_and_validate(session=session, checks=CHECKS[:4])
        for name in ("notes", "absent", "a b"):
            case = schema[DESCRIPTION]["GET"].Case(path_parameters={"name": name})
            case.call_and_validate(session=session, checks=CHECKS[:4])


@pytest.mark.parametrize(
    "path",
    [
        *(route.path for route in ROUTES),
        "/v1/embeddings",
        "/qdrant/inference",
        "/",
        "/embed_sparse",
        "/v1/rerank",
        "/rerank",
    ],
)
def test_generated_requests_conform_to_the_description(served: Served, path: str) -> None:
    """Generated requests have documented statuses and schemas, and invalid ones are rejected."""
    with served.client() as client:
        document = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=served.url)
    operation = schema[path]["POST"]
    cases = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    @settings(max_examples=20, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(case=st.one_of(cases))
    def check_case(case: Any) -> None:
        with requests.Session() as session:
            session.trust_env = False
            case.call_and_validate(session=session, checks=CHECKS)

    check_case()


RICH: dict[str, list[dict[str, Any]]] = {
    "/embed": [
        {"texts": ["a", ""], "timings": True},
        {"texts": ["a"], "encoding": "base64", "dtype": "float16", "includeText": False},
        {"inputs": ["a"]},
    ],
    "/points": [
        {"texts": ["one two. " * 60], "qdrant": {"collection": "notes", "chunk": {"maxTokens": 32}}},
        {"texts": ["a", "b"], "returnVectors": True, "qdrant": {"collection": "notes", "ids": [7, 7]}, "timings": True},
    ],
    "/search": [
        {"collection": "notes", "queries": ["a"], "rerank": "colbert", "explain": True, "withVectors": True},
        {"collection": "notes", "queries": ["a", "b"], "groupBy": "text", "timings": True, "withPayload": False},
    ],
    "/score": [{"pairs": [["a", "b"], ["c", "d"]], "timings": True}],
    "/points/count": [{"collection": "notes", "timings": True}],
    "/points/delete": [{"collection": "notes", "ids": ["absent"], "timings": True}],
    "/loads": [
        {"action": "begin", "collection": "loaded", "alias": "live", "timings": True},
        {"action": "end", "collection": "loaded", "alias": "live", "read": 1, "lines": 1, "rejected": 1},
        {"action": "finish", "collection": "loaded", "alias": "live"},
    ],
    "/points/get": [
        {"collection": "notes", "ids": [1, "absent"], "withVectors": True, "timings": True},
        {"collection": "notes", "limit": 1, "withVectors": ["dense", "colbert"], "encoding": "base64"},
    ],
    "/v1/embeddings": [
        {"input": "a"},
        {"input": ["a", "b"], "encoding_format": "base64", "vectors": ["sparse", "colbert"]},
        {"input": "a", "vectors": ["colbert"], "other": 1},
    ],
    "/openai/deployments/{model}/embeddings": [{"input": "a"}],
    "/qdrant/inference": [
        {"inputs": [{"data": "a", "model": f"mini:{kind}"} for kind in ("dense", "sparse", "colbert")]},
        {"inputs": [{"data": "a", "data_type": "text", "model": "mini", "options": None}], "inference": "search"},
    ],
    "/": [{"inputs": "a"}, {"inputs": ["a", "b"], "truncate": False, "prompt_name": "query"}],
    "/embed_sparse": [{"inputs": ["a", "b"]}],
    "/v1/rerank": [{"query": "a", "documents": ["b", {"text": "c", "id": 1}], "return_documents": True}],
    "/v2/rerank": [{"query": {"text": "a"}, "documents": ["b"], "top_n": 1, "max_tokens_per_doc": 4096}],
    "/rerank": [
        {"query": "a", "documents": ["b"], "weights": [0.4, 0.2, 0.4]},
        {"query": "a", "texts": ["b"], "return_text": True, "raw_scores": True},
    ],
}


def test_answers_have_the_shape_that_is_described(served: Served) -> None:
    """Answers with all optional parts, and the examples, conform to the schemas."""
    with served.client() as client:
        document = client.get("/openapi.json").json()
        given = {path: [client.post(path.format(model="mini"), json=raw) for raw in RICH[path]] for path in RICH}
    assert set(RICH) == {path for path, methods in document["paths"].items() if "post" in methods}
    for path, responses in given.items():
        described = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]
        schema = {**described["schema"], "components": document["components"]}
        jsonschema.validate(described["example"], schema)
        for response in responses:
            assert response.status_code == 200, response.text
            jsonschema.validate(response.json(), schema)


def with_a_null(raw: Any) -> Iterator[tuple[Any, Any]]:
    """Copies of a JSON value, each with another field of an object set to null, beside a copy without that field."""
    if isinstance(raw, dict):
        for name, value in raw.items():
            rest = {key: other for key, other in raw.items() if key != name}
            yield {**raw, name: None}, rest
            yield from (({**raw, name: null}, {**raw, name: absent}) for null, absent in with_a_null(value))
    elif isinstance(raw, list):
        for index, value in enumerate(raw):
            head, tail = raw[:index], raw[index + 1 :]
            yield from (([*head, null, *tail], [*head, absent, *tail]) for null, absent in with_a_null(value))


def fields_of(schemas: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    """All fields that a request of this schema may have."""
    names = [branch["$ref"].rpartition("/")[2] for branch in schema.get("anyOf", [schema])]
    return {field for name in names for field in schemas[name]["properties"]}


@pytest.mark.slow
@pytest.mark.parametrize("path", RICH)
def test_null_is_absence_and_described_so(served: Served, path: str) -> None:
    """A field that is null, known or not, is taken as absent, and the schema allows it wherever it is accepted."""
    with served.client() as client:
        document = client.get("/openapi.json").json()
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        described = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
        added = sorted({*fields_of(document["components"]["schemas"], schema), "unknown"} - RICH[path][0].keys())
        pairs = [({**RICH[path][0], name: None}, RICH[path][0]) for name in added]
        pairs += [pair for raw in RICH[path] for pair in with_a_null(raw)]
        for null, absent in pairs:
            accepted = client.post(path.format(model="mini"), json=null).is_success
            assert accepted == client.post(path.format(model="mini"), json=absent).is_success, null
            assert described.is_valid(null) or not accepted, null

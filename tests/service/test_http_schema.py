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
    operations = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
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


def test_a_bare_enumeration_of_a_request_allows_null(served: Served) -> None:
    """A field that may be null, as absent, is described so, also where its schema lists its values without a type."""
    with served.client() as client:
        document = client.get("/openapi.json").json()
    requests_of = [schema for name, schema in document["components"]["schemas"].items() if name.endswith("Request")]
    bare = [
        field
        for schema in requests_of
        for name, field in schema["properties"].items()
        if "enum" in field and "type" not in field and name not in schema.get("required", ())
    ]
    assert len(bare) >= 3
    assert all(None in field["enum"] for field in bare)


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

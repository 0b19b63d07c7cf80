"""The OpenAPI document keeps its word: schemathesis reads it and tries the door with what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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

from embedder.embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.openapi import ROUTES
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT
from tests.service.served import Served

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def served(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A door whose store holds a little."""
    store = EdgeStore(tmp_path_factory.mktemp("schema"))
    operations = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
    with Served(operations) as opened, opened.client() as client:
        client.post("/points", json={"texts": ["one"], "qdrant": {"collection": "notes", "ids": [1]}})
        yield opened
    store.close()


def test_what_is_only_read_is_as_described(served: Served) -> None:
    """Every path without a body has a status, a type and a shape that the description names."""
    with served.client() as client:
        document = client.get("/openapi.json").json()
    read = {path: methods["get"]["responses"] for path, methods in document["paths"].items() if "get" in methods}
    assert {"/ping", "/health", "/metrics", "/v1/models", "/collections", "/openapi.json"} == set(read)
    assert {"200", "204", "503"} == set(read["/ping"])
    assert all("401" in read[path] for path in read.keys() - {"/ping", "/health"})
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=served.url)
    with requests.Session() as session:
        session.trust_env = False
        for path in read:
            schema[path]["GET"].Case().call_and_validate(session=session, checks=CHECKS[:4])


@pytest.mark.parametrize("path", [route.path for route in ROUTES] + ["/v1/embeddings"])
def test_what_follows_from_the_description_is_answered_as_it_says(served: Served, path: str) -> None:
    """No server error, only documented statuses and shapes; and what the schema forbids is refused."""
    with served.client() as client:
        document = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=served.url)
    operation = schema[path]["POST"]
    cases = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    @settings(max_examples=20, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(case=st.one_of(cases))
    def tried(case: Any) -> None:
        with requests.Session() as session:
            session.trust_env = False
            case.call_and_validate(session=session, checks=CHECKS)

    tried()

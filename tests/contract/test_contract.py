"""The wire format is as recorded: every kind of request gets the answer that clients rely on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.contract import configuration, openapi, records
from tests.contract.cases import AREAS
from tests.contract.record import compared
from tests.contract.steps import Area, Call, Job, Step
from tests.contract.world import WORLDS, World, opened

REQUESTS_MIN = 200
"""Requests that the contract test has at least."""

PATHS: Mapping[str, str] = {
    "/embed": "EmbedRequest",
    "/points": "EmbedRequest",
    "/search": "SearchRequest",
    "/points/count": "CountRequest",
    "/points/delete": "DeleteRequest",
    "/points/get": "ReadPointsRequest",
    "/score": "ScoreRequest",
    "/loads": "LoadRequest",
    "/v1/embeddings": "EmbeddingsRequest",
    "/qdrant/inference": "InferenceRequest",
    "/v1/rerank": "RerankRequest",
    "/v2/rerank": "RerankRequest",
    "/rerank": "RerankRequest",
    "/": "TeiEmbedRequest",
    "/embed_sparse": "TeiSparseRequest",
}
TEI: Mapping[str, tuple[str, str]] = {"/embed": ("inputs", "TeiEmbedRequest"), "/rerank": ("texts", "TeiRerankRequest")}
"""Paths with two forms: the field that tells TEI's, and its schema."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name == "stub-edge" else pytest.mark.slow) for name in WORLDS],
)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Every engine over every store in turn."""
    with opened(request.param) as entered:
        yield entered


@pytest.mark.parametrize(
    "area",
    [
        pytest.param(area, id=area.name, marks=pytest.mark.slow if area.name == "bulk" else ())  # starts programs
        for area in AREAS
    ],
)
def test_answers_are_the_recorded_ones(world: World, area: Area) -> None:
    """A client gets the recorded structure, codes, statuses, details and numbers.

    `python -m tests.contract.record --write` records an answer that is meant to change.
    """
    lines = compared(world, area)
    assert not lines, "\n".join(lines)


def test_the_openapi_document_is_the_recorded_one() -> None:
    """A client that was generated from the OpenAPI document keeps working."""
    lines = openapi.compared()
    assert not lines, "\n".join(lines)


def test_the_names_of_settings_are_the_recorded_ones() -> None:
    """Variables, the collection block, build arguments and options keep their names and meaning."""
    lines = configuration.compared()
    assert not lines, "\n".join(lines)


def test_there_are_enough_requests_each_with_a_name() -> None:
    """Every request has a unique name, which identifies it in a difference."""
    names = [case for area in AREAS for case in area.cases()]
    assert len(names) == len(set(names)) >= REQUESTS_MIN


def test_every_error_code_occurs() -> None:
    """The record contains every error code."""
    schemas = records.read("openapi-answers")["schemas"]
    codes = set(schemas["Error"]["properties"]["error_code"]["enum"])
    occurring: set[str] = set()
    for area in AREAS:
        _collect_codes(records.read(f"{area.name}.stub"), occurring)
    assert codes <= occurring


def test_every_field_of_every_request_occurs() -> None:
    """Every option of a request occurs in a case outside its validation."""
    schemas = records.read("openapi")["components"]["schemas"]
    fields = {
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field in schema.get("properties", {})
        if field != "operation" and name != "PointsRequest"
    }
    occurring: set[str] = set()
    for area in AREAS:
        if area.name != "invalid":
            for scenario in area.scenarios:
                for step in scenario.steps:
                    _collect_fields(*_request(step), schemas, occurring)
    assert fields - occurring == set()


def _collect_codes(value: Any, occurring: set[str]) -> None:
    if isinstance(value, list):
        for part in value:
            _collect_codes(part, occurring)
    elif isinstance(value, dict):
        occurring.update(value[key] for key in ("error_code", "code") if isinstance(value.get(key), str))
        for part in value.values():
            _collect_codes(part, occurring)


def _request(step: Step) -> tuple[str | None, Any]:
    """Return the schema of a request, and the request."""
    if isinstance(step, Call):
        field, schema = TEI.get(step.path, ("", ""))
        is_tei = isinstance(step.json, dict) and field in step.json
        return schema if is_tei else PATHS.get(step.path), step.json
    if not isinstance(step, Job) or not isinstance(step.input, dict):
        return None, None
    if "openai_route" in step.input:
        return PATHS.get(step.input["openai_route"]), step.input.get("openai_input")
    operation = str(step.input.get("operation", "embed"))
    return "ReadPointsRequest" if operation == "points" else f"{operation.capitalize()}Request", step.input


def _collect_fields(name: str | None, value: Any, schemas: Mapping[str, Any], occurring: set[str]) -> None:
    if name is None or name not in schemas or not isinstance(value, dict):
        return
    properties = schemas[name].get("properties", {})
    for key, part in value.items():
        occurring.add(f"{name}.{key}")
        described = properties.get(key, {})
        for option in (described, *described.get("anyOf", ())):
            if "$ref" in option:
                _collect_fields(option["$ref"].rpartition("/")[2], part, schemas, occurring)
            if "$ref" in option.get("items", {}) and isinstance(part, list):
                for item in part:
                    _collect_fields(option["items"]["$ref"].rpartition("/")[2], item, schemas, occurring)

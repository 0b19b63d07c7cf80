"""The client's types are those of the worker that it calls."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import bge_m3_qdrant_client
from bge_m3_qdrant_client import AsyncClient, Client, WorkerError, options
from bge_m3_qdrant_client.fields import Fields
from service.wire.errors import CODES
from tests.contract.openapi import document

CLIENT = Path(__file__).parents[1]
PACKAGE = CLIENT / "src" / "bge_m3_qdrant_client"


@pytest.fixture(scope="module")
def served() -> dict[str, Any]:
    """The OpenAPI document that the worker serves."""
    return document()


@pytest.mark.parametrize("module", ["answers", "options"])
def test_types_are_generated_from_the_worker_s_document(served: dict[str, Any], module: str) -> None:
    """A change of requests or answers is a change of the client: `python clients/python/generate.py` writes it."""
    generate = runpy.run_path(str(CLIENT / "generate.py"))
    assert (PACKAGE / f"{module}.py").read_text(encoding="utf-8") == generate[module](served)


def assert_complete(fields: Fields, schemas: dict[str, Any], *requests: str, others: frozenset[str]) -> None:
    """Check that the parameters are the fields of the requests, and in blocks too."""
    properties = {name: schema for request in requests for name, schema in schemas[request]["properties"].items()}
    assert {field.name for field in fields.values()} | others == set(properties)
    for name, block in fields.values():
        if block is not None:
            inner = re.findall(r"schemas/(\w+)", str(properties[name]))
            assert_complete(block, schemas, *inner, others=frozenset())


@pytest.mark.parametrize(
    ("fields", "requests", "others"),
    [
        (options.EMBED_OPTIONS_FIELDS, ["EmbedRequest"], {"texts", "qdrant", "encoding"}),
        (
            options.INGEST_OPTIONS_FIELDS,
            ["PointsRequest", "QdrantTarget"],
            {"texts", "qdrant", "encoding", "ids", "payloads"},
        ),
        (options.SEARCH_OPTIONS_FIELDS, ["SearchRequest"], {"queries"}),
        (options.SCORE_OPTIONS_FIELDS, ["ScoreRequest"], {"pairs"}),
        (options.COUNT_OPTIONS_FIELDS, ["CountRequest"], set()),
        (options.DELETE_OPTIONS_FIELDS, ["DeleteRequest"], set()),
        (options.POINTS_OPTIONS_FIELDS, ["ReadPointsRequest"], {"encoding"}),
    ],
)
def test_every_field_of_a_request_is_a_parameter(
    served: dict[str, Any], fields: Fields, requests: list[str], others: set[str]
) -> None:
    """Nothing that the worker offers is out of reach of the client."""
    assert_complete(fields, served["components"]["schemas"], *requests, others=frozenset(others | {"operation"}))


def test_every_code_has_a_class() -> None:
    """Programs can catch each `error_code` of the worker by its class, which the package exports."""
    assert set(WorkerError.codes) == set(CODES)
    assert all(hasattr(bge_m3_qdrant_client, kind.__name__) for kind in WorkerError.codes.values())


def test_both_clients_have_the_same_methods() -> None:
    """What blocks in one is awaited in the other, with the same parameters."""
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if name.startswith("_") or name == "close":
            continue
        awaited = getattr(AsyncClient, name)
        assert inspect.iscoroutinefunction(awaited), name
        assert inspect.signature(awaited) == inspect.signature(method)

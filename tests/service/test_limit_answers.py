"""Requests that exceed a limit get the status and the code that `docs/limits.md` says, before the work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import httpx
import pytest

from qdrant_sink.edge.store import EdgeStore
from service.transports.http.body import BODY_MAX_BYTES
from tests.hostile.raw_client import RawClient
from tests.limit_rows import ROWS
from tests.service.client import Client
from tests.service.served import Served
from tests.test_limits import table_rows, value_of

Raw = Mapping[str, Any]
JSON: Final = {"Content-Type": "application/json"}
MATCH: Final = {"key": "k", "match": {"value": 1}}


def above(row: str, number: int = 0) -> int:
    """One more than a limit."""
    return int(value_of(ROWS[row][1][number])) + 1


def nested(levels: int) -> Any:
    """A filter of so many levels."""
    where: Any = {"must": [MATCH]}
    for _ in range(levels - 1):
        where = {"must": [where]}
    return where


def search(**fields: Any) -> tuple[str, Any]:
    """A search with these fields."""
    return "/search", {"collection": "notes", "queries": ["a"], **fields}


def filtered(where: Any) -> tuple[str, Any]:
    """A search with a filter."""
    return search(filter=where)


def polygon(points: int) -> Any:
    """A condition with a polygon of so many points."""
    ring = [{"lon": n / points, "lat": 0.5} for n in range(points - 1)]
    return {"key": "k", "geo_polygon": {"exterior": {"points": [*ring, ring[0]]}}}


EXCEEDING: Final[Mapping[str, Callable[[], tuple[str, Any]]]] = {
    "values and field names of a request": lambda: (
        "/embed",
        b'{"texts": [' + b"1," * above("values and field names of a request") + b"1]}",
    ),
    "levels of lists and objects": lambda: (
        "/embed",
        b'{"texts": '
        + b"[" * above("levels of lists and objects")
        + b"]" * above("levels of lists and objects")
        + b"}",
    ),
    "memory of the values of a request": lambda: ("/embed", b'{"texts": [' + b"{}," * 990_000 + b"{}]}"),
    "fields of a request, and of a block in it": lambda: (
        "/embed",
        {"texts": ["a"], **{f"f{n}": 1 for n in range(above("fields of a request, and of a block in it"))}},
    ),
    "texts, queries, pairs or documents of a request": lambda: (
        "/embed",
        {"texts": ["a"] * above("texts, queries, pairs or documents of a request")},
    ),
    "inputs of `/qdrant/inference`": lambda: (
        "/qdrant/inference",
        {"inputs": [{}] * above("inputs of `/qdrant/inference`")},
    ),
    "fewest tokens of `maxLength`": lambda: ("/embed", {"texts": ["a"], "maxLength": 2}),
    "`batchSize`": lambda: ("/embed", {"texts": ["a"], "batchSize": above("`batchSize`")}),
    "conditions of a filter, and keys of an object in it": lambda: filtered(
        {"must": [MATCH] * above("conditions of a filter, and keys of an object in it")}
    ),
    "levels of a filter": lambda: filtered(nested(above("levels of a filter"))),
    "values in the lists of a filter": lambda: filtered(
        {"must": [{"key": "k", "match": {"any": list(range(above("values in the lists of a filter")))}}]}
    ),
    "filter": lambda: filtered(
        {"must": [{"key": "k", "match": {"any": [f"{n}" + "x" * 4000 for n in range(above("filter") // 4000 + 1)]}}]}
    ),
    "characters of a text that a filter matches": lambda: filtered(
        {"must": [{"key": "k", "match": {"text": "a" * above("characters of a text that a filter matches")}}]}
    ),
    "characters of a key in a filter": lambda: filtered(
        {"must": [{"key": "k" * above("characters of a key in a filter"), "match": {"value": 1}}]}
    ),
    "points of a polygon": lambda: filtered({"must": [polygon(above("points of a polygon"))]}),
    "copies of a filter: its bytes x branches x queries": lambda: search(
        queries=["a"] * 200,
        using=["dense"],
        filter={"must": [{"key": "k", "match": {"any": [f"{n}" + "x" * 1000 for n in range(100)]}}]},
    ),
    "characters of a path of payload keys": lambda: search(
        withPayload=["k" * above("characters of a path of payload keys")]
    ),
    "payload keys of a selection": lambda: search(
        withPayload=[f"k{n}" for n in range(above("payload keys of a selection"))]
    ),
    "`limit` of a search": lambda: search(limit=above("`limit` of a search")),
    "`offset` of a search": lambda: search(offset=above("`offset` of a search")),
    "queries x (`limit` + `offset`), with `groupBy` x `groupSize`": lambda: search(queries=["a"] * 101, limit=10_000),
    "`groupSize`": lambda: search(groupBy="k", groupSize=above("`groupSize`")),
    "`prefetch`": lambda: search(prefetch=above("`prefetch`")),
    "positive, and negative, points of `like`": lambda: (
        "/search",
        {"collection": "notes", "like": {"positive": list(range(above("positive, and negative, points of `like`")))}},
    ),
    "candidates with `groupBy` or `explain`": lambda: search(
        queries=["a"] * 11, using=["dense"], groupBy="k", prefetch=100_000
    ),
    "explained hits": lambda: search(using=["dense"], explain=True, limit=above("explained hits")),
    "points of a page, and ids of a read": lambda: (
        "/points/get",
        {"collection": "notes", "limit": above("points of a page, and ids of a read")},
    ),
    "answer": lambda: ("/embed", {"texts": ["word " * 600] * 120, "isPassage": True, "vectors": ["colbert"]}),
    "time for which an answer is kept": lambda: ("/jobs/unknown", None),
}


@pytest.fixture(scope="module")
def embedding_client(embedder: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A worker whose model is not called by a request that is refused."""
    from service.operations import Operations
    from service.settings import Settings
    from tests.service.client import ENVIRONMENT

    store = EdgeStore(tmp_path_factory.mktemp("store"))
    yield Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, store))
    store.close()


@pytest.fixture(scope="module")
def served(embedding_client: Client) -> Iterator[Served]:
    """Its HTTP server."""
    with Served(embedding_client.operations) as server:
        yield server


def promised(row: str) -> tuple[int, str]:
    """The first status and code that the page gives for a limit."""
    [answer] = [cells[3] for cells in table_rows() if cells[0] == row]
    parts = re.search(r"(\d{3}) `(\w+)`", answer)
    assert parts is not None
    return int(parts[1]), parts[2]


@pytest.mark.parametrize("row", EXCEEDING)
def test_what_exceeds_a_limit_is_answered_as_the_page_says(row: str, served: Served) -> None:
    """A client can rely on the status and the code of the page, and nothing is embedded for it."""
    path, body = EXCEEDING[row]()
    with served.client() as client:
        if body is None:
            response = client.get(path)
        else:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            response = client.post(path, content=content, headers=JSON)
    assert response.status_code == promised(row)[0]
    code = promised(row)[1]
    if path == "/qdrant/inference":  # whose errors have no code
        assert "at most" in response.json()["error"]
    else:
        assert response.json()["error_code"] == code


def test_requests_together_are_bounded(served: Served, embedding_client: Client) -> None:
    """A request that finds no memory is told to come again."""
    memory = embedding_client.operations.memory
    others = memory.reserve(memory.total_bytes - memory.reserved_bytes)
    with served.client() as client:
        response: httpx.Response = client.post("/embed", json={"texts": ["a"]})
    others.release()
    assert (response.status_code, response.json()["error_code"]) == promised("memory of all requests together")


@pytest.mark.parametrize(
    ("row", "head"),
    [
        ("head of a request", b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 50_000 + b"\r\n\r\n"),
        ("path and query", b"GET /livez?" + b"a" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        (
            "body over HTTP, as sent and decompressed",
            b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % (BODY_MAX_BYTES + 1),
        ),
    ],
)
def test_heads_and_bodies_are_bounded(row: str, head: bytes, served: Served) -> None:
    """What is too long is refused by its head, with the status of the page."""
    with RawClient(served.port) as client:
        client.send(head)
        assert client.answer().status == promised(row)[0]

"""Paths over HTTP: slashes too many, and unknown paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.transports.http.paths import nearest, normalized
from tests.service.client import ENVIRONMENT, Json
from tests.service.conftest import Serve
from tests.service.served import Served

KEY = "k3y-0123456789"


@pytest.fixture(scope="module")
def http(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server without a key, with a collection."""
    store = EdgeStore(tmp_path_factory.mktemp("paths"))
    operations = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
    with Served(operations) as served, served.client() as client:
        client.post("/points", json={"texts": ["a"], "qdrant": {"collection": "notes"}})
        yield client
    store.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings/", {"input": "a"}),
        ("//v1/embeddings", {"input": "a"}),
        ("/v1//embeddings//", {"input": "a"}),
        ("//openai///deployments/mini/embeddings/", {"input": "a"}),
        ("/embed/", {"texts": ["a"]}),
        ("//points/count", {"collection": "notes"}),
    ],
)
def test_slashes_too_many_make_no_difference(http: httpx.Client, path: str, body: Json) -> None:
    """A base URL that ends with a slash, and a path that does, are those of the route."""
    response = http.post(f"{http.base_url}".rstrip("/") + path, json=body)
    assert response.status_code == 200, response.text


def test_the_key_metrics_and_routes_see_the_same_path(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """A slash too many neither opens a path without the key nor changes what is counted and logged."""
    with (
        caplog.at_level("INFO"),
        Served(serve(API_KEY=KEY).operations) as served,
        served.client() as anyone,
        served.client(Authorization=f"Bearer {KEY}") as client,
    ):
        assert anyone.get(f"{served.url}//ping/").status_code == 200
        assert anyone.get(f"{served.url}//").headers["content-type"].startswith("text/html")
        for path in ("//collections", "/collections/", "//v1/models/", "/ping%2F", "//ping/x"):
            assert anyone.get(served.url + path).status_code == 401
        assert client.get(f"{served.url}//collections//absent/").json()["error_code"] == "not_found"
        counted = client.get(f"{served.url}/metrics/").text
    assert re.search(r'route="/collections/\{name\}",status="404"\} 1', counted)
    lines = [record.getMessage().partition(",")[0] for record in caplog.records if record.name.endswith("http.gate")]
    assert "/collections/{name} 404 not_found" in lines


@pytest.mark.parametrize(
    ("root", "method", "path", "body"),
    [
        ("/search", "POST", "/search", {"collection": "notes", "queries": ["a"]}),  # without the prefix
        ("/search", "POST", "/search/search", {"collection": "notes", "queries": ["a"]}),  # with it
        ("/v1", "POST", "/v1/embeddings", {"input": "a"}),
        ("/v1", "POST", "/v1/v1/embeddings", {"input": "a"}),
        ("/v1", "GET", "/v1/models/mini", None),
        ("/v1", "GET", "/v1/v1/models/mini", None),
        ("/points", "POST", "/points/count", {"collection": "notes"}),
        ("/collections", "GET", "/collections", None),
        ("/collections", "GET", "/collections/collections", None),
        ("/collections", "GET", "/collections/notes", None),
        ("/collections", "GET", "/collections/readyz", None),
        ("/openai", "POST", "/openai/deployments/mini/embeddings", {"input": "a"}),
    ],
)
def test_a_prefix_may_be_the_beginning_of_a_route(
    serve: Serve, root: str, method: str, path: str, body: Json | None
) -> None:
    """Whether or not the proxy removes `ROOT_PATH`, every route is found, also one that begins like the prefix."""
    with Served(serve(ROOT_PATH=root).operations) as served, served.client() as client:
        client.post(f"{root}/points", json={"texts": ["a"], "qdrant": {"collection": "notes"}}).raise_for_status()
        response = client.request(method, path, json=body)
        assert response.status_code == 200, response.text
        assert "error" not in response.json()


def test_the_root_of_a_prefix_is_the_page(serve: Serve) -> None:
    """The page is at the prefix, also where a route has the same name for another method."""
    with Served(serve(ROOT_PATH="/search").operations) as served, served.client() as client:
        for path in ("/search", "/search/", "/"):
            assert client.get(path).headers["content-type"].startswith("text/html")


def test_a_prefix_opens_no_path_without_the_key(serve: Serve) -> None:
    """A path below the prefix needs the key where the same path without it does."""
    with Served(serve(API_KEY=KEY, ROOT_PATH="/docs").operations) as served, served.client() as anyone:
        for path in ("/docs/metrics", "/docs/collections", "/docs/docs/metrics", "/metrics", "/docs/openapi.json"):
            assert anyone.get(path).status_code == 401
        for path in ("/docs", "/docs/docs", "/docs/readyz"):
            assert anyone.get(path).status_code == 200


@pytest.mark.parametrize("name", ["notes%2F", "a%2F%2Fb", "%2F%2F", "a%2Fb"])
def test_an_encoded_slash_belongs_to_the_name(http: httpx.Client, name: str) -> None:
    """A percent-encoded slash in a name is part of the name, which is invalid with it."""
    response = http.get(f"/collections/{name}")
    assert (response.status_code, response.json()["details"]["errors"][0]["field"]) == (400, "collection")


@given(
    segments=st.lists(st.text("ab/?%é \u4e2d", min_size=1), min_size=1), slashes=st.integers(1, 3), end=st.booleans()
)
def test_only_plain_slashes_are_dropped(segments: list[str], slashes: int, end: bool) -> None:
    """Whatever a path's segments are, they stay as they are between single slashes."""
    encoded = [quote(segment, safe="") for segment in segments]
    raw = "".join("/" * slashes + segment for segment in encoded) + "/" * end * slashes
    scope = {"path": "".join("/" * slashes + segment for segment in segments), "raw_path": raw.encode()}
    wanted = {"path": "".join(f"/{segment}" for segment in segments), "raw_path": f"/{'/'.join(encoded)}".encode()}
    assert normalized(scope) == wanted


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/embeddings", "/v1/embeddings"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/V1/Embeddings", "/v1/embeddings"),
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/api/v1/embeddings", "/v1/embeddings"),
        ("/openai/v1/embeddings", "/v1/embeddings"),
        ("/models", "/v1/models"),
        ("/api/embed", "/embed"),
        ("/points/search", "/search"),
        ("/openapi", "/openapi.json"),
        ("/healthz", "/health"),
    ],
)
def test_an_unknown_path_names_the_known_one(http: httpx.Client, path: str, meant: str) -> None:
    """A path that is nearly right is answered with the right one, in the form of the API that it belongs to."""
    response = http.post(path, json={})
    assert response.status_code == 404
    answer = response.json()["error"]
    message = answer["message"] if meant.startswith("/v1/") else answer
    assert message == f"the path is unknown; did you mean {meant}? GET /openapi.json lists all paths"


@pytest.mark.parametrize("path", ["/nowhere", "/v1/chat/completions", "/favicon.ico", "/" + "v1/embeddings" * 9])
def test_a_path_that_is_like_no_other_names_none(http: httpx.Client, path: str) -> None:
    """Nothing is suggested where nothing is similar."""
    assert "did you mean" not in http.post(path, json={}).text


@given(path=st.text(max_size=80))
def test_any_path_can_be_compared(path: str) -> None:
    """The suggestion is one of the known paths, whatever the path is."""
    known = ["/v1/embeddings", "/collections/{name}"]
    assert nearest(path, known) in (None, "/v1/embeddings")

"""The HTTP server: the same operations, answers and errors as on the queue, and its own features."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import httpx2
import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder import DeviceLost, Embedder, Outputs
from embedder.checkpoint import MINI
from embedder.engines import EncodedBatch, TokenBatch, YieldPoint
from embedder.tokenizer import Tokenizer
from qdrant_sink.edge import EdgeStore
from service.logs import JsonFormatter
from service.operations import Operations
from service.settings import Settings
from service.transports.http.openapi import EMBEDDINGS_EXAMPLE, ROUTES
from tests.embedder.oracle import TOLERANCE
from tests.service import client as wire
from tests.service.client import CODES, ENVIRONMENT, PATIENCE, Client, Json, assert_error, until
from tests.service.conftest import Serve
from tests.service.doubles import FailingStore, RaisingStore, Watched, WatchedEngine
from tests.service.served import Served
from tests.service.strategies import requests
from tests.service.wrappers import embedder_over
from tests.sink.samples import schema_for

PRIVATE = "the private words of a user"
KEY = "k3y-0123456789"


@pytest.fixture
def http(worker: Client) -> Iterator[httpx.Client]:
    """A client of a server without a key."""
    with Served(worker.operations) as served, served.client() as client:
        yield client


@pytest.fixture(scope="module")
def shared(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server with a point in its store, shared by tests that do not depend on its contents."""
    store = EdgeStore(tmp_path_factory.mktemp("shared"))
    operations = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
    with Served(operations) as served, served.client() as client:
        client.post("/points", json={"texts": ["one"], "qdrant": {"collection": "notes", "ids": [1]}})
        yield client
    store.close()


def read(response: httpx.Response) -> Json:
    """Parse the JSON object of an answer strictly."""
    assert response.headers["content-type"] == "application/json"
    return wire.read(response.content)


def refused(response: httpx.Response, status: int, code: str) -> str:
    """Check the status and the code of an error, and return its message."""
    answer = read(response)
    assert_error(answer)
    assert (response.status_code, answer["error_code"]) == (status, code), answer
    message: str = answer["error"]
    return message


@contextmanager
def busy(watched: Watched, client: httpx.Client) -> Iterator[list[httpx.Response]]:
    """Keep the model busy with a request until its gate is set; yields the list that receives the answer."""
    watched.engine.gate.clear()
    watched.engine.batches.clear()
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(client.post("/embed", json={"texts": ["first"]})))
    thread.start()
    try:
        asyncio.run(until(lambda: bool(watched.engine.batches)))
        yield answers
    finally:
        watched.engine.gate.set()
        thread.join(PATIENCE)


def send(served: Served, path: str, raw: Json) -> socket.socket:
    """Send a request on a raw connection without reading the answer."""
    body = json.dumps(raw).encode()
    connection = socket.create_connection(("127.0.0.1", served.port), PATIENCE)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_every_operation_has_its_path(http: httpx.Client, worker: Client) -> None:
    """Storing, searching, counting and deleting over HTTP equals the jobs of the queue."""
    stored = http.post("/points", json={"texts": ["rsync copies", "a database"], "qdrant": {"collection": "notes"}})
    assert read(stored)["upsert"] == {"collection": "notes", "stored": 2, "skipped": 0, "rejected": []}
    search = {"collection": "notes", "queries": ["copy with rsync"], "limit": 1}
    answer = read(http.post("/search", json=search))
    assert answer["results"][0]["hits"][0]["payload"] == {"text": "rsync copies"}
    assert answer == worker.good({**search, "operation": "search"})
    assert read(http.post("/points/count", json={"collection": "notes"})) == {"count": 2}
    ids = [hit["id"] for hit in answer["results"][0]["hits"]]
    assert read(http.post("/points/delete", json={"collection": "notes", "ids": ids})) == {"deleted": 1}
    assert read(http.post("/points/count", json={"collection": "notes"})) == {"count": 1}


def test_embed_answers_as_the_queue_does(http: httpx.Client, worker: Client) -> None:
    """The body of `/embed` is the input of a job."""
    raw = {"texts": ["What is BGE M3?", ""], "isPassage": False, "batchSize": 0}
    mine, theirs = read(http.post("/embed", json=raw)), worker.good(raw)
    assert mine.keys() == theirs.keys()
    for result, expected in zip(mine["results"], theirs["results"], strict=True):
        assert result.keys() == expected.keys()
        assert np.abs(np.array(result["dense"]) - np.array(expected["dense"])).max() <= TOLERANCE


def test_points_are_passages_unless_said_otherwise(http: httpx.Client) -> None:
    """The texts of `/points` are passages by default."""
    long = {"texts": ["word " * 600], "maxLength": 40, "qdrant": {"collection": "notes"}}
    assert read(http.post("/points", json=long))["results"][0]["truncated"] is True
    assert "qdrant is required" in refused(http.post("/points", json={"texts": ["a"]}), 400, "invalid_request")


def test_every_example_of_the_description_works(serve: Serve) -> None:
    """Every example in the OpenAPI document is a valid request."""
    with Served(serve(ALLOW_LOADS="true").operations) as served, served.client() as http:
        _play_examples(http)


def _play_examples(http: httpx.Client) -> None:
    described = read(http.get("/openapi.json"))
    for route in ROUTES:
        content = described["paths"][route.path]["post"]["requestBody"]["content"]["application/json"]
        assert content["example"] == route.example
    for route in sorted(ROUTES, key=lambda route: route.path != "/points"):  # stored first, so that it can be found
        response = http.post(route.path, json=route.example)
        assert response.status_code == 200, (route.path, response.text)
    assert http.post("/v1/embeddings", json=EMBEDDINGS_EXAMPLE).status_code == 200


def test_the_official_openai_client(worker: Client) -> None:
    """The official client works: defaults, both encodings, usage, the list of models and errors."""
    with (
        Served(worker.operations) as served,
        httpx2.Client(trust_env=False, timeout=PATIENCE) as transport,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, http_client=transport) as client,
    ):
        texts = ["rsync copies only the changed parts.", "a query"]
        wanted = worker.good({"texts": texts, "vectors": ["dense"]})
        for more in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}, {"dimensions": 192}):
            answer = client.embeddings.create(model="mini", input=texts, **more)
            assert answer.model == "mini"
            assert answer.usage.total_tokens == wanted["usage"]["tokens"]
        answer = client.embeddings.create(model="mini", input=texts, encoding_format="float")
        for mine, theirs in zip(answer.data, wanted["results"], strict=True):
            assert mine.embedding == pytest.approx(theirs["dense"], abs=TOLERANCE)
        assert [model.id for model in client.models.list()] == ["mini"]
        assert client.models.retrieve("mini").id == "mini"
        with pytest.raises(openai.BadRequestError) as bad:
            client.embeddings.create(model="mini", input=texts, dimensions=8)
        assert bad.value.code == "invalid_request"
        assert "dimensions must be 192, the size of the model's vectors, got 8" in bad.value.message
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="other", input=texts)


@pytest.mark.parametrize(
    "path",
    [
        "/embed",
        "/search",
        "/points",
        "/rerank",
        "/embed_sparse",
        "/info",
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/nowhere",
    ],
)
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xff"]
)
def test_without_the_key_nothing_is_served(keyed: Served, path: str, header: str | None) -> None:
    """With `API_KEY` every path but the probes requires it as a bearer token."""
    with keyed.client() as client:
        sent = {} if header is None else {"Authorization": header.encode("latin-1")}
        for method in ("GET", "POST"):
            response = client.request(method, path, headers=sent)  # type: ignore[arg-type]
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert KEY not in response.text


@pytest.fixture(scope="module")
def keyed(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a key."""
    store = EdgeStore(tmp_path_factory.mktemp("keyed"))
    operations = Operations(Settings.from_environment({**ENVIRONMENT, "API_KEY": KEY}), embedder, store)
    with Served(operations) as served:
        yield served
    store.close()


def test_with_the_key_everything_is_served(keyed: Served) -> None:
    """The scheme is case-insensitive, and the probes need no key."""
    for scheme in ("Bearer", "bearer"):
        with keyed.client(Authorization=f"{scheme} {KEY}") as client:
            assert client.post("/embed", json={"texts": ["a"]}).status_code == 200
            assert client.get("/metrics").status_code == 200
    with keyed.client() as client:
        for ask in (client.get, client.head):
            assert (ask("/ping").status_code, ask("/health").status_code) == (200, 200)


def test_a_request_keeps_its_id(shared: httpx.Client) -> None:
    """The answer has the request id of the proxy, or a new one if that is missing or could forge a log line."""
    assert shared.get("/ping", headers={"X-Request-ID": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for odd in ("", "a b", "x" * 200, 'a","level":"'):
        new_id = shared.get("/ping", headers={"X-Request-ID": odd}).headers["x-request-id"]
        assert uuid.UUID(new_id)
    assert shared.post("/embed", content=b"{").headers["x-request-id"]


def test_the_log_line_of_a_failed_request_has_its_code(
    serve: Serve, store: EdgeStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The log line of a failed request has the error code after the status; that of a success has none."""
    with (
        caplog.at_level("INFO"),
        Served(serve(store=FailingStore(store, None)).operations) as served,
        served.client() as client,
    ):
        client.post("/embed", json={"texts": ["a"], "vectors": ["dense"]})
        client.post("/points/count", json={"collection": "notes"})
        client.get("/embed")
        client.post("/v1/embeddings", json={"input": "a", "model": "other"})
        client.post("/embed", content=b"{", headers={"Content-Type": "application/json"})
    records = [record for record in caplog.records if record.name == "service.transports.http.gate"]
    said = [record.getMessage().partition(",")[0] for record in records]
    assert said == [
        "/embed 200",
        "/points/count 503 store_unavailable",
        "/embed 405 invalid_request",
        "/v1/embeddings 404 not_found",
        "/embed 400 invalid_request",
    ]
    lines = [json.loads(JsonFormatter().format(record)) for record in records[:2]]
    assert [line.get("error_code") for line in lines] == [None, "store_unavailable"]
    assert "error_code" not in lines[0]


def test_errors_have_their_status(serve: Serve, store: EdgeStore) -> None:
    """Errors have the HTTP status of their code."""
    store.ensure("other", schema_for(8, 8))
    with Served(serve().operations) as served, served.client() as client:
        wrong = client.post("/embed", json={"texts": [PRIVATE], "isPassage": "maybe"})
        assert refused(wrong, 400, "invalid_request") == "isPassage must be a boolean, got a string"
        refused(client.post("/points/count", json={"collection": "absent"}), 404, "not_found")
        refused(client.post("/search", json={"collection": "other", "queries": ["a"]}), 409, "schema_mismatch")
        refused(client.get("/nowhere"), 404, "not_found")
        refused(client.post("/embed/x", json={}), 404, "not_found")
        method = client.get("/embed")
        refused(method, 405, "invalid_request")
        assert method.headers["allow"] == "POST"
        refused(client.post("/embed", json=[1]), 400, "invalid_request")
        other = client.post("/embed", json={"operation": "delete", "texts": ["a"]})
        assert "operation must be 'embed' or left out on /embed, got 'delete'" in refused(other, 400, "invalid_request")
        smuggled = client.post("/embed", json={"openai_route": "/v1/models"})
        refused(smuggled, 400, "invalid_request")
    with Served(serve(MAX_RESPONSE_MB="0.001").operations) as served, served.client() as client:
        refused(client.post("/embed", json={"texts": ["a"]}), 413, "response_too_large")
    with Served(serve(store=FailingStore(store, None)).operations) as served, served.client() as client:
        away = client.post("/points/count", json={"collection": "notes"})
        refused(away, 503, "store_unavailable")
        assert away.headers["retry-after"] == "5"


def test_errors_of_openai_paths_have_openais_form(shared: httpx.Client) -> None:
    """Errors below `/v1/` have OpenAI's form, also those of the server itself."""
    for response, status in (
        (shared.post("/v1/embeddings", json={}), 400),
        (shared.post("/v1/embeddings", content=b"{"), 415),
        (shared.get("/v1/models/gpt"), 404),
        (shared.get("/v1/nowhere"), 404),
        (shared.get("/v1/embeddings"), 405),
    ):
        error = read(response)["error"]
        assert response.status_code == status
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] in CODES


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the body is not valid JSON (line 1, column 2)"),
        (b"", "the body is not valid JSON (line 1, column 1)"),
        (b'{"texts": ["a"], "maxLength": NaN}', "the body is not valid JSON (a number that JSON cannot represent)"),
        (b'{"texts": ["a"], "maxLength": ' + b"9" * 5000 + b"}", "the body is not valid JSON (a number"),
        (b'{"texts": ["\xff"]}', "the body is not valid UTF-8 (byte 12)"),
        ('{"texts": ["a"]}'.encode("utf-16"), "the body is not valid UTF-8"),
        (b"[" * 100_000, "the body must be nested at most 128 levels deep, got more"),
        (b"null", "the body must be an object, got null"),
    ],
)
def test_a_body_without_a_json_object_is_refused(shared: httpx.Client, body: bytes, said: str) -> None:
    """The message names the position of the error and quotes nothing."""
    response = shared.post("/embed", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
    assert said in refused(response, 400, "invalid_request")


def test_a_byte_order_mark_before_the_body_is_skipped(shared: httpx.Client) -> None:
    """Files that an editor saved with a mark can be sent as they are; one in another place is no JSON."""
    headers = {"Content-Type": "application/json"}
    body = b'\xef\xbb\xbf{"texts": ["a"]}'
    assert read(shared.post("/embed", content=body, headers=headers))["results"][0]["text"] == "a"
    for path in ("/embed", "/v1/embeddings"):
        response = shared.post(path, content=b" " + body, headers=headers)
        assert response.status_code == 400


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_of_another_type_is_refused(shared: httpx.Client, kind: str | None) -> None:
    """Content types that a page of another site can post without a preflight request are errors."""
    response = shared.post(
        "/embed", content=b'{"texts": ["a"]}', headers={} if kind is None else {"Content-Type": kind}
    )
    refused(response, 415, "invalid_request")
    assert response.json()["error"] == f"Content-Type must be application/json, got {kind or 'none'}"


def test_a_body_over_the_limit_is_refused_before_it_is_read(worker: Client) -> None:
    """The announced length suffices for an error before the body is sent."""
    with Served(worker.operations) as served, socket.create_connection(("127.0.0.1", served.port), PATIENCE) as raw:
        raw.sendall(
            b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 30000001\r\n\r\n"
        )
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_grows_over_the_limit_is_refused(worker: Client) -> None:
    """A chunked body over the limit is an error, and a body at the limit is accepted."""
    body = json.dumps({"texts": ["a" * 900], "vectors": ["dense"]}).encode()
    with Served(worker.operations, body_max_bytes=len(body)) as served, served.client() as client:
        headers = {"Content-Type": "application/json"}
        assert client.post("/embed", content=iter([body[:500], body[500:]]), headers=headers).status_code == 200
        over = client.post("/embed", content=iter([body, b" "]), headers=headers)
        assert refused(over, 413, "invalid_request") == f"the body must have at most {len(body)} bytes, got more"
        announced = client.post("/embed", content=body + b" ", headers=headers)
        assert f"got {len(body) + 1}" in refused(announced, 413, "invalid_request")


def test_a_stalled_body_times_out(worker: Client) -> None:
    """A client that stalls within its body does not delay a shutdown."""
    with (
        Served(worker.operations, body_part_timeout_s=0.05) as served,
        socket.create_connection(("127.0.0.1", served.port), PATIENCE) as raw,
    ):
        head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        raw.sendall(head + b'{"texts": [')
        assert raw.recv(1000).startswith(b"HTTP/1.1 408 ")
        served.do("close")
        assert served.emptied.wait(PATIENCE)  # the request ends after its answer


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
def test_a_disconnect_within_the_body_is_not_a_defect(
    worker: Client, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A disconnect is logged and counted with 499, and is not an error of the worker."""
    caplog.set_level(logging.INFO)
    counted = f'bge_m3_http_responses_total{{route="{path}",status="%d"}}'
    with Served(worker.operations) as served, served.client() as client:
        with socket.create_connection(("127.0.0.1", served.port), PATIENCE) as raw:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
            raw.sendall(head.encode() + b'{"texts": [')
        asyncio.run(until(lambda: counted % 499 in worker.operations.metrics.exposed().decode()))
        assert client.post("/embed", json={"texts": ["a"]}).status_code == 200
    assert counted % 500 not in worker.operations.metrics.exposed().decode()
    assert any(f"{path} 499" in record.getMessage() for record in caplog.records)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_while_the_model_loads(worker: Client) -> None:
    """While the model loads, `/ping` answers 204 and requests get 503; afterwards requests are served."""
    with Served(None) as served, served.client() as client:
        assert client.get("/ping").status_code == 204
        assert read(client.get("/health")) == {"status": "loading"}
        early = client.post("/embed", json={"texts": ["a"]})
        refused(early, 503, "overloaded")
        assert early.headers["retry-after"] == "5"
        served.do("open", worker.operations)
        assert client.get("/ping").status_code == 200
        assert read(client.get("/health")) == {"status": "ready", "model": "mini (packed, float32, cpu)"}
        assert client.post("/embed", json={"texts": ["a"]}).status_code == 200


def test_a_full_queue_is_429_and_says_when_to_retry(serve: Serve, watched: Watched) -> None:
    """A full queue is 429 with `Retry-After`, and requests are served when it is free again."""
    operations = Operations(serve().operations.settings, watched.embedder)
    with Served(operations) as served, served.client() as client, busy(watched, client):
        big = {"texts": ["word " * 300] * 300, "isPassage": True, "vectors": ["dense"]}
        waiting = send(served, "/embed", big)
        asyncio.run(until(lambda: watched.pool.waiting_tokens > 80_000))
        full = client.post("/embed", json=big)
        waiting.close()
        asyncio.run(until(lambda: watched.pool.waiting_tokens == 0))
        watched.engine.gate.set()
        assert client.post("/embed", json={"texts": ["a"]}).status_code == 200
    refused(full, 429, "overloaded")
    assert full.headers["retry-after"] == "1"


def test_draining_finishes_running_requests_and_rejects_new_ones(serve: Serve, watched: Watched) -> None:
    """A running request is answered, later ones and the probe get 503, and then the server reports that it is idle."""
    operations = Operations(serve().operations.settings, watched.embedder)
    with Served(operations) as served, served.client() as client, busy(watched, client) as answers:
        served.do("close")
        late = client.post("/embed", json={"texts": ["b"]})
        refused(late, 503, "cancelled")
        assert read(late)["retryable"] is True
        assert late.headers["retry-after"] == "5"
        assert client.get("/ping").status_code == 503
        assert read(client.get("/health"))["status"] == "draining"
        assert not served.emptied.is_set()
        watched.engine.gate.set()
        assert served.emptied.wait(PATIENCE)
    assert [answer.status_code for answer in answers] == [200]


def test_a_lost_device_shows_in_the_probe(worker: Client) -> None:
    """A worker without a device answers the probe with 503."""
    with Served(worker.operations) as served, served.client() as client:
        served.do("close", lost=True)
        assert client.get("/ping").status_code == 503
        assert read(client.get("/health"))["status"] == "lost"


class LostEngine(WatchedEngine):
    """An engine whose device is lost at its first batch."""

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`."""
        raise DeviceLost("cpu: the device is lost")


def test_a_request_on_a_lost_device_can_be_retried_elsewhere(serve: Serve) -> None:
    """A request on a lost device fails with 503 and `Retry-After`, also on OpenAI's paths."""
    with (
        embedder_over(LostEngine(Tokenizer(MINI), "zebra")) as lost,
        Served(Operations(serve().operations.settings, lost)) as served,
        served.client() as client,
    ):
        client.post("/embed", json={"texts": ["the first to notice"]})
        for path, raw in (("/embed", {"texts": ["a"]}), ("/v1/embeddings", {"input": "a"})):
            response = client.post(path, json=raw)
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        refused(client.post("/embed", json={"texts": ["a"]}), 503, "model_failure")


def test_a_disconnect_frees_the_queue(serve: Serve, watched: Watched) -> None:
    """Texts of a disconnected client are not computed."""
    operations = Operations(serve().operations.settings, watched.embedder)
    with Served(operations) as served, served.client() as client, busy(watched, client):
        leaving = send(served, "/embed", {"texts": ["never to be computed"] * 5, "isPassage": True})
        asyncio.run(until(lambda: watched.pool.waiting_tokens > 0))
        leaving.close()
        asyncio.run(until(lambda: watched.pool.waiting_tokens == 0))
    assert [len(batch) for batch in watched.engine.batches] == [1]


def test_no_text_and_no_key_is_in_a_log_line(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """No part of a request that may be private appears in the log."""
    with caplog.at_level("DEBUG"), Served(serve(API_KEY=KEY, LOG_LEVEL="DEBUG").operations) as served:
        with served.client(Authorization=f"Bearer {KEY}", **{"X-Request-ID": PRIVATE}) as client:
            client.post("/embed", json={"texts": [PRIVATE], "encoding": PRIVATE})
            client.post("/points", json={"texts": [PRIVATE], "qdrant": {"collection": "notes"}})
            client.post("/search", json={"queries": [PRIVATE], "collection": "notes"})
            client.post("/embed", content=b'{"texts": "' + PRIVATE.encode())
            client.post("/v1/embeddings", json={"input": PRIVATE, "user": PRIVATE})
            client.get(f"/v1/models/{PRIVATE}")
            client.get(f"/{PRIVATE}?q={PRIVATE}")
        with served.client(Authorization=PRIVATE) as client:
            client.post("/embed", json={"texts": [PRIVATE]})
    ours = [
        record
        for record in caplog.records
        if record.name.split(".")[0] in ("service", "embedder", "qdrant_sink", "uvicorn")
    ]
    assert ours
    for record in ours:
        line = record.getMessage() + str(record.exc_info or "")
        assert "private words" not in line
        assert KEY not in line


class Defective(Operations):
    """Operations with a defect that only HTTP reaches, whose message quotes a text."""

    @property
    def model_label(self) -> str:
        """Raise with the text in the message."""
        raise LookupError(PRIVATE)


def test_a_defect_is_an_answer(
    serve: Serve, embedder: Embedder, store: EdgeStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect of the server or an operation is `internal`; the log names its origin, and neither quotes the text."""
    defective = Defective(serve().operations.settings, embedder, RaisingStore(store, count=LookupError(PRIVATE)))
    with Served(defective) as served, served.client() as client:
        for response in (client.get("/health"), client.post("/points/count", json={"collection": "notes"})):
            assert "LookupError" in refused(response, 500, "internal")
    assert PRIVATE not in caplog.text
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 2
    assert "test_http.py" in said[0]
    assert "doubles.py" in said[1]


PATHS = [route.path for route in ROUTES] + ["/v1/embeddings"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from(PATHS), body=requests.map(json.dumps) | st.text(max_size=20), strip=st.booleans())
def test_any_body_has_an_answer_of_the_contract(shared: httpx.Client, path: str, body: str, strip: bool) -> None:
    """Any body is answered with a result or an error in strict JSON, and the server continues."""
    if strip and body.startswith('{"operation"'):
        body = json.dumps({key: value for key, value in json.loads(body).items() if key != "operation"})
    sent = body.encode("utf-8", "surrogatepass")
    response = shared.post(path, content=sent, headers={"Content-Type": "application/json"})
    answer = read(response)
    if path.startswith("/v1/"):
        assert response.status_code < 500
        assert ("error" in answer) == (response.status_code != 200)
    elif response.status_code == 200:
        assert {"results", "count", "deleted", "scores"} & set(answer)
    else:
        assert_error(answer)
        assert response.status_code in {400, 404, 409, 413}
    assert shared.get("/ping").status_code == 200

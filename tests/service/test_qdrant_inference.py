"""Qdrant's inference protocol over HTTP, with requests that a Qdrant server 1.18.3 has sent."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder import Embedder, Outputs
from service.memory_budget import MemoryBudget
from service.operations import Operations
from service.settings import Settings
from service.transports.http import inference_key
from service.wire.qdrant_inference import INFERENCE, token_in
from tests.embedder.oracle import TOLERANCE
from tests.hostile.raw_client import RawClient, head
from tests.service import client as wire
from tests.service.client import ENVIRONMENT, PATIENCE, Client, Json, until
from tests.service.conftest import Serve
from tests.service.doubles import Watched
from tests.service.served import Served

KEY: Final = "k3y-0123456789"
OTHER: Final = "another-0123"
MODEL: Final = "BAAI/bge-m3"
FLOAT16_TOLERANCE: Final = 1e-3
RECORDED: Final = [
    json.loads(line)
    for line in Path(__file__).with_suffix(".py").with_name("qdrant_inference.jsonl").read_text("utf-8").splitlines()
]
"""Requests as a Qdrant server sent them, for calls of the Python client over REST and gRPC."""

ANSWERED: Final = [
    request for request in RECORDED if request["call"] in {"upsert", "query", "batch", "suffix", "default"}
]
REFUSED: Final = [request for request in RECORDED if request not in ANSWERED]
TEXTS: Final = ["rsync copies only the changed parts of files.", "", "PhotoRec recovers deleted files."]


@pytest.fixture(scope="module")
def http(embedder: Embedder) -> Iterator[httpx.Client]:
    """A client without a key, of a worker with a key that serves `mini` as BGE-M3."""
    own = Settings.from_environment({**ENVIRONMENT, "API_KEY": KEY, "SERVED_MODEL_NAME": MODEL})
    with Served(Operations(own, embedder)) as served, served.client() as client:
        yield client


@pytest.fixture(scope="module")
def worker(embedder: Embedder) -> Client:
    """A worker whose `embed` gives the vectors to compare with."""
    return Client(Operations(Settings.from_environment(ENVIRONMENT), embedder))


def wanted(text: str, kind: str | None = "dense", **more: Any) -> Json:
    """An input as the server writes it."""
    return {
        "data": text,
        "data_type": "text",
        "model": MODEL,
        "options": None if kind is None else {"output": kind},
        **more,
    }


def post(
    client: httpx.Client, inputs: Any, *, token: Any = KEY, inference: Any = "update", **more: Any
) -> httpx.Response:
    """Send a request in the server's form."""
    return client.post(INFERENCE, json={"inputs": inputs, "inference": inference, "token": token}, **more)


def good(response: httpx.Response) -> list[Any]:
    """Check that a request succeeded, and return its vectors."""
    assert response.status_code == 200, response.text
    answer = wire.read(response.content)
    assert set(answer) == {"embeddings", "usage"}
    embeddings: list[Any] = answer["embeddings"]
    return embeddings


def refused(response: httpx.Response, status: int = 400) -> str:
    """Check that an error has the only form that the server reads, and return its message."""
    assert response.status_code == status, response.text
    answer = wire.read(response.content)
    assert set(answer) == {"error"}
    message: str = answer["error"]
    assert isinstance(message, str)
    assert message
    return message


def assert_vector(vector: Any, result: Json, kind: str) -> None:
    """Assert that a vector is that of an embed result, in the form of its kind."""
    if kind == "sparse":
        assert vector["indices"] == result["sparse"]["indices"]
        assert vector["values"] == pytest.approx(result["sparse"]["values"], abs=TOLERANCE)
    else:
        tolerance = FLOAT16_TOLERANCE if kind == "colbert" else TOLERANCE
        assert np.array(vector).shape == np.array(result[kind]).shape
        assert np.allclose(vector, result[kind], atol=tolerance)


def embedded(worker: Client, texts: Iterable[str], *, is_passage: bool = True) -> dict[str, Json]:
    """The results of `embed` by text."""
    answer = worker.good({"texts": list(texts), "isPassage": is_passage})
    return {result["text"]: result for result in answer["results"]}


@pytest.mark.parametrize("request_", ANSWERED, ids=lambda request: f"{request['api']} {request['call']}")
def test_a_recorded_request_gets_the_vectors_of_embed(http: httpx.Client, worker: Client, request_: Json) -> None:
    """Upserts, queries and batches of a real server get their vectors in the order of the inputs."""
    body = request_["body"]
    answer = http.post(INFERENCE, content=json.dumps(body), headers=request_["headers"])
    vectors = good(answer)
    results = embedded(worker, {item["data"] for item in body["inputs"]}, is_passage=body["inference"] == "update")
    for vector, item in zip(vectors, body["inputs"], strict=True):
        suffix = item["model"].removeprefix(MODEL).removeprefix(":")
        kind = suffix or (item["options"] or {}).get("output", "dense")
        assert_vector(vector, results[item["data"]], kind)
    tokens = sum(result["tokens"] for result in results.values())
    assert wire.read(answer.content)["usage"] == {"models": {MODEL: {"tokens": tokens}}}


@pytest.mark.parametrize("request_", REFUSED, ids=lambda request: f"{request['api']} {request['call']}")
def test_a_recorded_request_for_what_is_not_served_is_refused(http: httpx.Client, request_: Json) -> None:
    """An image, an object and an unknown model are a 400 that names what is served."""
    message = refused(http.post(INFERENCE, content=json.dumps(request_["body"]), headers=request_["headers"]))
    kind = request_["call"].removeprefix("unknown ")
    assert message.startswith(
        {
            "image": "inputs[0].data_type must be 'text', got 'image'; this worker embeds texts as dense, sparse,",
            "object": "inputs[0].data_type must be 'text', got 'object'; this worker embeds texts as",
            "model": f"inputs[0].model must be '{MODEL}', or that with one of :dense, :sparse, :colbert behind it, got",
        }[kind]
    )


def test_an_unknown_model_is_told_every_name_that_is_served(serve: Serve) -> None:
    """With several served names the error has them all."""
    with Served(serve(SERVED_MODEL_NAME=f"{MODEL},m3").operations) as served, served.client() as client:
        message = refused(post(client, [wanted("a", model="other")]))
    assert message.startswith(f"inputs[0].model must be one of '{MODEL}', 'm3', or that with one of :dense, :sparse,")


def test_an_invalid_list_of_inputs_costs_no_error_for_each(http: httpx.Client) -> None:
    """Only the first invalid input of a request is named, since millions of errors would take gigabytes."""
    message = refused(post(http, [{}] * 100_000))
    assert message == "inputs[0].data is required; inputs[0].model is required"


def test_every_text_is_embedded_once_for_all_its_kinds(serve: Serve, watched: Watched) -> None:
    """Three kinds of a text, anywhere in the list, cost one pass; equal inputs have equal vectors."""
    operations = Operations(serve(SERVED_MODEL_NAME=MODEL).operations.settings, watched.embedder)
    inputs = [wanted(text, kind) for text in TEXTS for kind in ("dense", "sparse", "colbert", "dense")]
    random.Random(7).shuffle(inputs)
    watched.engine.batches.clear()
    with Served(operations) as served, served.client() as client:
        vectors = good(post(client, inputs))
    assert sum(len(batch) for batch in watched.engine.batches) == len(TEXTS)
    seen: dict[str, Any] = {}
    for item, vector in zip(inputs, vectors, strict=True):
        assert vector == seen.setdefault(json.dumps(item), vector)


def test_texts_that_want_different_kinds_are_computed_for_their_own(
    serve: Serve, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Titles with dense vectors and a body with ColBERT rows come from one request, and no text gets a kind in vain."""
    operations = Operations(serve(SERVED_MODEL_NAME=MODEL).operations.settings, watched.embedder)
    jobs = []
    submit = watched.pool.submit

    def spy(texts: Any, outputs: Outputs, *arguments: Any, **more: Any) -> Any:
        jobs.append((outputs.kinds, len(texts)))
        return submit(texts, outputs, *arguments, **more)

    monkeypatch.setattr(watched.pool, "submit", spy)
    inputs = [wanted("a"), wanted("b c", "colbert"), wanted("d", "sparse"), wanted("e"), wanted("b c", "sparse")]
    with Served(operations) as served, served.client() as client:
        dense, rows, sparse, other, weights = good(post(client, inputs))
    assert sorted(jobs) == [(("dense",), 2), (("sparse",), 1), (("sparse", "colbert"), 1)]
    assert [np.ndim(vector) for vector in (dense, rows, other)] == [1, 2, 1]
    assert sparse.keys() == weights.keys() == {"indices", "values"}


def test_more_texts_than_max_texts_pass_as_one_job(serve: Serve, worker: Client) -> None:
    """A large upsert is limited by its bytes and tokens, not by `MAX_TEXTS`, and is sent as it is written."""
    texts = [f"number {index} " + "of many words " * 3 for index in range(120)]
    inputs = [wanted(text, kind) for kind in ("dense", "sparse", "colbert") for text in texts]
    with Served(serve(MAX_TEXTS="10", SERVED_MODEL_NAME=MODEL).operations) as served, served.client() as client:
        response = post(client, inputs)
    assert response.headers["transfer-encoding"] == "chunked"
    results = embedded(worker, texts)
    for item, vector in zip(inputs, good(response), strict=True):
        assert_vector(vector, results[item["data"]], item["options"]["output"])


def test_an_unread_answer_keeps_nobody_waiting(serve: Serve) -> None:
    """Other requests are answered while a client does not read the rest of a large answer."""
    inputs = [wanted(f"number {index} " + "of many words " * 60, "colbert") for index in range(100)]
    body = {"inputs": inputs, "inference": "update"}
    with (
        Served(serve(SERVED_MODEL_NAME=MODEL).operations) as served,
        served.client() as client,
        client.stream("POST", INFERENCE, json=body) as response,
    ):
        parts = response.iter_raw(1000)
        assert next(parts).startswith(b'{"embeddings":[[[')
        assert client.post("/embed", json={"texts": ["a"]}).status_code == 200
        rest = sum(map(len, parts))
    assert rest > 40_000_000


def test_the_key_may_be_wherever_a_server_or_a_client_puts_it(http: httpx.Client) -> None:
    """The key is valid in the body, in the address and in both headers, beside a wrong one elsewhere too."""
    inputs = [wanted("a")]
    good(post(http, inputs))
    good(post(http, inputs, token=OTHER, params={"key": KEY}))
    good(post(http, inputs, token=None, headers={"Authorization": f"Bearer {KEY}"}))
    good(post(http, inputs, token=None, headers={"api-key": KEY}))
    good(post(http, inputs, headers={"Authorization": "Bearer other"}))
    good(http.post(INFERENCE, json={"token": KEY, "inputs": [wanted("token")]}))


@pytest.mark.parametrize("token", [None, "", "other", 7, "k3y-0123456789é", "\ud800"])
def test_a_request_without_the_key_is_refused(http: httpx.Client, token: Any) -> None:
    """The message says where the key belongs, in the form that the server shows."""
    body = json.dumps({"inputs": [wanted("a")], "inference": "update", "token": token})
    response = http.post(INFERENCE, content=body, headers={"Content-Type": "application/json"})
    assert "inference.token must be the API_KEY" in refused(response, 401)
    elsewhere: tuple[Json, ...] = (
        {"params": {"key": "other"}},
        {"headers": {"api-key": "other"}},
        {"headers": {"Authorization": KEY}},
    )
    for more in elsewhere:
        assert "the key is missing or wrong" in refused(post(http, [wanted("a")], token=None, **more), 401)


def test_bodies_without_a_key_leave_the_memory_of_others(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients whose key is to follow in the body share a part of the memory, which others do not need."""
    budgets: list[MemoryBudget] = []

    def recorded(size_bytes: int) -> MemoryBudget:
        budgets.append(MemoryBudget(size_bytes))
        return budgets[-1]

    monkeypatch.setattr(inference_key, "MemoryBudget", recorded)
    monkeypatch.setattr(inference_key, "UNPROVEN_DIVISOR", 10**9)
    own = {"API_KEY": KEY, "SERVED_MODEL_NAME": MODEL, "INFERENCE_MAX_REQUEST_MB": "1"}
    settings = Settings.from_environment({**ENVIRONMENT, **own})
    begun = head("POST", INFERENCE, "Content-Type: application/json", "Content-Length: 1000000") + b" " * 900_000
    inputs = [wanted("word " * 30_000)]
    with Served(Operations(settings, embedder)) as served, served.client() as http:
        with RawClient(served.port) as first:
            first.send(begun)
            asyncio.run(until(lambda: budgets[0].reserved_bytes == 900_000))
            second = http.post(INFERENCE, content=b" " * 150_000, headers={"Content-Type": "application/json"})
            assert "at most 1000000 bytes together" in refused(second, 429)
            good(post(http, inputs, params={"key": KEY}))
        asyncio.run(until(lambda: served.running[INFERENCE] == 0))
        good(post(http, inputs))


def test_a_token_of_an_object_inside_is_not_the_key(http: httpx.Client) -> None:
    """Whoever can choose the options of a document cannot pass by naming the key there."""
    inside = [{"data": "a", "model": MODEL, "options": {"token": KEY}}]
    refused(http.post(INFERENCE, json={"token": None, "inputs": inside}), 401)


def test_a_body_without_the_key_is_not_parsed(http: httpx.Client) -> None:
    """A stranger's body costs no more than its bytes: even one that is not JSON is refused for the key."""
    for body in (b"[" * 1_000_000, b'{"token":' * 100_000, b'{"inputs": [], "token": "other"'):
        refused(http.post(INFERENCE, content=body, headers={"Content-Type": "application/json"}), 401)


@pytest.mark.parametrize(
    ("body", "token"),
    [
        (b'{"inputs":[{"data":"\\"token\\":\\"x\\""}],"token":"a"}', "a"),
        (b'{"token" : "a\\"b", "inputs":[{"data":"token"}]}', 'a"b'),
        (b'{"inputs":[],"token":null}', None),
        (b'{"token":"' + b"\\" * 1001, None),
        (b'{"token":"\xff"}', None),
        (b'{"token":"' + b"a" * 10_000_000, None),
        (b"", None),
        (b'"token":1,' * 1000, None),
    ],
)
def test_the_token_is_found_without_parsing(body: bytes, token: str | None) -> None:
    """The token is read from the end of a body, whatever the texts contain."""
    assert token_in(body) == token


def test_no_line_of_the_log_contains_the_key(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """A key in the address or in the body is not logged at any level, whether it is right or wrong."""
    operations = serve(API_KEY=KEY, SERVED_MODEL_NAME=MODEL, LOG_LEVEL="DEBUG").operations
    with caplog.at_level(logging.DEBUG), Served(operations) as served, served.client() as client:
        post(client, [wanted("a")], params={"key": KEY})
        post(client, [wanted("a")], token=OTHER, params={"key": OTHER})
        post(client, [{"data": 1}], params={"key": KEY})
    server_lines = [
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    ]
    assert any(line.startswith("/qdrant/inference 401") for line in server_lines)
    assert not any(key in line for line in server_lines for key in (KEY, OTHER))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "inputs must have at least 1 item, got 0"),
        ("a", "inputs must be a list, got a string"),
        ([wanted("a"), "b"], "inputs[1] must be an object, got a string"),
        ([wanted("a", data=None)], "inputs[0].data is required"),
        ([wanted("a", data=["a"])], "inputs[0].data must be a string, got a list"),
        ([wanted("a", model=None)], "inputs[0].model is required"),
        ([wanted("a", data_type="audio")], "inputs[0].data_type must be 'text', got 'audio'"),
        ([wanted("a", model="mini")], f"inputs[0].model must be '{MODEL}', or that with one of"),
        ([wanted("a", model=f"{MODEL}:bm25")], f"inputs[0].model must be '{MODEL}', or that with one of"),
        ([wanted("a", "late")], "inputs[0].options.output must be dense, sparse or colbert, got 'late'"),
        (
            [wanted("a"), wanted("a", options={"outputs": "x"})],
            "inputs[1].options.outputs is an unknown option; the only",
        ),
        ([wanted("a", options=["colbert"])], "inputs[0].options must be an object, got a list"),
        (
            [wanted("a", "dense", model=f"{MODEL}:sparse")],
            "inputs[0].options.output must be 'sparse' like the kind behind",
        ),
    ],
)
def test_an_invalid_request_is_a_400_that_names_the_field(http: httpx.Client, inputs: Any, said: str) -> None:
    """The message names the input, the limit and the value."""
    assert refused(post(http, inputs)).startswith(said)


def test_what_the_server_may_add_is_ignored(http: httpx.Client) -> None:
    """Unknown fields beside those of today, and fields that are null or absent, change nothing."""
    (vector,) = good(post(http, [wanted("a")]))
    body = {"inputs": [{"data": "a", "model": MODEL, "options": {"output": None}, "id": 7}], "trace": {}, "token": KEY}
    assert good(http.post(INFERENCE, json=body)) == [vector]
    assert good(post(http, [wanted("a", None, model=f"{MODEL}:dense", data_type=None)])) == [vector]
    assert good(post(http, [wanted("a", "dense", model=f"{MODEL}:dense")])) == [vector]


def test_other_client_errors_are_a_400_too(serve: Serve) -> None:
    """The server returns the whole answer of a status that it does not know, so there is none."""
    operations = serve(SERVED_MODEL_NAME=MODEL, INFERENCE_MAX_REQUEST_MB="0.001").operations
    with Served(operations) as served, served.client() as client:
        assert "(INFERENCE_MAX_REQUEST_MB); send fewer points" in refused(post(client, [wanted("a" * 1000)]))
        assert "Content-Type" in refused(client.post(INFERENCE, content=b"{}"))
        json_type = {"Content-Type": "application/json"}
        assert "not valid JSON" in refused(client.post(INFERENCE, content=b"{", headers=json_type))
        assert "must be an object" in refused(client.post(INFERENCE, content=b"[]", headers=json_type))
        assert "method must be POST" in refused(client.get(INFERENCE))


def test_a_batch_that_cannot_fit_says_how_many_texts_would(serve: Serve, watched: Watched) -> None:
    """Too large an answer or too many tokens are refused before the model computes, with the number that fits."""
    watched.engine.batches.clear()
    inputs = [wanted(f"word {index}", "colbert") for index in range(1000)]
    operations = Operations(
        serve(SERVED_MODEL_NAME=MODEL, INFERENCE_MAX_RESPONSE_MB="1").operations.settings, watched.embedder
    )
    with Served(operations) as served, served.client() as client:
        message = refused(post(client, inputs))
        fitting = int(message.split()[1])
        assert message.startswith(f"only {fitting} of 1000 texts fit into an answer of 1000000 bytes")
        assert not watched.engine.batches
        assert len(post(client, inputs[:fitting]).content) < 1_000_000
    few = Operations(serve(SERVED_MODEL_NAME=MODEL, QUEUE_TOKENS="60").operations.settings, watched.embedder)
    watched.engine.batches.clear()
    with Served(few) as served, served.client() as client:
        kinds = [wanted(f"word {index}", kind) for index in range(7) for kind in ("dense", "sparse")]
        assert "fit into the queue (QUEUE_TOKENS=60, got " in refused(post(client, [*kinds * 2, *inputs[:20]]))


def test_a_full_queue_is_a_rate_limit(serve: Serve, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server passes status 429 and `Retry-After` on to its client."""
    monkeypatch.setattr(watched.pool._scheduler, "queue_tokens", 100)
    operations = Operations(serve(SERVED_MODEL_NAME=MODEL).operations.settings, watched.embedder)
    inputs = [wanted("many words " * 25)]
    with Served(operations) as served, served.client() as client:
        watched.engine.gate.clear()
        watched.engine.batches.clear()
        threads = [threading.Thread(target=post, args=(client, inputs)) for _ in range(2)]
        try:
            threads[0].start()
            asyncio.run(until(lambda: bool(watched.engine.batches)))
            threads[1].start()
            asyncio.run(until(lambda: watched.pool.waiting_tokens > 50))
            response = post(client, inputs)
        finally:
            watched.engine.gate.set()
            for thread in threads:
                thread.join(PATIENCE)
    assert "retry later" in refused(response, 429)
    assert int(response.headers["retry-after"]) >= 1


def test_a_failed_text_fails_the_request(serve: Serve, watched: Watched) -> None:
    """The answer has no place for the failure of one text, so the request is a 500 in the server's form."""
    operations = Operations(serve(SERVED_MODEL_NAME=MODEL).operations.settings, watched.embedder)
    with Served(operations) as served, served.client() as client:
        assert refused(post(client, [wanted("fine"), wanted("a zebra")]), 500).startswith("inputs: ")


def test_a_worker_that_cannot_answer_yet_or_any_more_says_so(serve: Serve) -> None:
    """While the model loads, and during a shutdown, the answer is a 503 in the server's form."""
    with Served(None) as served, served.client() as client:
        assert "loading" in refused(post(client, [wanted("a", model="mini")]), 503)
    with Served(serve().operations) as served, served.client() as client:
        served.do("close")
        assert "shutting down" in refused(post(client, [wanted("a", model="mini")]), 503)


def test_searches_have_the_limit_of_queries(serve: Serve) -> None:
    """A text of a search is cut to `QUERY_MAX_LENGTH`, one of an update to `PASSAGE_MAX_LENGTH`."""
    operations = serve(SERVED_MODEL_NAME=MODEL, QUERY_MAX_LENGTH="8", PASSAGE_MAX_LENGTH="16").operations
    with Served(operations) as served, served.client() as client:
        for inference, rows in (("search", 7), ("update", 15), (None, 15)):
            (vector,) = good(post(client, [wanted("many words " * 20, "colbert")], inference=inference))
            assert len(vector) == rows
        assert "inference must be 'update' or 'search'" in refused(post(client, [wanted("a")], inference="delete"))


_values = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["text", "dense", MODEL])
_json = st.recursive(_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
_options = (
    st.none() | _json | st.fixed_dictionaries({"output": st.sampled_from(["dense", "sparse", "colbert"]) | _json})
)
_input = st.fixed_dictionaries(
    {"data": st.text(max_size=20) | _json, "model": st.sampled_from([MODEL, f"{MODEL}:sparse", "mini:x"]) | _json},
    optional={"data_type": st.just("text") | _json, "options": _options},
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(inputs=_json | st.lists(_input, min_size=1, max_size=6), inference=st.sampled_from(["update", "search"]) | _json)
def test_any_request_has_an_answer_that_the_server_understands(http: httpx.Client, inputs: Any, inference: Any) -> None:
    """Whatever the inputs are, the answer has a vector for each of them, or is a 400 with a string."""
    body = json.dumps({"inputs": inputs, "inference": inference, "token": KEY})
    response = http.post(INFERENCE, content=body, headers={"Content-Type": "application/json"})
    if response.status_code == 200:
        assert len(good(response)) == len(inputs)
    else:
        refused(response)

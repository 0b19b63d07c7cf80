"""The API of Text Embeddings Inference, at whose paths the worker's own forms keep working."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder import DeviceLost, Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.wire import Answer, Codec
from tests.embedder.oracle import TOLERANCE
from tests.embedder.texts import TEXTS
from tests.service.client import ENVIRONMENT, Client, Json, until
from tests.service.conftest import Serve
from tests.service.doubles import Watched
from tests.service.served import Served
from tests.service.strategies import PRIVATE, values
from tests.service.wrappers import embedder_over

INPUTS = ["rsync copies only the changed parts of files.", "a query"]
QUERY = "send only what changed"
KEY = "k3y-0123456789"
EMBEDDING_PATHS = ("/", "/embed", "/embed_sparse")
ERROR_TYPES = {"Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"}


@pytest.fixture(scope="module")
def served(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A worker with an empty store."""
    store = EdgeStore(tmp_path_factory.mktemp("tei"))
    yield Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, store))
    store.close()


@pytest.fixture(scope="module")
def http(served: Client) -> Iterator[httpx.Client]:
    """A client of that worker over HTTP."""
    with Served(served.operations) as server, server.client() as client:
        yield client


def good(http: httpx.Client, path: str, **fields: Any) -> Any:
    """The answer of a request that succeeds."""
    response = http.post(path, json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def refused(http: httpx.Client, path: str, status: int, **fields: Any) -> Json:
    """The error of a request that fails with this status."""
    response = http.post(path, json=fields)
    assert response.status_code == status, response.text
    error: Json = response.json()
    assert set(error) == {"error", "error_type"}
    assert error["error_type"] in ERROR_TYPES
    return error


def test_dense_vectors_are_those_of_embed(http: httpx.Client, served: Client) -> None:
    """`/` and `/embed` answer with a list of vectors in the order of the inputs; one input is a list of one."""
    wanted = [text["dense"] for text in served.good({"texts": INPUTS, "vectors": ["dense"]})["results"]]
    for path in ("/", "/embed"):
        for more in ({}, {"truncate": True, "normalize": True, "dimensions": 192, "prompt_name": None}):
            assert np.abs(np.array(good(http, path, inputs=INPUTS, **more)) - np.array(wanted)).max() <= TOLERANCE
        assert np.array(good(http, path, inputs=INPUTS[0])).shape == (1, 192)


def test_sparse_vectors_are_those_of_embed(http: httpx.Client, served: Client) -> None:
    """`/embed_sparse` answers with the weights by token id, ascending."""
    wanted = [text["sparse"] for text in served.good({"texts": INPUTS, "vectors": ["sparse"]})["results"]]
    answer = good(http, "/embed_sparse", inputs=INPUTS)
    for mine, theirs in zip(answer, wanted, strict=True):
        assert all(set(weight) == {"index", "value"} for weight in mine)
        assert [weight["index"] for weight in mine] == theirs["indices"]
        assert [weight["value"] for weight in mine] == pytest.approx(theirs["values"], abs=TOLERANCE)
    assert good(http, "/embed_sparse", inputs=" ") == [[]], "a text without words has no weights"


def test_the_own_forms_keep_working_at_the_same_paths(http: httpx.Client) -> None:
    """`texts` at `/embed` and `documents` at `/rerank` are not TEI's, nor is the page at `GET /`."""
    assert "results" in good(http, "/embed", texts=["a"])
    assert "results" in good(http, "/rerank", query="a", documents=["a"])
    both = http.post("/embed", json={"texts": ["a"], "inputs": ["a"]})
    assert (both.status_code, both.json()["error_code"]) == (400, "invalid_request")
    assert http.get("/").headers["content-type"].startswith("text/html")


def test_texts_are_ranked_as_documents_are(http: httpx.Client) -> None:
    """`/rerank` with `texts` answers with a list, whose scores are the relevance, or the mean with `raw_scores`."""
    theirs = good(http, "/rerank", query=QUERY, documents=INPUTS)["results"]
    ranks = good(http, "/rerank", query=QUERY, texts=INPUTS)
    assert ranks == [{"index": rank["index"], "score": rank["relevance_score"]} for rank in theirs]
    raw = good(http, "/rerank", query=QUERY, texts=INPUTS, raw_scores=True, return_text=True, top_n=1)
    pairs = [[QUERY, INPUTS[0]]]
    mean = good(http, "/score", pairs=pairs)["scores"]["colbert+sparse+dense"][0]
    assert raw == [{"index": 0, "text": INPUTS[0], "score": pytest.approx(mean, abs=TOLERANCE)}]
    weighted = good(http, "/rerank", query=QUERY, texts=INPUTS[:1], raw_scores=True, weights=[1, 0, 0])
    assert weighted[0]["score"] == pytest.approx(good(http, "/score", pairs=pairs)["scores"]["dense"][0], abs=TOLERANCE)


def test_a_null_is_no_sign_of_another_form(http: httpx.Client) -> None:
    """A client that writes all fields of its type, absent ones as null, gets the form of those that it gave."""
    ranks = good(http, "/rerank", query=QUERY, texts=INPUTS)
    assert good(http, "/rerank", query=QUERY, texts=INPUTS, documents=None) == ranks
    results = good(http, "/rerank", query=QUERY, documents=INPUTS, texts=None)["results"]
    assert [result["index"] for result in results] == [rank["index"] for rank in ranks]
    assert good(http, "/embed", inputs=INPUTS, texts=None) == good(http, "/embed", inputs=INPUTS)
    assert len(good(http, "/embed", inputs=None, texts=INPUTS)["results"]) == len(INPUTS)


def test_the_prompt_name_is_the_role(serve: Serve) -> None:
    """Texts with the prompt `query` have the limit of queries, all others have that of passages."""
    worker = serve(QUERY_MAX_LENGTH="8", PASSAGE_MAX_LENGTH="16")
    long = TEXTS["many words"]
    with Served(worker.operations) as server, server.client() as client:
        for path in ("/embed", "/embed_sparse"):
            cut = {n: good(client, path, inputs=long, prompt_name=n) for n in ("query", "passage", None)}
            assert cut["passage"] == cut[None] != cut["query"]
            error = refused(client, path, 422, inputs=long, truncate=False, prompt_name="query")["error"]
            assert error == (
                "Input validation error: inputs must have at most 8 tokens (QUERY_MAX_LENGTH), got more; shorten it"
            )
        (passage,) = worker.good({"texts": [long], "isPassage": True, "vectors": ["dense"]})["results"]
        assert passage["dense"] == pytest.approx(good(client, "/", inputs=long)[0], abs=TOLERANCE)


def test_truncation_can_be_refused(http: httpx.Client) -> None:
    """Long texts are cut unless `truncate` is false, which names the text."""
    long = TEXTS["many words"] * 2
    assert good(http, "/embed", inputs=[long])
    assert good(http, "/rerank", query="a", texts=[long])
    assert (
        "inputs[1] must have at most 512 tokens"
        in refused(http, "/embed", 422, inputs=["a", long], truncate=False)["error"]
    )
    for more, name in (({"texts": ["a", long]}, "texts[1]"), ({"texts": ["a"], "query": long}, "query")):
        error = refused(http, "/rerank", 422, **{"query": "a", "truncate": False, **more})["error"]
        assert f"{name} must have at most 512 tokens" in error


@pytest.mark.parametrize(
    ("path", "fields", "status", "message"),
    [
        ("/embed", {"inputs": []}, 400, "`inputs` cannot be empty"),
        ("/embed", {"inputs": ""}, 400, "`inputs` cannot be empty"),
        ("/embed_sparse", {"inputs": ["a", ""]}, 400, "`inputs[1]` cannot be empty"),
        ("/rerank", {"query": "a", "texts": []}, 400, "`texts` cannot be empty"),
        ("/", {}, 422, "Input validation error: inputs is required"),
        (
            "/",
            {"inputs": {"a": 1}},
            422,
            "Input validation error: inputs must be a string or a list of strings, got an ",
        ),
        ("/", {"inputs": [1, 2]}, 422, "Input validation error: inputs[0] must be a string: token ids are refused"),
        ("/", {"inputs": ["a", [1]]}, 422, "Input validation error: inputs[1] must be a string: token ids are refused"),
        ("/", {"inputs": ["a", None]}, 422, "Input validation error: inputs[1] must be a string, got null"),
        ("/embed", {"inputs": "a", "normalize": False}, 422, "Input validation error: normalize must be true, got fal"),
        ("/embed", {"inputs": "a", "dimensions": 8}, 422, "Input validation error: dimensions must be 192, the size"),
        (
            "/embed",
            {"inputs": "a", "prompt_name": "s2p"},
            422,
            "Input validation error: prompt_name must be 'query' or",
        ),
        ("/embed", {"inputs": "a", "truncate": 1}, 422, "Input validation error: truncate must be a boolean, got an"),
        (
            "/embed",
            {"inputs": "a", "truncation_direction": "Left"},
            422,
            "Input validation error: truncation_direction",
        ),
        (
            "/rerank",
            {"query": 1, "texts": ["a"]},
            422,
            "Input validation error: query must be a string, got an integer",
        ),
        ("/rerank", {"query": "a", "texts": ["a", 1]}, 422, "Input validation error: texts[1] must be a string"),
        ("/embed", {"inputs": ["a"] * 10_001}, 422, "Input validation error: batch size 10001 > maximum allowed batch"),
        ("/rerank", {"query": "", "texts": ["a"] * 10_001}, 422, "Input validation error: batch size 10001 > maximum"),
    ],
)
def test_an_invalid_request_is_an_error(http: httpx.Client, path: str, fields: Json, status: int, message: str) -> None:
    """The error has the form and the status of TEI's server."""
    error = refused(http, path, status, **fields)
    assert error["error"].startswith(message), error
    assert error["error_type"] == ("Empty" if status == 400 else "Validation")


def test_unknown_fields_are_ignored_as_by_the_server(http: httpx.Client) -> None:
    """Clients that send further fields, which TEI's server ignores, get the same answer."""
    plain = good(http, "/embed", inputs="a")
    assert good(http, "/embed", inputs="a", model="any", encoding_format="float", truncation_direction="Right") == plain


def test_a_failed_text_fails_the_request(watched: Watched) -> None:
    """A text that the model fails on is TEI's status 424, and the error names it, without the text."""
    operations = Operations(Settings.from_environment(ENVIRONMENT), watched.embedder)
    with Served(operations) as server, server.client() as client:
        error = refused(client, "/embed", 424, inputs=["one", "the zebra"])
        assert error["error"].startswith("Backend error: inputs[1]: ")
        assert error["error_type"] == "Backend"
        assert "zebra" not in error["error"]
        assert "texts[0]: " in refused(client, "/rerank", 424, query="one", texts=["the zebra"])["error"]


def test_a_lost_device_sends_the_request_to_another_worker(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose device is lost gets 503, which balancers send elsewhere, and not the status of a bad text."""

    async def lost(*_arguments: Any, **_more: Any) -> Any:
        raise DeviceLost("the device must be restarted")

    codec = Codec(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder))
    monkeypatch.setattr(watched.embedder, "embed_tokens", lost)
    for answer in (
        asyncio.run(codec.tei({"inputs": "a"}, "/embed")),
        asyncio.run(codec.rerank({"query": "a", "texts": ["b"]}, "/rerank")),
    ):
        assert (answer.status, answer.json["error_type"], answer.retry_after_s) == (503, "Unhealthy", 5)


def test_a_full_queue_is_an_overload(watched: Watched) -> None:
    """While the queue is full a request gets 429 in TEI's form, with the time to wait."""
    texts = [f"{n} " + TEXTS["many words"] for n in range(5)]

    async def refusal(embedder: Embedder) -> Answer:
        codec = Codec(Operations(Settings.from_environment(ENVIRONMENT), embedder))
        watched.engine.gate.clear()
        computed = asyncio.create_task(codec.tei({"inputs": "a"}, "/embed"))
        await until(lambda: bool(watched.engine.batches))
        waiting = asyncio.create_task(codec.tei({"inputs": texts}, "/embed"))
        await until(lambda: embedder.waiting_tokens > 2000)
        refused = await codec.tei({"inputs": texts}, "/embed")
        watched.engine.gate.set()
        assert [(await task).status for task in (computed, waiting)] == [200, 200]
        return refused

    watched.engine.batches.clear()
    with embedder_over(watched.engine, queue_tokens=2600) as embedder:
        answer = asyncio.run(refusal(embedder))
    assert (answer.status, answer.json["error_type"], answer.retry_after_s) == (429, "Overloaded", 1)


def test_an_answer_over_the_limit_is_invalid(serve: Serve) -> None:
    """`MAX_RESPONSE_MB` also limits these answers; the error says what to send less of."""
    with Served(serve(MAX_RESPONSE_MB="0.001").operations) as server, server.client() as client:
        error = refused(client, "/embed", 422, inputs=["a", "b", "c"])
        assert error["error"].startswith("Input validation error: the answer must have at most 1000 bytes")
        assert refused(client, "/rerank", 422, query="a", texts=["a" * 900], return_text=True)


def test_info_tells_clients_the_limits(serve: Serve) -> None:
    """`/info` has the fields of TEI's server, which clients read to size their batches."""
    worker = serve(MAX_TEXTS="64", PASSAGE_MAX_LENGTH="100", SERVED_MODEL_NAME="BAAI/bge-m3", MODEL_REVISION="abc")
    with Served(worker.operations) as server, server.client() as client:
        info = client.get("/info").json()
    assert info["tokenization_workers"] >= 1
    assert {name: value for name, value in info.items() if name not in ("tokenization_workers", "version")} == {
        "model_id": "BAAI/bge-m3",
        "model_sha": "abc",
        "model_dtype": "float32",
        "served_model_name": "BAAI/bge-m3",
        "model_type": {"embedding": {"pooling": "cls"}},
        "max_concurrent_requests": 20_000,
        "max_input_length": 100,
        "max_batch_tokens": 4096,
        "max_batch_requests": None,
        "max_client_batch_size": 64,
        "auto_truncate": True,
        "sha": None,
        "docker_label": None,
    }


def test_the_key_is_required(serve: Serve) -> None:
    """With `API_KEY` only the page at `GET /` is public: `POST /` embeds texts."""
    with Served(serve(API_KEY=KEY).operations) as server, server.client() as client:
        for path in (*EMBEDDING_PATHS, "/rerank"):
            assert client.post(path, json={"inputs": "a"}).status_code == 401
        for path in ("/", "/embed_sparse"):
            assert client.post(path, json={"inputs": "a"}).json()["error_type"] == "Validation"
        assert client.get("/info").status_code == 401
        assert client.get("/").status_code == 200
        client.headers["Authorization"] = f"Bearer {KEY}"
        for path in EMBEDDING_PATHS:
            assert client.post(path, json={"inputs": "a"}).status_code == 200


def test_a_worker_that_loads_is_unhealthy() -> None:
    """Until the model is loaded, requests get 503 in TEI's form, with the time to wait."""
    with Served(None) as server, server.client() as client:
        response = client.post("/", json={"inputs": "a"})
        assert (response.status_code, response.json()["error_type"]) == (503, "Unhealthy")
        assert response.headers["retry-after"]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from(["/", "/embed", "/embed_sparse", "/rerank"]),
    raw=st.fixed_dictionaries(
        {},
        optional={
            name: values | st.just(PRIVATE) | st.just([PRIVATE])
            for name in ("inputs", "texts", "query", "truncate", "normalize", "prompt_name", "dimensions", "raw_scores")
        },
    ),
)
def test_any_input_has_an_answer(served: Client, path: str, raw: Json) -> None:
    """The answer to any JSON is a result or an error, which is not a defect and quotes no text."""
    codec = served._codec
    work = codec.rerank(raw, path) if path == "/rerank" else codec.tei(raw, path)
    answer = asyncio.run(work)
    if answer.code is not None:
        assert answer.code != "internal", answer.body
        assert PRIVATE.encode() not in answer.body

"""Documents are ranked by the weighted mean of `score`, in the forms of Cohere and Jina, and on the queue."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.operations.rerank import relevance
from service.settings import Settings
from tests.embedder.oracle import TOLERANCE
from tests.embedder.texts import TEXTS
from tests.service.client import CODES, ENVIRONMENT, Client, Json, until
from tests.service.conftest import Serve
from tests.service.doubles import Watched
from tests.service.served import Served
from tests.service.strategies import PRIVATE, values
from tests.service.wrappers import embedder_over

QUERY = "send only what changed"
DOCUMENTS = [
    "A relational database.",
    "rsync copies only the changed parts of files.",
    "",
    "rsync copies only the changed parts of files.",
    "tar packs files into an archive.",
]
PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")
KEY = "k3y-0123456789"


@pytest.fixture(scope="module")
def http(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server."""
    store = EdgeStore(tmp_path_factory.mktemp("rerank"))
    operations = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
    with Served(operations) as served, served.client() as client:
        yield client
    store.close()


def job(worker: Client, **fields: Any) -> Json:
    """Answer a job of RunPod's proxy, and return the object."""
    answer: Any = asyncio.run(worker.job({"openai_route": "/v1/rerank", "openai_input": fields}))
    assert isinstance(answer, list)
    (body,) = answer
    assert isinstance(body, dict)
    return body


def ranked(worker: Client, **fields: Any) -> list[Json]:
    """The results of a request that succeeds."""
    answer = job(worker, **{"query": QUERY, "documents": DOCUMENTS, **fields})
    assert "message" not in answer, answer
    results: list[Json] = answer["results"]
    return results


def refused(worker: Client, **fields: Any) -> str:
    """The message of a request that fails."""
    answer = job(worker, **{"query": QUERY, "documents": DOCUMENTS, **fields})
    assert set(answer) == {"message", "detail", "error_code"}, answer
    assert answer["message"] == answer["detail"]
    assert answer["error_code"] in CODES
    message: str = answer["message"]
    return message


@pytest.mark.parametrize("weights", [[1, 1, 1], [0.4, 0.2, 0.4], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 3, 1]])
def test_documents_are_ranked_by_their_weighted_mean(worker: Client, weights: list[float]) -> None:
    """The relevance follows from the scores of `score` by the documented formulas; equal documents keep their order."""
    pairs = [[QUERY, document] for document in DOCUMENTS]
    scores = worker.good({"operation": "score", "pairs": pairs})["scores"]
    by_kind = [scores[kind] for kind in ("dense", "sparse", "colbert")]
    means = [sum(map(math.prod, zip(weights, pair, strict=True))) / sum(weights) for pair in zip(*by_kind, strict=True)]
    results = ranked(worker, weights=weights)
    assert sorted(result["index"] for result in results) == list(range(len(DOCUMENTS)))
    for result in results:
        expected = 1 / (1 + math.exp(-10 * (means[result["index"]] - 0.4)))
        assert result["relevance_score"] == pytest.approx(expected, abs=3 * TOLERANCE)
    for better, worse in pairwise(results):
        assert better["relevance_score"] >= worse["relevance_score"]
    order = [result["index"] for result in results]
    assert order.index(3) == order.index(1) + 1, "the equal documents are neighbours, in the order of the request"


def test_the_operator_sets_the_weights(serve: Serve) -> None:
    """`RERANK_WEIGHTS` replaces the default weights, and a request replaces those."""
    dense = serve(RERANK_WEIGHTS="1, 0, 0")
    assert ranked(dense) == ranked(serve(), weights=[1, 0, 0]) != ranked(serve())
    assert ranked(dense, weights=[1, 1, 1]) == ranked(serve())


@given(means=st.lists(st.floats(-1.5, 3.5), min_size=2, max_size=20))
def test_the_relevance_keeps_the_order_of_the_means(means: list[float]) -> None:
    """The relevance lies in 0..1, and a mean that is higher by more than rounding has a higher relevance."""
    for lower, higher in pairwise(sorted(means)):
        assert 0 < relevance(lower) <= relevance(higher) < 1
        assert higher - lower < 1e-2 or relevance(lower) < relevance(higher)
    assert relevance(0.4) == 0.5
    assert (relevance(-1e9), relevance(1e9)) == (0, 1)


def test_the_answer_has_the_fields_of_cohere_and_jina(http: httpx.Client) -> None:
    """Every path answers alike, and names the version of Cohere's API that it has."""
    for path, version in zip(PATHS, "121", strict=True):
        body = {"model": "mini", "query": {"text": QUERY}, "documents": DOCUMENTS, "top_n": 2, "priority": 1}
        response = http.post(path, json=body, headers={"X-Request-ID": "job-7"})
        assert response.status_code == 200, response.text
        answer = response.json()
        assert set(answer) == {"id", "model", "results", "usage", "meta"}
        assert (answer["id"], answer["model"]) == ("job-7", "mini")
        assert [result["index"] for result in answer["results"]] == [1, 3]
        assert all(set(result) == {"index", "relevance_score"} for result in answer["results"])
        tokens = answer["usage"]["total_tokens"]
        assert answer["usage"]["prompt_tokens"] == tokens
        assert answer["meta"] == {
            "api_version": {"version": version},
            "tokens": {"input_tokens": tokens, "output_tokens": 0},
        }


def test_documents_are_returned_as_they_were_given(worker: Client) -> None:
    """`return_documents` adds each document; an object keeps its other keys, and a string becomes an object."""
    documents = [{"text": "A relational database.", "id": 7, "tags": ["a", None]}, "rsync copies"]
    results = ranked(worker, documents=documents, return_documents=True)
    assert {result["index"]: result["document"] for result in results} == {0: documents[0], 1: {"text": "rsync copies"}}
    assert "document" not in ranked(worker, documents=documents)[0]


def test_fewer_results_than_documents(worker: Client) -> None:
    """`top_n` keeps the best; more than there are documents is all of them."""
    every = ranked(worker)
    assert ranked(worker, top_n=1) == every[:1]
    assert ranked(worker, top_n=100) == ranked(worker, top_n=None) == every


def test_long_documents_are_truncated(serve: Serve) -> None:
    """Documents are cut at the limit of passages or at `max_tokens_per_doc`, the query at that of queries."""
    worker = serve(QUERY_MAX_LENGTH="8", PASSAGE_MAX_LENGTH="16")
    long = TEXTS["many words"]
    assert job(worker, query=long, documents=[long])["usage"]["total_tokens"] == 8 + 16
    assert job(worker, query=long, documents=[long], max_tokens_per_doc=5)["usage"]["total_tokens"] == 8 + 5
    beyond = job(worker, query=long, documents=[long], max_tokens_per_doc=1_000_000)
    assert beyond["usage"]["total_tokens"] == 8 + 512, "the limit of the model"


def test_each_text_is_embedded_once(watched: Watched) -> None:
    """A query of many documents is embedded once, and so is a repeated document."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder))
    watched.engine.batches.clear()
    answer = job(worker, query=QUERY, documents=[f"document {n}" for n in (1, 2, 1)])
    assert sum(len(batch) for batch in watched.engine.batches) == 3
    assert answer["usage"]["total_tokens"] == sum(map(sum, watched.engine.batches))


def test_a_failed_text_fails_the_request(watched: Watched) -> None:
    """The answer has no place for a failed document, so the error names it, without its text."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder))
    message = refused(worker, documents=["one", "the zebra"])
    assert message.startswith("documents[1]: ")
    assert "zebra" not in message
    assert refused(worker, query="the zebra").startswith("query: ")


def test_many_documents_hold_few_vectors_at_a_time(watched: Watched) -> None:
    """Only about 32 768 tokens of one request wait or are computed at a time; a request that is cancelled ends."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder))
    documents = [f"{n} " + TEXTS["many words"] for n in range(100)]
    watched.engine.batches.clear()

    def held() -> int:
        return watched.pool.waiting_tokens + sum(watched.engine.batches[0])

    async def body() -> int:
        watched.engine.gate.clear()
        raw = {"openai_route": "/v1/rerank", "openai_input": {"query": QUERY, "documents": documents}}
        work = asyncio.create_task(worker.job(raw))
        await until(lambda: bool(watched.engine.batches) and held() >= 25_000)
        await asyncio.sleep(0.2)  # in which more would come
        most = held()
        work.cancel()
        watched.engine.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await work
        return most

    assert 25_000 <= asyncio.run(body()) <= 32_768
    assert watched.pool.waiting_tokens == 0, "cancelled texts are not computed"


def test_a_request_may_be_longer_than_the_queue(watched: Watched) -> None:
    """Each document must fit into `QUEUE_TOKENS`, but not all documents together."""
    documents = [f"{n} " + TEXTS["a sentence"] for n in range(20)]
    with embedder_over(watched.engine, token_budget=64, queue_tokens=100) as embedder:
        worker = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder))
        together = ranked(worker, documents=documents)
        alone = {n: ranked(worker, documents=[document])[0] for n, document in enumerate(documents)}
        for result in together:
            expected = alone[result["index"]]["relevance_score"]
            assert result["relevance_score"] == pytest.approx(expected, abs=3 * TOLERANCE)
        assert "QUEUE_TOKENS=100" in refused(worker, documents=[TEXTS["many words"]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query": ""}, "query must have at least 1 character, got 0"),
        ({"query": {"image": "x"}}, "query must be a string or an object with text, got an object"),
        ({"query": None}, "query is required"),
        ({"documents": []}, "documents must have at least 1 item, got 0"),
        ({"documents": "a"}, "documents must be a list, got a string"),
        ({"documents": ["a", 1]}, "documents[1] must be a string or an object with the string text, got an integer"),
        (
            {"documents": [{"image": "a"}]},
            "documents[0] must be a string or an object with the string text, got an obj",
        ),
        ({"documents": ["a\ud800"]}, "documents[0] is not valid Unicode"),
        ({"documents": [{"text": "a", "b": "\ud800"}]}, "documents[0] must have neither a lone surrogate"),
        ({"documents": [{"text": "a", "b": 2**70}]}, "documents[0] must have neither"),
        ({"documents": ["a"] * 10_001}, "documents must have at most 10000 items (MAX_TEXTS), got 10001"),
        ({"top_n": 0}, "top_n must be at least 1, got 0"),
        ({"max_tokens_per_doc": 2}, "max_tokens_per_doc must be at least 3, got 2"),
        ({"max_chunks_per_doc": 10}, "max_chunks_per_doc must be 1, since a document is ranked as a whole, got 10"),
        ({"rank_fields": ["title"]}, 'rank_fields must be ["text"], the only field of a document that is ranked'),
        ({"weights": [1, 1]}, "weights must have exactly 3 items (dense, sparse, colbert), got 2"),
        ({"weights": [0, 0, 0]}, "weights must be above 0 for at least one kind of vector, got 0 for all"),
        ({"instruction": "rank"}, "unknown field 'instruction'"),
        ({"model": "other"}, "model must be 'mini', as GET /v1/models shows, got 'other'"),
    ],
)
def test_an_invalid_request_is_an_error(worker: Client, fields: Json, message: str) -> None:
    """The error names the field, the limit and the value, where clients of Cohere and Jina look for it."""
    assert refused(worker, **fields).startswith(message)


def test_what_changes_nothing_is_accepted(worker: Client) -> None:
    """Fields that say what is done anyway, or are null, change nothing."""
    same = {"rank_fields": ["text"], "max_chunks_per_doc": 1, "priority": 3, "instruction": None, "user": None}
    assert ranked(worker, **same) == ranked(worker)


def test_errors_have_the_statuses_of_the_worker(http: httpx.Client) -> None:
    """The object of an error is the same wherever it arises."""
    wrong: list[tuple[Any, int]] = [
        ({"query": "a"}, 400),
        ([1], 400),
        ({"query": "a", "documents": ["a"], "model": "other"}, 404),
    ]
    for path in PATHS:
        for body, status in wrong:
            response = http.post(path, json=body)
            assert response.status_code == status, (path, response.text)
            assert set(response.json()) == {"message", "detail", "error_code"}
        assert http.post(path, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
        assert set(http.get(path).json()) == {"message", "detail", "error_code"}


def test_an_answer_over_the_limit_is_an_error(serve: Serve) -> None:
    """`MAX_RESPONSE_MB` also limits rankings."""
    worker = serve(MAX_RESPONSE_MB="0.001")
    assert "send fewer documents" in refused(worker, documents=["word " * 200], return_documents=True)
    assert ranked(worker, documents=["word " * 200])


def test_the_key_is_required(serve: Serve) -> None:
    """With `API_KEY` no ranking is made without it, and the error has the form of the path."""
    with Served(serve(API_KEY=KEY).operations) as served, served.client() as client:
        for path in PATHS:
            response = client.post(path, json={"query": QUERY, "documents": DOCUMENTS})
            assert response.status_code == 401
            assert "API_KEY" in response.json()["message"]
        accepted = client.post(
            PATHS[0], json={"query": QUERY, "documents": DOCUMENTS}, headers={"Authorization": f"Bearer {KEY}"}
        )
        assert accepted.status_code == 200


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    raw=st.fixed_dictionaries(
        {},
        optional={
            name: values | st.just(PRIVATE) | st.just([PRIVATE])
            for name in ("query", "documents", "top_n", "return_documents", "rank_fields", "weights", "model", "other")
        },
    )
    | values
)
def test_any_input_has_an_answer(watched: Watched, raw: Any) -> None:
    """The answer to any JSON is a ranking or an error, which is not a defect and quotes no text."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder))
    (answer,) = asyncio.run(worker.job({"openai_route": "/v1/rerank", "openai_input": raw}))
    if "results" not in answer:
        assert answer["error_code"] != "internal", answer
        assert PRIVATE not in json.dumps(answer)

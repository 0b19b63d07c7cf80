"""`operation: "embed"`: the original answer is unchanged, and has additional fields."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from embedder import Embedding, Result
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.wire import codec
from service.wire.ahead import WrittenAhead
from service.wire.answers import embed_answer
from service.wire.fields import Limits
from service.wire.requests import EmbedRequest
from tests.embedder.fakes import WAIT_MAX_S, CountingEngine
from tests.embedder.oracle import NEGLIGIBLE, TOLERANCE, Oracle
from tests.service.client import ENVIRONMENT, Client, Json, unpacked, until
from tests.service.conftest import Serve
from tests.service.doubles import Watched
from tests.service.wrappers import embedder_over

TEXTS = (
    "Copy only the changed parts of files to another machine.",
    "",
    "   \n\t ",
    "rsync",
    "zebra zebra, ZEBRA!",
    "PostgreSQL is an object-relational database server. " * 12,
    "smörgåsbord naïve 北京 🙂 \u0000 \u2028 </s> <mask>",
    "word " * 700,
)
KINDS = ("dense", "sparse", "colbert")


@pytest.fixture(scope="module")
def expected(oracle: Oracle) -> list[Embedding]:
    """FlagEmbedding's vectors of `TEXTS`, truncated at the limit of queries."""
    return oracle.encode(TEXTS, 512)


def test_the_original_request_has_the_original_answer(worker: Client, expected: list[Embedding]) -> None:
    """The original request has the original keys with FlagEmbedding's numbers."""
    answer = worker.good({"texts": list(TEXTS), "isPassage": False, "batchSize": 0})
    assert set(answer) == {"results", "usage", "model"}
    assert [result["text"] for result in answer["results"]] == list(TEXTS)
    for result, reference in zip(answer["results"], expected, strict=True):
        assert set(result) == {"text", "tokens", "truncated", *KINDS}
        assert set(result["sparse"]) == {"indices", "values"}
        assert_agrees(result, reference)


def test_passages_are_embedded_as_flagembedding_embeds_them(worker: Client, oracle: Oracle) -> None:
    """Passages have FlagEmbedding's numbers, with the limit of passages."""
    answer = worker.good({"texts": list(TEXTS[:5]), "isPassage": True})
    for result, reference in zip(answer["results"], oracle.encode(TEXTS[:5], 8192), strict=True):
        assert_agrees(result, reference)


def test_a_shorter_limit_is_flagembeddings(worker: Client, oracle: Oracle) -> None:
    """`maxLength` truncates exactly as FlagEmbedding's `max_length`, and results say so."""
    answer = worker.good({"texts": list(TEXTS), "maxLength": 7})
    for result, reference in zip(answer["results"], oracle.encode(TEXTS, 7), strict=True):
        assert_agrees(result, reference)
    assert [result["tokens"] for result in answer["results"]] == [7, 2, 2, 3, 7, 7, 7, 7]
    truncated = [True, False, False, False, True, True, True, True]
    assert [result["truncated"] for result in answer["results"]] == truncated


def test_the_limits_of_max_length_are_usable(worker: Client) -> None:
    """A limit of 3 tokens and the model's own limit are both valid."""
    job = {"texts": ["word " * 900], "vectors": ["sparse"]}
    lengths = [worker.good({**job, "maxLength": length})["results"][0]["tokens"] for length in (3, 512)]
    assert lengths == [3, 512]


def test_colbert_has_a_row_for_every_token_but_the_first(worker: Client) -> None:
    """Every text has a row, also an empty one, which has no sparse weights."""
    answer = worker.good({"texts": list(TEXTS)})
    for result in answer["results"]:
        assert len(result["colbert"]) == result["tokens"] - 1
    empty = answer["results"][1]
    assert empty["tokens"] == 2
    assert empty["sparse"] == {"indices": [], "values": []}


def test_sparse_indices_are_unique_and_ascending(worker: Client) -> None:
    """A repeated token has one weight, so that every sparse vector is valid in Qdrant."""
    for result in worker.good({"texts": list(TEXTS), "vectors": ["sparse"]})["results"]:
        indices, values = result["sparse"]["indices"], result["sparse"]["values"]
        assert indices == sorted(set(indices))
        assert len(indices) == len(values)
        assert all(value > 0 for value in values)


@pytest.mark.parametrize(
    "kinds", [["dense"], ["sparse"], ["colbert"], ["colbert", "dense"], ["sparse", "dense", "colbert"]]
)
def test_only_the_requested_vectors(worker: Client, kinds: list[str], expected: list[Embedding]) -> None:
    """A result has the vectors of `vectors`, and their numbers do not depend on it."""
    answer = worker.good({"texts": list(TEXTS[:5]), "vectors": kinds})
    for result, reference in zip(answer["results"], expected[:5], strict=True):
        assert set(result) == {"text", "tokens", "truncated", *kinds}
        assert_agrees(result, reference, kinds)


def test_texts_can_be_left_out(worker: Client) -> None:
    """`includeText: false` leaves out only the texts."""
    answer = worker.good({"texts": ["a", "b"], "includeText": False})
    for result in answer["results"]:
        assert set(result) == {"tokens", "truncated", *KINDS}


def test_vectors_can_be_left_out(worker: Client) -> None:
    """`returnVectors: false` leaves out only the vectors."""
    answer = worker.good({"texts": ["rsync", ""], "returnVectors": False})
    assert answer["results"] == [
        {"text": "rsync", "tokens": answer["results"][0]["tokens"], "truncated": False},
        {"text": "", "tokens": 2, "truncated": False},
    ]


def test_usage_counts_the_tokens_of_all_texts(worker: Client) -> None:
    """`usage.tokens` includes special tokens, and excludes truncated ones."""
    answer = worker.good({"texts": list(TEXTS), "vectors": ["dense"]})
    assert answer["usage"] == {"tokens": sum(result["tokens"] for result in answer["results"])}
    assert answer["results"][-1]["tokens"] == 512


def test_the_answer_names_the_model(worker: Client) -> None:
    """`model` is the configured model."""
    assert worker.good({"texts": ["a"]})["model"] == "mini"


def test_base64_holds_the_same_numbers_as_lists(worker: Client) -> None:
    """Base64 float32 and lists of numbers read back to the same bits."""
    lists = worker.good({"texts": list(TEXTS[:6])})
    packed = worker.good({"texts": list(TEXTS[:6]), "encoding": "base64"})
    for one, other in zip(lists["results"], packed["results"], strict=True):
        assert other["sparse"] == one["sparse"]
        for kind in ("dense", "colbert"):
            assert set(other[kind]) == {"shape", "dtype", "data"}
            assert other[kind]["dtype"] == "float32"
            from_list = np.array(one[kind], dtype=np.float32)
            assert other[kind]["shape"] == list(from_list.shape)
            assert unpacked(other[kind]).tobytes() == from_list.astype("<f4").tobytes()


def test_float16_is_the_float32_rounded(worker: Client) -> None:
    """`dtype: float16` halves the data, and rounds each number to the nearest float16."""
    full = worker.good({"texts": list(TEXTS[:4]), "encoding": "base64"})
    half = worker.good({"texts": list(TEXTS[:4]), "encoding": "base64", "dtype": "float16"})
    for one, other in zip(full["results"], half["results"], strict=True):
        for kind in ("dense", "colbert"):
            assert other[kind]["dtype"] == "float16"
            assert other[kind]["shape"] == one[kind]["shape"]
            assert len(base64.b64decode(other[kind]["data"])) * 2 == len(base64.b64decode(one[kind]["data"]))
            np.testing.assert_array_equal(unpacked(other[kind]), unpacked(one[kind]).astype(np.float16))


def test_batch_size_changes_no_number(worker: Client) -> None:
    """The vectors of a text do not depend on `batchSize`."""
    whole = worker.good({"texts": list(TEXTS), "batchSize": 0})
    for size in (1, 3):
        assert_same_results(worker.good({"texts": list(TEXTS), "batchSize": size}), whole)


def test_batch_size_bounds_the_texts_of_a_job_in_a_batch(watched: Watched) -> None:
    """With 0 only the token budget limits a batch; with n a batch has at most n texts of the job."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder))
    for size, batches in ((0, [5]), (1, [1] * 5), (2, [2, 2, 1]), (9, [5])):
        watched.engine.batches.clear()
        worker.good({"texts": list("abcde"), "batchSize": size})
        assert [len(batch) for batch in watched.engine.batches] == batches


@pytest.mark.parametrize(
    "quick", [{"texts": ["a query"]}, {"operation": "search", "collection": "notes", "queries": ["a query"]}]
)
def test_queries_do_not_wait_for_passages(watched: Watched, store: EdgeStore, quick: Json) -> None:
    """A query that arrives while passages are embedded is in the next batch."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, store))
    worker.good({"texts": ["there"], "qdrant": {"collection": "notes"}})
    watched.engine.batches.clear()

    async def body() -> None:
        watched.engine.gate.clear()
        passages = {"texts": ["a passage of some length"] * 6, "isPassage": True, "batchSize": 1}
        long = asyncio.create_task(worker.answer(passages))
        await until(lambda: len(watched.engine.batches) == 1)
        waiting = watched.pool.waiting_tokens
        short = asyncio.create_task(worker.answer(quick))
        await until(lambda: watched.pool.waiting_tokens > waiting)
        watched.engine.gate.set()
        await asyncio.gather(long, short)

    asyncio.run(body())
    passage, query, *rest = watched.engine.batches
    assert query != passage
    assert rest == [passage] * 5


def test_texts_of_a_cancelled_job_are_not_computed(watched: Watched) -> None:
    """Waiting texts of a cancelled job are dropped, and the next job is served."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder))
    watched.engine.batches.clear()

    async def body() -> None:
        watched.engine.gate.clear()
        job = asyncio.create_task(worker.answer({"texts": list("abcdef"), "batchSize": 1}))
        await until(lambda: len(watched.engine.batches) == 1)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        await until(lambda: watched.pool.waiting_tokens == 0)
        watched.engine.gate.set()
        assert "results" in await worker.answer({"texts": ["next one"]})

    asyncio.run(body())
    assert [len(batch) for batch in watched.engine.batches] == [1, 1]


def test_concurrent_jobs_have_the_answers_of_sequential_jobs(worker: Client) -> None:
    """Texts of other jobs in the same batch do not change the vectors of a job."""
    jobs: list[Json] = [
        {"texts": [f"{text[:40]} {n}" for text in TEXTS[: n % 7 + 1]], "isPassage": n % 3 == 0} for n in range(24)
    ]
    for together, alone in zip(worker.together(jobs), [worker.good(job) for job in jobs], strict=True):
        assert_same_results(together, alone)


def test_concurrent_jobs_get_the_kinds_that_they_requested(worker: Client) -> None:
    """A job gets only its own kinds of vectors, whatever other jobs in a batch request."""
    jobs: list[Json] = [{"texts": ["a", "b c"], "vectors": [kind]} for kind in KINDS for _ in range(4)]
    for job, answer in zip(jobs, worker.together(jobs), strict=True):
        for result in answer["results"]:
            assert set(result) == {"text", "tokens", "truncated", *job["vectors"]}


def test_more_texts_than_max_texts_are_refused(serve: Serve) -> None:
    """A job with more texts than `MAX_TEXTS` is an error with both numbers."""
    worker = serve(MAX_TEXTS="2")
    worker.good({"texts": ["a", "b"], "vectors": ["dense"]})
    answer = worker.error({"texts": ["a", "b", "c"]}, "invalid_request")
    assert answer["error"] == "texts must have at most 2 items (MAX_TEXTS), got 3"


def test_a_job_larger_than_the_queue_is_refused(watched: Watched, store: EdgeStore) -> None:
    """A job that cannot fit into the queue is an error that names its field; a smaller job is served."""
    many = ["word"] * 30
    says = "the 30 texts have at least 60 tokens, more than the queue holds (QUEUE_TOKENS=20); send at most 10 at once"
    with embedder_over(watched.engine, queue_tokens=20) as small:
        worker = Client(Operations(Settings.from_environment(ENVIRONMENT), small, store))
        worker.good({"texts": ["word"], "qdrant": {"collection": "notes"}})
        for field, request in (
            ("texts", {"texts": many}),
            ("queries", {"operation": "search", "queries": many, "collection": "notes"}),
        ):
            answer = worker.error(request, "invalid_request")
            assert answer["error"].startswith(f"{field}: {says}")
            assert [error["field"] for error in answer["details"]["errors"]] == [field]
        raw = {"openai_route": "/v1/embeddings", "openai_input": {"input": many}}
        (openai,) = asyncio.run(worker.job(raw))
        assert openai["error"]["message"].startswith(f"input: {says}")
        assert (openai["error"]["param"], openai["error"]["code"]) == ("input", "invalid_request")
        worker.good({"texts": ["word"]})


def test_an_answer_that_is_too_large_names_the_ways_out(serve: Serve) -> None:
    """An answer over the limit is an error with its size, the limit and the remedies."""
    worker = serve(MAX_RESPONSE_MB="0.05")
    job = {"texts": ["word " * 600], "includeText": False}
    answer = worker.error(job, "response_too_large")
    assert answer["retryable"] is False
    assert answer["details"]["limit"] == 50_000
    assert answer["details"]["bytes"] > 50_000
    for named in (str(answer["details"]["bytes"]), "50000", "MAX_RESPONSE_MB", "vectors", "base64", "float16"):
        assert named in answer["error"]
    worker.good({**job, "vectors": ["dense", "sparse"]})


def test_the_remedy_for_a_large_answer_works(serve: Serve) -> None:
    """An answer that is too large as lists fits as base64 float16."""
    worker = serve(MAX_RESPONSE_MB="0.3")
    job = {"texts": ["word " * 600], "includeText": False}
    worker.error(job, "response_too_large")
    worker.good({**job, "encoding": "base64", "dtype": "float16"})


def test_numbers_are_the_shortest_that_read_back(worker: Client) -> None:
    """Numbers in lists have at most nine significant digits, as float32 needs."""
    numbers = worker.good({"texts": ["rsync"], "vectors": ["dense"]})["results"][0]["dense"]
    assert all(len(json.dumps(number).lstrip("-0.").split("e")[0].replace(".", "")) <= 9 for number in numbers)


def assert_agrees(result: Mapping[str, Any], reference: Embedding, kinds: Sequence[str] = KINDS) -> None:
    """Check that a result has the oracle's numbers."""
    assert result["tokens"] == reference.tokens
    for kind, wanted in (("dense", reference.dense), ("colbert", reference.colbert)):
        if kind in kinds and wanted is not None:
            vector = np.array(result[kind], dtype=np.float32)
            assert vector.shape == wanted.shape
            assert np.abs(vector - wanted).max() <= TOLERANCE
    if "sparse" in kinds and reference.sparse is not None:
        theirs = dict(zip(reference.sparse.indices.tolist(), reference.sparse.values.tolist(), strict=True))
        assert_same_weights(weights(result), theirs)


def assert_same_results(one: Json, other: Json) -> None:
    """Check that two answers have the same texts and, up to rounding, the same vectors."""
    for a, b in zip(one["results"], other["results"], strict=True):
        assert (a["text"], a["tokens"], a["truncated"]) == (b["text"], b["tokens"], b["truncated"])
        for kind in ("dense", "colbert"):
            assert np.abs(np.array(a[kind]) - np.array(b[kind])).max() <= TOLERANCE
        assert_same_weights(weights(a), weights(b))


def assert_same_weights(one: Mapping[int, float], other: Mapping[int, float]) -> None:
    """Check that two sparse vectors are equal, except for negligible weights."""
    for index in one.keys() | other.keys():
        assert abs(one.get(index, 0.0) - other.get(index, 0.0)) <= TOLERANCE
        assert (index in one and index in other) or max(one.get(index, 0.0), other.get(index, 0.0)) <= NEGLIGIBLE


def weights(result: Mapping[str, Any]) -> dict[int, float]:
    """Sparse weights by index."""
    return dict(zip(result["sparse"]["indices"], result["sparse"]["values"], strict=True))


@pytest.mark.parametrize("fields", [{}, {"vectors": ["dense", "sparse"]}, {"includeText": False}])
@pytest.mark.parametrize("encoding", ["list", "base64"])
@pytest.mark.parametrize("count", [1, 40])
def test_the_queue_gets_what_http_sends(
    watched: Watched, store: EdgeStore, fields: Json, encoding: str, count: int
) -> None:
    """The JSON is the same whether vectors are encoded during the computation or at the end."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, store))
    texts = [f"text number {number}" for number in range(count)]
    job = {"texts": [*texts, "zebra"], "encoding": encoding, **fields}
    answer = asyncio.run(worker.job(job))
    assert answer == worker.good(job)
    assert ["error" in result for result in answer["results"]] == [False] * count + [True]


def test_vectors_are_encoded_while_others_are_computed() -> None:
    """The base64 of the first batch is encoded before the last batch is computed."""
    engine = CountingEngine()
    with embedder_over(engine, token_budget=30) as embedder:
        core = Operations(Settings.from_environment(ENVIRONMENT), embedder)
        request = EmbedRequest.model_validate(
            {"texts": ["library"] * 40, "encoding": "base64"}, context=Limits(max_texts=100, max_length=64)
        )
        ahead = WrittenAhead(request)
        written: list[int] = []

        def observe(results: Sequence[tuple[int, Result]]) -> None:
            ahead.encode(results)
            written.append(len(ahead.vectors()))

        asyncio.run(core.embed(request.embed_value(), observer=observe))
        assert written == [10, 20, 30, 40]
        vector = ahead.vectors()[39].get("colbert")
    assert isinstance(vector, dict)
    assert vector["shape"] == [2, 4]


def test_a_cancelled_job_encodes_nothing_more() -> None:
    """Results that are not being encoded at a cancellation are dropped."""
    request = EmbedRequest.model_validate(
        {"texts": ["a"], "encoding": "base64"}, context=Limits(max_texts=9, max_length=64)
    )
    ahead = WrittenAhead(request)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(dict[int, Any]):
        def __iter__(self) -> Iterator[Any]:
            begun.set()
            assert go_on.wait(WAIT_MAX_S)
            return iter(())

    for _ in range(20):
        ahead.encode(Slow())  # type: ignore[arg-type]
    assert begun.wait(WAIT_MAX_S)
    ahead.cancel()
    go_on.set()
    with pytest.raises(CancelledError):
        ahead.vectors()


def test_batches_that_end_after_a_cancellation_are_not_written() -> None:
    """What was under way when the caller gave up is computed, and no writer is kept busy with it."""
    request = EmbedRequest.model_validate(
        {"texts": ["a"], "encoding": "base64"}, context=Limits(max_texts=9, max_length=64)
    )
    ahead = WrittenAhead(request)
    ahead.cancel()
    ahead.encode([(0, Embedding(np.ones(4, dtype=np.float32), None, None, tokens=3, truncated=False))])
    assert ahead.vectors() == {}


@pytest.mark.parametrize("fields", [{"vectors": ["sparse"]}, {"vectors": ["sparse"], "encoding": "base64"}])
def test_many_sparse_vectors_are_not_written_on_the_event_loop(
    watched: Watched, store: EdgeStore, fields: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand of them take a second, during which the loop would answer nobody else."""
    threads: list[threading.Thread] = []

    def answer(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return embed_answer(*args)

    monkeypatch.setattr(codec, "embed_answer", answer)
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, store))
    worker.good({"texts": ["one two three four five"] * 400, **fields})
    worker.good({"texts": ["one two"], **fields})
    assert [thread is threading.main_thread() for thread in threads] == [False, True]


def test_a_large_request_on_a_gpu_has_the_answer_that_a_cpu_gives() -> None:
    """On a GPU the model starts during tokenization, unless the answer may be too large."""
    texts = ["library", "tool", "data"] * 40
    job = {"texts": texts, "isPassage": True}
    answers, refusals = [], []
    for device in ("cpu", "cuda:0"):
        engine = CountingEngine(device=device)
        with embedder_over(engine) as embedder:
            answers.append(Client(Operations(Settings.from_environment(ENVIRONMENT), embedder)).good(job))
            assert embedder.overlaps(texts, 64) == (device == "cuda:0")
            computed = len(engine.batches)
            small = Settings.from_environment({**ENVIRONMENT, "MAX_RESPONSE_MB": "0.005"})
            refusals.append(Client(Operations(small, embedder)).error(job, "response_too_large"))
            assert len(engine.batches) == computed
    assert answers[0] == answers[1]
    assert refusals[0] == refusals[1]

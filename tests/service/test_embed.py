"""`operation: "embed"`: the original answer, unchanged, and what was added beside it."""

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
from service.wire.ahead import WrittenAhead
from service.wire.fields import Limits
from service.wire.requests import EmbedRequest
from tests.embedder.fakes import PATIENCE, CountingEngine
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
    """FlagEmbedding's vectors of `TEXTS`, cut at the limit of queries."""
    return oracle.encode(TEXTS, 512)


def test_the_original_request_has_the_original_answer(worker: Client, expected: list[Embedding]) -> None:
    """Callers of the first version find every key where it was, with FlagEmbedding's numbers."""
    answer = worker.good({"texts": list(TEXTS), "isPassage": False, "batchSize": 0})
    assert set(answer) == {"results", "usage", "model"}
    assert [result["text"] for result in answer["results"]] == list(TEXTS)
    for result, reference in zip(answer["results"], expected, strict=True):
        assert set(result) == {"text", "tokens", "truncated", *KINDS}
        assert set(result["sparse"]) == {"indices", "values"}
        assert_agrees(result, reference)


def test_passages_are_embedded_as_flagembedding_embeds_them(worker: Client, oracle: Oracle) -> None:
    """A passage has the same numbers as a query of the same text; only the limit differs."""
    answer = worker.good({"texts": list(TEXTS[:5]), "isPassage": True})
    for result, reference in zip(answer["results"], oracle.encode(TEXTS[:5], 8192), strict=True):
        assert_agrees(result, reference)


def test_a_shorter_limit_is_flagembeddings(worker: Client, oracle: Oracle) -> None:
    """`maxLength` cuts exactly where FlagEmbedding's own `max_length` does, and says what was cut."""
    answer = worker.good({"texts": list(TEXTS), "maxLength": 7})
    for result, reference in zip(answer["results"], oracle.encode(TEXTS, 7), strict=True):
        assert_agrees(result, reference)
    assert [result["tokens"] for result in answer["results"]] == [7, 2, 2, 3, 7, 7, 7, 7]
    truncated = [True, False, False, False, True, True, True, True]
    assert [result["truncated"] for result in answer["results"]] == truncated


def test_the_limits_of_max_length_are_usable(worker: Client) -> None:
    """3 tokens and the model's own limit are both accepted."""
    job = {"texts": ["word " * 900], "vectors": ["sparse"]}
    lengths = [worker.good({**job, "maxLength": length})["results"][0]["tokens"] for length in (3, 512)]
    assert lengths == [3, 512]


def test_colbert_has_a_row_for_every_token_but_the_first(worker: Client) -> None:
    """An empty text has one row, of `</s>`, and no sparse weight; every text has a row."""
    answer = worker.good({"texts": list(TEXTS)})
    for result in answer["results"]:
        assert len(result["colbert"]) == result["tokens"] - 1
    empty = answer["results"][1]
    assert empty["tokens"] == 2
    assert empty["sparse"] == {"indices": [], "values": []}


def test_sparse_indices_are_unique_and_ascending(worker: Client) -> None:
    """A repeated token has one weight, and every sparse vector can be stored as it is."""
    for result in worker.good({"texts": list(TEXTS), "vectors": ["sparse"]})["results"]:
        indices, values = result["sparse"]["indices"], result["sparse"]["values"]
        assert indices == sorted(set(indices))
        assert len(indices) == len(values)
        assert all(value > 0 for value in values)


@pytest.mark.parametrize(
    "kinds", [["dense"], ["sparse"], ["colbert"], ["colbert", "dense"], ["sparse", "dense", "colbert"]]
)
def test_only_the_vectors_that_were_asked_for(worker: Client, kinds: list[str], expected: list[Embedding]) -> None:
    """`vectors` decides which keys a result has, in any order, and their numbers do not depend on it."""
    answer = worker.good({"texts": list(TEXTS[:5]), "vectors": kinds})
    for result, reference in zip(answer["results"], expected[:5], strict=True):
        assert set(result) == {"text", "tokens", "truncated", *kinds}
        assert_agrees(result, reference, kinds)


def test_texts_need_not_come_back(worker: Client) -> None:
    """`includeText: false` leaves the texts out and nothing else."""
    answer = worker.good({"texts": ["a", "b"], "includeText": False})
    for result in answer["results"]:
        assert set(result) == {"tokens", "truncated", *KINDS}


def test_vectors_need_not_come_back(worker: Client) -> None:
    """`returnVectors: false` leaves what is known of each text without its vectors."""
    answer = worker.good({"texts": ["rsync", ""], "returnVectors": False})
    assert answer["results"] == [
        {"text": "rsync", "tokens": answer["results"][0]["tokens"], "truncated": False},
        {"text": "", "tokens": 2, "truncated": False},
    ]


def test_usage_counts_the_tokens_of_all_texts(worker: Client) -> None:
    """`usage.tokens` is what was computed: special tokens included, what was cut off excluded."""
    answer = worker.good({"texts": list(TEXTS), "vectors": ["dense"]})
    assert answer["usage"] == {"tokens": sum(result["tokens"] for result in answer["results"])}
    assert answer["results"][-1]["tokens"] == 512


def test_the_answer_names_the_model(worker: Client) -> None:
    """`model` is what was configured."""
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
    """`dtype: float16` halves the data; each number is the nearest half."""
    full = worker.good({"texts": list(TEXTS[:4]), "encoding": "base64"})
    half = worker.good({"texts": list(TEXTS[:4]), "encoding": "base64", "dtype": "float16"})
    for one, other in zip(full["results"], half["results"], strict=True):
        for kind in ("dense", "colbert"):
            assert other[kind]["dtype"] == "float16"
            assert other[kind]["shape"] == one[kind]["shape"]
            assert len(base64.b64decode(other[kind]["data"])) * 2 == len(base64.b64decode(one[kind]["data"]))
            np.testing.assert_array_equal(unpacked(other[kind]), unpacked(one[kind]).astype(np.float16))


def test_batch_size_changes_no_number(worker: Client) -> None:
    """However the texts are batched, each has its own vectors."""
    whole = worker.good({"texts": list(TEXTS), "batchSize": 0})
    for size in (1, 3):
        assert_same_results(worker.good({"texts": list(TEXTS), "batchSize": size}), whole)


def test_batch_size_bounds_the_texts_of_a_job_in_a_batch(watched: Watched) -> None:
    """0 leaves the batches to the budget, here one for all; n puts at most n texts into one."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder))
    for size, batches in ((0, [5]), (1, [1] * 5), (2, [2, 2, 1]), (9, [5])):
        watched.engine.batches.clear()
        worker.good({"texts": list("abcde"), "batchSize": size})
        assert [len(batch) for batch in watched.engine.batches] == batches


@pytest.mark.parametrize(
    "quick", [{"texts": ["a query"]}, {"operation": "search", "collection": "notes", "queries": ["a query"]}]
)
def test_queries_do_not_wait_for_passages(watched: Watched, store: EdgeStore, quick: Json) -> None:
    """A query that comes while passages are embedded is in the next batch, before the passages that still wait."""
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


def test_a_cancelled_job_leaves_nothing_behind(watched: Watched) -> None:
    """What still waits of a job that was withdrawn is not computed, and the next job is served."""
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


def test_concurrent_jobs_answer_like_jobs_in_turn(worker: Client) -> None:
    """Texts of other jobs in the same batch change nothing: every job gets its own texts' vectors."""
    jobs: list[Json] = [
        {"texts": [f"{text[:40]} {n}" for text in TEXTS[: n % 7 + 1]], "isPassage": n % 3 == 0} for n in range(24)
    ]
    for together, alone in zip(worker.together(jobs), [worker.good(job) for job in jobs], strict=True):
        assert_same_results(together, alone)


def test_concurrent_jobs_get_the_kinds_that_each_asked_for(worker: Client) -> None:
    """A job that wants one kind of vector gets only that, whatever its neighbours in a batch want."""
    jobs: list[Json] = [{"texts": ["a", "b c"], "vectors": [kind]} for kind in KINDS for _ in range(4)]
    for job, answer in zip(jobs, worker.together(jobs), strict=True):
        for result in answer["results"]:
            assert set(result) == {"text", "tokens", "truncated", *job["vectors"]}


def test_more_texts_than_max_texts_are_refused(serve: Serve) -> None:
    """`MAX_TEXTS` bounds a job, and the refusal says so with both numbers."""
    worker = serve(MAX_TEXTS="2")
    worker.good({"texts": ["a", "b"], "vectors": ["dense"]})
    answer = worker.error({"texts": ["a", "b", "c"]}, "invalid_request")
    assert answer["error"] == "texts must have at most 2 items (MAX_TEXTS), got 3"


def test_a_job_larger_than_the_queue_is_refused(watched: Watched, store: EdgeStore) -> None:
    """A job that can never fit into the queue is refused by the name of its field; a smaller one is served."""
    many = ["word"] * 30
    says = "90 tokens are more than the queue holds (QUEUE_TOKENS=20)"
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
    """Rather than vanish on the way, an answer over the limit is an error with its size, the limit and the remedy."""
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
    """What does not fit as lists of numbers fits as base64 float16."""
    worker = serve(MAX_RESPONSE_MB="0.3")
    job = {"texts": ["word " * 600], "includeText": False}
    worker.error(job, "response_too_large")
    worker.good({**job, "encoding": "base64", "dtype": "float16"})


def test_numbers_are_the_shortest_that_read_back(worker: Client) -> None:
    """A list spends no digits beyond what float32 needs: at most nine significant ones."""
    numbers = worker.good({"texts": ["rsync"], "vectors": ["dense"]})["results"][0]["dense"]
    assert all(len(json.dumps(number).lstrip("-0.").split("e")[0].replace(".", "")) <= 9 for number in numbers)


def assert_agrees(result: Mapping[str, Any], reference: Embedding, kinds: Sequence[str] = KINDS) -> None:
    """A result holds the oracle's numbers."""
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
    """Two answers hold the same vectors of the same texts, to rounding."""
    for a, b in zip(one["results"], other["results"], strict=True):
        assert (a["text"], a["tokens"], a["truncated"]) == (b["text"], b["tokens"], b["truncated"])
        for kind in ("dense", "colbert"):
            assert np.abs(np.array(a[kind]) - np.array(b[kind])).max() <= TOLERANCE
        assert_same_weights(weights(a), weights(b))


def assert_same_weights(one: Mapping[int, float], other: Mapping[int, float]) -> None:
    """Two sparse vectors are the same; a weight too small to matter may be missing in either."""
    for index in one.keys() | other.keys():
        assert abs(one.get(index, 0.0) - other.get(index, 0.0)) <= TOLERANCE
        assert (index in one and index in other) or max(one.get(index, 0.0), other.get(index, 0.0)) <= NEGLIGIBLE


def weights(result: Mapping[str, Any]) -> dict[int, float]:
    """Index to weight."""
    return dict(zip(result["sparse"]["indices"], result["sparse"]["values"], strict=True))


@pytest.mark.parametrize("fields", [{}, {"vectors": ["dense", "sparse"]}, {"includeText": False}])
@pytest.mark.parametrize("encoding", ["list", "base64"])
@pytest.mark.parametrize("count", [1, 40])
def test_the_queue_gets_what_http_sends(
    watched: Watched, store: EdgeStore, fields: Json, encoding: str, count: int
) -> None:
    """Whether vectors are written while others are computed, or at the end, the JSON is the same, errors included."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, store))
    texts = [f"text number {number}" for number in range(count)]
    job = {"texts": [*texts, "zebra"], "encoding": encoding, **fields}
    answer = asyncio.run(worker.job(job))
    assert answer == worker.good(job)
    assert ["error" in result for result in answer["results"]] == [False] * count + [True]


def test_vectors_are_written_while_others_are_computed() -> None:
    """The queue's base64 of the first batch is there before the model has seen the last one."""
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


def test_a_job_that_is_cancelled_writes_nothing_more() -> None:
    """What no writer has begun when the caller gives up is dropped."""
    request = EmbedRequest.model_validate(
        {"texts": ["a"], "encoding": "base64"}, context=Limits(max_texts=9, max_length=64)
    )
    ahead = WrittenAhead(request)
    begun, go_on = threading.Event(), threading.Event()

    class Slow(dict[int, Any]):
        def __iter__(self) -> Iterator[Any]:
            begun.set()
            assert go_on.wait(PATIENCE)
            return iter(())

    for _ in range(20):
        ahead.encode(Slow())  # type: ignore[arg-type]
    assert begun.wait(PATIENCE)
    ahead.cancel()
    go_on.set()
    with pytest.raises(CancelledError):
        ahead.vectors()


def test_a_large_request_on_a_gpu_has_the_answer_that_a_cpu_gives() -> None:
    """There the model starts while texts are tokenized, unless the answer may be too large: then it does not start."""
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

"""What goes wrong on the way to a worker: retries, their bounds, lost answers, and what messages never contain."""

from __future__ import annotations

import asyncio
import base64
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from bge_m3_qdrant_client import (
    AsyncClient,
    Client,
    ClientError,
    ConnectionFailed,
    InvalidOption,
    InvalidRequest,
    NotFound,
    Overloaded,
    Progress,
    ResponseTooLarge,
    StoreUnavailable,
    TimedOut,
    Unauthorized,
    UnexpectedAnswer,
    WorkerError,
)
from loopback_server import Answer, LoopbackServer, Request, Respond, clock_ahead, scripted

KEY = "key-that-stays-secret"
TEXT = "a text that stays private"
COUNTED = Answer({"count": 3})


def error(code: str, *, retryable: bool, status: int, details: Any = None, **headers: str) -> Answer:
    """An error of the worker."""
    body = {"error": "it failed", "error_code": code, "retryable": retryable, "details": details or {}}
    return Answer(body, status, headers)


def embedded(request: Request) -> Answer:
    """Vectors of one number, the number in the text."""
    results = [
        {"dense": {"shape": [1], "dtype": "float32", "data": base64.b64encode(np.float32(text).tobytes()).decode()}}
        for text in request.json["texts"]
    ]
    return Answer({"results": results, "usage": {"tokens": len(results)}, "model": "m"})


def stored(request: Request) -> Answer:
    """All points are stored but those of the text `bad`."""
    texts = request.json["texts"]
    rejected = [
        {"index": index, "code": "invalid_id", "message": "is invalid"}
        for index, text in enumerate(texts)
        if text == "bad"
    ]
    return Answer(
        {
            "results": [{"id": 1} for _ in texts],
            "usage": {"tokens": 2 * len(texts)},
            "model": "m",
            "upsert": {
                "collection": "notes", "stored": len(texts) - len(rejected), "skipped": 0, "rejected": rejected,
            },
        }
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of retries take no time unless `Retry-After` asks for them."""
    monkeypatch.setattr("bge_m3_qdrant_client.exchange.BACK_OFF_MIN_S", 0.001)


def test_an_overloaded_worker_is_asked_again_after_the_time_it_names() -> None:
    """429 with `Retry-After` is repeated after that time, and then answered."""
    busy = error("overloaded", retryable=True, status=429, **{"Retry-After": "1"})
    with LoopbackServer(scripted(busy, COUNTED)) as server, Client(server.url) as client:
        began = time.monotonic()
        assert client.count(collection="notes").count == 3
        assert time.monotonic() - began >= 1
        assert len(server.requests) == 2


def test_a_wait_that_ends_after_the_timeout_is_not_begun() -> None:
    """If `Retry-After` is longer than the call may take, its error is raised at once, with the seconds."""
    busy = error("overloaded", retryable=True, status=503, **{"Retry-After": "3600"})
    with LoopbackServer(scripted(busy)) as server, Client(server.url, timeout=30) as client:
        with pytest.raises(Overloaded) as raised:
            client.count()
        assert (raised.value.retry_after_s, raised.value.status, len(server.requests)) == (3600, 503, 1)


def test_retries_are_bounded() -> None:
    """An error that stays is raised after as many repetitions as `retries` allows."""
    down = error("store_unavailable", retryable=True, status=503)
    with LoopbackServer(scripted(down)) as server, Client(server.url, retries=2) as client:
        with pytest.raises(StoreUnavailable):
            client.count()
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error("invalid_request", retryable=False, status=400), InvalidRequest),
        (error("not_found", retryable=False, status=404), NotFound),
        (error("overloaded", retryable=False, status=429), Overloaded),
        (error("code_of_next_year", retryable=False, status=418), WorkerError),
        (error("invalid_request", retryable=False, status=401), Unauthorized),
        (Answer(b"", 401), Unauthorized),
        (Answer(b"<html>", 404), UnexpectedAnswer),
        (Answer(b"<html>", 200), UnexpectedAnswer),
        (Answer(b"", 301, {"Location": "http://127.0.0.1:9/"}), UnexpectedAnswer),
        (Answer({"counted": 3}), UnexpectedAnswer),
        (Answer({"count": "many"}), UnexpectedAnswer),
        (Answer(b"no gzip", 200, {"Content-Encoding": "gzip"}), UnexpectedAnswer),
    ],
)
def test_what_is_not_retryable_is_not_repeated(answer: Answer, kind: type[ClientError]) -> None:
    """Such an error is raised after one request, as the class of its code."""
    with LoopbackServer(scripted(answer)) as server, Client(server.url) as client:
        with pytest.raises(kind) as raised:
            client.count()
        assert type(raised.value) is kind
        assert not raised.value.retryable
        assert len(server.requests) == 1


@pytest.mark.parametrize(("answer", "named"), [({"result": {}}, "count"), ([], "everything")])
def test_an_answer_of_another_service_names_what_is_missing(answer: object, named: str) -> None:
    """An address of Qdrant, say, is an error that says so and has the fields that a worker's answer has."""
    with LoopbackServer(scripted(Answer(answer))) as server, Client(server.url) as client:
        with pytest.raises(UnexpectedAnswer, match=f"another service. Missing or invalid in CountAnswer: {named}$"):
            client.count()


@pytest.mark.parametrize("answer", [None, Answer(b"bad gateway", 502), Answer(b"", 503), Answer(b"", 429)])
def test_a_lost_answer_is_asked_for_again(answer: Answer | None) -> None:
    """A connection that ends, and a proxy without a worker, are repeated where that does no harm."""
    with LoopbackServer(scripted(answer, COUNTED)) as server, Client(server.url) as client:
        assert client.count().count == 3


def test_a_deletion_is_not_repeated_after_a_lost_answer() -> None:
    """A second deletion would count what is left; one that no worker has seen is repeated."""
    with LoopbackServer(scripted(None)) as server, Client(server.url) as client:
        with pytest.raises(ConnectionFailed) as raised:
            client.delete(collection="notes", ids=[1])
        assert raised.value.sent
        assert len(server.requests) == 1
    busy = error("overloaded", retryable=True, status=429)
    with (
        LoopbackServer(scripted(busy, Answer(b"", 503), Answer({"deleted": 1}))) as server,
        Client(server.url) as client,
    ):
        assert client.delete(ids=[1]).deleted == 1


def test_nothing_listens() -> None:
    """An address without a worker is `ConnectionFailed`, and says that nothing was sent."""
    with LoopbackServer(scripted(COUNTED)) as server:
        url = server.url
    with Client(url, retries=1) as client, pytest.raises(ConnectionFailed) as raised:
        client.count()
    assert not raised.value.sent


def test_a_slow_answer_is_a_timeout() -> None:
    """A call ends with its timeout."""
    ended = threading.Event()

    def slow(_: Request) -> Answer:
        assert ended.wait(30)
        return COUNTED

    with LoopbackServer(slow) as server, Client(server.url, timeout=0.1) as client:
        with pytest.raises(TimedOut):
            client.count()
        ended.set()


def test_an_answer_that_comes_in_drops_is_a_timeout() -> None:
    """A call ends with its timeout, though each byte of its answer comes in time."""

    async def awaited(url: str) -> None:
        async with AsyncClient(url, timeout=0.2) as client:
            await client.count()

    with LoopbackServer(scripted(Answer({"count": 3}, pause_s=0.1))) as server:
        with Client(server.url, timeout=0.2) as client, pytest.raises(TimedOut, match=r"within 0\.2 s"):
            client.count()
        with pytest.raises(TimedOut, match=r"within 0\.2 s"):
            asyncio.run(awaited(server.url))
        assert len(server.requests) <= 2  # on a busy machine the timeout may be over before a request is sent


def test_keys_texts_and_addresses_stay_out_of_messages() -> None:
    """No representation and no message has the key, a text or the host."""
    answers: list[Answer | None] = [None, Answer(b"", 401), Answer({"odd": TEXT}), Answer(TEXT.encode(), 500)]
    for answer in answers:
        with LoopbackServer(scripted(answer)) as server:
            with Client(server.url, api_key=KEY, retries=0) as client, pytest.raises(ClientError) as raised:
                client.search(TEXT, collection="notes")
            assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
            shown = f"{raised.value!r} {raised.value} {raised.value.__cause__!r} {client!r}"
            assert KEY not in shown
            assert TEXT not in shown
            assert "127.0.0.1" not in shown.replace(f"{client!r}", "")
    assert "secret" not in repr(Client("http://user:secret@host:8000/?key=secret"))


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused(key: str) -> None:
    """Such a key is an error of the constructor that does not quote it."""
    with pytest.raises(InvalidOption) as raised:
        Client("http://localhost:8000", api_key=key)
    assert not key or key not in str(raised.value)


@pytest.mark.parametrize(
    "headers",
    [{"api-key": value} for value in ("schlüssel", "line\nbreak", "line\r\nx-other: a", " secret", "nul\0")]
    + [{name: "secret"} for name in ("schlüssel", "two words", "", "a:b")],
)
def test_a_header_that_http_cannot_carry_is_refused(headers: dict[str, str]) -> None:
    """It is an error of the constructor, not of a request that is repeated, and quotes nothing."""
    with pytest.raises(InvalidOption) as raised:
        Client("http://localhost:8000", headers={"x-first": "a b", "x-empty": "", **headers})
    assert "of header 2 must" in str(raised.value)
    assert all(len(word) < 3 or word not in str(raised.value) for word in (*headers, *headers.values()))


def test_a_closed_client_says_so() -> None:
    """A call after the end of the context is an error of the package, and sends nothing."""

    async def awaited(url: str) -> None:
        async with AsyncClient(url) as client:
            pass
        await client.count()

    with LoopbackServer(scripted(COUNTED)) as server:
        with Client(server.url) as client:
            pass
        for call in (
            client.count,
            lambda: client.embed("a" for _ in range(600)),
            lambda: asyncio.run(awaited(server.url)),
        ):
            with pytest.raises(InvalidOption, match="the client is closed"):
                call()
        assert not server.requests


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://host", "", "http://", "http://host:port", f"http://{'a' * 64}.example", "http://a..b"],
)
def test_an_address_is_checked(url: str) -> None:
    """What is no address of HTTP is refused before anything is sent."""
    with pytest.raises(InvalidOption):
        Client(url)


TIMEOUTS = [{"timeout": seconds} for seconds in (0, -1, float("nan"), float("inf"), 1e9)]
"""Timeouts that a clock cannot wait for."""


def test_options_are_checked() -> None:
    """An unknown parameter is a `TypeError` that names those that exist, in blocks too."""
    with Client("http://localhost:8000") as client:
        with pytest.raises(TypeError, match="search has no parameter 'top_k'; it has collection, explain"):
            client.search("a", top_k=3)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="params has no parameter 'ef'"):
            client.search("a", params={"ef": 3})  # type: ignore[arg-type]
        with pytest.raises(InvalidOption, match="JSON cannot represent"):
            client.embed("\ud800")
    for invalid in ({"retries": -1}, {"concurrency": 0}, {"texts_per_request": 0}, *TIMEOUTS):
        with pytest.raises(InvalidOption, match=r"must be (at least|more than)"):
            Client("http://localhost:8000", **invalid)  # type: ignore[arg-type]


def test_parameters_arrive_under_their_names_in_json() -> None:
    """Names become those of the worker, blocks included; values of numpy and tuples are plain JSON."""
    with LoopbackServer(scripted(Answer({"results": [], "usage": {"tokens": 0}, "model": "m"}))) as server:
        with Client(server.url) as client:
            client.search(
                "q",
                rrf_k=5,
                with_vectors=("dense",),
                params={"hnsw_ef": int(np.int64(9)), "quantization": {"rescore": False}},
                filter={"must": [{"key": "is_tenant", "match": {"value": np.int64(3)}}]},
            )
            client.search(like={"positive": [1], "id_scope": "scope"})
        first, second = (request.json for request in server.requests)
    assert first == {
        "queries": ["q"],
        "rrfK": 5,
        "withVectors": ["dense"],
        "params": {"hnswEf": 9, "quantization": {"rescore": False}},
        "filter": {"must": [{"key": "is_tenant", "match": {"value": 3}}]},
    }
    assert second == {"like": {"positive": [1], "idScope": "scope"}}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_many_texts_are_several_requests_and_one_answer(concurrency: int) -> None:
    """The results of an embed call are in the order of the texts, and the tokens add up."""
    reports: list[Progress] = []
    numbers = [str(number) for number in range(103)]
    with LoopbackServer(embedded) as server:
        with Client(server.url, texts_per_request=10, concurrency=concurrency) as client:
            answer = client.embed(numbers, progress=reports.append)
            assert np.concatenate([result.dense for result in answer.results]).tolist() == list(range(103))
            assert answer.usage.tokens == 103
            assert len(server.requests) == 11
            assert client.embed(iter(numbers)).usage.tokens == 103
            assert client.embed([]).results == []

    assert [report.texts for report in reports] == sorted(report.texts for report in reports)
    assert reports[-1] == Progress(103, 103, 0)
    assert len(reports) == 11

    async def awaited() -> list[float]:
        async with AsyncClient(server.url, texts_per_request=10, concurrency=concurrency) as client:
            answer = await client.embed(iter(numbers))
        return [float(result.dense[0]) for result in answer.results if result.dense is not None]

    with LoopbackServer(embedded) as server:
        assert asyncio.run(awaited()) == list(range(103))


def test_an_iterable_is_read_no_further_than_needed() -> None:
    """After an error, texts that were not sent are not read either."""
    read: list[int] = []

    def texts() -> Iterator[str]:
        for number in itertools.count():
            read.append(number)
            yield "text"

    broken = error("internal", retryable=False, status=500)
    with LoopbackServer(scripted(broken)) as server, Client(server.url, texts_per_request=5, concurrency=2) as client:
        with pytest.raises(ClientError):
            client.embed(texts())
    assert len(read) <= 5 * 4 + 1


def test_an_answer_that_is_too_large_is_asked_for_in_parts() -> None:
    """A request whose answer the worker refuses as too large is split until its answers fit, in the order of texts."""

    def limited(request: Request) -> Answer:
        count = len(request.json["texts"])
        if count > 3:
            return error("response_too_large", retryable=False, status=413, details={"bytes": count, "limit": 3})
        return embedded(request)

    with LoopbackServer(limited) as server, Client(server.url, concurrency=1, texts_per_request=20) as client:
        answer = client.embed([str(number) for number in range(40)])
        assert [float(result.dense[0]) for result in answer.results if result.dense is not None] == list(range(40))
        sizes = [len(request.json["texts"]) for request in server.requests]
    assert sizes.count(20) <= 2, "the size that fits is remembered"
    refusal = error("response_too_large", retryable=False, status=413)
    with LoopbackServer(scripted(refusal)) as server, Client(server.url) as client, pytest.raises(ResponseTooLarge):
        client.embed(["1", "2"])


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_report_adds_up_over_requests(concurrency: int) -> None:
    """Rejected points keep the index of their text among all texts; ids and payloads go with their texts."""
    texts = ["good", "good", "bad", "good", "bad"]
    with LoopbackServer(stored) as server, Client(server.url, texts_per_request=2, concurrency=concurrency) as client:
        report = client.ingest(
            iter(texts), ids=range(5), payloads=({"n": n} for n in range(5)), collection="notes", mode="insertOnly"
        )
        assert (report.stored, [point.index for point in report.rejected], report.texts) == (3, [2, 4], 5)
        assert (report.collection, report.tokens, len(report.results)) == ("notes", 10, 5)
        sent = sorted((request.json for request in server.requests), key=lambda body: body["qdrant"]["ids"])
    assert [body["qdrant"]["ids"] for body in sent] == [[0, 1], [2, 3], [4]]
    assert sent[1]["qdrant"] == {
        "collection": "notes", "mode": "insertOnly", "ids": [2, 3], "payloads": [{"n": 2}, {"n": 3}],
    }  # fmt: skip


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_failed_ingest_says_what_is_stored(concurrency: int) -> None:
    """The error has the report of all texts that were sent: nothing is counted twice, and nothing is left out."""
    partly = {"upsert": {
        "collection": "notes", "stored": 1, "skipped": 0,
        "rejected": [{"index": 1, "code": "store_unavailable", "message": "no answer"}],
    }}  # fmt: skip

    def failing(request: Request) -> Answer:
        if "fails" in request.json["texts"]:
            return error("store_unavailable", retryable=False, status=503, details=partly)
        return stored(request)

    texts = ["good", "bad", "fails", "good", "good", "good", "good", "good"]
    with LoopbackServer(failing) as server, Client(server.url, texts_per_request=2, concurrency=concurrency) as client:
        with pytest.raises(StoreUnavailable) as raised:
            client.ingest(texts, collection="notes")
        sent = sum(len(request.json["texts"]) for request in server.requests)
    report = raised.value.report
    assert report is not None
    assert report.texts == sent == report.stored + len(report.rejected)
    assert [(point.index, point.code) for point in report.rejected] == [(1, "invalid_id"), (3, "store_unavailable")]
    assert list(report.results[2:4]) == [None, None]


def test_an_ingest_whose_answer_is_lost_counts_its_points_as_not_stored() -> None:
    """Points of a request without an answer are in `rejected` with the code of the error."""

    def losing(request: Request) -> Answer | None:
        return None if request.json["texts"] == ["lost"] else stored(request)

    with (
        LoopbackServer(losing) as server,
        Client(server.url, retries=1, texts_per_request=1, concurrency=1) as client,
        pytest.raises(ConnectionFailed) as raised,
    ):
        client.ingest(["good", "lost", "unsent"])
    report = raised.value.report
    assert report is not None
    assert (report.texts, report.stored, report.collection) == (2, 1, "notes")
    assert [(point.index, point.code) for point in report.rejected] == [(1, "connection_failed")]


@pytest.mark.parametrize("texts", [3, 5])
def test_ids_are_as_many_as_texts(texts: int) -> None:
    """Lists of another length are refused before anything is sent, iterators when one of them ends."""
    with LoopbackServer(stored) as server, Client(server.url, texts_per_request=2) as client:
        with pytest.raises(InvalidOption, match="as many as texts"):
            client.ingest(["a"] * texts, ids=[1, 2, 3, 4])
        assert not server.requests
        with pytest.raises(InvalidOption, match="as many as texts") as raised:
            client.ingest(iter(["a"] * texts), ids=iter([1, 2, 3, 4]))
    report = raised.value.report
    assert report is not None
    assert report.texts == report.stored <= 4


def test_an_iterable_that_fails_loses_no_report() -> None:
    """An exception of the caller's iterable ends the ingest with the report of what was sent."""

    def texts() -> Iterator[str]:
        yield from ["a", "b", "c"]
        raise OSError("the file ended")

    with LoopbackServer(stored) as server, Client(server.url, texts_per_request=1) as client:
        with pytest.raises(InvalidOption, match="OSError") as raised:
            client.ingest(texts())
    assert isinstance(raised.value.__cause__, OSError)
    report = raised.value.report
    assert report is not None
    assert report.texts == report.stored == len(server.requests) >= 2


def test_a_request_beyond_the_worker_s_limit_is_not_sent() -> None:
    """Texts are split by bytes; one that is too large alone is refused with the limit and its size."""
    with LoopbackServer(stored) as server, Client(server.url, concurrency=1) as client:
        assert client.ingest(["x" * 8_000_000] * 2, job=False).stored == 2
        assert len(server.requests) == 2
        with pytest.raises(InvalidOption, match=r"31000\d+ bytes, more than 30000000"):
            client.embed("x" * 31_000_000)
        assert len(server.requests) == 2


def jobs(*states: Answer | None) -> Respond:
    """A worker that accepts requests as jobs, and answers these states when it is asked."""
    asked = scripted(*states)

    def respond(request: Request) -> Answer | None:
        if request.method == "POST" and "prefer" in request.headers:
            job = {"id": "j1", "state": "queued", "settled": 0, "points": None}
            return Answer(job, 202, {"Location": "/jobs/j1", "Retry-After": "0"})
        if request.method == "POST":
            return stored(request)
        return Answer({"id": "j1", "state": "done"}) if request.method == "DELETE" else asked(request)

    return respond


RUNNING = Answer({"id": "j1", "state": "running", "settled": 1, "points": 2}, 200, {"Retry-After": "0"})


@pytest.fixture(autouse=True)
def _fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are asked for often."""
    monkeypatch.setattr("bge_m3_qdrant_client.http_target._POLL_INTERVAL_S", 0.01)


def test_a_job_is_asked_for_until_it_ends() -> None:
    """Lost answers on the way cost nothing; progress arrives, and the job is forgotten at the end."""
    done = stored(Request("POST", "/", {}, b'{"texts": ["a", "b"]}')).body
    ended = Answer({"id": "j1", "state": "done", "settled": 2, "points": 2, "status": 200, "answer": done})
    reports: list[Progress] = []
    with LoopbackServer(jobs(RUNNING, None, Answer(b"", 502), RUNNING, ended)) as server, Client(server.url) as client:
        assert client.ingest(["a", "b"], job=True, progress=reports.append).stored == 2
        methods = [request.method for request in server.requests]
    assert methods == ["POST", *["GET"] * 5, "DELETE"]
    assert reports[0] == Progress(0, 2, 1)
    assert reports[-1] == Progress(2, 2, 2)


def test_a_failed_job_is_its_error() -> None:
    """The error of a job is that of the request, with its status."""
    body = {"error": "no", "error_code": "schema_mismatch", "retryable": False, "details": {}}
    ended = Answer({"id": "j1", "state": "failed", "settled": 0, "points": 2, "status": 409, "answer": body})
    with LoopbackServer(jobs(ended)) as server, Client(server.url) as client, pytest.raises(WorkerError) as raised:
        client.ingest(["a"], job=True)
    assert (raised.value.code, raised.value.status) == ("schema_mismatch", 409)


def test_a_job_that_the_worker_lost_is_sent_again_as_a_request() -> None:
    """After a restart, or behind a balancer, a job is unknown; the request is then answered without one."""
    unknown = error("not_found", retryable=False, status=404)
    with LoopbackServer(jobs(RUNNING, unknown)) as server, Client(server.url) as client:
        assert client.ingest(["a"], job=True).stored == 1
        assert [request.method for request in server.requests] == ["POST", "GET", "GET", "POST"]


def test_a_job_ends_with_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a timeout, and where the awaiting task is cancelled, the job is cancelled on the worker."""
    with LoopbackServer(jobs(RUNNING)) as server, Client(server.url, timeout=30) as client:
        clock = clock_ahead(lambda: any(request.method == "GET" for request in server.requests))
        with monkeypatch.context() as patch:
            patch.setattr("bge_m3_qdrant_client.calls.time", clock)
            with pytest.raises(TimedOut):
                client.ingest(["a"], job=True)
        assert server.requests[-1].method == "DELETE"

    async def cancelled() -> None:
        async with AsyncClient(server.url) as client:
            task = asyncio.create_task(client.ingest(["a"], job=True))
            while not any(request.method == "GET" for request in server.requests):  # noqa: ASYNC110 - of a thread
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with LoopbackServer(jobs(RUNNING)) as server:
        asyncio.run(cancelled())
        assert server.requests[-1].method == "DELETE"


def test_an_interrupt_cancels_the_jobs_of_all_threads() -> None:
    """Ctrl-C in a call with several requests ends it at once, and every running job is cancelled."""
    all_run: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        if progress.points == 3:
            all_run.append(progress)
            if len(all_run) == 1:
                raise KeyboardInterrupt

    with LoopbackServer(jobs(RUNNING)) as server:
        with Client(server.url, texts_per_request=1, timeout=20) as client, pytest.raises(KeyboardInterrupt):
            client.ingest(["a", "b", "c"], job=True, progress=interrupt)
        assert sum(request.method == "DELETE" for request in server.requests) == 3


def test_a_callback_that_fails_ends_an_awaited_call() -> None:
    """The exception of a callback is that of the call, and every running job is cancelled."""

    def fail(progress: Progress) -> None:
        if progress.points == 3:
            raise OSError("the terminal is gone")

    async def call(url: str) -> None:
        async with AsyncClient(url, texts_per_request=1, timeout=20) as client:
            await client.ingest(["a", "b", "c"], job=True, progress=fail)

    with LoopbackServer(jobs(RUNNING)) as server:
        with pytest.raises(OSError, match="terminal"):
            asyncio.run(call(server.url))
        assert sum(request.method == "DELETE" for request in server.requests) == 3


def test_health_is_asked_of_a_worker_that_is_not_ready() -> None:
    """A worker that loads is a state and no error; what is no worker is one."""
    loading = Answer({"status": "loading", "reason": "the model is loading"}, 503)
    with LoopbackServer(scripted(loading)) as server, Client(server.url) as client:
        health = client.health()
    assert (health.ready, health.status, health.reason) == (False, "loading", "the model is loading")
    with LoopbackServer(scripted(Answer({"hello": 1}))) as server, Client(server.url) as client:
        with pytest.raises(UnexpectedAnswer):
            client.health()


def test_an_event_loop_needs_its_own_client() -> None:
    """In a second event loop a client sends nothing and says the way out; in its own it goes on."""
    loop = asyncio.new_event_loop()
    with LoopbackServer(scripted(COUNTED)) as server:
        client = AsyncClient(server.url)
        assert loop.run_until_complete(client.count()).count == 3
        with pytest.raises(InvalidOption, match="make an AsyncClient in each"):
            asyncio.run(client.count())
        assert len(server.requests) == 1
        assert loop.run_until_complete(client.count()).count == 3
        loop.run_until_complete(client.aclose())
    loop.close()


def test_a_given_client_of_httpx_is_used_and_stays_open() -> None:
    """Proxies, certificates and limits are those of the given client."""
    with LoopbackServer(scripted(COUNTED)) as server, httpx.Client(headers={"X-Team": "search"}) as http:
        with Client(server.url, http=http, headers={"api-key": "k"}) as client:
            client.count()
        assert not http.is_closed
        assert server.requests[0].headers["x-team"] == "search"
        assert server.requests[0].headers["api-key"] == "k"

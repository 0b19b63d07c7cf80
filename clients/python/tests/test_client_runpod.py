"""A RunPod endpoint as a target: jobs that are waited for, asked for, cancelled, and that fail."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from bge_m3_qdrant_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    InvalidOption,
    JobFailed,
    Progress,
    SchemaMismatch,
    StoreUnavailable,
    TimedOut,
    Unauthorized,
    UnexpectedAnswer,
)
from loopback_endpoint import ENDPOINT, KEY, Handler, Report, RunPodEndpoint
from loopback_server import Answer, LoopbackServer, Request, clock_ahead, scripted


@pytest.fixture(autouse=True)
def _fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are asked for often, and retries wait for no time."""
    monkeypatch.setattr("bge_m3_qdrant_client.runpod_target.POLL_INTERVAL_MIN_S", 0.01)
    monkeypatch.setattr("bge_m3_qdrant_client.exchange.BACK_OFF_MIN_S", 0.001)


def answering(raw: Any, _: Report) -> Any:
    """Count, or store."""
    if raw["operation"] == "count":
        return {"count": 3}
    texts = raw["texts"]
    upsert = {"collection": "notes", "stored": len(texts), "skipped": 0, "rejected": []}
    return {"results": [{} for _ in texts], "usage": {"tokens": 1}, "model": "m", "upsert": upsert}


def client_of(endpoint: RunPodEndpoint, **more: Any) -> Client:
    """A client of the endpoint."""
    return Client.runpod(ENDPOINT, api_key=KEY, base_url=endpoint.base_url, **more)


def slow(seconds: float) -> Handler:
    """Answer after this time, with progress before."""

    def handler(raw: Any, report: Report) -> Any:
        report({"settled": 1, "points": 2})
        time.sleep(seconds)
        return answering(raw, report)

    return handler


def test_a_short_call_is_one_request() -> None:
    """`/runsync` carries the operation and its answer."""
    with RunPodEndpoint(answering) as endpoint, client_of(endpoint) as client:
        assert client.count(collection="notes").count == 3
        assert endpoint.paths == ["runsync"]
        assert endpoint.requests[0].json == {"input": {"operation": "count", "collection": "notes"}}


def test_a_late_answer_is_asked_for() -> None:
    """Where `/runsync` answers with the state of the job, its status is asked for until it ends."""

    def late(raw: Any, report: Report) -> Any:
        while "status" not in endpoint.paths:
            time.sleep(0.001)
        return answering(raw, report)

    with RunPodEndpoint(late, sync_s=0.01) as endpoint, client_of(endpoint) as client:
        assert client.count().count == 3
        assert endpoint.paths[0] == "runsync"
        assert set(endpoint.paths[1:]) == {"status"}
        assert len(endpoint.jobs) == 1


def test_a_lost_answer_becomes_a_job() -> None:
    """If `/runsync` ends without an answer, the call goes on as a `/run` job; a deletion does not."""
    with RunPodEndpoint(answering) as endpoint:

        def losing(request: Request) -> Answer | None:
            return None if request.path.endswith("/runsync") else endpoint._respond(request)

        with LoopbackServer(losing) as front:
            base_url = f"{front.url}/v2"
            with Client.runpod(ENDPOINT, api_key=KEY, base_url=base_url) as client:
                assert client.count().count == 3
                assert [request.path.split("/")[3] for request in front.requests][:2] == ["runsync", "run"]
                with pytest.raises(ConnectionFailed):
                    client.delete(ids=[1])


def test_a_long_ingest_is_a_job_with_progress() -> None:
    """`/run` and `/status` carry it, and the progress of the platform arrives."""
    reports: list[Progress] = []
    with RunPodEndpoint(slow(0.2)) as endpoint, client_of(endpoint) as client:
        report = client.ingest(["a", "b"], collection="notes", job=True, progress=reports.append)
        assert endpoint.paths[0] == "run"
        assert endpoint.requests[0].json["input"] == {
            "operation": "embed", "isPassage": True, "texts": ["a", "b"], "qdrant": {"collection": "notes"},
        }  # fmt: skip
    assert (report.stored, report.texts) == (2, 2)
    assert reports[0] == Progress(0, 2, 1)
    assert reports[-1] == Progress(2, 2, 2)


def test_requests_stay_below_the_platform_s_limits() -> None:
    """Texts are split at 10 MB; one beyond 20 MB alone is refused with the limit and its size."""
    with RunPodEndpoint(answering) as endpoint, client_of(endpoint) as client:
        assert client.ingest(["x" * 4_000_000] * 5).stored == 5
        assert all(len(request.content) < 10_000_000 for request in endpoint.requests)
        assert client.ingest("x" * 15_000_000).stored == 1
        assert endpoint.paths[-1] == "runsync"
        with pytest.raises(InvalidOption, match="more than 20000000"):
            client.embed("x" * 20_000_001)


def test_a_failed_job_is_the_error_of_the_worker() -> None:
    """A job with the status FAILED is the worker's error by its code, and is repeated only if that is retryable."""
    attempts: list[str] = []

    def failing(code: str, *, retryable: bool) -> Handler:
        def handler(_raw: Any, _report: Report) -> Any:
            attempts.append(code)
            return {"error": "it failed", "error_code": code, "retryable": retryable, "details": {"collection": "n"}}

        return handler

    with RunPodEndpoint(failing("schema_mismatch", retryable=False)) as endpoint, client_of(endpoint) as client:
        with pytest.raises(SchemaMismatch, match="it failed") as raised:
            client.count()
        assert raised.value.details == {"collection": "n"}
    with RunPodEndpoint(failing("store_unavailable", retryable=True)) as endpoint:
        with client_of(endpoint, retries=2) as client, pytest.raises(StoreUnavailable):
            client.count()
    assert attempts == ["schema_mismatch", *["store_unavailable"] * 3]


def test_a_rerank_is_a_job_of_the_platform_s_proxy() -> None:
    """Its answer is the only item of a list, and so is its error."""
    ranking = {
        "id": "r", "model": "m", "results": [{"index": 0, "relevance_score": 0.5}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
        "meta": {"api_version": {"version": "1"}, "tokens": {"input_tokens": 1, "output_tokens": 0}},
    }  # fmt: skip
    refusal = {"message": "no such model", "detail": "no such model", "error_code": "not_found"}

    def handler(raw: Any, _: Report) -> Any:
        assert raw["openai_route"] == "/v1/rerank"
        return [refusal if raw["openai_input"].get("model") else ranking]

    with RunPodEndpoint(handler) as endpoint, client_of(endpoint) as client:
        assert client.rerank("q", ["d"]).results[0].relevance_score == 0.5
        with pytest.raises(Exception, match="no such model"):
            client.rerank("q", ["d"], model="other")


def test_a_job_ends_with_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a timeout, and where the awaiting task is cancelled, the job is cancelled on the platform."""
    with RunPodEndpoint(slow(60)) as endpoint, client_of(endpoint, timeout=30) as client:
        clock = clock_ahead(lambda: "status" in endpoint.paths)
        with monkeypatch.context() as patch:
            patch.setattr("bge_m3_qdrant_client.calls.time", clock)
            with pytest.raises(TimedOut):
                client.ingest(["a"], job=True)
        assert endpoint.paths[-1] == "cancel"
        assert [job["status"] for job in endpoint.jobs.values()] == ["CANCELLED"]

    async def cancelled(endpoint: RunPodEndpoint) -> None:
        async with AsyncClient.runpod(ENDPOINT, api_key=KEY, base_url=endpoint.base_url) as client:
            task = asyncio.create_task(client.ingest(["a"], job=True))
            while "status" not in endpoint.paths:  # noqa: ASYNC110 - of a thread
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with RunPodEndpoint(slow(60)) as endpoint:
        asyncio.run(cancelled(endpoint))
        assert [job["status"] for job in endpoint.jobs.values()] == ["CANCELLED"]


def state(status: str, **more: Any) -> Answer:
    """The state of a job."""
    return Answer({"id": "job-1", "status": status, **more})


@pytest.mark.parametrize("status", ["CANCELLED", "TIMED_OUT", "FAILED"])
def test_a_job_that_the_platform_ended_is_no_answer(status: str) -> None:
    """A job that somebody cancelled, that ran too long or whose worker died is `JobFailed` and not repeated."""
    with LoopbackServer(scripted(state("IN_QUEUE"), state(status))) as server:
        with Client.runpod("ep", api_key=KEY, base_url=server.url) as client, pytest.raises(JobFailed) as raised:
            client.count()
        assert raised.value.status == status
        assert [request.method for request in server.requests] == ["POST", "GET"]


def test_a_job_goes_on_in_every_state_that_is_no_end() -> None:
    """A job that the platform calls `RUNNING`, as its documentation does, is waited for and not taken for a failure."""
    done = state("COMPLETED", output={"count": 3})
    with LoopbackServer(scripted(state("RUNNING"), state("IN_PROGRESS"), state("RUNNING"), done)) as server:
        with Client.runpod("ep", api_key=KEY, base_url=server.url) as client:
            assert client.count().count == 3
        assert [request.method for request in server.requests] == ["POST", "GET", "GET", "GET"]


def test_faults_of_the_platform_s_api_are_outlasted() -> None:
    """A busy API is asked again after the time it names, a lost status again, and no job is sent twice."""
    busy = Answer({"error": "too many requests"}, 429, {"Retry-After": "0"})
    done = state("COMPLETED", output={"count": 3})
    answers = (busy, state("IN_QUEUE"), None, Answer(b"", 502), busy, state("IN_PROGRESS"), done)
    with LoopbackServer(scripted(*answers)) as server:
        with Client.runpod("ep", api_key=KEY, base_url=server.url) as client:
            assert client.count().count == 3
        assert [request.method for request in server.requests] == ["POST", "POST", *["GET"] * 5]
    with LoopbackServer(scripted(state("IN_QUEUE"), Answer(b"", 404))) as server:
        with Client.runpod("ep", api_key=KEY, base_url=server.url) as client, pytest.raises(JobFailed) as raised:
            client.count()
        assert raised.value.status == "EXPIRED"


def test_a_wrong_key_and_a_wrong_endpoint_are_told_apart() -> None:
    """A wrong key is `Unauthorized`, an unknown endpoint an unexpected answer; neither is repeated."""
    with RunPodEndpoint(answering) as endpoint:
        with Client.runpod(ENDPOINT, api_key="other-key", base_url=endpoint.base_url) as client:
            with pytest.raises(Unauthorized) as raised:
                client.count()
            assert "other-key" not in f"{raised.value!r}{client!r}"
        with Client.runpod("ep2", api_key=KEY, base_url=endpoint.base_url) as client:
            with pytest.raises(UnexpectedAnswer):
                client.count()
        assert len(endpoint.requests) == 2
    with pytest.raises(InvalidOption):
        Client.runpod("", api_key=KEY)


@pytest.mark.parametrize("body", [{"id": "x"}, [], {"status": 3}, {"status": "ready"}])
def test_what_is_no_state_of_a_job_is_an_error(body: Any) -> None:
    """An answer without a status, or without an id that could be asked for, is an unexpected one."""
    with LoopbackServer(scripted(Answer(body))) as server:
        with Client.runpod("ep", api_key=KEY, base_url=server.url) as client, pytest.raises(UnexpectedAnswer):
            client.count()


def test_health_counts_workers_and_jobs() -> None:
    """An endpoint with a worker is ready; one that is scaled to none is cold, which is no error."""
    with RunPodEndpoint(answering) as endpoint, client_of(endpoint) as client:
        client.count()
        health = client.health()
    assert (health.ready, health.workers["idle"], health.jobs["completed"]) == (True, 1, 1)
    none = Answer({"jobs": {"inQueue": 0}, "workers": {"idle": 0, "running": 0}})
    with LoopbackServer(scripted(none)) as server, Client.runpod("ep", api_key=KEY, base_url=server.url) as client:
        assert (client.health().ready, client.health().status) == (False, "cold")


def test_an_answer_to_runsync_that_never_comes_becomes_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that swallows the answer costs a while and not the whole timeout."""
    monkeypatch.setattr("bge_m3_qdrant_client.runpod_target.RUNSYNC_TIMEOUT_S", 0.2)
    given_up = threading.Event()

    def stuck(request: Request) -> Answer | None:
        if request.path.endswith("/runsync"):
            assert given_up.wait(30)
        given_up.set()
        return state("COMPLETED", output={"count": 3})

    with LoopbackServer(stuck) as server, Client.runpod("ep", api_key=KEY, base_url=server.url) as client:
        assert client.count().count == 3
        assert [request.path for request in server.requests] == ["/ep/runsync", "/ep/run"]

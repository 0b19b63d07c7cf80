"""`python handler.py`: the program under the real RunPod SDK, against a job queue on loopback."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder import Embedder
from service.operations import Operations
from service.settings import Settings
from service.transports.queue.worker import is_http, unprinted
from tests.embedder.oracle import TOLERANCE
from tests.loopback import JobQueue, Worker, free_port
from tests.service.client import Client

ROOT = Path(__file__).parents[1]
SETTINGS = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "4096"}
WAIT_MAX_S = 60.0
"""Timeout in seconds for a hanging worker. No measurement depends on it."""

PRIVATE = "the private words of a user"


@dataclass(frozen=True)
class Served:
    """A worker that polls a queue.

    Attributes:
        before_first_poll: what it had written when it first asked for a job.
        early: two jobs that were queued before the worker was started: many passages, then a short query.
    """

    queue: JobQueue
    worker: Worker
    before_first_poll: str
    early: list[str]

    def run(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Return the worker's answer to one job."""
        posted = self.queue.result(self.queue.submit(raw), WAIT_MAX_S)
        assert isinstance(posted, dict)
        return posted

    def answer(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Return the output of a job that must succeed."""
        posted = self.run(raw)
        assert set(posted) == {"output"}, posted
        answer: dict[str, Any] = posted["output"]
        return answer


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A worker with the default concurrency, a limit of 1 MB and a store of its own."""
    path = tmp_path_factory.mktemp("worker") / "store"
    settings = {**SETTINGS, "MAX_RESPONSE_MB": "1", "QDRANT_PATH": str(path)}
    with JobQueue() as queue:
        early = queue.submit_many(
            [
                {"texts": ["a passage that takes a while " * 60] * 12, "isPassage": True, "vectors": ["sparse"]},
                {"texts": ["a query"], "vectors": ["sparse"]},
            ]
        )
        with Worker(queue, cwd=ROOT, env=settings) as worker:
            worker.wait_for_first_poll(WAIT_MAX_S)
            yield Served(queue, worker, worker.output, early)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    """Runs that end by themselves, started concurrently: most of their time is loading libraries.

    Nine starts take 18 seconds of CPU time, so only slow tests use them.
    """
    good = json.dumps({"input": {"texts": ["hello"], "vectors": ["dense"]}})
    bad = json.dumps({"input": {"texts": ["hello"], "batchSize": -1}})
    stored = json.dumps({"input": {"texts": ["hello"], "vectors": ["dense"], "qdrant": {"collection": "notes"}}})
    local = tmp_path_factory.mktemp("local")
    with ExitStack() as stack:
        queue = stack.enter_context(JobQueue())
        started = {
            "good job": Worker(None, cwd=ROOT, args=["--test_input", good], env=SETTINGS),
            "bad job": Worker(None, cwd=ROOT, args=["--test_input", bad], env=SETTINGS),
            "good job, JSON": Worker(
                None, cwd=ROOT, args=["--test_input", good], env={**SETTINGS, "LOG_FORMAT": '"JSON"', "QDRANT_ULR": "x"}
            ),
            "no model": Worker(queue, cwd=ROOT, env={**SETTINGS, "MAX_MODELS": "0"}),
            "stored job": Worker(
                queue,
                cwd=local,
                script=ROOT / "handler.py",
                args=["--test_input", stored],
                env={**SETTINGS, "PYTHONPATH": str(ROOT)},
            ),
            "no queue": Worker(None, cwd=ROOT, env=SETTINGS),
            "no JSON": Worker(None, cwd=ROOT, args=["--test_input", "{nonsense"], env=SETTINGS),
            "no device": Worker(queue, cwd=ROOT, env={**SETTINGS, "GPU_DEVICE": "cuda:7"}),
            "lost": Worker(queue, cwd=ROOT, script="-m", args=["tests.programs.lost_at_start"], env=SETTINGS),
        }
        yield {name: stack.enter_context(worker) for name, worker in started.items()}
        assert not queue.polls


@pytest.fixture(scope="module")
def direct() -> Iterator[Client]:
    """The same operations in this process."""
    settings = Settings.from_environment(SETTINGS)
    operations = Operations(settings, Embedder.load(settings.model_options))
    yield Client(operations)
    operations.close()


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Assert that two answers hold the same texts and, to rounding, the same vectors."""
    assert (actual["usage"], actual["model"]) == (expected["usage"], expected["model"])
    for a, b in zip(actual["results"], expected["results"], strict=True):
        assert a.keys() == b.keys()
        assert a["text"] == b["text"]
        assert a["sparse"]["indices"] == b["sparse"]["indices"]
        for mine, yours in ((a["dense"], b["dense"]), (a["colbert"], b["colbert"])):
            assert np.abs(np.array(mine) - np.array(yours)).max() <= TOLERANCE
        assert a["sparse"]["values"] == pytest.approx(b["sparse"]["values"], abs=TOLERANCE)


def test_the_model_is_ready_before_the_first_poll(served: Served) -> None:
    """A worker takes no job while it loads, and answers jobs that were queued before its start."""
    assert "model ready" in served.before_first_poll
    for job in served.early:
        assert "output" in served.queue.result(job, WAIT_MAX_S)


def test_the_first_jobs_are_handled_one_at_a_time(served: Served) -> None:
    """`MIN_CONCURRENCY` is 1: until requests come fast, a job waits for the one before it, even a quick one."""
    for job in served.early:
        served.queue.result(job, WAIT_MAX_S)
    assert [post.id for post in served.queue.posts][:2] == served.early


def test_the_original_request_over_the_queue(served: Served, direct: Client) -> None:
    """A request of the first version gets its known answer, posted once as `output`."""
    raw = {"texts": ["What is BGE M3?", ""], "isPassage": False, "batchSize": 0}
    answer = served.answer(raw)
    assert_same(answer, direct(raw))
    assert set(answer["results"][0]) >= {"text", "dense", "sparse", "colbert"}


def test_many_jobs_at_once_are_each_answered_once(served: Served, direct: Client) -> None:
    """Every job of a burst gets exactly one answer, its own, whatever the concurrency limits are."""
    inputs: list[dict[str, Any]] = [
        {"texts": [f"job {n}", f"text {n} of the burst"], "isPassage": n % 2 == 0} for n in range(32)
    ]
    jobs = served.queue.submit_many(inputs)
    posted = [served.queue.result(job, WAIT_MAX_S) for job in jobs]
    for one, expected in zip(posted, direct.together(inputs), strict=True):
        assert_same(one["output"], expected)
    counted = [post.id for post in served.queue.posts]
    assert all(counted.count(job) == 1 for job in jobs)


def test_a_job_that_is_wrong_fails_with_a_message(served: Served) -> None:
    """A failed job has a string under `error`, with the code and details beside it."""
    posted = served.run({"texts": [PRIVATE], "isPassage": "maybe"})
    assert posted["error"] == "isPassage must be a boolean, got a string"
    assert posted["output"]["error_code"] == "invalid_request"
    assert posted["output"]["retryable"] is False
    assert posted["output"]["details"]["errors"][0]["field"] == "isPassage"


def test_an_answer_that_the_queue_would_drop_is_an_error(served: Served) -> None:
    """An answer over the limit becomes an error that says what to do, and the next job is served."""
    posted = served.run({"texts": ["word " * 500]})
    assert posted["output"]["error_code"] == "response_too_large"
    assert "MAX_RESPONSE_MB" in posted["error"]
    assert not served.queue.refused
    served.answer({"texts": ["word " * 500], "vectors": ["dense"]})


def test_ingest_and_search_over_the_queue(served: Served) -> None:
    """Jobs store and search in a store that the worker opens on first use."""
    stored = served.answer(
        {
            "texts": ["rsync copies only what changed.", "PostgreSQL is a relational database."],
            "isPassage": True,
            "qdrant": {"collection": "notes", "ids": ["rsync", 7], "payloads": [{"kind": "tool"}, {"kind": "server"}]},
        }
    )
    assert stored["upsert"] == {"collection": "notes", "stored": 2, "skipped": 0, "rejected": []}
    search = {"operation": "search", "collection": "notes", "queries": ["relational database"], "rerank": "colbert"}
    hits = served.answer(search)["results"][0]["hits"]
    assert [hit["id"] for hit in hits] == [7, stored["results"][0]["id"]]
    assert hits[0]["payload"] == {"kind": "server", "text": "PostgreSQL is a relational database."}
    assert served.answer({"operation": "count", "collection": "notes"}) == {"count": 2}
    assert served.answer({"operation": "delete", "collection": "notes", "ids": ["rsync"]}) == {"deleted": 1}
    assert served.run({"operation": "count", "collection": "absent"})["output"]["error_code"] == "not_found"


def test_a_cancelled_job_leaves_the_worker_serving(served: Served) -> None:
    """Cancelling waiting or running jobs affects no other job."""
    jobs = served.queue.submit_many([{"texts": [f"passage {n} " * 40] * 20, "vectors": ["dense"]} for n in range(12)])
    for job in jobs[2:10]:
        served.queue.cancel(job)
    for job in [*jobs[:2], *jobs[10:]]:
        assert len(served.queue.result(job, WAIT_MAX_S)["output"]["results"]) == 20
    assert served.answer({"texts": ["after"], "vectors": ["dense"]})["results"][0]["text"] == "after"


@pytest.mark.parametrize("extra", [{}, {"input": None}, {"input": [1]}, {"input": "texts", "webhook": "http://x"}])
def test_a_job_of_an_odd_form_is_an_error_of_that_job(served: Served, extra: dict[str, Any]) -> None:
    """A job whose input is missing or not an object fails with a message, and the next is served."""
    job = f"odd-{sorted(extra.items())!r}".encode().hex()
    served.queue.submit_raw({"id": job, **extra})
    posted = served.queue.result(job, WAIT_MAX_S)
    assert posted["error"].startswith("input must be an object, got ")
    served.answer({"texts": ["after"], "vectors": ["dense"]})


@pytest.mark.parametrize(
    ("environment", "arguments", "http"),
    [
        ({}, [], True),
        ({"RUNPOD_WEBHOOK_GET_JOB": "https://queue?"}, [], False),
        ({}, ["--rp_serve_api"], False),
        ({}, ["--test_input", "{}"], False),
        ({"RUNPOD_POD_ID": "pod"}, [], True),
    ],
)
def test_a_port_means_http_where_nothing_asks_for_the_sdk(
    environment: dict[str, str], arguments: list[str], http: bool
) -> None:
    """With `PORT`, a process serves HTTP unless the platform names a queue or an argument is the SDK's."""
    assert is_http(environment, arguments) is http


def test_the_output_of_the_worker_holds_no_text(served: Served) -> None:
    """Whatever the SDK and the worker log about good and bad jobs, a user's text is not in it."""
    served.answer({"texts": [PRIVATE]})
    served.answer({"texts": [PRIVATE], "qdrant": {"collection": "private", "payloads": [{"note": PRIVATE}]}})
    served.answer({"operation": "search", "collection": "private", "queries": [PRIVATE]})
    served.run({"texts": [PRIVATE], "encoding": PRIVATE})
    openai = {"openai_route": "/v1/embeddings", "openai_input": {"input": PRIVATE, "model": PRIVATE}}
    served.answer(openai)
    assert "ingest finished: 1 of 1 points stored" in served.worker.output
    assert PRIVATE not in served.worker.output
    assert "Traceback" not in served.worker.output


def test_log_lines_name_their_job(served: Served) -> None:
    """A log line about a job ends with the platform's id of that job."""
    job = served.queue.submit({"texts": ["one"], "qdrant": {"collection": "named"}})
    served.queue.result(job, WAIT_MAX_S)

    def lines() -> list[str]:
        logged = served.worker.output.splitlines()
        return [line for line in logged if "ingest finished: 1 of 1" in line and line.endswith(f" [{job}]")]

    served.queue.until(lambda: bool(lines()), WAIT_MAX_S, "line that names the job")
    assert len(lines()) == 1


def test_a_deletion_by_a_job_is_in_the_audit(served: Served) -> None:
    """The line names the queue as the caller, and the job."""
    served.answer({"texts": [PRIVATE], "qdrant": {"collection": "audited", "ids": [PRIVATE]}, "vectors": ["dense"]})
    job = served.queue.submit({"operation": "delete", "collection": "audited", "ids": [PRIVATE]})
    assert served.queue.result(job, WAIT_MAX_S)["output"] == {"deleted": 1}
    said = f"INFO service.audit: queue deletes by 1 id from 'audited': 1 deleted [{job}]\n"
    served.queue.until(lambda: said in served.worker.output, WAIT_MAX_S, "line of the audit")
    assert PRIVATE not in served.worker.output


def test_an_answer_is_not_spelt_out_for_the_log() -> None:
    """Formatting an answer for the SDK's log prints no text, and the posted answer is unchanged."""
    answer = {"results": [{"text": PRIVATE, "dense": [0.1, -2e-7]}], "usage": {"tokens": 3}}
    for whole in (answer, [answer]):
        wrapped = unprinted(whole)
        assert json.dumps(wrapped) == json.dumps(whole)
        assert PRIVATE not in f"{wrapped} { ({'output': wrapped}) }"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "named"),
    [
        ("no model", "MAX_MODELS"),
        ("no device", "GPU_DEVICE"),
        ("no queue", "RUNPOD_WEBHOOK_GET_JOB"),
        ("no JSON", "--test_input is not valid JSON"),
    ],
)
def test_settings_that_cannot_work_refuse_to_start(programs: dict[str, Worker], run: str, named: str) -> None:
    """Invalid settings exit with status 2 and one line that names the error, before any poll."""
    assert programs[run].wait(WAIT_MAX_S) == 2
    (line,) = programs[run].output.splitlines()
    assert line.startswith("refusing to start: ")
    assert named in line


@pytest.mark.slow
def test_one_job_from_the_command_line(programs: dict[str, Worker]) -> None:
    """`--test_input` runs one job and ends with status 0."""
    assert programs["good job"].wait(WAIT_MAX_S) == 0
    assert "'text': 'hello'" in programs["good job"].output
    assert "DEBUG" not in programs["good job"].output  # the SDK logs requests and answers at its default level


@pytest.mark.slow
def test_every_line_is_json_where_that_is_asked_for(programs: dict[str, Worker]) -> None:
    """With `LOG_FORMAT=json` the SDK's lines are JSON objects with the id of their job."""
    assert programs["good job, JSON"].wait(WAIT_MAX_S) == 0
    entries = [json.loads(line) for line in programs["good job, JSON"].output.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(entry) for entry in entries)
    assert entries[0]["message"] == "QDRANT_ULR is not a setting and has no effect; did you mean QDRANT_URL?"
    of_the_sdk = [entry for entry in entries if entry["logger"] == "runpod"]
    assert any("'text': 'hello'" in entry["message"] for entry in of_the_sdk)
    assert {"local_test"} <= {entry.get("request_id") for entry in of_the_sdk}
    assert any("Starting Serverless Worker" in entry["message"] for entry in entries)


def test_a_refusal_to_start_is_json_where_that_is_asked_for() -> None:
    """A refusal to start is logged as JSON, although the settings are invalid."""
    environment = {**SETTINGS, "MAX_MODELS": "0", "LOG_FORMAT": " json\n"}
    with JobQueue() as queue, Worker(queue, cwd=ROOT, env=environment) as worker:
        assert worker.wait(WAIT_MAX_S) == 2
        assert not queue.polls
    (line,) = worker.output.splitlines()
    entry = json.loads(line)
    assert entry["level"] == "CRITICAL"
    assert entry["message"].startswith("refusing to start: MAX_MODELS")


@pytest.mark.slow
def test_a_local_run_stores_beside_itself(programs: dict[str, Worker]) -> None:
    """`--test_input` stores in `./qdrant_data`, also where the platform names a queue that it does not poll."""
    worker = programs["stored job"]
    assert worker.wait(WAIT_MAX_S) == 0
    assert "'stored': 1" in worker.output
    assert "refuses to store" not in worker.output


@pytest.mark.slow
def test_a_failed_job_from_the_command_line(programs: dict[str, Worker]) -> None:
    """`--test_input` ends with status 1 if the job fails, and shows its message."""
    assert programs["bad job"].wait(WAIT_MAX_S) == 1
    assert "batchSize must be at least 0, got -1" in programs["bad job"].output
    assert "Traceback" not in programs["bad job"].output


def test_the_local_api_answers_jobs() -> None:
    """`--rp_serve_api` answers POST /runsync, with an error as an error, and stops on SIGTERM."""
    port = free_port()
    arguments = ["--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)]
    with Worker(None, cwd=ROOT, args=arguments, env=SETTINGS) as worker:
        good = post(worker, port, {"input": {"texts": ["hello"], "vectors": ["dense"]}})
        assert good["status"] == "COMPLETED"
        assert good["output"]["results"][0]["text"] == "hello"
        bad = post(worker, port, {"input": {"texts": []}})
        assert bad["status"] == "FAILED"
        assert bad["error"] == "texts must have at least 1 item, got 0"
        worker.terminate()
        assert worker.wait(WAIT_MAX_S) in {0, -15}
        assert "Traceback" not in worker.output


@pytest.mark.slow
def test_an_idle_worker_exits_on_sigterm(served: Served) -> None:
    """SIGTERM ends an idle worker with status 0 and no error (the last use of this worker here)."""
    served.answer({"texts": ["still there"], "vectors": ["dense"]})
    served.worker.terminate()
    assert served.worker.wait(WAIT_MAX_S) == 0
    assert "Traceback" not in served.worker.output


@pytest.mark.parametrize(("number", "exit_status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_while_loading_stops_immediately(number: signal.Signals, exit_status: int) -> None:
    """A signal while the model loads ends the worker immediately and without errors."""
    with JobQueue() as queue, Worker(queue, cwd=ROOT, env=SETTINGS) as worker:
        deadline = time.monotonic() + WAIT_MAX_S
        while not _handles_sigterm(worker.pid) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(worker.pid, number)
        assert worker.wait(WAIT_MAX_S) == exit_status
        assert not queue.polls
        assert "model ready" not in worker.output
        assert "Traceback" not in worker.output


@pytest.mark.slow
def test_a_device_that_is_lost_while_the_worker_starts_is_a_failure(programs: dict[str, Worker]) -> None:
    """A device that is lost during the start exits with status 1 before any job is taken."""
    assert programs["lost"].wait(WAIT_MAX_S) == 1
    assert "Traceback" not in programs["lost"].output


@pytest.mark.slow
def test_jobs_delivered_while_stopping_are_answered() -> None:
    """SIGTERM loses neither running jobs nor those that the open poll still delivers."""
    with JobQueue(hold=10) as queue, Worker(queue, cwd=ROOT, env=SETTINGS) as worker:
        worker.wait_for_first_poll(WAIT_MAX_S)
        before = queue.submit_many([{"texts": [f"text {n}"], "vectors": ["dense"]} for n in range(3)])
        for job in before:
            queue.result(job, WAIT_MAX_S)
        polls = len(queue.polls)
        queue.until(lambda: len(queue.polls) > polls, WAIT_MAX_S, "another poll")
        worker.terminate()
        time.sleep(0.3)  # the signal arrives while the poll is open; then the poll brings jobs
        late = queue.submit_many([{"texts": [f"late {n}"], "vectors": ["dense"]} for n in range(3)])
        answers = [queue.result(job, WAIT_MAX_S) for job in late]
        assert worker.wait(WAIT_MAX_S) == 0
    assert all("output" in answer for answer in answers)
    assert "Traceback" not in worker.output


def _handles_sigterm(pid: int) -> bool:
    """Return whether the program has installed its SIGTERM handler, as the kernel reports it."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> 14 & 1)


def post(worker: Worker, port: int, job: dict[str, Any]) -> dict[str, Any]:
    """Post a job to the local API once it listens, and return the answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/runsync",
        data=json.dumps(job).encode(),
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + WAIT_MAX_S
    while True:
        try:
            with opener.open(request, timeout=WAIT_MAX_S) as answer:
                body: dict[str, Any] = json.load(answer)
                return body
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the API does not listen: {worker.output[-2000:]}") from error
            time.sleep(0.05)

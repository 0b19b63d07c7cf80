"""The hazards of RunPod's queue, with the unmodified SDK: bursts, signals, kills, refusals, long and odd jobs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from qdrant_sink.edge import EdgeStore
from tests.loopback import JobQueue, Worker, free_port
from tests.sink.samples import schema_for

pytestmark = pytest.mark.slow
"""These tests take a minute in total; `test_worker.py` has the promises that every run checks."""

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "4096", "PYTHONPATH": str(ROOT),
}  # fmt: skip
WAIT_MAX_S = 60.0
"""Timeout in seconds for a hanging worker. No measurement depends on it."""

LONG: dict[str, Any] = {"texts": ["a passage that takes a while " * 60] * 100, "isPassage": True, "vectors": ["dense"]}
ON_POINTS: list[dict[str, Any]] = [
    {"texts": ["hello"], "qdrant": {"collection": "notes"}},
    {"operation": "search", "collection": "notes", "queries": ["hello"]},
    {"operation": "search", "collection": "notes", "like": {"positive": [1]}},
    {"operation": "count", "collection": "notes"},
    {"operation": "delete", "collection": "notes", "ids": [1]},
    {"operation": "delete", "collection": "notes", "filter": {"must": [{"key": "a", "match": {"value": 1}}]}},
]
"""A job of each kind that needs a store."""

NOISE = ("Traceback", "Exception ignored", "leaked", "Error in sys.excepthook", "Fatal Python error")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[JobQueue, Worker]]]:
    """Workers for single tests, started concurrently: most of their time is loading libraries."""
    programs: dict[str, tuple[str, dict[str, str]]] = {
        "burst": ("tests/programs/brief_jobs.py", {}),
        "lost": ("tests/programs/lost_device.py", {}),
        "slow store": ("tests/programs/slow_store.py", {"QDRANT_PATH": "{tmp}/store"}),
        "refused": ("handler.py", {"RUNPOD_LOG_LEVEL": "DEBUG"}),
        "stopped": ("handler.py", {"MAX_CONCURRENCY": "1"}),
        "pings": ("handler.py", {"MAX_CONCURRENCY": "1"}),
        "hanging": ("tests/programs/hanging_score.py", {"SHUTDOWN_GRACE_S": "2"}),
        "unfit": ("handler.py", {"QDRANT_PATH": "{tmp}/other", "QDRANT_COLLECTION": "notes"}),
        "no store": ("handler.py", {}),
        "reference": ("handler.py", {"ENGINE": "flagembedding", "QDRANT_URL": f"http://127.0.0.1:{free_port()}"}),
    }
    with ExitStack() as stack:
        directory = tmp_path_factory.mktemp("queue")
        other = EdgeStore(directory / "other")
        other.ensure("notes", schema_for(8, 8))
        other.close()
        workers: dict[str, tuple[JobQueue, Worker]] = {}
        for name, (script, variables) in programs.items():
            own = {key: value.format(tmp=directory) for key, value in variables.items()}
            queue = stack.enter_context(JobQueue())
            worker = stack.enter_context(Worker(queue, cwd=ROOT, script=script, env={**SETTINGS, **own}))
            workers[name] = queue, worker
        for _, worker in (pair for name, pair in workers.items() if name != "unfit"):
            worker.wait_for_first_poll(2 * WAIT_MAX_S)
        yield workers


def quiet(worker: Worker) -> bool:
    """Assert that the output shows a clean exit."""
    return not any(noise in worker.output for noise in NOISE)


def answers(queue: JobQueue, jobs: list[str]) -> list[Any]:
    """Return the posted answer of each job."""
    return [queue.result(job, WAIT_MAX_S) for job in jobs]


def test_a_burst_is_taken_at_once_and_handled_four_at_a_time(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """With default settings one poll takes 64 jobs, and 64 more follow without a stall."""
    queue, _ = started["burst"]
    for _ in range(2):
        polls = len(queue.polls)
        answers(queue, queue.submit_many({"n": n} for n in range(64)))
        # The poll that was open brings them, and one more may have come between two halves of the burst.
        assert len([poll for poll in queue.polls[polls:] if poll.at < queue.taken[-1].at]) <= 1
        assert queue.polls[-1].batch_size > 1


def test_a_cancelled_job_frees_the_worker(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """Cancelling a long job lets the next one begin, and nothing more is posted for it."""
    queue, worker = started["stopped"]
    long, quick = queue.submit_many([LONG, {"texts": ["quick"], "vectors": ["dense"]}])
    # The SDK forgets the cancellation of a job that it has not begun; each ping is an occasion to look.
    queue.until(lambda: f'"{long}", "message": "Started."' in worker.output, WAIT_MAX_S, "job begun")
    queue.cancel(long)
    assert "output" in queue.result(quick, WAIT_MAX_S)
    assert [post.id for post in queue.posts] == [quick]


def test_sigterm_with_jobs_running_and_queued_answers_them_all(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """After SIGTERM the worker takes no job, answers those that it has and exits with 0."""
    queue, worker = started["stopped"]
    short_job = {**LONG, "texts": LONG["texts"][:12]}
    jobs = queue.submit_many([short_job, *({"texts": [f"text {n}"], "vectors": ["dense"]} for n in range(6))])
    queue.until(lambda: bool(queue.taken) and jobs[-1] == queue.taken[-1].id, WAIT_MAX_S, "jobs taken")
    worker.terminate()
    assert all("output" in answer for answer in answers(queue, jobs))
    assert worker.wait(WAIT_MAX_S) == 0
    assert quiet(worker)


def test_a_job_that_never_ends_does_not_hold_up_a_stop(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """After `SHUTDOWN_GRACE_S` the worker exits with 0, says how many jobs it cut, and leaves them to the platform."""
    queue, worker = started["hanging"]
    queue.submit({"operation": "score", "pairs": [["a query", "a passage"]]})
    queue.until(lambda: "stuck" in worker.output, WAIT_MAX_S, "a job that runs")
    worker.terminate()
    assert worker.wait(WAIT_MAX_S) == 0
    assert "used its 2 seconds (SHUTDOWN_GRACE_S): ending without 1 jobs, which the platform gives" in worker.output
    assert queue.posts == []
    assert quiet(worker)


def test_the_sdk_at_debug_logs_no_answer(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """No text or number of an answer is logged; the repr of a large answer would take a second."""
    queue, worker = started["refused"]
    texts = ["the private words of a user"]
    openai = {"openai_route": "/v1/embeddings", "openai_input": {"input": texts}}
    own, listed = answers(queue, queue.submit_many([{"texts": texts}, openai]))
    assert own["output"]["results"][0]["text"] == texts[0]
    assert listed["output"][0]["object"] == "list"
    assert "Handler output: {...}" in worker.output
    assert texts[0] not in worker.output
    assert str(own["output"]["results"][0]["dense"][0]) not in worker.output


def test_an_answer_that_is_refused_is_posted_again_even_while_stopping(
    started: dict[str, tuple[JobQueue, Worker]],
) -> None:
    """A queue that answers 500 loses no job, even with SIGTERM between two attempts."""
    queue, worker = started["refused"]
    queue.fail_next_takes(500, 3)
    jobs = queue.submit_many([{"texts": ["one"], "vectors": ["dense"]}])
    answers(queue, jobs)
    queue.fail_next_posts(500, 1)
    (job,) = queue.submit_many([{"texts": ["two"], "vectors": ["dense"]}])
    queue.until(lambda: any(post.id == job and post.status == 500 for post in queue.posts), WAIT_MAX_S, "refused post")
    worker.terminate()
    assert "output" in queue.result(job, WAIT_MAX_S)
    assert worker.wait(WAIT_MAX_S) == 0
    assert [post.status for post in queue.posts if post.id == job] == [500, 200]


def test_pings_go_on_if_the_process_of_the_sdk_ends(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """A worker whose ping process is killed says so and goes on with its jobs and with pings that name them."""
    queue, worker = started["pings"]
    queue.until(lambda: bool(queue.pings), WAIT_MAX_S, "ping")
    [pinging] = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    os.kill(int(pinging), signal.SIGKILL)
    queue.until(lambda: "ended (status -9); pinging from here" in worker.output, WAIT_MAX_S, "error in the log")
    [job] = queue.submit_many([LONG])
    queue.until(lambda: any(job in ping.job_ids for ping in queue.pings), WAIT_MAX_S, "ping that names the job")
    queue.cancel(job)
    [brief] = queue.submit_many([{"texts": ["one"], "vectors": ["dense"]}])
    assert "output" in queue.result(brief, WAIT_MAX_S)
    worker.terminate()
    assert worker.wait(WAIT_MAX_S) == 0


def test_a_killed_worker_takes_its_pings_along(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """After SIGKILL no process of the worker pings the platform, and another worker takes the queue."""
    queue, worker = started["burst"]
    queue.until(lambda: bool(queue.pings), WAIT_MAX_S, "ping")
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait(WAIT_MAX_S) == -signal.SIGKILL
    worker._reader.join(WAIT_MAX_S)  # its output ends when the last process that could write to it does
    assert not worker._reader.is_alive()


def test_the_loss_of_the_last_device_ends_the_worker(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """Jobs in flight are answered as retryable, and the process exits with 1 for the platform to replace it."""
    queue, worker = started["lost"]
    (first,) = queue.submit_many([{"texts": ["one"], "vectors": ["dense"]}])
    assert "output" in queue.result(first, WAIT_MAX_S)
    jobs = queue.submit_many({"texts": [f"text {n}"], "vectors": ["dense"]} for n in range(5))
    posted = answers(queue, jobs)
    assert worker.wait(WAIT_MAX_S) == 1
    for answer in posted:
        error = answer["output"] if "error" in answer else answer["output"]["results"][0]
        assert error["retryable"] is True
    assert "Traceback" not in worker.output


def test_progress_of_a_long_upsert_never_comes_after_its_answer(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """A storing job posts growing numbers of points, and nothing after its answer."""
    queue, _ = started["slow store"]
    texts = [f"text {n}" for n in range(6000)]
    raw = {"texts": texts, "vectors": ["dense"], "includeText": False, "qdrant": {"collection": "notes"}}
    (job,) = queue.submit_many([raw])
    assert queue.result(job, WAIT_MAX_S)["output"]["upsert"]["stored"] == 6000
    (quick,) = queue.submit_many([{"texts": ["after"], "vectors": ["dense"]}])
    queue.result(quick, WAIT_MAX_S)
    reports = queue.progress(job)
    assert reports
    assert all(report["points"] == 6000 for report in reports)
    done = [report["settled"] for report in reports]
    assert done == sorted(done)
    assert [post.progress for post in queue.posts if post.id == job] == [True] * len(reports) + [False]
    assert not queue.progress(quick)


def test_a_worker_without_a_store_refuses_to_lose_points(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """Without `QDRANT_URL` every job on points is refused and names the settings; other jobs are answered.

    One warning at the start says so.
    """
    queue, worker = started["no store"]
    assert worker.output.count("refuses to store, search, count and delete points") == 1
    *refused, embedded = answers(queue, queue.submit_many([*ON_POINTS, {"texts": ["hello"], "vectors": ["dense"]}]))
    for posted in refused:
        assert "QDRANT_URL is not set" in posted["error"]
        assert "QDRANT_PATH" in posted["error"]
        assert (posted["output"]["error_code"], posted["output"]["retryable"]) == ("invalid_request", False)
    assert len(embedded["output"]["results"]) == 1
    assert worker.output.count("refuses to store") == 1


def test_a_worker_starts_without_its_store(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """A worker whose `QDRANT_URL` is unreachable logs a warning and still embeds."""
    queue, worker = started["reference"]
    assert "the store does not answer; until it does" in worker.output
    (answer,) = answers(queue, queue.submit_many([{"texts": ["one"], "vectors": ["dense"]}]))
    assert "output" in answer


def test_a_worker_that_is_unfit_takes_no_job(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """A collection of another model ends the worker with 1 before its first poll and names the sizes."""
    queue, worker = started["unfit"]
    assert worker.wait(WAIT_MAX_S) == 1
    assert not queue.polls
    assert "store_fits" in worker.output
    assert "192" in worker.output
    assert "Traceback" not in worker.output


def test_the_reference_engine_exits_as_cleanly(started: dict[str, tuple[JobQueue, Worker]]) -> None:
    """With `ENGINE=flagembedding` SIGTERM exits with 0, without `__del__` errors or child processes."""
    queue, worker = started["reference"]
    answers(queue, queue.submit_many([{"texts": ["one"], "vectors": ["dense"]}]))
    worker.terminate()
    assert worker.wait(WAIT_MAX_S) == 0
    worker._reader.join(WAIT_MAX_S)
    assert not worker._reader.is_alive()
    assert quiet(worker)

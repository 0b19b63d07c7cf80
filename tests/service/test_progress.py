"""Progress of a long job: the latest report is posted at intervals, and none after the job has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.transports.queue.progress import posting
from tests.service.client import PATIENCE, Client

Json = dict[str, Any]


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine; a test that hangs fails."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await body()

    asyncio.run(bounded())


def test_the_latest_report_is_posted_while_the_job_runs() -> None:
    """Only the last report between two posts is sent, from whichever thread it came."""

    async def body() -> None:
        posts: asyncio.Queue[Json] = asyncio.Queue()
        async with posting(posts.put, interval_s=0.01) as report:
            thread = threading.Thread(target=lambda: [report({"settled": n}) for n in range(100)])
            thread.start()
            thread.join()  # no report is posted meanwhile
            assert await posts.get() == {"settled": 99}
            report({"settled": 100})
            assert await posts.get() == {"settled": 100}
        assert posts.empty()

    run(body)


def test_a_short_job_posts_nothing() -> None:
    """A job that ends before the first interval sends no request."""

    async def body() -> None:
        posts: asyncio.Queue[Json] = asyncio.Queue()
        async with posting(posts.put, interval_s=60) as report:
            report({"settled": 1})
            await asyncio.sleep(0)
        assert posts.empty()

    run(body)


def test_the_job_waits_for_its_post() -> None:
    """The end of a job waits for a running post, which the answer could overtake."""

    async def body() -> None:
        began, finish, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def post(_report: Json) -> None:
            began.set()
            await finish.wait()
            done.set()

        async def job() -> None:
            async with posting(post, interval_s=0.01) as report:
                report({"settled": 1})
                await began.wait()

        running = asyncio.create_task(job())
        await began.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not running.done()
        finish.set()
        await running
        assert done.is_set()

    run(body)


@pytest.mark.parametrize("hangs", [True, False])
def test_a_post_that_fails_or_hangs_does_not_fail_the_job(hangs: bool) -> None:
    """A queue that does not accept progress delays an answer by `timeout_s` at most, and never makes it an error."""

    async def body() -> None:
        began, ended = asyncio.Event(), []

        async def post(_report: Json) -> None:
            began.set()
            try:
                if hangs:
                    await asyncio.Event().wait()
                raise ConnectionError
            finally:
                ended.append("post")

        async with posting(post, interval_s=0.01, timeout_s=0.05) as report:
            report({"settled": 1})
            await began.wait()
        assert ended == ["post"]

    run(body)


def test_reports_of_an_ingest_end_with_all_points(worker: Client) -> None:
    """The progress of a job counts the points that are done, including rejected and merged ones."""
    reports: list[Json] = []
    raw = {
        "texts": ["one", "two", "two", "bad", "three"],
        "qdrant": {"collection": "notes", "payloads": [{}, {}, {}, {"n": float("nan")}, {}]},
    }
    answer = asyncio.run(worker.answer(raw, reports.append))
    assert answer["upsert"]["stored"] == 4
    assert [report["points"] for report in reports] == [5] * len(reports)
    settled = [report["settled"] for report in reports]
    assert settled == sorted(settled)
    assert settled[-1] == 5

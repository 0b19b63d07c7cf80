"""Thousands of jobs of all kinds through the real SDK do not grow memory or file descriptors."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest

from tests.loopback import JobQueue, Worker

ROOT = Path(__file__).parents[1]
SETTINGS = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "4096", "MAX_RESPONSE_MB": "1"}
WAIT_MAX_S = 300.0
JOB_COUNT = 5_000
SAMPLE_JOBS = 250
CONNECTIONS_MAX = 100
"""Maximum connections that the SDK's HTTP client keeps to the queue; a burst of answers takes many of them."""


def kinds() -> list[dict[str, Any]]:
    """Return one round of jobs; the points are always the same, so that the store does not grow."""
    target = {"collection": "notes", "ids": ["a", "b", "c"]}
    return [
        {"texts": ["a query"], "vectors": ["dense"]},
        {"texts": ["a query", ""], "isPassage": False, "batchSize": 0},
        {"texts": ["some words of a passage " * 20] * 3, "isPassage": True, "encoding": "base64", "dtype": "float16"},
        {"texts": ["one", "two", "three"], "isPassage": True, "qdrant": target},
        {"operation": "search", "collection": "notes", "queries": ["two"], "rerank": "colbert"},
        {"operation": "count", "collection": "notes"},
        {
            "texts": ["long " * 300] * 4,
            "isPassage": True,
            "qdrant": {**target, "ids": [1, 2, 3, 4], "chunk": {"maxTokens": 64}},
        },
        {"texts": ["word " * 500]},
        {"texts": [1]},
        {"operation": "count", "collection": "absent"},
    ]


@pytest.mark.slow
def test_five_thousand_jobs_do_not_grow_memory(tmp_path: Path) -> None:
    """Every job is answered; after the first two thousand, memory stays within 5 %, descriptors within what is open.

    Memory is that which only this process can give back: of the mapped files of the store, such as its log of 32 MB
    that is written round and round, the kernel keeps what it likes.
    """
    with JobQueue() as queue, Worker(queue, cwd=ROOT, env={**SETTINGS, "QDRANT_PATH": str(tmp_path)}) as worker:
        worker.wait_for_first_poll(WAIT_MAX_S)
        process = psutil.Process(worker.pid)
        inputs = cycle(kinds())
        memory: list[int] = []
        descriptors: list[int] = []  # without connections
        connections: list[int] = []
        for _ in range(JOB_COUNT // SAMPLE_JOBS):
            jobs = queue.submit_many(islice(inputs, SAMPLE_JOBS))
            queue.cancel(jobs[SAMPLE_JOBS // 2])
            for job in jobs[: SAMPLE_JOBS // 2] + jobs[SAMPLE_JOBS // 2 + 1 :]:
                queue.result(job, WAIT_MAX_S)
            now = process.memory_info()
            memory.append(now.rss - now.shared)
            connections.append(len(process.net_connections("tcp")))
            descriptors.append(process.num_fds() - connections[-1])
        print(f"\nMB {[size // 10**6 for size in memory]}; descriptors {descriptors} and {connections}")  # noqa: T201 - what -s shows
        warm, thousand = 2_000 // SAMPLE_JOBS, 1_000 // SAMPLE_JOBS
        # One sample may include a running job, so medians of a thousand jobs are compared.
        assert median(memory[-thousand:]) <= 1.05 * median(memory[warm : warm + thousand])
        assert max(descriptors[warm:]) <= max(descriptors[:warm]) + 8  # temporary files
        assert max(connections) <= CONNECTIONS_MAX
        worker.terminate()
        assert worker.wait(WAIT_MAX_S) == 0
        assert "Traceback" not in worker.output

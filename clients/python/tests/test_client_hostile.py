"""Whatever answers, a call ends with a result or with a `ClientError`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_m3_qdrant_client import ClientError, HttpTarget, RunPodTarget
from bge_m3_qdrant_client.core import Core
from bge_m3_qdrant_client.exchange import Target
from bge_m3_qdrant_client.steps import Reply, Send, Steps

KEYS = [
    "id", "status", "state", "output", "error", "error_code", "message", "details", "upsert", "bytes", "limit",
    "retryable", "retry_after_s", "answer", "settled", "results", "usage", "tokens", "model", "dense", "shape", "dtype",
    "data", "sparse", "indices", "values", "collection", "stored", "skipped", "rejected", "index", "code", "workers",
    "jobs", "count", "points", "next", "timings",
]  # fmt: skip
WORDS = [
    "IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "queued", "running", "done", "failed", "ready", "float32",
    "response_too_large", "overloaded", "not_found", "AAAA",
]  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-2, 600) | st.floats(allow_nan=False) | st.sampled_from(WORDS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=15,
)
SHAPED = st.fixed_dictionaries(
    {"status": st.sampled_from(WORDS), "state": st.sampled_from(WORDS), "id": SCALARS},
    optional={
        "settled": VALUES, "output": VALUES, "answer": VALUES, "error_code": st.sampled_from(WORDS), "details": VALUES,
        "usage": st.just({"tokens": 1}), "model": st.just("m"),
        "results": st.lists(st.fixed_dictionaries({}, optional={"dense": VALUES, "colbert": VALUES}), max_size=2),
    },
)  # fmt: skip
"""JSON that is nearly a job, an answer or an error."""

REPLIES = st.builds(
    Reply,
    st.sampled_from([200, 202, 202, 204, 301, 400, 401, 404, 413, 429, 500, 503]),
    st.dictionaries(st.just("retry-after"), st.sampled_from(["0", "x", "-1", "9" * 400]), max_size=1),
    st.builds(lambda value: json.dumps(value).encode(), SHAPED | VALUES) | st.binary(max_size=4),
)
CALLS: dict[str, Callable[[Core], Any]] = {
    "search": lambda core: core.search("q", {}),
    "count": lambda core: core.count({}),
    "points": lambda core: core.points({}),
    "rerank": lambda core: core.rerank("q", ["d"], {}),
    "collection": lambda core: core.collection("notes"),
    "health": lambda core: core.health(),
    "embed": lambda core: core.embed(["a", "b", "c"], None, {}),
    "ingest": lambda core: core.ingest(["a", "b", "c"], None, None, job=True, progress=lambda _: None, given={}),
}


def performed(steps: Steps[Any], replies: list[Reply]) -> Any:
    """Perform steps with these replies, and give up with the last of them."""
    remaining = list(replies)
    try:
        step = next(steps)
        while remaining:
            step = steps.send(remaining.pop(0) if isinstance(step, Send) else None)
    except StopIteration as stop:
        return stop.value
    steps.close()
    return None


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("target", [HttpTarget("http://host"), RunPodTarget("ep", api_key="k")], ids=["http", "runpod"])
def test_any_answer_is_a_result_or_a_client_error(name: str, target: Target) -> None:
    """No answer makes a call fail with another exception, and a report always counts the texts that were sent."""

    @settings(max_examples=40, deadline=None, database=None)
    @given(replies=st.lists(REPLIES, min_size=1, max_size=8))
    def check(replies: list[Reply]) -> None:
        core = Core(target, timeout=60, retries=2, concurrency=1, texts_per_request=2)
        call = CALLS[name](core)
        if name not in {"embed", "ingest"}:
            with contextlib.suppress(ClientError):
                performed(call, replies)
            return
        while (part := call.take()) is not None:
            outcomes = performed(call.steps(part), replies)
            if outcomes is None:
                return
            call.add(outcomes)
        try:
            report = call.finish()
        except ClientError as error:
            report = error.report
        if name == "ingest":
            assert len(report.results) == report.texts <= 3

    check()

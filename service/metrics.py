"""Prometheus metrics of a worker. No label holds user data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SHARES: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1)


class Metrics:
    """The metrics of one worker, in a registry of their own. Thread-safe.

    Args:
        waiting_tokens: returns the number of tokens that wait for the model.
        reserved_bytes: returns the number of bytes that requests have reserved.
    """

    def __init__(self, waiting_tokens: Callable[[], int], reserved_bytes: Callable[[], int] = lambda: 0) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self._requests = Counter(
            "bge_m3_requests",
            "Answered requests by operation and error code; the code of a success is ok.",
            ["operation", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "bge_m3_request_seconds",
            "Seconds from a request to its answer.",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "bge_m3_stage_seconds",
            "Seconds of a request in a stage: tokenize, embed (with waiting), store, ingest (embed and store).",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter("bge_m3_tokens", "Embedded tokens by operation.", ["operation"], registry=registry)
        Gauge("bge_m3_queue_tokens", "Tokens that wait for the model.", registry=registry).set_function(waiting_tokens)
        Gauge(
            "bge_m3_reserved_bytes", "Bytes of MEMORY_BUDGET_MB that requests have reserved.", registry=registry
        ).set_function(reserved_bytes)
        self._batch_fill = Histogram(
            "bge_m3_batch_fill",
            "Tokens of a batch divided by TOKEN_BUDGET; above 1 where a single text exceeds the budget.",
            buckets=_SHARES,
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "bge_m3_batch_seconds", "Seconds of one batch in the model.", buckets=_SECONDS, registry=registry
        )
        self._batch_tokens = Counter("bge_m3_batch_tokens", "Tokens computed by the model.", registry=registry)
        self._retries = Counter("bge_m3_store_retries", "Retried calls to Qdrant.", registry=registry)
        self._store_calls = Counter(
            "bge_m3_store_calls",
            "Calls to the store by operation and code, each counted once with its retries; a success is ok.",
            ["operation", "code"],
            registry=registry,
        )
        self._store_seconds = Histogram(
            "bge_m3_store_seconds",
            "Seconds of a call to the store, with its retries.",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._rejections = Counter(
            "bge_m3_rejected_points", "Rejected points by error code.", ["code"], registry=registry
        )
        self._responses = Counter(
            "bge_m3_http_responses", "HTTP responses by route and status.", ["route", "status"], registry=registry
        )

        self._jobs = Gauge(
            "bge_m3_http_jobs", "Jobs that were accepted with respond-async, by state.", ["state"], registry=registry
        )
        self._connections = Gauge("bge_m3_http_connections", "Open connections of clients.", registry=registry)
        self._refused = Counter(
            "bge_m3_http_refused",
            "Connections and requests that were refused before they were read, by reason.",
            ["reason"],
            registry=registry,
        )

    def batch(self, tokens: int, fill: float, seconds: float) -> None:
        """Count a batch of the model: its tokens, their share of the token budget, and its duration."""
        self._batch_tokens.inc(tokens)
        self._batch_fill.observe(fill)
        self._batch_seconds.observe(seconds)

    def retried(self) -> None:
        """Count a retried call to the store."""
        self._retries.inc()

    def store_call(self, operation: str, code: str, seconds: float) -> None:
        """Count a call to the store: its name, `ok` or the code of its error, and its duration."""
        self._store_calls.labels(operation, code).inc()
        self._store_seconds.labels(operation).observe(seconds)

    def answered(
        self,
        operation: str,
        code: str,
        stages: Mapping[str, float],
        seconds: float,
        *,
        tokens: int = 0,
        rejected: Sequence[str] = (),
    ) -> None:
        """Count an answered request.

        Args:
            operation: the operation, one of a fixed set of names.
            code: the error code; `ok` for a success.
            stages: seconds by stage.
            seconds: seconds from the request to its answer.
            tokens: number of embedded tokens.
            rejected: the error code of each rejected point.
        """
        self._requests.labels(operation, code).inc()
        self._seconds.labels(operation).observe(seconds)
        for stage, spent in stages.items():
            self._stages.labels(stage).observe(spent)
        self._tokens.labels(operation).inc(tokens)
        for reason in rejected:
            self._rejections.labels(reason).inc()

    def responded(self, route: str, status: int) -> None:
        """Count an HTTP response; `route` is one of a fixed set."""
        self._responses.labels(route, str(status)).inc()

    def count_connections(self, count: Callable[[], int]) -> None:
        """Show the number of open connections that a function returns."""
        self._connections.set_function(count)

    def refused(self, reason: str) -> None:
        """Count a client that the HTTP server has refused or cut; `reason` is one of a fixed set."""
        self._refused.labels(reason).inc()

    def job_moved(self, before: str | None, after: str | None) -> None:
        """Count a job of the HTTP server in its new state, and no more in the one before; None for no job."""
        if before is not None:
            self._jobs.labels(before).dec()
        if after is not None:
            self._jobs.labels(after).inc()

    def exposed(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

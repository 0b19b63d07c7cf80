"""What a worker counts and times, for Prometheus. No label holds anything of a user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each, which nobody reads

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_SHARES: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1)


class Metrics:
    """One worker's registry. Thread-safe.

    Args:
        waiting_tokens: how many tokens wait for the model now.
    """

    def __init__(self, waiting_tokens: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._requests = Counter(
            "bge_m3_requests",
            "Requests answered, by operation and error code; ok: without an error.",
            ["operation", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "bge_m3_request_seconds",
            "From a request to its answer.",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "bge_m3_stage_seconds",
            "Of one request in one stage: tokenize, then embed (waiting included), store, ingest (both at once).",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._tokens = Counter("bge_m3_tokens", "Tokens embedded, by operation.", ["operation"], registry=registry)
        Gauge("bge_m3_queue_tokens", "Tokens that wait for the model.", registry=registry).set_function(waiting_tokens)
        self._batch_fill = Histogram(
            "bge_m3_batch_fill",
            "Tokens of a batch over TOKEN_BUDGET; a text beyond the budget goes alone.",
            buckets=_SHARES,
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "bge_m3_batch_seconds", "Of one batch in the model.", buckets=_SECONDS, registry=registry
        )
        self._batch_tokens = Counter("bge_m3_batch_tokens", "Tokens that went through the model.", registry=registry)
        self._retries = Counter("bge_m3_store_retries", "Calls to Qdrant that were repeated.", registry=registry)
        self._rejections = Counter(
            "bge_m3_rejected_points", "Points that were not stored, by reason.", ["code"], registry=registry
        )
        self._responses = Counter(
            "bge_m3_http_responses", "Answers over HTTP, by route and status.", ["route", "status"], registry=registry
        )

    def batch(self, tokens: int, fill: float, seconds: float) -> None:
        """A batch of so many tokens, which fill a share of the token budget, went through the model."""
        self._batch_tokens.inc(tokens)
        self._batch_fill.observe(fill)
        self._batch_seconds.observe(seconds)

    def retried(self) -> None:
        """A call to the store is repeated."""
        self._retries.inc()

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
        """A request is answered.

        Args:
            operation: one of a fixed set of names.
            code: of its error; `ok` where it has none.
            stages: seconds by stage.
            seconds: from the request to its answer.
            tokens: tokens that were embedded.
            rejected: per point that was not stored, the code of the reason.
        """
        self._requests.labels(operation, code).inc()
        self._seconds.labels(operation).observe(seconds)
        for stage, spent in stages.items():
            self._stages.labels(stage).observe(spent)
        self._tokens.labels(operation).inc(tokens)
        for reason in rejected:
            self._rejections.labels(reason).inc()

    def responded(self, route: str, status: int) -> None:
        """An answer went out over HTTP; `route` is one of a fixed set."""
        self._responses.labels(route, str(status)).inc()

    def exposed(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

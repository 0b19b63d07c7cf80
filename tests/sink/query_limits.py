"""Limits on queries in the strict mode of a server, with its checks and its messages, for the server double."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.sink.grpc_messages import DEFAULT_LIMIT, stages_of


def check_query_limits(limits: Mapping[str, float], queries: Sequence[Any]) -> None:
    """Raise ValueError with the server's message if a QueryPoints of the batch exceeds a limit.

    Args:
        limits: maximum by the server's name of the number: "limit" (`max_query_limit`), "search batch size", "hnsw_ef"
            or "oversampling". Offsets are not limited.
        queries: queries of one batch.
    """
    _check(limits, "search batch size", len(queries))
    for query in queries:
        for stage in stages_of(query):
            _check(limits, "limit", stage.limit if stage.HasField("limit") else DEFAULT_LIMIT)
            _check(limits, "oversampling", stage.params.quantization.oversampling)
            _check(limits, "hnsw_ef", stage.params.hnsw_ef)


def _check(limits: Mapping[str, float], name: str, value: float) -> None:
    maximum = limits.get(name)
    if maximum is not None and value > maximum:
        raise ValueError(
            f'Limit exceeded {value:g} > {maximum:g} for "{name}". '
            f'Help: Reduce the "{name}" parameter to or below {maximum:g}.'
        )

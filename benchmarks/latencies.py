"""Search latencies by collection and by kind of search: the results of the search benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.collections import Shape


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one query in milliseconds.

    Attributes:
        p50: median by the clock.
        p95: 95th percentile by the clock.
        cpu: median CPU time of all threads of the process, which other programs on the machine change little.
    """

    p50: float
    p95: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Case:
    """The latencies of searches in one collection.

    Attributes:
        name: of the case, for the report.
        shape: of the collection.
        graph: whether the HNSW graph is built; otherwise a dense query is compared with every point.
        latencies: by way of searching.
        candidates: mean number of candidates that are reranked, by way of searching.
        goals: limit on the median in milliseconds, by way of searching.
    """

    name: str
    shape: Shape
    graph: bool
    latencies: Mapping[str, Latency]
    candidates: Mapping[str, float]
    goals: Mapping[str, float]

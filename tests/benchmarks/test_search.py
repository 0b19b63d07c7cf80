"""The search benchmark measures every kind of search and reports what was measured."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks.collections import QUERY_ROWS, QUERY_WEIGHTS, WEIGHTS, Shape, points, queries
from benchmarks.latencies import Case, Latency
from benchmarks.search import DEEP, GROUPS, HYBRID, RERANK, WAYS, Findings, Wanted, measure, render

SMALL = Shape(60, 16, 4)


def _findings(hybrid: float, reranked: float) -> Findings:
    latencies = {way: Latency(1.25, 9.75, 1.5) for way in WAYS} | {
        HYBRID: Latency(hybrid, 30.0, 5.0),
        RERANK: Latency(reranked, 40.0, 6.0),
    }
    case = Case("some size", Shape(10_000, 192, 40), False, latencies, {RERANK: 97.4}, {HYBRID: 10.0, RERANK: 20.0})
    grown = Case("growth", Shape(100_000, 192, 8), True, latencies, {}, {})
    return Findings("2020-01-02T03:04:05+00:00", False, [case], [grown], {"CPU": "Example 9000", "cores": "2"})


@pytest.mark.parametrize(
    ("hybrid", "reranked", "expected_lines"),
    [
        (10.0, 20.1, ["| hybrid |  | 10.0 | 30.0 | 5.0 | 10 | met |", "| 97 | 20.1 | 40.0 | 6.0 | 20 | missed |"]),
        (10.1, 20.0, ["| hybrid |  | 10.1 | 30.0 | 5.0 | 10 | missed |", "| 97 | 20.0 | 40.0 | 6.0 | 20 | met |"]),
    ],
)
def test_goals_are_met_or_missed(hybrid: float, reranked: float, expected_lines: list[str]) -> None:
    """The report shows the verdicts beside the figures, the collection and the machine."""
    text = render(_findings(hybrid, reranked), notes="by hand", picture="plot.svg")
    shape = "Some size: 10,000 points, 192 dimensions, 40 rows"
    for part in [
        *expected_lines,
        shape,
        "| 100,000 | built |",
        "Example 9000, 2 cores",
        "2020-01-02",
        "by hand",
        "(plot.svg)",
    ]:
        assert part in text


@pytest.mark.slow
def test_every_way_is_measured_with_and_without_a_graph() -> None:
    """Each search has a median, a 95th percentile and a number of reranked candidates."""
    plain, indexed = measure(Wanted("small", SMALL, {HYBRID: 10.0}, graph=True), 5)
    assert (plain.graph, indexed.graph) == (False, True)
    for case in (plain, indexed):
        assert list(case.latencies) == list(WAYS)
        assert all(0 < latency.p50 <= latency.p95 and latency.cpu > 0 for latency in case.latencies.values())
        assert 50 <= case.candidates[RERANK] <= case.candidates[DEEP] <= SMALL.points
        assert GROUPS in case.latencies


def test_points_and_queries_are_the_same_at_every_run() -> None:
    """The same seeds give the same collection of the stated shape, so that runs are comparable."""
    first, again = (list(islice(points(SMALL), 20)) for _ in range(2))
    assert [point.id for point in first] == [point.id for point in again]
    assert len({point.id for point in first}) == 20
    for point, repeated in zip(first, again, strict=True):
        assert point.dense is not None
        assert point.sparse is not None
        assert point.colbert is not None
        assert point.dense == pytest.approx(repeated.dense)
        assert point.dense.shape == (SMALL.size,)
        assert len(point.sparse.indices) <= WEIGHTS
        assert (np.diff(point.sparse.indices.astype(int)) > 0).all()
        assert SMALL.rows // 2 <= len(point.colbert) <= SMALL.rows * 3 // 2
    [query, _] = queries(SMALL, 2, rerank="colbert")
    assert query.options.rerank == "colbert"
    assert query.vectors.sparse is not None
    assert query.vectors.colbert is not None
    assert len(query.vectors.sparse.indices) <= QUERY_WEIGHTS
    assert query.vectors.colbert.shape == (QUERY_ROWS, SMALL.size)


@pytest.mark.slow
def test_the_plot_is_drawn(tmp_path: Path) -> None:
    """The plot is an SVG of both states of the collection."""
    pytest.importorskip("matplotlib")
    from benchmarks.search_plot import draw

    findings = _findings(1.0, 2.0)
    draw([*findings.cases, *findings.growth], tmp_path / "plot.svg", title="some machine")
    text = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "some machine" in text
    assert "With the HNSW graph" in text

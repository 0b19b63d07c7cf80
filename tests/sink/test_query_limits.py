"""A server's limits on queries (its strict mode) refuse only what the caller asked for, not what the worker adds."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qdrant_sink.errors import LimitExceeded, StoreRejected
from qdrant_sink.searching import Search, explain, run
from qdrant_sink.searching.plan import Nearest, Plan, Rescoring
from qdrant_sink.server import ServerStore
from tests.sink.grpc_double import GrpcDouble
from tests.sink.rest_double import RestDouble, refusal
from tests.sink.samples import DENSE, SCHEMA, SIZE, draft, sample_vectors, search_by, unit
from tests.sink.writing import write

POINTS = 90
QUANTIZED = replace(SCHEMA, dense=replace(DENSE, quantization="int8"))


@pytest.fixture
def filled(server_store: ServerStore) -> ServerStore:
    """A server with 90 points."""
    server_store.ensure("docs", SCHEMA)
    drafts = [draft(i, payload={"text": "a", "doc": i // 30}) for i in range(POINTS)]
    assert write(server_store, "docs", drafts, SCHEMA).stored == POINTS
    return server_store


def _search(**fields: Any) -> Search:
    query = sample_vectors(5555)
    return search_by(dense=query.dense, sparse=query.sparse, colbert=query.colbert, **fields)


def _ids(store: ServerStore, search: Search, pages: int = 1) -> list[Any]:
    searches = [search.with_options(offset=n * search.options.limit) for n in range(pages)]
    return [hit.id for hits in run(store, "docs", searches) for hit in hits]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"fusion": "dbsf"},
        {"rerank": "colbert"},
        {"using": ("dense",)},
        {"using": ("dense",), "prefetch": 100},
        {"group_by": "doc", "limit": 3},
        {"group_by": "doc", "limit": 3, "rerank": "colbert", "group_size": 3},
    ],
)
@pytest.mark.parametrize("maximum", [10, 25])
def test_what_the_worker_adds_is_not_refused(
    filled: ServerStore, double: GrpcDouble, fields: dict[str, Any], maximum: int
) -> None:
    """A limit within that of the server is served, although the candidates, the margin and the tiers exceed it.

    The hits are those of a search with as few candidates on a server without limits.
    """
    search = _search(**{"limit": 10, **fields})
    expected = _ids(filled, search.with_options(prefetch=min(search.options.prefetch, maximum)))
    double.query_limits["limit"] = maximum
    assert _ids(filled, search) == expected
    assert len(expected) == search.options.limit * search.options.group_size
    for query in double.queries[-1].query_points:
        assert max([query.limit, *(prefetch.limit for prefetch in query.prefetch)]) <= maximum


@pytest.mark.parametrize("fields", [{}, {"rerank": "colbert"}, {"using": ("dense",)}])
def test_pages_are_disjoint_within_the_limits_of_a_server(
    filled: ServerStore, double: GrpcDouble, fields: dict[str, Any]
) -> None:
    """Pages beyond the limit on hits are disjoint. A single branch reaches all points."""
    double.query_limits["limit"] = 20
    pages = 9 if "using" in fields else 2
    ids = _ids(filled, _search(limit=10, **fields), pages)
    assert len(set(ids)) == len(ids) == 10 * pages


def test_a_page_beyond_the_limit_of_a_server_is_an_error(filled: ServerStore, double: GrpcDouble) -> None:
    """A page that the server does not let a search reach is refused in words, and not empty."""
    double.query_limits["limit"] = 20
    with pytest.raises(
        LimitExceeded, match=r"offset: offset \+ limit must be at most \d\d, .* max_query_limit \(20\) .*, got 60"
    ):
        run(filled, "docs", [_search(limit=10, offset=50)])


@pytest.mark.parametrize(
    ("limits", "fields", "message"),
    [
        (
            {"limit": 10},
            {"limit": 11},
            "limit: must be at most 10, the max_query_limit of Qdrant's strict mode, got 11",
        ),
        ({"limit": 200}, {"prefetch": 201}, "prefetch: must be at most 200, the max_query_limit"),
        ({"hnsw_ef": 64}, {"hnsw_ef": 65}, "hnsw_ef: must be at most 64, the search_max_hnsw_ef"),
        (
            {"oversampling": 4},
            {"rescoring": Rescoring(oversampling=4.5), "schema": QUANTIZED},
            "oversampling: must be at most 4, the search_max_oversampling",
        ),
    ],
)
def test_what_the_caller_asks_for_is_refused_in_words(
    filled: ServerStore, double: GrpcDouble, limits: dict[str, float], fields: dict[str, Any], message: str
) -> None:
    """An option that exceeds a limit by itself is refused. The error names the option, the limit and the value."""
    double.query_limits.update(limits)
    with pytest.raises(LimitExceeded, match=message):
        run(filled, "docs", [_search(), _search(**fields)])


def test_a_large_batch_is_split(filled: ServerStore, double: GrpcDouble) -> None:
    """A server that accepts few queries per batch receives several batches."""
    double.query_limits["search batch size"] = 3
    answers = run(filled, "docs", [_search(limit=limit) for limit in range(1, 9)])
    assert [len(hits) for hits in answers] == list(range(1, 9))
    assert [len(batch.query_points) for batch in double.queries] == [8, 3, 3, 2]


def test_the_default_oversampling_is_lowered(filled: ServerStore, double: GrpcDouble) -> None:
    """An oversampling that nobody asked for is lowered to that of the server."""
    double.query_limits["oversampling"] = 1.5
    search = _search(using=("dense",), schema=QUANTIZED)
    assert len(run(filled, "docs", [search])[0]) == 10
    assert double.queries[-1].query_points[0].params.quantization.oversampling == 1.5


def test_explanations_respect_the_limits(filled: ServerStore, double: GrpcDouble) -> None:
    """The additional searches of an explanation are not refused."""
    double.query_limits["limit"] = 10
    [explained] = explain(filled, "docs", [_search(limit=10)], text_key="text")
    assert len(explained.hits) == 10
    for hit, why in zip(explained.hits, explained.explanations, strict=True):
        assert why.fusion is not None
        assert sum(why.fusion.values()) == pytest.approx(hit.score, abs=1e-6)


@pytest.mark.parametrize(
    ("shown", "field", "maximum"),
    [
        ('Limit exceeded 3 > 2.5 for "oversampling"', "oversampling", 2.5),
        ("Condition size limit reached (256 > 100)", "condition size", 100),
    ],
)
def test_a_limit_of_the_server_is_told_apart(shown: str, field: str, maximum: float) -> None:
    """The error of an exceeded limit has the limit and the name of the number, and shows both."""
    rest = RestDouble()
    rest.answers["POST /collections/docs/points/query/batch"] = [
        (400, {}, refusal(f"Bad request: {shown}. Help: Reduce it."))
    ]
    store = ServerStore(f"http://127.0.0.1:{rest.port}", transport="rest")
    plan = Plan(Nearest("dense", unit(np.ones(SIZE))), (), 10)
    with pytest.raises(LimitExceeded, match=re.escape(f"HTTP 400, {shown}")) as raised:
        store.query("docs", [plan])
    assert (raised.value.field, raised.value.maximum) == (field, maximum)
    assert isinstance(raised.value, StoreRejected)
    store.close()
    rest.stop()

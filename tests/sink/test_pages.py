"""The pages of one search are disjoint, and together they are one ranking of all points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.vectors import SparseVector
from qdrant_sink.points import PointId, Stored, Vectors
from qdrant_sink.searching import Hit, Search, run
from qdrant_sink.store import Store
from tests.sink.samples import SCHEMA, SIZE, draft, sample_vectors, search_by, unit
from tests.sink.stores import EMBEDDED_FIRST, STORES, drop, opened
from tests.sink.writing import write

TEXTS = 400
DISTINCT, REPEATED = "test_pages_distinct", "test_pages_repeated"


def _vectors(index: int) -> Vectors:
    """Return vectors of which every point shares a sparse index with `QUERY`, so that every branch ranks all points."""
    vectors = sample_vectors(index)
    assert vectors.sparse is not None
    indices = np.append(vectors.sparse.indices, 100).astype(np.uint32)
    values = np.append(vectors.sparse.values, 0.1 + index / 1000).astype(np.float32)
    return Vectors(vectors.dense, SparseVector(indices, values), vectors.colbert)


QUERY = _vectors(9999)


@pytest.fixture(scope="module", params=[*EMBEDDED_FIRST, *STORES[2:]])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each kind of store with 400 different points, and with 120 points of which 40 each are equal."""
    with opened(request.param, tmp_path_factory.mktemp(request.param)) as store:
        for name, vectors in (
            (DISTINCT, [_vectors(i) for i in range(TEXTS)]),
            (REPEATED, [_vectors(i % 3) for i in range(120)]),
        ):
            store.ensure(name, SCHEMA)
            drafts = [
                draft(i, vectors=v, payload={"text": f"text {i}", "doc": i % 7 if i % 5 else i, "even": i % 2 == 0})
                for i, v in enumerate(vectors)
            ]
            assert write(store, name, drafts, SCHEMA).stored == len(drafts)
        yield store
    if request.param == "server":
        drop("test_pages_")


def _search(**fields: Any) -> Search:
    return search_by(dense=QUERY.dense, sparse=QUERY.sparse, colbert=QUERY.colbert, **fields)


def _pages(store: Store, search: Search, count: int, collection: str = DISTINCT) -> list[list[Hit]]:
    """Request the first pages of a search, each as a search of its own."""
    return run(store, collection, [search.with_options(offset=n * search.options.limit) for n in range(count)])


def _ids(pages: list[list[Hit]]) -> list[PointId]:
    return [hit.id for hits in pages for hit in hits]


WAYS: list[dict[str, Any]] = [
    {},
    {"fusion": "dbsf"},
    {"rerank": "colbert"},
    {"using": ("dense",)},
    {"using": ("sparse",)},
    {"using": ("colbert",)},
    {"weights": (3.0, 1.0), "exact": True},
    {"using": ("dense", "sparse", "colbert"), "rrf_k": 1},
]


@pytest.mark.slow
@pytest.mark.parametrize("fields", WAYS)
def test_twenty_pages_have_two_hundred_different_hits(filled: Store, fields: dict[str, Any]) -> None:
    """Pages of 10 from offset 0 to 190 have 200 different hits, and the next 200 hits are all other points."""
    pages = _pages(filled, _search(limit=10, **fields), 40)
    assert len(set(_ids(pages[:20]))) == 200
    assert sorted(map(int, _ids(pages))) == list(range(TEXTS))
    assert _pages(filled, _search(limit=10, **fields), 41)[40] == []


@pytest.mark.parametrize("fields", WAYS[:4])
def test_pages_are_slices_of_one_large_page(filled: Store, fields: dict[str, Any]) -> None:
    """Pages within the candidates of the branches are slices of one large page, with the same scores."""
    [large] = run(filled, DISTINCT, [_search(limit=60, prefetch=60, **fields)])
    pages = _pages(filled, _search(limit=12, prefetch=60, **fields), 5)
    assert [(hit.id, hit.score) for hits in pages for hit in hits] == [(hit.id, hit.score) for hit in large]


@pytest.mark.parametrize("fields", WAYS)
def test_equal_points_are_on_one_page_each(filled: Store, fields: dict[str, Any]) -> None:
    """If 40 points have the same score, no page repeats one of them, and none is left out."""
    for limit in (7, 30):
        pages = _pages(filled, _search(limit=limit, prefetch=120, **fields), -(-120 // limit), REPEATED)
        assert sorted(map(int, _ids(pages))) == list(range(120))


@pytest.mark.parametrize("fields", WAYS[:4])
def test_pages_of_groups_are_disjoint(filled: Store, fields: dict[str, Any]) -> None:
    """Every group is on one page, and its hits do not depend on the page that is requested."""
    search = _search(limit=4, prefetch=8, group_by="doc", group_size=2, **fields)
    pages = _pages(filled, search, 25)
    groups = [list(dict.fromkeys(hit.group for hit in hits)) for hits in pages]
    flat = [group for page in groups for group in page]
    assert len(flat) == len(set(flat)) == 80 + 7 - 2  # documents 0 and 5 also have points of their own
    assert len(set(_ids(pages))) == len(_ids(pages))
    assert [len(page) for page in groups[:21]] == [4] * 21
    assert pages[24] == []


@pytest.mark.parametrize("fields", WAYS[:4])
def test_a_threshold_ends_the_ranking(filled: Store, fields: dict[str, Any]) -> None:
    """With a threshold, the pages are those without it as far as its hits reach."""
    pages = _pages(filled, _search(limit=6, prefetch=60, **fields), 8)
    threshold = (pages[4][2].known_score + pages[4][3].known_score) / 2
    cut = _pages(filled, _search(limit=6, prefetch=60, score_threshold=threshold, **fields), 8)
    expected = [hit.id for hits in pages for hit in hits if hit.known_score >= threshold]
    assert _ids(cut) == expected
    assert len(expected) >= 27


def test_hits_of_a_deep_page_have_the_requested_parts(filled: Store) -> None:
    """Hits of any page have the requested payload and vectors, and nothing else."""
    [full] = run(filled, DISTINCT, [_search(limit=5, offset=250, with_vectors=("dense",))])
    [bare] = run(filled, DISTINCT, [_search(limit=5, offset=250, with_payload=False)])
    assert [hit.id for hit in full] == [hit.id for hit in bare]
    assert all((hit.payload, hit.vectors) == (None, None) for hit in bare)
    for hit in full:
        assert hit.payload is not None
        assert hit.payload["text"] == f"text {hit.id}"
        assert hit.vectors is not None
        assert hit.vectors.dense == pytest.approx(_vectors(int(hit.id)).dense, abs=1e-6)
        assert (hit.vectors.sparse, hit.vectors.colbert) == (None, None)


searches = st.builds(
    lambda using, rerank, fields: _search(using=using, rerank=rerank, **fields),
    st.sampled_from([("dense",), ("sparse",), ("dense", "sparse"), ("dense", "sparse", "colbert")]),
    st.sampled_from([None, "colbert"]),
    st.fixed_dictionaries(
        {"limit": st.integers(1, 40), "prefetch": st.integers(1, 80)},
        optional={
            "fusion": st.just("dbsf"),
            "rrf_k": st.sampled_from([1, 2, 60]),
            "exact": st.booleans(),
            "where": st.just({"must": [{"key": "even", "match": {"value": True}}]}),
            "group_by": st.just("doc"),
            "score_threshold": st.floats(-0.5, 1.5),
        },
    ),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(search=searches, collection=st.sampled_from([DISTINCT, REPEATED]))
def test_pages_of_any_search_are_disjoint_and_repeatable(filled: Store, search: Search, collection: str) -> None:
    """Whatever the search, no hit is on two pages, a repeated page is the same, and a short page is the last one."""
    count = 6
    pages = _pages(filled, search, count, collection)
    assert len(set(_ids(pages))) == len(_ids(pages))
    options = search.options
    again = _pages(filled, search, count, collection)
    assert [_ids([page]) for page in again] == [_ids([page]) for page in pages]
    if options.group_by is None:
        lengths = [len(page) for page in pages]
        assert lengths == sorted(lengths, reverse=True)
        assert all(length in (0, options.limit) for length in lengths if length != lengths[sum(map(bool, lengths)) - 1])
        if options.score_threshold is None:
            points = (TEXTS if collection == DISTINCT else 120) // (2 if options.where else 1)
            assert sum(lengths) == min(points, count * options.limit)


def test_the_order_of_a_page_is_that_of_scores_and_ids(filled: Store) -> None:
    """Equal scores are in the order of the ids, on the first page and on later ones."""
    for fields in ({"fusion": "dbsf"}, {"rerank": "colbert"}):
        pages = _pages(filled, _search(limit=30, prefetch=120, **fields), 4, REPEATED)
        ranking = [(-hit.known_score, int(hit.id)) for hits in pages for hit in hits]
        assert ranking == sorted(ranking)


def test_a_later_page_takes_one_request_for_ids_and_one_for_payloads() -> None:
    """The first page is one request, one within the first candidates is two, and a deeper one is a request more."""
    store = _Counting(300)
    for offset, queries, fetches in ((0, [1], 0), (10, [2], 1), (150, [2, 1], 1)):
        store.queries.clear()
        store.fetches = 0
        [hits] = run(store, "docs", [search_by(dense=unit(np.ones(SIZE)), using=("dense",), limit=10, offset=offset)])
        assert [hit.id for hit in hits] == list(range(offset, offset + 10))
        assert (store.queries, store.fetches) == (queries, fetches)


class _Counting:
    """A store with points in a fixed order, which counts the queries of each request."""

    def __init__(self, points: int) -> None:
        self.points = points
        self.queries: list[int] = []
        self.fetches = 0

    def query(self, _collection: str, plans: Any) -> list[list[Hit]]:
        """Return the first points."""
        self.queries.append(len(plans))
        return [[Hit(n, 1.0 - n / 1000) for n in range(min(plan.limit, self.points))] for plan in plans]

    def fetch(self, _collection: str, ids: Any, _payload: Any, _kinds: Any, **_names: Any) -> Any:
        """Return empty payloads."""
        self.fetches += 1
        return {i: Stored({}) for i in ids}

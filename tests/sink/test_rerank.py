"""Reranked searches of collections in which some points have no ColBERT rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from embedder.errors import InvalidRequest
from embedder.vectors import SparseVector
from qdrant_sink.errors import LimitExceeded
from qdrant_sink.points import PointId, Vectors
from qdrant_sink.schema import CollectionSchema, DenseSchema, SparseSchema
from qdrant_sink.searching import Search, SearchPage, explain, recommend, search_pages
from qdrant_sink.searching.plan import Hit, Plan
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import COLBERT, SCHEMA, SIZE, Reference, draft, ranked, rrf, sample_vectors, search_by
from tests.sink.stores import STORES, drop, opened
from tests.sink.writing import write

POINTS = 120
WITH_ROWS_EVERY = 3
MIXED, FLAT = "test_rerank_mixed", "test_rerank_flat"
FLAT_SCHEMA = CollectionSchema(DenseSchema(SIZE, distance="euclid"), SparseSchema(), COLBERT)


def _vectors(index: int, *, has_rows: bool) -> Vectors:
    """Return vectors of which every point shares a sparse index with `QUERY`, so that every branch ranks all points."""
    vectors = sample_vectors(index)
    assert vectors.sparse is not None
    indices = np.append(vectors.sparse.indices, 100).astype(np.uint32)
    values = np.append(vectors.sparse.values, 0.1 + index / 1000).astype(np.float32)
    return Vectors(vectors.dense, SparseVector(indices, values), vectors.colbert if has_rows else None)


QUERY = _vectors(9999, has_rows=True)
VECTORS: dict[PointId, Vectors] = {i: _vectors(i, has_rows=i % WITH_ROWS_EVERY == 0) for i in range(POINTS)}
BEHIND: dict[PointId, Vectors] = {i: vectors for i, vectors in VECTORS.items() if vectors.colbert is None}
BRANCHES: list[tuple[str, ...]] = [("dense",), ("sparse",), ("dense", "sparse")]


def _document(index: int) -> str:
    return f"{index // 2}"


def _fill(store: Store) -> None:
    for name, schema in ((MIXED, SCHEMA), (FLAT, FLAT_SCHEMA)):
        store.ensure(name, schema)
        drafts = [draft(int(i), vectors=v, payload={"n": i, "doc": _document(int(i))}) for i, v in VECTORS.items()]
        assert write(store, name, drafts, schema).stored == POINTS


@pytest.fixture(scope="module", params=STORES)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each kind of store with 120 points, of which every third has ColBERT rows."""
    with opened(request.param, tmp_path_factory.mktemp(request.param)) as store:
        _fill(store)
        yield store
    if request.param == "server":
        drop("test_rerank_")


def _search(schema: CollectionSchema = SCHEMA, **fields: Any) -> Search:
    fields = {"rerank": "colbert", "limit": 10, **fields}
    return search_by(dense=QUERY.dense, sparse=QUERY.sparse, colbert=QUERY.colbert, schema=schema, **fields)


def _pages(store: Store, search: Search, count: int) -> list[SearchPage]:
    """Request the first pages of a search, each as a search of its own."""
    searches = [search.with_options(offset=n * search.options.limit) for n in range(count)]
    return search_pages(store, MIXED, searches)


def _hits(pages: Sequence[SearchPage]) -> list[Hit]:
    return [hit for page in pages for hit in page.hits]


def _fused(using: Sequence[str]) -> list[PointId]:
    """Return all points in the order of the fusion of the branches, or of the only branch."""
    reference = Reference(VECTORS)
    scores = [getattr(reference, kind)(getattr(QUERY, kind)) for kind in using]
    return ranked(scores[0] if len(scores) == 1 else rrf([ranked(branch) for branch in scores], 60, (1.0, 1.0)))


@pytest.mark.parametrize("using", BRANCHES, ids="+".join)
def test_points_without_rows_follow_in_the_order_of_the_fusion(filled: Store, using: tuple[str, ...]) -> None:
    """The page has the points with rows by MaxSim, then the others in the order of a search that is not reranked."""
    [page] = search_pages(filled, MIXED, [_search(using=using, limit=POINTS)])
    maxsim = Reference(VECTORS).colbert(np.asarray(QUERY.colbert))
    first, behind = page.hits[: len(maxsim)], page.hits[len(maxsim) :]
    assert [hit.id for hit in first] == ranked(maxsim)
    assert [hit.score for hit in first] == pytest.approx([maxsim[i] for i in ranked(maxsim)], abs=2e-3)
    assert [hit.id for hit in behind] == [i for i in _fused(using) if i in BEHIND]
    assert {hit.score for hit in behind} == {None}
    assert page.unranked == len(BEHIND)
    assert [hit.payload for hit in page.hits] == [{"n": hit.id, "doc": _document(int(hit.id))} for hit in page.hits]


@pytest.mark.parametrize("using", BRANCHES, ids="+".join)
def test_pages_of_a_mixed_collection_are_disjoint_and_complete(filled: Store, using: tuple[str, ...]) -> None:
    """The pages have every point once, over several tiers, whatever share of each tier has no rows."""
    pages = _pages(filled, _search(using=using, prefetch=10), 13)
    assert sorted(int(hit.id) for hit in _hits(pages)) == list(range(POINTS))
    assert pages[12].hits == []
    assert pages[11].unranked == len(BEHIND)
    counts = [page.unranked for page in pages]
    assert counts == sorted(counts)


def test_a_full_page_says_how_many_candidates_were_not_reranked(filled: Store) -> None:
    """The number of candidates without rows does not depend on whether the page shows them."""
    [page] = search_pages(filled, MIXED, [_search(using=("dense",), prefetch=60)])
    assert None not in [hit.score for hit in page.hits]
    assert page.unranked == len([i for i in _fused(("dense",))[:60] if i in BEHIND])


def test_a_threshold_leaves_out_points_without_a_score(filled: Store) -> None:
    """A point without rows has no score that could reach the threshold; points with rows are found beyond them."""
    [full] = search_pages(filled, MIXED, [_search(limit=POINTS)])
    scores = [hit.known_score for hit in full.hits if hit.score is not None]
    for rank in (4, 25):
        threshold = (scores[rank - 1] + scores[rank]) / 2
        search = _search(limit=8, prefetch=POINTS, score_threshold=threshold)
        pages = _pages(filled, search, 5)
        assert [hit.id for hit in _hits(pages)] == [hit.id for hit in full.hits[:rank]]
        assert {page.unranked for page in pages} == {len(BEHIND)}
    unreachable = _search(limit=POINTS // WITH_ROWS_EVERY, prefetch=50, score_threshold=min(scores) - 1)
    [page] = search_pages(filled, MIXED, [unreachable])
    assert {hit.id for hit in page.hits} == {i for i in VECTORS if i not in BEHIND}


@pytest.mark.parametrize("group_size", [1, 2])
def test_groups_without_a_score_follow_those_with_one(filled: Store, group_size: int) -> None:
    """The first hit of a group is its best, and groups of points without rows come last."""
    search = _search(limit=POINTS, prefetch=POINTS, group_by="doc", group_size=group_size, with_payload=False)
    [page] = search_pages(filled, MIXED, [search])
    first = {hit.group: hit.score for hit in reversed(page.hits)}
    assert len(first) == POINTS // 2
    with_rows = {_document(int(i)) for i in VECTORS if i not in BEHIND}
    assert {group for group, score in first.items() if score is not None} == with_rows
    order = list(dict.fromkeys(hit.group for hit in page.hits))
    assert set(order[: len(with_rows)]) == with_rows
    assert len(page.hits) == POINTS // 2 * group_size
    few = [search.with_options(limit=6, offset=offset) for offset in range(0, POINTS // 2, 6)]
    paged = [hit for part in search_pages(filled, MIXED, few) for hit in part.hits]
    assert sorted(int(hit.id) for hit in paged) == sorted(int(hit.id) for hit in page.hits)


def test_an_unranked_hit_is_explained_by_its_branches(filled: Store) -> None:
    """Its explanation has ranks and shared tokens, and no alignment."""
    for limit in (POINTS, 10):
        search = _search(limit=limit, offset=POINTS - limit, prefetch=POINTS)
        [explained] = explain(filled, MIXED, [search], text_key="text")
        assert explained.unranked == len(BEHIND)
        last, why = explained.hits[-1], explained.explanations[-1]
        assert last.score is None
        assert (why.fusion, why.colbert, why.rows) == (None, None, None)
        for kind in ("dense", "sparse"):
            rank = why.branches[kind]
            assert rank is not None
            assert _fused((kind,))[rank.rank - 1] == last.id
        assert why.sparse


def test_the_nearest_point_without_rows_comes_first_where_scores_are_distances(filled: Store) -> None:
    """The only branch orders them by distance, the smallest first."""
    search = _search(FLAT_SCHEMA, using=("dense",), limit=POINTS)
    [page] = search_pages(filled, FLAT, [search])
    distances = Reference(VECTORS, distance="euclid").dense(np.asarray(QUERY.dense))
    behind = [hit.id for hit in page.hits if hit.score is None]
    assert behind == [i for i in ranked(distances, ascending=True) if i in BEHIND]


def test_examples_without_rows_are_an_error_of_the_request(filled: Store) -> None:
    """A reranked search by stored points needs one positive point with rows; the others do without."""
    kinds = ("dense", "colbert")
    recommended: dict[str, Any] = {"scope": MIXED, "kinds": kinds, "where": None, "field": "like", "schema": SCHEMA}
    vectors, _ = recommend(filled, MIXED, [0, 1], [], **recommended)
    assert vectors.colbert is not None
    assert len(vectors.colbert) == len(np.asarray(VECTORS[0].colbert))
    with pytest.raises(InvalidRequest, match=r"^like\.positive: .* must have a colbert vector"):
        recommend(filled, MIXED, [1, 2], [], **recommended)


def test_reranking_takes_one_request() -> None:
    """A first page is one request: where all points have rows, and where the points with rows fill the page."""
    for points, lacking in ((300, 0), (300, 200), (4, 0)):
        store = _Counting(points, lacking)
        [page] = search_pages(store, "docs", [_search(with_payload=False)])
        assert (len(page.hits), page.unranked, store.requests) == (min(points, 10), lacking, 1)


class _Counting:
    """A store with points of which some lack rows, which counts its requests."""

    def __init__(self, points: int, lacking: int) -> None:
        self.points, self.lacking = points, lacking
        self.requests = 0

    def query(self, _collection: str, plans: Sequence[Plan]) -> list[list[Hit]]:
        """Return the points that have rows, and those that lack them."""
        self.requests += 1
        reranking, selection = plans
        return [
            [Hit(n, 1.0 - n / 1000) for n in range(min(reranking.limit, self.points))],
            [Hit(1000 + n, 1.0 - n / 1000) for n in range(min(selection.limit, self.lacking))],
        ]

    def fetch(self, *_: Any, **_names: Any) -> Any:
        """Fail: the first page has all its parts."""
        raise AssertionError


def test_a_server_with_a_limit_reaches_what_the_limit_allows(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The selection of points without rows respects `max_query_limit`. A page beyond it is an error, and not short."""
    double = GrpcDouble(tmp_path_factory.mktemp("double"))
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    try:
        _fill(store)
        double.query_limits["limit"] = 20
        pages = _pages(store, _search(limit=5), 4)
        ids = [hit.id for hit in _hits(pages)]
        assert len(ids) == len(set(ids)) == 20
        with pytest.raises(LimitExceeded, match=r"offset: offset \+ limit must be at most \d\d,"):
            _pages(store, _search(limit=5), 9)
    finally:
        store.close()
        double.stop()

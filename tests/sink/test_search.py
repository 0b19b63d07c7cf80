"""Hybrid search returns the same hits as an exact computation in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedder.vectors import SparseVector
from qdrant_sink.points import PointId, Vectors
from qdrant_sink.searching import Search, SearchOptions, run
from qdrant_sink.searching.plan import Branch, Fuse, Nearest, Plan
from qdrant_sink.searching.planning import TIE_MARGIN_HITS, first_page_plan, tier_plan
from qdrant_sink.store import Store
from tests.sink.samples import WIDE, WIDE_SIZE, Reference, draft, ranked, rrf, sample_vectors, search_by
from tests.sink.stores import STORES, drop, opened
from tests.sink.writing import write

COLLECTION = "test_search"
POINTS = 120
VECTORS: dict[PointId, Vectors] = {i: sample_vectors(i, size=WIDE_SIZE) for i in range(POINTS)}
REFERENCE = Reference(VECTORS)
QUERIES = [sample_vectors(seed, size=WIDE_SIZE) for seed in range(1000, 1010)]
TOLERANCE = 1e-6
"""Maximum error of a score: the reference rounds to float16 as the stores do."""


@pytest.fixture(scope="module", params=STORES)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each kind of store, filled with the same points."""
    with opened(request.param, tmp_path_factory.mktemp(request.param)) as store:
        store.ensure(COLLECTION, WIDE)
        drafts = [draft(i, vectors=VECTORS[i]) for i in range(POINTS)]
        assert write(store, COLLECTION, drafts, WIDE).stored == POINTS
        yield store
    if request.param == "server":
        drop(COLLECTION)


def _search(query: Vectors, **fields: Any) -> Search:
    return search_by(dense=query.dense, sparse=query.sparse, colbert=query.colbert, **fields)


def _dense(query: Vectors) -> dict[PointId, float]:
    assert query.dense is not None
    return REFERENCE.dense(query.dense)


def _sparse(query: Vectors) -> dict[PointId, float]:
    assert query.sparse is not None
    return REFERENCE.sparse(query.sparse)


def _colbert(query: Vectors) -> dict[PointId, float]:
    assert query.colbert is not None
    return REFERENCE.colbert(query.colbert)


BRANCHES = {"dense": _dense, "sparse": _sparse, "colbert": _colbert}


def _assert_hits(hits: list[Any], expected: dict[PointId, float], limit: int, *, tolerance: float = TOLERANCE) -> None:
    """Assert equal scores in the same order, and equal ids except for scores that tie within the tolerance."""
    best = ranked(expected, limit)
    assert [hit.score for hit in hits] == pytest.approx([expected[i] for i in best], abs=tolerance)
    for hit in hits:
        assert hit.score == pytest.approx(expected[hit.id], abs=tolerance)


@pytest.mark.parametrize("kind", list(BRANCHES))
def test_one_branch_is_an_exact_ranking(filled: Store, kind: Any) -> None:
    """A single branch ranks by the exact cosine, inner product or MaxSim."""
    answers = run(filled, COLLECTION, [_search(query, using=(kind,), limit=10) for query in QUERIES])
    for query, hits in zip(QUERIES, answers, strict=True):
        _assert_hits(hits, BRANCHES[kind](query), 10)


@pytest.mark.parametrize(
    ("k", "weights", "using"),
    [
        (60, None, ("dense", "sparse")),
        (2, None, ("sparse", "dense")),
        (60, (3.0, 1.0), ("dense", "sparse")),
        (1, (0.5, 2.0), ("dense", "sparse")),
        (10, (1.0, 2.0, 4.0), ("dense", "sparse", "colbert")),
    ],
)
def test_rrf_k_is_that_of_the_literature(filled: Store, k: int, weights: Any, using: Any) -> None:
    """With rrf_k=60, as in the paper, a first rank scores 1/61. A weight divides the rank."""
    for query in QUERIES:
        [hits] = run(filled, COLLECTION, [_search(query, using=using, rrf_k=k, weights=weights, prefetch=60, limit=60)])
        branches = [ranked(BRANCHES[kind](query), 60) for kind in using]
        _assert_hits(hits, rrf(branches, k, weights or (1.0,) * len(using)), 60)


def test_dbsf_adds_scaled_scores(filled: Store) -> None:
    """The scores of a branch are scaled to the mean ± 3 standard deviations of its candidates, and summed."""
    query = QUERIES[0]
    [hits] = run(filled, COLLECTION, [_search(query, fusion="dbsf", prefetch=40, limit=40)])
    expected: dict[PointId, float] = {}
    for kind in ("dense", "sparse"):
        scores = BRANCHES[kind](query)
        kept = {i: scores[i] for i in ranked(scores, 40)}
        mean, deviation = np.mean(list(kept.values())), np.std(list(kept.values()), ddof=1)
        low, high = mean - 3 * deviation, mean + 3 * deviation
        for i, score in kept.items():
            expected[i] = expected.get(i, 0.0) + float((score - low) / (high - low))
    _assert_hits(hits, expected, 40, tolerance=1e-4)


def test_reranking_sees_the_union_of_all_branches(filled: Store) -> None:
    """MaxSim ranks all candidates of all branches; fusion does not cut them before."""
    for query in QUERIES:
        [hits] = run(filled, COLLECTION, [_search(query, rerank="colbert", prefetch=20, limit=20)])
        union = set(ranked(_dense(query), 20)) | set(ranked(_sparse(query), 20))
        assert len(union) > 20
        _assert_hits(hits, {i: score for i, score in _colbert(query).items() if i in union}, 20)


def test_a_repeated_search_returns_the_same_hits(filled: Store) -> None:
    """Fused scores tie often. Tied points are always ordered by their ids."""
    for limit in (5, 6, 7):
        search = _search(QUERIES[1], limit=limit)
        answers = {tuple(hit.id for hit in run(filled, COLLECTION, [search])[0]) for _ in range(10)}
        assert len(answers) == 1


def test_a_filter_applies_to_every_branch(filled: Store) -> None:
    """Candidates are filtered in every branch, so that a narrow filter still fills the page."""
    where = {"must": [{"key": "parity", "match": {"value": 1}}]}
    for more in ({}, {"rerank": "colbert"}, {"using": ("dense",)}):
        fields: dict[str, Any] = more
        [hits] = run(filled, COLLECTION, [_search(QUERIES[2], limit=30, prefetch=30, where=where, **fields)])
        assert len(hits) == 30
        assert {hit.payload["parity"] for hit in hits if hit.payload} == {1}


def test_the_threshold_applies_to_the_final_score(filled: Store) -> None:
    """Hits with a lower final score are left out, whichever stage computes it."""
    query = QUERIES[3]
    expected = _dense(query)
    [hits] = run(
        filled, COLLECTION, [_search(query, using=("dense",), limit=100, score_threshold=0.3, exact=True, hnsw_ef=50)]
    )
    assert len(hits) == sum(score >= 0.3 for score in expected.values())
    best = max(_colbert(query).values())
    [few] = run(filled, COLLECTION, [_search(query, rerank="colbert", prefetch=100, score_threshold=best - 0.01)])
    assert len(few) == 1


def test_a_query_without_weights_is_answered(filled: Store) -> None:
    """The sparse branch of an empty text returns nothing, and the other branches answer."""
    empty = SparseVector(np.empty(0, np.uint32), np.empty(0, np.float32))
    query = replace(QUERIES[4], sparse=empty)
    alone, hybrid, dense, reranked = run(
        filled,
        COLLECTION,
        [
            _search(query, using=("sparse",)),
            _search(query, weights=(2.0, 1.0)),
            _search(query, using=("dense",)),
            _search(query, using=("sparse",), rerank="colbert"),
        ],
    )
    assert alone == []
    assert reranked == []
    assert [hit.id for hit in hybrid] == [hit.id for hit in dense]
    assert hybrid[0].score == pytest.approx(1 / (60 + 1 / 2)), "fused scores keep their scale"
    assert run(filled, COLLECTION, [_search(query, using=("sparse",))]) == [[]]


def test_hits_contain_the_requested_parts(filled: Store) -> None:
    """Payload and vectors are returned unchanged if they are requested, and otherwise left out."""
    query = VECTORS[7]
    bare, full = run(
        filled,
        COLLECTION,
        [
            _search(query, limit=1, with_payload=False),
            _search(query, limit=1, with_vectors=("dense", "sparse", "colbert")),
        ],
    )
    assert (bare[0].payload, bare[0].vectors) == (None, None)
    assert full[0].payload == {"text": "text 7", "parity": 1, "even": False}
    vectors = full[0].vectors
    assert vectors is not None
    assert vectors.dense == pytest.approx(query.dense, abs=1e-6)
    assert vectors.colbert == pytest.approx(query.colbert, abs=1e-3)
    assert vectors.sparse is not None
    assert query.sparse is not None
    assert vectors.sparse.indices.tolist() == query.sparse.indices.tolist()
    assert vectors.sparse.values == pytest.approx(query.sparse.values)


def test_the_plan_states_the_stages() -> None:
    """A plan contains the branches with their limits and the last stage."""
    query = QUERIES[0]
    fused = first_page_plan(_search(query, limit=80, offset=40, weights=(2.0, 1.0)), 120)
    assert isinstance(fused, Plan)
    assert fused.query == Fuse("rrf", k=61, weights=(2.0, 1.0))
    assert [(b.query.kind, b.limit) for b in fused.branches] == [("dense", 120), ("sparse", 120)]
    assert (fused.limit, fused.offset) == (80 + TIE_MARGIN_HITS, 0)
    reranked = first_page_plan(_search(query, rerank="colbert"), 100)
    assert isinstance(reranked, Plan)
    assert isinstance(reranked.query, Nearest)
    assert reranked.query.kind == "colbert"
    assert all(isinstance(branch, Branch) and branch.limit == 100 for branch in reranked.branches)
    whole = tier_plan(_search(query, limit=80, offset=40), 120)
    assert isinstance(whole, Plan)
    assert (whole.limit, whole.with_payload, whole.with_vectors) == (240, False, ())
    single = first_page_plan(_search(query, using=("sparse",)), 100)
    assert isinstance(single, Plan)
    assert (single.query.kind if isinstance(single.query, Nearest) else None, single.branches) == (
        "sparse",
        (),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"using": ("dense", "dense")},
        {"using": ("dense", "sparse"), "weights": (1.0,)},
        {"weights": (1.0, 0.0)},
        {"weights": (1.0, float("nan"))},
        {"weights": (1.0, 1.0), "fusion": "dbsf"},
        {"limit": 0},
        {"offset": -1},
        {"offset": 100_001},
        {"prefetch": 0},
        {"rrf_k": 0},
    ],
)
def test_contradictory_options_are_refused(fields: dict[str, Any]) -> None:
    """Options that contradict each other or are out of range raise ValueError."""
    with pytest.raises(ValueError, match=r"using|weights|limit|offset"):
        SearchOptions(**fields)

"""Distance functions: scores, their direction, thresholds, pages, fusion and explanations are those of numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest

from embedder.errors import InvalidRequest
from embedder.vectors import Kind
from qdrant_sink.conformance import Refusal, conform
from qdrant_sink.errors import SchemaMismatch
from qdrant_sink.points import Point, PointId, Vectors
from qdrant_sink.schema import CollectionSchema, Distance
from qdrant_sink.searching import Search, SearchOptions, conform_query, explain, recommend, run
from qdrant_sink.searching.recommend import query_vectors
from qdrant_sink.store import Store
from tests.sink.samples import (
    COLBERT,
    DENSE,
    SPARSE,
    Reference,
    draft,
    ranked,
    rrf,
    sample_vectors,
    search_by,
    spoilt,
)
from tests.sink.writing import write

DENSE_ONLY: tuple[Kind, ...] = ("dense",)
DISTANCES: tuple[Distance, ...] = ("dot", "euclid", "manhattan")
POINTS = 60
KNOWN = 2e-6
"""Maximum relative difference between a score of numpy and of a store, which computes in float32."""


def schema_of(distance: Distance) -> CollectionSchema:
    """Return the schema of all three kinds with this distance of dense vectors."""
    return CollectionSchema(replace(DENSE, distance=distance), SPARSE, COLBERT)


def vectors_of(seed: int) -> Vectors:
    """Return sample vectors whose dense vector has a norm of 0.5 to 2."""
    vectors = sample_vectors(seed)
    assert vectors.dense is not None
    return replace(vectors, dense=vectors.dense * np.float32(np.random.default_rng(seed).uniform(0.5, 2)))


VECTORS: Mapping[PointId, Vectors] = {n: vectors_of(n) for n in range(POINTS)}


@dataclass(frozen=True)
class Filled:
    """A collection with `POINTS` points."""

    store: Store
    collection: str
    schema: CollectionSchema
    reference: Reference
    ascending: bool

    def search(self, seed: int, **options: object) -> Search:
        """Return a search by sample vectors."""
        query = vectors_of(seed)
        return search_by(query.dense, query.sparse, query.colbert, schema=self.schema, **options)

    def best(self, search: Search) -> tuple[list[PointId], dict[PointId, float]]:
        """Return the ranking of the dense branch by the reference, and its scores."""
        assert search.vectors.dense is not None
        scores = self.reference.dense(search.vectors.dense)
        return ranked(scores, ascending=self.ascending), scores


@pytest.fixture(params=DISTANCES)
def filled(request: pytest.FixtureRequest, store: Store, collection: str) -> Filled:
    """A collection with each distance."""
    schema = schema_of(request.param)
    store.ensure(collection, schema)
    store.ensure(collection, schema)
    payloads = [{"text": f"text {n}", "even": n % 2 == 0, "doc": n // 4} for n in range(POINTS)]
    drafts = [draft(n, vectors=VECTORS[n], payload=payloads[n]) for n in range(POINTS)]
    assert write(store, collection, drafts, schema).stored == POINTS
    reference = Reference(VECTORS, distance=request.param)
    return Filled(store, collection, schema, reference, ascending=request.param != "dot")


def test_the_nearest_points_come_first(filled: Filled) -> None:
    """Scores and order are those of the distance function, with a filter as well, and all pages are one ranking."""
    even = {"must": [{"key": "even", "match": {"value": True}}]}
    for seed in range(1000, 1004):
        search = filled.search(seed, using=("dense",), limit=7, prefetch=7)
        best, scores = filled.best(search)
        pages = run(filled.store, filled.collection, [search.with_options(offset=offset) for offset in range(0, 70, 7)])
        hits = [hit for page in pages for hit in page]
        assert [hit.id for hit in hits] == best
        assert [hit.score for hit in hits] == pytest.approx([scores[n] for n in best], rel=KNOWN, abs=KNOWN)
        [filtered] = run(filled.store, filled.collection, [search.with_options(where=even)])
        assert [hit.id for hit in filtered] == [n for n in best if isinstance(n, int) and n % 2 == 0][:7]


def test_a_threshold_cuts_the_worse_scores(filled: Filled) -> None:
    """A threshold is a minimum, or a maximum where scores are distances, on every page and for groups."""
    for seed in range(1000, 1004):
        search = filled.search(seed, using=("dense",), limit=5, prefetch=5)
        best, scores = filled.best(search)
        threshold = (scores[best[11]] + scores[best[12]]) / 2
        cut = search.with_options(score_threshold=threshold)
        pages = run(filled.store, filled.collection, [cut.with_options(offset=offset) for offset in range(0, 20, 5)])
        assert [[hit.id for hit in page] for page in pages] == [best[:5], best[5:10], best[10:12], []]


def test_groups_are_ranked_by_their_nearest_point(filled: Filled) -> None:
    """The best hit of each document comes first, and documents are in the order of these hits."""
    search = filled.search(1000, using=("dense",), limit=6, group_by="doc", prefetch=5)
    best, _ = filled.best(search)
    firsts = list({int(n) // 4: n for n in reversed(best) if isinstance(n, int)}.values())[::-1]
    [hits] = run(filled.store, filled.collection, [search])
    assert [hit.id for hit in hits] == sorted(firsts, key=best.index)[:6]


def test_fusion_by_rank_and_reranking_are_as_for_other_distances(filled: Filled) -> None:
    """RRF takes the ranks of the nearest points, explanations add up, and MaxSim reranks the candidates."""
    for seed in range(1000, 1004):
        search = filled.search(seed, limit=POINTS, prefetch=POINTS)
        best, scores = filled.best(search)
        assert search.vectors.sparse is not None
        assert search.vectors.colbert is not None
        expected = rrf([best, ranked(filled.reference.sparse(search.vectors.sparse))], 60, (1.0, 1.0))
        reranked = search.with_options(rerank="colbert")
        fused, by_rows = explain(filled.store, filled.collection, [search, reranked], text_key="text")
        assert {hit.id: pytest.approx(hit.score, abs=1e-6) for hit in fused.hits} == expected
        for hit, why in zip(fused.hits, fused.explanations, strict=True):
            rank = why.branches["dense"]
            assert rank is not None
            assert rank.rank == best.index(hit.id) + 1
            assert rank.score == pytest.approx(scores[hit.id], abs=1e-5)
            assert why.fusion is not None
        maxsim = [hit.known_score for hit in by_rows.hits]
        assert maxsim == sorted(maxsim, reverse=True)
        assert maxsim[0] == pytest.approx(max(filled.reference.colbert(search.vectors.colbert).values()), rel=1e-2)


def test_points_like_a_point_are_the_nearest_ones(filled: Filled) -> None:
    """A search by a stored point finds its neighbours by the distance function."""
    query, where = recommend(
        filled.store,
        filled.collection,
        [3],
        [],
        scope=filled.collection,
        kinds=DENSE_ONLY,
        where=None,
        field="like",
        schema=filled.schema,
    )
    search = conform_query(query, SearchOptions(using=("dense",), where=where, limit=5), filled.schema)
    assert isinstance(search, Search)
    best, _ = filled.best(replace(search, vectors=VECTORS[3]))
    [hits] = run(filled.store, filled.collection, [search])
    assert [hit.id for hit in hits] == [n for n in best if n != 3][:5]


def test_a_collection_with_another_distance_is_refused(filled: Filled) -> None:
    """The distance is always verified."""
    with pytest.raises(SchemaMismatch, match=r"dense\.distance is .*, wanted cosine"):
        filled.store.verify(filled.collection, schema_of("cosine"))


@pytest.mark.parametrize("distance", ["euclid", "manhattan"])
def test_distances_are_not_fused_by_score(distance: Distance) -> None:
    """DBSF would put the farthest points first, so that it is refused where it would fuse distances, and only there.

    A reranked search fuses too: the order of its points without rows.
    """
    for fused in (SearchOptions(fusion="dbsf"), SearchOptions(fusion="dbsf", rerank="colbert")):
        with pytest.raises(InvalidRequest, match=f"^fusion must be 'rrf' .* \\({distance}\\), got 'dbsf'$") as caught:
            conform_query(sample_vectors(1), fused, schema_of(distance))
        assert [error.field for error in caught.value.fields] == ["fusion"]
    alone = SearchOptions(using=("dense",), fusion="dbsf")
    others = SearchOptions(using=("sparse", "colbert"), fusion="dbsf")
    for options in (alone, others):
        assert isinstance(conform_query(sample_vectors(1), options, schema_of(distance)), Search)


@pytest.mark.parametrize("distance", DISTANCES)
def test_only_the_cosine_needs_a_direction(distance: Distance) -> None:
    """A vector of zeros has a place by every distance but the cosine; one that overflows has none."""
    zero = spoilt(1, dense=np.zeros(DENSE.size, np.float32))
    assert isinstance(conform(zero, schema_of(distance)), Point)
    assert isinstance(conform(zero, schema_of("cosine")), Refusal)
    opposite = [Vectors(zero.vectors.dense), Vectors(zero.vectors.dense)]
    assert not np.any(query_vectors(opposite, [], DENSE_ONLY, field="like", distance=distance).dense)
    assert isinstance(conform(spoilt(1, dense=np.full(DENSE.size, 1e30, np.float32)), schema_of(distance)), Refusal)

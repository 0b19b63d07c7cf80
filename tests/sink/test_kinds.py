"""Collections with fewer than three kinds of vectors: they are created, written, searched and explained as such."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from embedder.errors import InvalidRequest
from embedder.vectors import KINDS, Kind
from qdrant_sink.conformance import Refusal, conform
from qdrant_sink.errors import SchemaMismatch
from qdrant_sink.points import PointId, Vectors
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.searching import Search, SearchOptions, conform_query, explain, recommend, run, with_branches
from qdrant_sink.store import Store
from tests.sink.samples import COLBERT, DENSE, SCHEMA, SPARSE, Reference, draft, ranked, rrf, sample_vectors
from tests.sink.writing import write

SUBSETS = [subset for count in (1, 2) for subset in combinations(KINDS, count)]
POINTS = 30


def schema_of(kinds: tuple[Kind, ...]) -> CollectionSchema:
    """Return the schema of a collection with these kinds."""
    return CollectionSchema(
        DENSE if "dense" in kinds else None,
        SPARSE if "sparse" in kinds else None,
        COLBERT if "colbert" in kinds else None,
    )


def search_of(seed: int, schema: CollectionSchema, **options: object) -> Search:
    """Return the search by sample vectors of the kinds that the options need."""
    chosen = with_branches(SearchOptions(**options), schema)  # type: ignore[arg-type]
    search = conform_query(sample_vectors(seed, kinds=chosen.kinds), chosen, schema)
    assert isinstance(search, Search)
    return search


def scores_of(reference: Reference, query: Vectors, kind: Kind) -> dict[PointId, float]:
    """Return the reference's scores of one branch."""
    vector = getattr(query, kind)
    scores: dict[PointId, float] = getattr(reference, kind)(vector)
    return scores


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
def test_a_collection_may_have_any_of_the_kinds(store: Store, collection: str, kinds: tuple[Kind, ...]) -> None:
    """Points with these kinds are stored, found by the default branches, explained, recommended and indexed."""
    schema = schema_of(kinds)
    store.ensure(collection, schema)
    store.ensure(collection, schema)
    assert store.verify(collection, schema)
    store.defer_index(collection, schema)
    vectors: dict[PointId, Vectors] = {n: sample_vectors(n, kinds=kinds) for n in range(POINTS)}
    drafts = [draft(n, vectors=vector) for n, vector in enumerate(vectors.values())]
    assert write(store, collection, drafts, schema).stored == POINTS
    store.restore_index(collection, schema)
    store.build_index(collection, schema, timeout_s=60)

    reference = Reference(vectors)
    default = tuple(kind for kind in kinds if kind != "colbert") or kinds
    for seed in range(1000, 1003):
        search = search_of(seed, schema, limit=POINTS, with_vectors=KINDS)
        assert search.options.using == default
        branches = [scores_of(reference, search.vectors, kind) for kind in default]
        expected = branches[0] if len(branches) == 1 else rrf(list(map(ranked, branches)), 60, (1.0,) * len(branches))
        [result] = explain(store, collection, [search], text_key="text")
        assert len(result.hits) == min(POINTS, len(expected))
        for hit, why in zip(result.hits, result.explanations, strict=True):
            assert hit.score == pytest.approx(expected[hit.id], abs=2e-3 if default == ("colbert",) else 1e-5)
            assert hit.vectors is not None
            assert tuple(kind for kind in KINDS if getattr(hit.vectors, kind) is not None) == kinds
            assert tuple(why.branches) == default

    query, where = recommend(
        store, collection, [3], [], scope=collection, kinds=default, where=None, field="like", schema=schema
    )
    like = conform_query(query, SearchOptions(where=where), schema)
    assert isinstance(like, Search)
    assert 3 not in [hit.id for hit in run(store, collection, [like])[0]]


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
def test_an_existing_collection_needs_only_the_kinds_of_the_schema(
    store: Store, collection: str, kinds: tuple[Kind, ...]
) -> None:
    """A collection with all three kinds is used with fewer, and keeps its other vectors; the reverse is refused."""
    store.ensure(collection, SCHEMA)
    schema = schema_of(kinds)
    assert store.verify(collection, schema)
    assert write(store, collection, [draft(1, vectors=sample_vectors(1, kinds=kinds))], schema).stored == 1
    assert [hit.id for hit in run(store, collection, [search_of(1, schema)])[0]] == [1]
    other = f"{collection}_other"
    store.ensure(other, schema)
    missing = [kind for kind in KINDS if kind not in kinds]
    with pytest.raises(SchemaMismatch, match=f"{missing[0]} is absent, wanted") as caught:
        store.verify(other, SCHEMA)
    assert [difference.field for difference in caught.value.differences] == missing


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        (SearchOptions(using=("dense", "colbert")), "using[1]", "(dense, sparse), got 'colbert'"),
        (SearchOptions(rerank="colbert"), "rerank", "(dense, sparse), got 'colbert'"),
        (SearchOptions(weights=(1.0,)), "weights", "must have one item per branch (dense, sparse), got 1"),
    ],
)
def test_a_search_for_a_missing_kind_names_those_of_the_collection(
    options: SearchOptions, field: str, message: str
) -> None:
    """The error names the field, the kinds that the collection has, and the value."""
    with pytest.raises(InvalidRequest) as caught:
        conform_query(sample_vectors(1), options, schema_of(("dense", "sparse")))
    assert [error.field for error in caught.value.fields] == [field]
    assert caught.value.message.startswith(f"{field} must ")
    assert message in caught.value.message


def test_a_point_with_a_missing_kind_is_refused() -> None:
    """A vector that the collection has no place for is not dropped in silence."""
    refusal = conform(draft(1), schema_of(("dense", "sparse")))
    assert refusal == Refusal("invalid_vector", "colbert: must be a kind of the collection (dense, sparse)")


def test_a_schema_has_a_vector() -> None:
    """A collection without vectors is refused where it is described."""
    with pytest.raises(ValueError, match="at least one of dense, sparse and colbert"):
        CollectionSchema()
    with pytest.raises(ValueError, match="at least one of dense, sparse and colbert"):
        replace(schema_of(("dense",)), dense=None)

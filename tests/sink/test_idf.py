"""Collections with the IDF modifier on sparse vectors: scores by numpy, and what explanations claim."""

from __future__ import annotations

import pytest

from qdrant_sink.errors import SchemaMismatch
from qdrant_sink.points import PointId, Vectors
from qdrant_sink.schema import CollectionSchema, SparseSchema
from qdrant_sink.searching import explain
from qdrant_sink.store import Store
from tests.sink.samples import DENSE, Reference, draft, sample_vectors, search_by
from tests.sink.writing import write

TOLERANCE = 1e-5
"""Maximum relative difference from the score of the store."""


def test_weights_by_idf_are_no_contributions(store: Store, collection: str) -> None:
    """Scores are weighted by IDF, which only the store knows. Tokens and their weights are listed without a sum."""
    schema = CollectionSchema(DENSE, SparseSchema(modifier="idf"))
    store.ensure(collection, schema)
    store.ensure(collection, schema)
    kinds = ("dense", "sparse")
    vectors: dict[PointId, Vectors] = {n: sample_vectors(n, kinds=kinds) for n in range(40)}
    drafts = [draft(n, vectors=vector) for n, vector in enumerate(vectors.values())]
    assert write(store, collection, drafts, schema).stored == 40
    reference = Reference(vectors)
    for seed in range(1000, 1005):
        query = sample_vectors(seed, kinds=kinds)
        assert query.dense is not None
        assert query.sparse is not None
        plain, expected = reference.sparse(query.sparse), reference.sparse(query.sparse, idf=True)
        search = search_by(query.dense, query.sparse, schema=schema, limit=40)
        alone = search.with_options(using=("sparse",))
        fused, sparse = explain(store, collection, [search, alone], text_key="text")
        assert {hit.id: pytest.approx(hit.score, rel=1e-5) for hit in sparse.hits} == expected
        for hit, why in zip(sparse.hits, sparse.explanations, strict=True):
            assert why.sparse is not None
            products = [match.query * match.passage for match in why.sparse]
            assert products == sorted(products, reverse=True)
            assert sum(products) == pytest.approx(plain[hit.id], rel=TOLERANCE)
            assert {match.contribution for match in why.sparse} == {None}
        assert all(why.fusion is not None for why in fused.explanations)
    with pytest.raises(SchemaMismatch, match=r"sparse\.modifier is idf, wanted none"):
        store.verify(collection, CollectionSchema(DENSE, SparseSchema()))

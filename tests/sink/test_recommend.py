"""Search by stored points, with a query that is computed from the stored vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embedder.errors import InvalidRequest, NotFound
from embedder.vectors import KINDS, Kind, SparseVector
from qdrant_sink.points import PayloadKeys, PointId, Stored, Vectors, point_id
from qdrant_sink.searching import recommend
from qdrant_sink.searching.recommend import excluding, query_vectors
from qdrant_sink.store import Store
from tests.sink.samples import SCHEMA, draft, sample_vectors, unit
from tests.sink.writing import write


def _sparse(**weights: float) -> SparseVector:
    """Create a sparse vector: `_sparse(i3=0.5)` has index 3 with weight 0.5."""
    pairs = sorted((int(name[1:]), weight) for name, weight in weights.items())
    return SparseVector(np.array([i for i, _ in pairs], np.uint32), np.array([w for _, w in pairs], np.float32))


DENSE: tuple[Kind, ...] = ("dense",)
SPARSE: tuple[Kind, ...] = ("sparse",)
COLBERT: tuple[Kind, ...] = ("colbert",)


def _weights(sparse: SparseVector | None) -> dict[int, float]:
    assert sparse is not None
    return dict(zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True))


def test_one_example_is_the_query_itself() -> None:
    """The query of a single example has the vectors of the point."""
    sample = sample_vectors(5)
    query = query_vectors([Vectors(sample.dense, sample.sparse, sample.colbert)], [], KINDS, field="like")
    assert query.dense == pytest.approx(sample.dense)
    assert sample.sparse is not None
    assert _weights(query.sparse) == pytest.approx(_weights(sample.sparse))
    assert query.colbert == pytest.approx(sample.colbert)


def test_dense_examples_are_averaged() -> None:
    """The query is the mean of the positive, or twice this mean minus the mean of the negative, as in Qdrant."""
    a, b, c = (unit(np.random.default_rng(n).normal(size=8)) for n in range(3))
    positive = [Vectors(a), Vectors(b), Vectors(None)]
    assert query_vectors(positive, [], DENSE, field="like").dense == pytest.approx((a + b) / 2)
    assert query_vectors(positive, [Vectors(c)], DENSE, field="like").dense == pytest.approx(a + b - c)


def test_sparse_weights_at_or_below_zero_are_left_out() -> None:
    """Weights are averaged like dense vectors, and results at or below zero are left out."""
    positive = [Vectors(sparse=_sparse(i1=1.0, i2=0.4)), Vectors(sparse=_sparse(i1=0.5)), Vectors()]
    assert _weights(query_vectors(positive, [], SPARSE, field="like").sparse) == pytest.approx({1: 0.5, 2: 0.4 / 3})
    negative = [Vectors(sparse=_sparse(i1=0.2, i2=0.9, i7=1.0))]
    assert _weights(query_vectors(positive, negative, SPARSE, field="like").sparse) == pytest.approx({1: 0.8})
    assert query_vectors([Vectors()], negative, SPARSE, field="like").sparse is None


def test_rows_of_all_examples_count() -> None:
    """The query has the ColBERT rows of all positive examples."""
    rows = [unit(np.random.default_rng(n).normal(size=(n + 1, 8))) for n in range(2)]
    query = query_vectors([Vectors(colbert=matrix) for matrix in rows], [], COLBERT, field="like")
    assert query.colbert == pytest.approx(np.concatenate(rows))


@pytest.mark.parametrize(
    ("positive", "negative", "kind", "message"),
    [
        (
            [Vectors(unit(np.ones(8)))],
            [Vectors(unit(np.ones(8)) * 2)],
            "dense",
            r"^like: .*cancel .*: the norm of 2 \* mean\(positive\) - mean\(negative\) must be at least 0\.001, got 0$",
        ),
        (
            [Vectors(unit(np.ones(8))), Vectors(-unit(np.ones(8)))],
            [],
            "dense",
            r"^like: .*cancel .*: the norm of mean\(positive\) must be at least 0\.001, got 0$",
        ),
        ([Vectors()], [], "dense", r"^like\.positive: .* dense"),
        ([Vectors()], [], "colbert", r"^like\.positive: .* colbert"),
        ([Vectors()], [Vectors()], "colbert", r"^like\.negative: must be empty .* got 1"),
        ([Vectors(colbert=np.ones((512, 1024), np.float32))] * 2, [], "colbert", r"at most 1023 .* got 1024"),
    ],
)
def test_invalid_examples_are_refused(
    positive: list[Vectors], negative: list[Vectors], kind: Any, message: str
) -> None:
    """The message states the examples, the limit and the actual value."""
    with pytest.raises(InvalidRequest, match=message):
        query_vectors(positive, negative, (kind,), field="like")


def test_examples_are_excluded_in_addition_to_the_filter() -> None:
    """The caller's conditions of any form are kept."""
    same = {"key": "a", "match": {"value": 1}}
    assert excluding(None, [3]) == {"must_not": [{"has_id": [3]}]}
    assert excluding({"must": [same]}, [3]) == {"must": [same], "must_not": [{"has_id": [3]}]}
    assert excluding({"must_not": same}, [3]) == {"must_not": [same, {"has_id": [3]}]}


def test_stored_points_are_read_unchanged(store: Store, collection: str) -> None:
    """Vectors are returned up to rounding, with the requested part of the payload. Missing points are left out."""
    store.ensure(collection, SCHEMA)
    payload = {"a": 1, "b": {"c": 2, "d": 3}}
    drafts = [draft(0, payload=payload), draft(1, payload={}, vectors=sample_vectors(1, kinds=["sparse"]))]
    assert write(store, collection, drafts, SCHEMA).stored == 2
    points = store.fetch(collection, [0, 1, 2], True, ("dense", "sparse", "colbert"))
    assert {i: point.payload for i, point in points.items()} == {0: payload, 1: {}}
    vectors, bare = points[0].vectors, points[1].vectors
    assert vectors is not None
    assert bare is not None
    assert vectors.dense == pytest.approx(sample_vectors(0).dense, abs=1e-6)
    assert vectors.colbert == pytest.approx(sample_vectors(0).colbert, abs=1e-3)
    assert (bare.dense, bare.colbert) == (None, None)
    assert _weights(bare.sparse) == pytest.approx(_weights(sample_vectors(1).sparse))

    def part(*keys: str, excluded: bool = False) -> Any:
        return store.fetch(collection, [0], PayloadKeys(keys, excluded), ())[0].payload

    assert part("a", "b.c", "no") == {"a": 1, "b": {"c": 2}}
    assert part("b.c", excluded=True) == {"a": 1, "b": {"d": 3}}
    assert part("no") == {}
    assert store.fetch(collection, [0], False, ())[0].payload is None
    assert store.fetch(collection, [], True, ()) == {}


def test_examples_are_given_by_the_ids_of_the_caller(store: Store, collection: str) -> None:
    """Ids are derived in their scope, the query has the stored vectors, and the filter excludes the examples."""
    store.ensure(collection, SCHEMA)
    derived = point_id("a", "scope")
    drafts = [draft(0), draft(1), draft(2, id=derived)]
    assert write(store, collection, drafts, SCHEMA).stored == 3
    vectors, where = recommend(
        store,
        collection,
        [0, "a"],
        [1],
        scope="scope",
        kinds=("dense", "sparse"),
        where=None,
        field="like",
        schema=SCHEMA,
    )
    first, negative, other = (np.asarray(example.vectors.dense) for example in drafts)
    assert vectors.dense == pytest.approx(first + other - negative, abs=1e-6)
    assert vectors.colbert is None
    assert where == {"must_not": [{"has_id": [0, str(derived), 1]}]}


def test_missing_examples_are_reported() -> None:
    """The error has the fields of the missing examples in the message, and their ids as values."""
    with pytest.raises(
        NotFound, match=r"^like\.positive\[1\], like\.negative\[0\]: not found in collection 'docs'$"
    ) as caught:
        recommend(
            Points({7: Vectors(unit(np.ones(8)))}),
            "docs",
            [7, "b"],
            [8],
            scope="s",
            kinds=DENSE,
            where=None,
            field="like",
            schema=SCHEMA,
        )
    assert (caught.value.collection, caught.value.ids) == ("docs", ("b", 8))


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ([7], [7], r"^more\.negative\[0\]: must not be the same point as more\.positive\[0\]$"),
        ([7, -1], [], r"^more\.positive\[1\]: an integer id must be 0 to"),
        ([7], [""], r"^more\.negative\[0\]: must have at least 1 character"),
    ],
)
def test_invalid_ids_are_refused(positive: list[Any], negative: list[Any], message: str) -> None:
    """The message contains the path of the field in the request."""
    with pytest.raises(InvalidRequest, match=message):
        recommend(
            Points({}), "docs", positive, negative, scope="s", kinds=DENSE, where=None, field="more", schema=SCHEMA
        )


class Points:
    """A store of vectors by id."""

    def __init__(self, vectors: dict[PointId, Vectors]) -> None:
        self._vectors = vectors

    def fetch(
        self, _collection: str, ids: Sequence[PointId], _payload: Any, _kinds: Any, **_names: Any
    ) -> dict[PointId, Stored]:
        """See `Store.fetch`."""
        return {i: Stored(vectors=self._vectors[i]) for i in ids if i in self._vectors}

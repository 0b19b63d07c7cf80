"""Search by stored points: the same query on every store, computed from the stored vectors."""

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
    """`_sparse(i3=0.5)`: index 3 with weight 0.5."""
    pairs = sorted((int(name[1:]), weight) for name, weight in weights.items())
    return SparseVector(np.array([i for i, _ in pairs], np.uint32), np.array([w for _, w in pairs], np.float32))


DENSE: tuple[Kind, ...] = ("dense",)
SPARSE: tuple[Kind, ...] = ("sparse",)
COLBERT: tuple[Kind, ...] = ("colbert",)


def _weights(sparse: SparseVector | None) -> dict[int, float]:
    assert sparse is not None
    return dict(zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True))


def test_one_example_is_the_query_itself() -> None:
    """Nothing is averaged away: the vectors are those of the point."""
    one = sample_vectors(5)
    found = query_vectors([Vectors(one.dense, one.sparse, one.colbert)], [], KINDS, field="like")
    assert found.dense == pytest.approx(one.dense)
    assert one.sparse is not None
    assert _weights(found.sparse) == pytest.approx(_weights(one.sparse))
    assert found.colbert == pytest.approx(one.colbert)


def test_dense_examples_are_averaged_and_drawn_away() -> None:
    """The mean of the positive; with negative ones, twice that less the mean of the negative, as Qdrant recommends."""
    a, b, c = (unit(np.random.default_rng(n).normal(size=8)) for n in range(3))
    liked = [Vectors(a), Vectors(b), Vectors(None)]
    assert query_vectors(liked, [], DENSE, field="like").dense == pytest.approx((a + b) / 2)
    assert query_vectors(liked, [Vectors(c)], DENSE, field="like").dense == pytest.approx(a + b - c)


def test_sparse_examples_never_credit_what_is_unwanted() -> None:
    """Weights are averaged, and what comes out at or below zero is left out rather than ranked."""
    liked = [Vectors(sparse=_sparse(i1=1.0, i2=0.4)), Vectors(sparse=_sparse(i1=0.5)), Vectors()]
    assert _weights(query_vectors(liked, [], SPARSE, field="like").sparse) == pytest.approx({1: 0.5, 2: 0.4 / 3})
    unlike = [Vectors(sparse=_sparse(i1=0.2, i2=0.9, i7=1.0))]
    assert _weights(query_vectors(liked, unlike, SPARSE, field="like").sparse) == pytest.approx({1: 0.8})
    assert query_vectors([Vectors()], unlike, SPARSE, field="like").sparse is None


def test_rows_of_all_examples_count() -> None:
    """MaxSim sums over the rows of every positive example; it knows none that are negative."""
    rows = [unit(np.random.default_rng(n).normal(size=(n + 1, 8))) for n in range(2)]
    found = query_vectors([Vectors(colbert=one) for one in rows], [], COLBERT, field="like")
    assert found.colbert == pytest.approx(np.concatenate(rows))


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
def test_examples_without_a_meaning_are_refused(
    positive: list[Vectors], negative: list[Vectors], kind: Any, message: str
) -> None:
    """The message says which examples, the limit and what was found."""
    with pytest.raises(InvalidRequest, match=message):
        query_vectors(positive, negative, (kind,), field="like")


def test_examples_are_left_out_beside_the_filter() -> None:
    """Whatever form the caller's condition has, it holds as before."""
    same = {"key": "a", "match": {"value": 1}}
    assert excluding(None, [3]) == {"must_not": [{"has_id": [3]}]}
    assert excluding({"must": [same]}, [3]) == {"must": [same], "must_not": [{"has_id": [3]}]}
    assert excluding({"must_not": same}, [3]) == {"must_not": [same, {"has_id": [3]}]}


def test_stored_points_are_read_as_they_were_stored(store: Store, collection: str) -> None:
    """Vectors to rounding, payloads or the asked part of them; a point that is not there is left out."""
    store.ensure(collection, SCHEMA)
    payload = {"a": 1, "b": {"c": 2, "d": 3}}
    drafts = [draft(0, payload=payload), draft(1, payload={}, vectors=sample_vectors(1, kinds=["sparse"]))]
    assert write(store, collection, drafts, SCHEMA).stored == 2
    found = store.fetch(collection, [0, 1, 2], True, ("dense", "sparse", "colbert"))
    assert {i: one.payload for i, one in found.items()} == {0: payload, 1: {}}
    vectors, bare = found[0].vectors, found[1].vectors
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


def test_examples_are_named_by_their_callers_ids(store: Store, collection: str) -> None:
    """Ids are read in their scope, the query is made of the stored vectors, and the filter leaves the examples out."""
    store.ensure(collection, SCHEMA)
    derived = point_id("a", "scope")
    drafts = [draft(0), draft(1), draft(2, id=derived)]
    assert write(store, collection, drafts, SCHEMA).stored == 3
    vectors, where = recommend(
        store, collection, [0, "a"], [1], scope="scope", kinds=("dense", "sparse"), where=None, field="like"
    )
    liked, unlike, other = (np.asarray(one.vectors.dense) for one in drafts)
    assert vectors.dense == pytest.approx(liked + other - unlike, abs=1e-6)
    assert vectors.colbert is None
    assert where == {"must_not": [{"has_id": [0, str(derived), 1]}]}


def test_examples_that_are_missing_are_named() -> None:
    """The error says which fields, and as values which ids, as their caller gave them."""
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
def test_ids_that_cannot_be_meant_are_refused(positive: list[Any], negative: list[Any], message: str) -> None:
    """The message names the field, whatever the request calls it."""
    with pytest.raises(InvalidRequest, match=message):
        recommend(Points({}), "docs", positive, negative, scope="s", kinds=DENSE, where=None, field="more")


class Points:
    """Vectors by id, to read."""

    def __init__(self, vectors: dict[PointId, Vectors]) -> None:
        self._vectors = vectors

    def fetch(self, _collection: str, ids: Sequence[PointId], _payload: Any, _kinds: Any) -> dict[PointId, Stored]:
        """See `Store.fetch`."""
        return {i: Stored(vectors=self._vectors[i]) for i in ids if i in self._vectors}

"""Hits by document: the best groups, a few hits of each, however long one document is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embedder.vectors import SparseVector
from qdrant_sink.points import Point, PointId, Stored
from qdrant_sink.searching import Hit, Search, run
from qdrant_sink.searching.plan import Plan
from qdrant_sink.searching.run import BATCH_MAX_NUMBERS, DEPTH_MAX
from qdrant_sink.store import Store
from tests.sink.samples import SCHEMA, search_by, unit

SPARSE = SparseVector(np.array([3], np.uint32), np.array([1.0], np.float32))
DENSE = unit(np.ones(8))


class Ranked:
    """A store that has one ranking for every query, and notes what it is asked: candidates per branch, by batch."""

    def __init__(self, keys: Sequence[Any], scores: Sequence[float] | None = None) -> None:
        self.hits = [
            Hit(n, -n if scores is None else scores[n], {"doc": {"id": key}} if key is not None else {})
            for n, key in enumerate(keys)
        ]
        self.asked: list[list[int]] = []
        self.fetched: list[list[PointId]] = []

    def query(self, _collection: str, plans: Sequence[Plan]) -> list[list[Hit]]:
        """The first of the ranking."""
        depths = [plan.branches[0].limit if plan.branches else plan.limit for plan in plans]
        self.asked.append(depths)
        answers = []
        for plan, depth in zip(plans, depths, strict=True):
            hits = sorted(self.hits[:depth], key=lambda hit: -hit.score)[: plan.limit]
            least = plan.score_threshold
            answers.append([hit for hit in hits if least is None or hit.score >= least])
        return answers

    def fetch(self, _collection: str, ids: Sequence[PointId], payload: Any, kinds: Any) -> dict[PointId, Stored]:
        """All but point 1, which was deleted meanwhile."""
        self.fetched.append(list(ids))
        return {i: Stored({"of": i}) for i in ids if i != 1}

    def search(self, *searches: Search) -> list[list[Hit]]:
        """The answers."""
        return run(self, "docs", searches)


def _search(**fields: Any) -> Search:
    defaults: dict[str, Any] = {"group_by": "doc.id", "prefetch": 4, "limit": 3, "with_payload": False}
    return search_by(dense=DENSE, sparse=SPARSE, using=("dense",), **{**defaults, **fields})


def _found(hits: Sequence[Hit]) -> list[tuple[Any, PointId]]:
    return [(hit.group, hit.id) for hit in hits]


def test_a_long_document_does_not_hide_the_others() -> None:
    """A document that fills the first candidates does not fill the page: the search looks deeper."""
    store = Ranked(["long"] * 30 + ["b"] * 10 + ["c", "d"])
    assert _found(store.search(_search())[0]) == [("long", 0), ("b", 30), ("c", 40)]
    assert store.asked == [[4], [16], [64]]


def test_what_is_there_is_enough_where_there_is_no_more() -> None:
    """A store with fewer groups than wanted is not asked for ever, nor one that has nothing."""
    store = Ranked(["a"] * 9 + ["b"])
    assert _found(store.search(_search())[0]) == [("a", 0), ("b", 9)]
    assert store.asked == [[4], [16]]
    assert Ranked([]).search(_search()) == [[]]


def test_the_search_ends_on_an_endless_document() -> None:
    """After `DEPTH_MAX` candidates it answers with the groups that it has."""
    store = Ranked(["a"] * (DEPTH_MAX + 5) + ["b"])
    assert _found(store.search(_search())[0]) == [("a", 0)]
    assert store.asked[-1] == [DEPTH_MAX]
    assert Ranked(["a"] * 20_002 + ["b"]).search(_search(prefetch=30_000))[0][1].group == "b"


def test_only_searches_that_lack_groups_are_asked_again() -> None:
    """One batch asks for all searches of a job, and a deeper one for those alone that need it."""
    store = Ranked(["a"] * 6 + ["b", "c", "d"])
    plain, few, many = store.search(_search(group_by=None), _search(limit=1), _search(limit=4))
    assert store.asked == [[3, 4, 4], [16]]
    assert [hit.id for hit in plain] == [0, 1, 2]
    assert (_found(few), _found(many)) == ([("a", 0)], [("a", 0), ("b", 6), ("c", 7), ("d", 8)])


def test_a_group_has_so_many_hits_and_no_more() -> None:
    """`group_size` hits of each group, the page best first; offset and limit count groups."""
    store = Ranked(["a", "b", "a", "a", "c", "b", "d", "d"])
    [hits] = store.search(_search(limit=2, offset=1, group_size=2, prefetch=8))
    assert _found(hits) == [("b", 1), ("c", 4), ("b", 5)]


def test_points_without_a_key_stand_for_themselves() -> None:
    """A text that is no chunk is a document of its own; the number 1 and the word "1" are two documents."""
    store = Ranked([None, 1, "1", None, [1], 1.5, True, 1])
    [hits] = store.search(_search(limit=20))
    assert _found(hits) == [(None, 0), (1, 1), ("1", 2), (None, 3), (None, 4), (None, 5), (None, 6)]


@pytest.mark.parametrize(("rerank", "deep"), [("colbert", True), (None, False)])
def test_a_threshold_hides_no_group(rerank: Any, deep: bool) -> None:
    """What reranking puts below the threshold does not end the search: a deeper candidate may be above.

    Of a lone branch nothing deeper can be.
    """
    keys = ["a", "b", "c", "d", *"efghijkl"]
    scores = [0.1] * 4 + [0.9] + [0.1] * 7 if deep else [1 - n / 100 for n in range(12)]
    store = Ranked(keys, scores)
    [hits] = store.search(_search(score_threshold=0.5 if deep else 0.985, rerank=rerank, limit=2, **_rows(rerank)))
    assert _found(hits) == ([("e", 4)] if deep else [("a", 0), ("b", 1)])
    assert store.asked == ([[4], [16]] if deep else [[4]])


def test_what_hits_carry_is_read_once_at_the_end() -> None:
    """Rounds carry keys alone. A point that was deleted meanwhile is no hit."""
    store = Ranked(["a", "b", "a", "c"])
    [hits, other] = store.search(_search(with_payload=True), _search(with_payload=True, limit=1))
    assert [(hit.id, hit.payload) for hit in hits] == [(0, {"of": 0}), (3, {"of": 3})]
    assert [hit.payload for hit in other] == [{"of": 0}]
    assert store.fetched == [[0, 1, 3]]
    assert store.search(_search())[0][0].payload is None
    assert len(store.fetched) == 1


def test_large_queries_are_asked_in_turn() -> None:
    """However many rows the queries of a job have, no request to a store has more than a server takes."""
    store = Ranked(["a", "b"])
    small, large = _search(group_by=None), _search(group_by=None, rerank="colbert", colbert=np.ones((500, 1024)))
    together = BATCH_MAX_NUMBERS // (500 * 1024)
    assert together == 2
    searches = [small] * 100 + [large] * 5
    assert [len(hits) for hits in store.search(*searches)] == [2] * 105
    assert [len(depths) for depths in store.asked] == [102, 2, 1]
    alone = _search(group_by=None, rerank="colbert", colbert=np.ones((1023, 1025)))
    assert [len(hits) for hits in store.search(alone, alone)] == [2, 2]
    assert [len(depths) for depths in store.asked[3:]] == [1, 1]


def _rows(rerank: str | None) -> dict[str, Any]:
    return {"colbert": unit(np.ones((1, 8)))} if rerank else {}


def test_every_store_finds_past_a_long_document(store: Store, collection: str) -> None:
    """A document of 600 chunks is nearest to the query; the two others are found all the same, with their payload."""
    rng = np.random.default_rng(0)
    near = unit(np.ones(8) + rng.normal(scale=0.01, size=(600, 8)))
    far = unit(np.ones(8) + rng.normal(scale=0.5, size=(2, 8)))
    store.ensure(collection, SCHEMA)
    points = [Point(n, {"doc": {"id": "long"}, "n": n}, dense=vector) for n, vector in enumerate(near)]
    points += [Point(600 + n, {"doc": {"id": n}, "n": n}, dense=vector) for n, vector in enumerate(far)]
    store.upsert(collection, points)
    search = search_by(dense=DENSE, using=("dense",), limit=3, group_by="doc.id", with_vectors=("dense",))
    [hits] = run(store, collection, [search])
    assert {hit.group for hit in hits} == {"long", 0, 1}
    assert hits[0].id == int(np.argmax(near @ DENSE))
    for hit in hits:
        assert hit.payload == {"doc": {"id": hit.group}, "n": hit.payload["n"] if hit.payload else None}
        assert hit.vectors is not None
        assert hit.vectors.dense == pytest.approx([*near, *far][int(hit.id)], abs=1e-6)

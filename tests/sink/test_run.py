"""Grouped searches return the best groups with a few hits each, however long a document is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embedder.vectors import SparseVector
from qdrant_sink.points import Point, PointId, Stored
from qdrant_sink.searching import Hit, Search, run
from qdrant_sink.searching.plan import Lacking, Plan
from qdrant_sink.searching.run import BATCH_MAX_NUMBERS, DEPTH_MAX
from qdrant_sink.store import Store
from tests.sink.samples import SCHEMA, search_by, unit

SPARSE = SparseVector(np.array([3], np.uint32), np.array([1.0], np.float32))
DENSE = unit(np.ones(8))


class RankedStore:
    """A store with a fixed ranking, which records the candidates per branch of every plan, by batch."""

    def __init__(self, keys: Sequence[Any], scores: Sequence[float] | None = None) -> None:
        self.hits = [
            Hit(n, -n if scores is None else scores[n], {"doc": {"id": key}} if key is not None else {})
            for n, key in enumerate(keys)
        ]
        self.depths_by_batch: list[list[int]] = []
        self.fetched: list[list[PointId]] = []

    def query(self, _collection: str, plans: Sequence[Plan]) -> list[list[Hit]]:
        """Return the first hits of the ranking."""
        depths = [plan.branches[0].limit if plan.branches else plan.limit for plan in plans]
        self.depths_by_batch.append(depths)
        answers: list[list[Hit]] = []
        for plan, depth in zip(plans, depths, strict=True):
            if isinstance(plan.query, Lacking):  # every point has rows
                answers.append([])
                continue
            hits = sorted(self.hits[:depth], key=lambda hit: -hit.known_score)[: plan.limit]
            threshold = plan.score_threshold
            answers.append([hit for hit in hits if threshold is None or hit.known_score >= threshold])
        return answers

    def fetch(
        self, _collection: str, ids: Sequence[PointId], payload: Any, kinds: Any, **_names: Any
    ) -> dict[PointId, Stored]:
        """Return all points except for point 1, as if it had been deleted in between."""
        self.fetched.append(list(ids))
        return {i: Stored({"of": i}) for i in ids if i != 1}

    def search(self, *searches: Search) -> list[list[Hit]]:
        """Run the searches."""
        return run(self, "docs", searches)


def _search(**fields: Any) -> Search:
    defaults: dict[str, Any] = {"group_by": "doc.id", "prefetch": 4, "limit": 3, "with_payload": False}
    return search_by(dense=DENSE, sparse=SPARSE, using=("dense",), **{**defaults, **fields})


def _groups_and_ids(hits: Sequence[Hit]) -> list[tuple[Any, PointId]]:
    return [(hit.group, hit.id) for hit in hits]


def test_a_long_document_does_not_hide_the_others() -> None:
    """If one document fills the first candidates, the search goes deeper until it has enough groups."""
    store = RankedStore(["long"] * 30 + ["b"] * 10 + ["c", "d"])
    assert _groups_and_ids(store.search(_search())[0]) == [("long", 0), ("b", 30), ("c", 40)]
    assert store.depths_by_batch == [[4], [16], [64]]


def test_the_search_ends_if_the_store_has_no_more_points() -> None:
    """A store with too few groups, or without points, is not searched forever."""
    store = RankedStore(["a"] * 9 + ["b"])
    assert _groups_and_ids(store.search(_search())[0]) == [("a", 0), ("b", 9)]
    assert store.depths_by_batch == [[4], [16]]
    assert RankedStore([]).search(_search()) == [[]]


def test_the_search_ends_on_an_endless_document() -> None:
    """At the depth `DEPTH_MAX` the search returns the groups that it has."""
    store = RankedStore(["a"] * (DEPTH_MAX + 5) + ["b"])
    assert _groups_and_ids(store.search(_search())[0]) == [("a", 0)]
    assert store.depths_by_batch[-1] == [DEPTH_MAX]
    assert RankedStore(["a"] * 20_002 + ["b"]).search(_search(prefetch=30_000))[0][1].group == "b"


def test_only_searches_that_lack_groups_are_repeated() -> None:
    """One batch contains all searches of a job, and the next one only those that must go deeper."""
    store = RankedStore(["a"] * 6 + ["b", "c", "d"])
    plain, few, many = store.search(_search(group_by=None), _search(limit=1), _search(limit=4))
    assert store.depths_by_batch == [[3, 4, 4], [16]]
    assert [hit.id for hit in plain] == [0, 1, 2]
    assert (_groups_and_ids(few), _groups_and_ids(many)) == ([("a", 0)], [("a", 0), ("b", 6), ("c", 7), ("d", 8)])


def test_the_size_of_a_group_is_limited() -> None:
    """A page has at most `group_size` hits per group, best first. Offset and limit count groups."""
    store = RankedStore(["a", "b", "a", "a", "c", "b", "d", "d"])
    [hits] = store.search(_search(limit=2, offset=1, group_size=2, prefetch=8))
    assert _groups_and_ids(hits) == [("b", 1), ("c", 4), ("b", 5)]


def test_points_without_a_group_key_are_groups_of_their_own() -> None:
    """A point without a string or an integer is a group of its own. 1 and "1" are two groups."""
    store = RankedStore([None, 1, "1", None, [1], 1.5, True, 1])
    [hits] = store.search(_search(limit=20))
    assert _groups_and_ids(hits) == [(None, 0), (1, 1), ("1", 2), (None, 3), (None, 4), (None, 5), (None, 6)]


@pytest.mark.parametrize(("rerank", "deep"), [("colbert", True), (None, False)])
def test_a_threshold_hides_no_group(rerank: Any, deep: bool) -> None:
    """Hits that reranking scores below the threshold do not end the search: a deeper candidate may score higher.

    With a single branch, deeper candidates cannot score higher.
    """
    keys = ["a", "b", "c", "d", *"efghijkl"]
    scores = [0.1] * 4 + [0.9] + [0.1] * 7 if deep else [1 - n / 100 for n in range(12)]
    store = RankedStore(keys, scores)
    [hits] = store.search(_search(score_threshold=0.5 if deep else 0.985, rerank=rerank, limit=2, **_rows(rerank)))
    assert _groups_and_ids(hits) == ([("e", 4)] if deep else [("a", 0), ("b", 1)])
    assert store.depths_by_batch == ([[4, 4], [16, 16]] if deep else [[4]])


def test_payloads_of_grouped_hits_are_fetched_once_at_the_end() -> None:
    """Rounds request only group keys. A point that was deleted in between is left out."""
    store = RankedStore(["a", "b", "a", "c"])
    [hits, other] = store.search(_search(with_payload=True), _search(with_payload=True, limit=1))
    assert [(hit.id, hit.payload) for hit in hits] == [(0, {"of": 0}), (3, {"of": 3})]
    assert [hit.payload for hit in other] == [{"of": 0}]
    assert store.fetched == [[0, 1, 3]]
    assert store.search(_search())[0][0].payload is None
    assert len(store.fetched) == 1


def test_large_queries_are_sent_in_several_batches() -> None:
    """Query vectors with many rows are split into batches that a server accepts."""
    store = RankedStore(["a", "b"])
    small, large = _search(group_by=None), _search(group_by=None, rerank="colbert", colbert=np.ones((500, 1024)))
    together = BATCH_MAX_NUMBERS // (500 * 1024)
    assert together == 2
    searches = [small] * 100 + [large] * 5
    assert [len(hits) for hits in store.search(*searches)] == [2] * 105
    assert [len(depths) for depths in store.depths_by_batch] == [104, 4, 2]
    alone = _search(group_by=None, rerank="colbert", colbert=np.ones((1023, 1025)))
    assert [len(hits) for hits in store.search(alone, alone)] == [2, 2]
    assert [len(depths) for depths in store.depths_by_batch[3:]] == [1, 1, 1, 1]


def _rows(rerank: str | None) -> dict[str, Any]:
    return {"colbert": unit(np.ones((1, 8)))} if rerank else {}


def test_every_store_returns_groups_beyond_a_long_document(store: Store, collection: str) -> None:
    """If a document of 600 chunks is nearest to the query, the two others are returned too, with their payloads."""
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

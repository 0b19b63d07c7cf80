"""Run searches on a store: plans in batches, pages, and rounds that look deeper for hits by document.

A search by document (`group_by`) ranks candidates as the same search without groups would, and then keeps the best of
each group. While fewer groups than wanted are among them and the store has more, the next round looks four times as
deep in every branch, up to `DEPTH_MAX`. Qdrant has a request of its own for groups, which the embedded engine lacks
and which gives up after a few rounds on long documents; this one is the same over every store.

Rounds carry only the group's key of each payload. What the hits are to carry is fetched at the end.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np

from embedder.vectors import Kind
from qdrant_sink.points import PayloadKeys, PointId, Stored, WithPayload
from qdrant_sink.searching.plan import Branch, Fuse, Hit, Nearest, Plan, Traversal
from qdrant_sink.searching.query import Search

DEPTH_MAX: Final = 10_000
"""Candidates per branch beyond which no round looks for more groups, unless the search itself asks for more."""

DEPTH_FACTOR: Final = 4
"""Depth of a round in terms of the round before."""

BATCH_MAX_HITS: Final = 50_000
"""Hits in one batch of a deeper round, which may exceed it by those of one search."""

BATCH_MAX_NUMBERS: Final = 2**20
"""Numbers in the query vectors of one batch: 4 MB over gRPC; 21 MB as JSON, of which a server accepts 32; 32 MB as a
client's lists. A query of 20 tokens with ColBERT rows of 1024 has 21 504.
"""

TIE_MARGIN: Final = 8
"""Hits requested beyond a fused page. Ranks tie by construction, in groups of at most the permutations of three
branches, and Qdrant orders equal scores anew at every request; with the whole group, the page is cut at the same
point each time.
"""


class Searchable(Protocol):
    """The part of a store that searches need; see `Store`."""

    def query(self, collection: str, plans: Sequence[Plan], /) -> list[list[Hit]]:
        """The hits of each plan."""
        ...

    def fetch(
        self, collection: str, ids: Sequence[PointId], with_payload: WithPayload, with_vectors: Sequence[Kind], /
    ) -> dict[PointId, Stored]:
        """The parts of these points, by id; missing points are left out."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Round:
    """A search at a depth: candidates per branch. A store that returns fewer hits has no more."""

    search: Search
    depth: int
    plan: Plan


def run(store: Searchable, collection: str, searches: Sequence[Search]) -> list[list[Hit]]:
    """The hits of every search, best first; equal scores by ascending id.

    One batch asks for all searches, unless their vectors together have more than `BATCH_MAX_NUMBERS`. A search that can
    match nothing (sparse alone, without weights) is not asked at all.

    Args:
        store: that has the collection.
        collection: its name, or an alias.
        searches: as `conform_query` proves them.

    Raises:
        WorkerError: see the table of `qdrant_sink.store`.
    """
    answers: list[list[Hit]] = [[] for _ in searches]
    depths = {index: search.options.depth for index, search in enumerate(searches)}
    deeper = False
    while depths:
        rounds = {
            index: _Round(searches[index], depth, plan)
            for index, depth in depths.items()
            if (plan := plan_of(searches[index], depth)) is not None
        }
        plans = [asked.plan for asked in rounds.values()]
        hits = [hits for batch in _batches(plans, deeper=deeper) for hits in store.query(collection, batch)]
        depths = {}
        for (index, asked), candidates in zip(rounds.items(), hits, strict=True):
            if asked.search.options.group_by is None:
                answers[index] = _page(asked, candidates)
            else:
                answers[index] = grouped(asked.search, candidates)
                depth = _next_depth(asked, candidates)
                if depth is not None:
                    depths[index] = depth
        deeper = True
    return _completed(store, collection, searches, answers)


def plan_of(search: Search, depth: int) -> Plan | None:
    """The stages that answer `search`, or None where no branch can contribute (sparse without weights).

    A grouped search asks for all candidates, and only for the group's key of their payload.

    Args:
        search: as `conform_query` proves it.
        depth: candidates per branch.

    Raises:
        ValueError: a dense or colbert branch, or the reranking, has no query vector.
    """
    options = search.options
    weights = options.weights or (1.0,) * len(options.using)
    active: list[tuple[Branch, float]] = []
    for kind, weight in zip(options.using, weights, strict=True):
        nearest = _nearest(search, kind)
        if nearest is not None:
            active.append((Branch(nearest, depth), weight))
    if not active:
        return None
    branches = tuple(branch for branch, _ in active)
    limit, offset = options.limit, options.offset
    query: Nearest | Fuse
    if options.rerank:
        reranking = _nearest(search, options.rerank)
        if reranking is None:
            raise ValueError("rerank: the query has no colbert vector")
        query = reranking
    elif len(options.using) == 1:  # a lone branch left of several is fused all the same: scores keep their scale
        query, branches = branches[0].query, ()
    else:
        weighted = None if options.weights is None else tuple(weight for _, weight in active)
        query = Fuse(options.fusion, options.rrf_k + 1, weighted)
        limit, offset = limit + offset + TIE_MARGIN, 0
    threshold, payload, vectors = options.score_threshold, options.with_payload, options.with_vectors
    if options.group_by is not None:
        limit, offset = depth * max(len(branches), 1), 0
        payload, vectors = PayloadKeys((options.group_by,)), ()
        threshold = None if branches else threshold  # hits that it cuts would look like a store without more
    return Plan(
        query,
        branches,
        limit,
        offset,
        score_threshold=threshold,
        with_payload=payload,
        with_vectors=vectors,
        where=options.where,
        traversal=Traversal(options.hnsw_ef, options.exact, options.indexed_only),
    )


def _nearest(search: Search, kind: Kind) -> Nearest | None:
    if kind == "sparse":
        sparse = search.vectors.sparse
        return None if sparse is None or not len(sparse.indices) else Nearest("sparse", sparse)
    vector = search.vectors.dense if kind == "dense" else search.vectors.colbert
    if vector is None:
        raise ValueError(f"using: {kind} is a branch and the query has no {kind} vector")
    return Nearest(kind, vector, search.options.rescoring if kind in search.quantized else None)


def _batches(plans: Sequence[Plan], *, deeper: bool) -> Iterator[list[Plan]]:
    """Batches of at most `BATCH_MAX_NUMBERS`, or of one plan; in deeper rounds of about `BATCH_MAX_HITS` too."""
    batch: list[Plan] = []
    numbers = hits = 0
    for plan in plans:
        if batch and (numbers + plan.numbers > BATCH_MAX_NUMBERS or (deeper and hits >= BATCH_MAX_HITS)):
            yield batch
            batch, numbers, hits = [], 0, 0
        batch.append(plan)
        numbers += plan.numbers
        hits += plan.limit
    if batch:
        yield batch


def _page(asked: _Round, hits: Sequence[Hit]) -> list[Hit]:
    """The page of the search, from the hits of its plan."""
    skip = asked.search.options.offset - asked.plan.offset
    return _best_first(hits)[skip : skip + asked.search.options.limit]


def grouped(search: Search, hits: Sequence[Hit]) -> list[Hit]:
    """At most `group_size` hits of each of the `limit` best groups after the first `offset`, best first.

    A group ranks by its best hit.

    Args:
        search: with `group_by`.
        hits: of its plan, in any order, with the key in their payload.
    """
    options = search.options
    groups = _groups(search, hits)[options.offset : options.offset + options.limit]
    return _best_first([hit for group in groups for hit in group[: options.group_size]])


def _groups(search: Search, hits: Sequence[Hit]) -> list[list[Hit]]:
    """All groups, best first, and so their hits."""
    groups: dict[object, list[Hit]] = {}
    for hit in _best_first(_above_threshold(search, hits)):
        value = group_of(hit, search.options.group_by or "")
        key = ("its own", hit.id) if value is None else (type(value), value)  # 1 and "1" are two groups
        groups.setdefault(key, []).append(replace(hit, group=value))
    return list(groups.values())


def _next_depth(asked: _Round, hits: Sequence[Hit]) -> int | None:
    """Depth of the next round; None where there are enough groups, no more points, or the depth is at its limit.

    A store that returns fewer hits than one branch may have has returned everything.
    """
    if len(hits) < asked.depth or asked.depth >= DEPTH_MAX:
        return None
    wanted = asked.search.options.offset + asked.search.options.limit
    if len(_groups(asked.search, hits)) >= wanted:
        return None
    return min(asked.depth * DEPTH_FACTOR, DEPTH_MAX)


def group_of(hit: Hit, path: str) -> str | int | None:
    """The string or integer at `path` of the payload; None for any other value."""
    value: Any = hit.payload
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if type(value) in (str, int) else None


def _above_threshold(search: Search, hits: Sequence[Hit]) -> Sequence[Hit]:
    if search.options.score_threshold is None:
        return hits
    threshold = float(np.float32(search.options.score_threshold))  # as a store compares
    return [hit for hit in hits if hit.score >= threshold]


def _best_first(hits: Sequence[Hit]) -> list[Hit]:
    """Hits by falling score, equal scores by ascending id: numbers before UUIDs."""
    return sorted(hits, key=_order)


def _order(hit: Hit) -> tuple[float, bool, int]:
    by_uuid = isinstance(hit.id, uuid.UUID)
    return -hit.score, by_uuid, hit.id.int if isinstance(hit.id, uuid.UUID) else hit.id


def _completed(
    store: Searchable, collection: str, searches: Sequence[Search], answers: list[list[Hit]]
) -> list[list[Hit]]:
    """The answers with the payloads and vectors of grouped hits; points that were deleted meanwhile are left out."""
    wanted: dict[tuple[WithPayload, tuple[Kind, ...]], dict[PointId, None]] = {}
    for search, hits in zip(searches, answers, strict=True):
        if search.options.group_by is not None and hits:
            wanted.setdefault(_carried(search), {}).update(dict.fromkeys(hit.id for hit in hits))
    stored = {
        parts: store.fetch(collection, list(ids), *parts) if parts != (False, ()) else dict.fromkeys(ids, Stored())
        for parts, ids in wanted.items()
    }
    return [
        hits if search.options.group_by is None or not hits else _carrying(hits, stored[_carried(search)])
        for search, hits in zip(searches, answers, strict=True)
    ]


def _carried(search: Search) -> tuple[WithPayload, tuple[Kind, ...]]:
    return search.options.with_payload, search.options.with_vectors


def _carrying(hits: Sequence[Hit], stored: Mapping[PointId, Stored]) -> list[Hit]:
    return [
        replace(hit, payload=stored[hit.id].payload, vectors=stored[hit.id].vectors) for hit in hits if hit.id in stored
    ]

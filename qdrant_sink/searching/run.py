"""Run searches on a store: batches of plans, pages, and deeper rounds for grouped searches.

A grouped search (`group_by`) ranks candidates as the same search without groups, and keeps the best hits of each group.
While it has too few groups and the store has more points, the next round searches every branch four times as deep, up
to `DEPTH_MAX`. Qdrant's own request for groups is not used: the embedded engine does not have it, and it stops after a
few rounds on long documents. The algorithm of this module works the same on every store.

Rounds request only the group key of each payload. The payloads and vectors of the final hits are fetched at the end.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from embedder.vectors import Kind
from qdrant_sink.payload_path import PayloadPath
from qdrant_sink.points import PayloadKeys, PointId, Stored, WithPayload
from qdrant_sink.searching.plan import Branch, Fuse, Hit, Nearest, Plan, Traversal
from qdrant_sink.searching.query import Search

DEPTH_MAX: Final = 10_000
"""Maximum number of candidates per branch in a deeper round, unless the search itself requests more."""

DEPTH_FACTOR: Final = 4
"""Factor from the depth of a round to the depth of the next one."""

BATCH_MAX_HITS: Final = 50_000
"""Maximum number of hits in one batch of a deeper round. The last search of the batch may exceed it."""

BATCH_MAX_NUMBERS: Final = 2**20
"""Maximum number of components of the query vectors in one batch. They take 4 MB over gRPC, 21 MB as JSON (a server
accepts 32 MB) and 32 MB as Python lists. A query of 20 tokens with ColBERT rows of 1024 components has 21 504.
"""

TIE_MARGIN_HITS: Final = 8
"""Number of hits that are requested beyond a fused page, so that the page is reproducible.

Points whose ranks in the branches are permutations of each other have the same score: at most six points with three
branches. Qdrant orders equal scores arbitrarily in every request, so that all of these points must be requested.
"""


class Searchable(Protocol):
    """The part of `Store` that searches use."""

    def query(self, collection: str, plans: Sequence[Plan], /) -> list[list[Hit]]:
        """Return the hits of each plan."""
        ...

    def fetch(
        self, collection: str, ids: Sequence[PointId], with_payload: WithPayload, with_vectors: Sequence[Kind], /
    ) -> dict[PointId, Stored]:
        """Return the requested parts of these points by id. Missing points are left out."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Round:
    """A search with its depth (the number of candidates per branch) and its plan."""

    search: Search
    depth: int
    plan: Plan


def run(store: Searchable, collection: str, searches: Sequence[Search]) -> list[list[Hit]]:
    """Return the hits of every search, best first, with equal scores in the order of their ids.

    All searches are sent in one batch, unless their vectors together exceed `BATCH_MAX_NUMBERS`. A search that cannot
    match anything (only sparse, without weights) is not sent.

    Args:
        store: store of the collection.
        collection: name of the collection, or an alias.
        searches: searches that `conform_query` returned.

    Raises:
        WorkerError: see the table in `qdrant_sink.store`.
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
        plans = [search_round.plan for search_round in rounds.values()]
        hits = [hits for batch in _batches(plans, deeper=deeper) for hits in store.query(collection, batch)]
        depths = {}
        for (index, search_round), candidates in zip(rounds.items(), hits, strict=True):
            if search_round.search.options.group_by is None:
                answers[index] = _page(search_round, candidates)
            else:
                answers[index] = grouped(search_round.search, candidates)
                depth = _next_depth(search_round, candidates)
                if depth is not None:
                    depths[index] = depth
        deeper = True
    return _with_requested_parts(store, collection, searches, answers)


def plan_of(search: Search, depth: int) -> Plan | None:
    """Create the plan of a search; None if no branch can contribute (sparse without weights).

    For a grouped search, the plan requests all candidates and only the group key of their payload.

    Args:
        search: search that `conform_query` returned.
        depth: number of candidates per branch.

    Raises:
        ValueError: the query vector of a dense or colbert branch, or of the reranking, is missing.
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
            raise ValueError("rerank: the search needs a colbert vector of the query, got none")
        query = reranking
    elif len(options.using) == 1:  # the last of several branches is still fused, so that scores keep their scale
        query, branches = branches[0].query, ()
    else:
        weighted = None if options.weights is None else tuple(weight for _, weight in active)
        query = Fuse(options.fusion, options.rrf_k + 1, weighted)
        limit, offset = limit + offset + TIE_MARGIN_HITS, 0
    threshold, payload, vectors = options.score_threshold, options.with_payload, options.with_vectors
    if options.group_by is not None:
        limit, offset = depth * max(len(branches), 1), 0
        payload, vectors = PayloadKeys((options.group_by,)), ()
        threshold = None if branches else threshold  # it would make the answer short, like the end of the collection
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
        raise ValueError(f"using: the search needs a {kind} vector of the query, got none")
    return Nearest(kind, vector, search.options.rescoring if kind in search.quantized else None)


def _batches(plans: Sequence[Plan], *, deeper: bool) -> Iterator[list[Plan]]:
    """Yield batches of at most `BATCH_MAX_NUMBERS`, or of one plan. Deeper rounds also respect `BATCH_MAX_HITS`."""
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


def _page(search_round: _Round, hits: Sequence[Hit]) -> list[Hit]:
    """Cut the page of the search out of the hits of its plan."""
    skip = search_round.search.options.offset - search_round.plan.offset
    return _sorted_hits(hits)[skip : skip + search_round.search.options.limit]


def grouped(search: Search, hits: Sequence[Hit]) -> list[Hit]:
    """Return the hits of the page of a grouped search, best first.

    Groups are ranked by their best hit. The first `offset` groups are skipped; of the next `limit` groups, at most
    `group_size` hits each are returned.

    Args:
        search: search with `group_by`.
        hits: hits of its plan in any order, with the group key in their payload.
    """
    options = search.options
    groups = _groups(search, hits)[options.offset : options.offset + options.limit]
    return _sorted_hits([hit for group in groups for hit in group[: options.group_size]])


def _groups(search: Search, hits: Sequence[Hit]) -> list[list[Hit]]:
    """Return all groups, best first, each with its hits, best first."""
    groups: dict[object, list[Hit]] = {}
    for hit in _sorted_hits(_above_threshold(search, hits)):
        value = group_of(hit, search.options.group_by or "")
        key = ("its own", hit.id) if value is None else (type(value), value)  # 1 and "1" are two groups
        groups.setdefault(key, []).append(replace(hit, group=value))
    return list(groups.values())


def _next_depth(search_round: _Round, hits: Sequence[Hit]) -> int | None:
    """Return the depth of the next round; None if the groups suffice, the points or the depth are exhausted.

    A store that returns fewer hits than the depth of one branch has no more points.
    """
    if len(hits) < search_round.depth or search_round.depth >= DEPTH_MAX:
        return None
    wanted = search_round.search.options.offset + search_round.search.options.limit
    if len(_groups(search_round.search, hits)) >= wanted:
        return None
    return min(search_round.depth * DEPTH_FACTOR, DEPTH_MAX)


def group_of(hit: Hit, path: str) -> str | int | None:
    """Return the string or integer at a path of the payload; None for any other value."""
    value = PayloadPath.parse(path).value_in(hit.payload)
    return value if type(value) in (str, int) else None


def _above_threshold(search: Search, hits: Sequence[Hit]) -> Sequence[Hit]:
    if search.options.score_threshold is None:
        return hits
    threshold = float(np.float32(search.options.score_threshold))  # stores compare in float32
    return [hit for hit in hits if hit.score >= threshold]


def _sorted_hits(hits: Sequence[Hit]) -> list[Hit]:
    """Sort hits by descending score, and equal scores by ascending id, integers before UUIDs."""
    return sorted(hits, key=_sort_key)


def _sort_key(hit: Hit) -> tuple[float, bool, int]:
    by_uuid = isinstance(hit.id, uuid.UUID)
    return -hit.score, by_uuid, hit.id.int if isinstance(hit.id, uuid.UUID) else hit.id


def _with_requested_parts(
    store: Searchable, collection: str, searches: Sequence[Search], answers: list[list[Hit]]
) -> list[list[Hit]]:
    """Add the payloads and vectors of grouped hits. Points that were deleted in between are left out."""
    wanted: dict[tuple[WithPayload, tuple[Kind, ...]], dict[PointId, None]] = {}
    for search, hits in zip(searches, answers, strict=True):
        if search.options.group_by is not None and hits:
            wanted.setdefault(_requested_parts(search), {}).update(dict.fromkeys(hit.id for hit in hits))
    stored = {
        parts: store.fetch(collection, list(ids), *parts) if parts != (False, ()) else dict.fromkeys(ids, Stored())
        for parts, ids in wanted.items()
    }
    return [
        hits if search.options.group_by is None or not hits else _with_parts(hits, stored[_requested_parts(search)])
        for search, hits in zip(searches, answers, strict=True)
    ]


def _requested_parts(search: Search) -> tuple[WithPayload, tuple[Kind, ...]]:
    return search.options.with_payload, search.options.with_vectors


def _with_parts(hits: Sequence[Hit], stored: Mapping[PointId, Stored]) -> list[Hit]:
    return [
        replace(hit, payload=stored[hit.id].payload, vectors=stored[hit.id].vectors) for hit in hits if hit.id in stored
    ]

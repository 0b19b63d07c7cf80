"""Create the plans of a search: of its first page, and of the parts of a tier of its ranking (see `searching.run`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from embedder.vectors import Kind
from qdrant_sink.points import PayloadKeys, WithPayload
from qdrant_sink.searching.plan import LACKING_SCORE_MIN, Branch, Fuse, Lacking, Nearest, Plan, Traversal
from qdrant_sink.searching.query import Search

TIE_MARGIN_HITS: Final = 8
"""Number of hits that are requested beyond a fused or reranked page, so that the page is reproducible.

Points whose ranks in the branches are permutations of each other have the same score: at most six points with three
branches. Qdrant orders equal scores of these stages arbitrarily in every request, so that all of these points must be
requested. Where even more hits have the same score, the whole tier is requested.
"""


def first_page_plan(search: Search, depth: int) -> Plan | None:
    """Create the plan of the first page, whatever the offset; None if no branch can contribute.

    The plan of a reranked search has no threshold: an answer that the threshold made short would look as if the other
    candidates had no rows.

    Args:
        search: search that `conform_query` returned.
        depth: number of candidates per branch.

    Raises:
        ValueError: the query vector of a dense or colbert branch, or of the reranking, is missing.
    """
    plan = tier_plan(search, depth)
    if plan is None:
        return None
    options = search.options
    return replace(
        plan,
        limit=options.limit + (TIE_MARGIN_HITS if plan.branches else 0),
        score_threshold=None if options.rerank else options.score_threshold,
        with_payload=options.with_payload,
        with_vectors=options.with_vectors,
    )


def tier_plan(search: Search, depth: int) -> Plan | None:
    """Create the plan of all candidates with this depth, without their parts; None if no branch can contribute.

    The payload of a hit has the group key if the search is grouped. Only the plan of a single branch has the threshold:
    in the others it would make the answer short, which would look like the end of the collection.

    Args:
        search: search that `conform_query` returned.
        depth: number of candidates per branch.

    Raises:
        ValueError: the query vector of a dense or colbert branch, or of the reranking, is missing.
    """
    stages = _stages(search, depth)
    if stages is None:
        return None
    query, branches = stages
    options = search.options
    return Plan(
        query,
        branches,
        depth * max(len(branches), 1),
        score_threshold=None if branches else options.score_threshold,
        with_payload=_group_key(search),
        where=options.where,
        traversal=_traversal(search),
        names=search.schema.names,
    )


def lacking_plan(search: Search, depth: int) -> Plan | None:
    """Create the plan of the candidates that reranking leaves out; None without reranking or active branches.

    Where every point has rows, the answer is empty, so that it costs little beside the reranking itself.

    Args:
        search: search that `conform_query` returned.
        depth: number of candidates per branch.
    """
    options = search.options
    active = _branches(search, depth)
    if options.rerank is None or not active:
        return None
    branches = tuple(branch for branch, _ in active)
    limit = depth * len(branches)
    dense = search.schema.dense
    ascending = options.using == ("dense",) and dense is not None and dense.ascending
    fuse = None if len(options.using) == 1 else _fuse(search, active)
    return Plan(
        Lacking(options.rerank, fuse, limit, ascending),
        branches,
        limit,
        score_threshold=LACKING_SCORE_MIN,
        with_payload=_group_key(search),
        where=options.where,
        traversal=_traversal(search),
        names=search.schema.names,
    )


def _stages(search: Search, depth: int) -> tuple[Nearest | Fuse, tuple[Branch, ...]] | None:
    """Return the last stage of a search and its branches. A single branch is the last stage itself."""
    options = search.options
    active = _branches(search, depth)
    if not active:
        return None
    branches = tuple(branch for branch, _ in active)
    if options.rerank:
        reranking = _nearest(search, options.rerank)
        if reranking is None:
            raise ValueError("rerank: the search needs a colbert vector of the query, got none")
        return reranking, branches
    if len(options.using) == 1:  # the last of several branches is still fused, so that scores keep their scale
        return branches[0].query, ()
    return _fuse(search, active), branches


def _branches(search: Search, depth: int) -> list[tuple[Branch, float]]:
    """Return the branches that can contribute, each with its weight."""
    options = search.options
    weights = options.weights or (1.0,) * len(options.using)
    active: list[tuple[Branch, float]] = []
    for kind, weight in zip(options.using, weights, strict=True):
        nearest = _nearest(search, kind)
        if nearest is not None:
            active.append((Branch(nearest, depth), weight))
    return active


def _fuse(search: Search, active: Sequence[tuple[Branch, float]]) -> Fuse:
    options = search.options
    weights = None if options.weights is None else tuple(weight for _, weight in active)
    return Fuse(options.fusion, options.rrf_k + 1, weights)


def _group_key(search: Search) -> WithPayload:
    group_by = search.options.group_by
    return False if group_by is None else PayloadKeys((group_by,))


def _traversal(search: Search) -> Traversal:
    return Traversal(search.options.hnsw_ef, search.options.exact, search.options.indexed_only)


def _nearest(search: Search, kind: Kind) -> Nearest | None:
    if kind == "sparse":
        sparse = search.vectors.sparse
        return None if sparse is None or not len(sparse.indices) else Nearest("sparse", sparse)
    vector = search.vectors.dense if kind == "dense" else search.vectors.colbert
    if vector is None:
        raise ValueError(f"using: the search needs a {kind} vector of the query, got none")
    return Nearest(kind, vector, search.options.rescoring if kind in search.schema.quantized else None)

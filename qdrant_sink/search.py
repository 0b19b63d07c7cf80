"""A hybrid search as data: the branches, how they are fused or reranked, and the plan both stores run.

    one branch                  a plain query
    several branches            prefetch per branch, then fusion (RRF or DBSF)
    rerank="colbert"            prefetch per branch, then MaxSim over the union of all candidates

The filter stands in every branch, so that it never starves the stages after it. When reranking there is
no fusion stage: fusion would cut candidates before MaxSim sees them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import Kind, SparseVector
from qdrant_sink.points import PointId

TIE_MARGIN: Final = 8
"""Hits asked for beyond a fused page. Ranks tie by construction, in groups of at most the permutations of
three branches, and Qdrant orders equal scores anew at every request; with the group whole, `page` can cut it
at the same place each time.
"""


OVERSAMPLING: Final = 3.0
"""Candidates that a quantized copy gives per hit wanted; the vectors themselves then choose among them. Of
ColBERT rows it restores an overlap with the exact top 10 of 0.787 to 0.993 (binary), 0.973 to 1.000 (int8).
"""


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """One query and how it is to be answered.

    Attributes:
        dense: float32 [size]; needed where "dense" is in `using`.
        sparse: weights of the query; None or empty: the branch contributes nothing.
        colbert: float32 or float16 [rows, size]; needed by `rerank` or where "colbert" is in `using`.
        using: the branches, each at most once.
        fusion: of several branches. "rrf": a point at rank r (from 1) of a branch of weight w scores
            1 / (rrf_k + r / w) there, and the scores are summed. "dbsf": scores are scaled to mean ± 3
            standard deviations of their branch and summed.
        rrf_k: as the literature counts (Cormack et al. 2009: 1 / (60 + r)); Qdrant's own k is one more.
        weights: one positive number per branch of `using`, only for "rrf"; None weighs all alike. A weight
            divides ranks (Qdrant's rule): at rrf_k = 60 that moves little among the first ranks; a smaller
            rrf_k makes it felt. It does not multiply scores.
        prefetch: candidates per branch; raised to limit + offset where it is less.
        rerank: "colbert": order the union of all branches' candidates by MaxSim; None: by fusion.
        limit: hits wanted, at least 1.
        offset: hits skipped before the first.
        where: a filter in Qdrant's JSON, or None.
        score_threshold: hits below it are left out: of the final score, whichever stage gives it.
        hnsw_ef: candidates of the graph search; None: the store's own.
        exact: compare with every point rather than through the graph.
        with_payload: whether hits carry their payload.
        with_vectors: which vectors hits carry.
        quantized: kinds that the collection keeps a quantized copy of, so that they are rescored;
            `conformance.conform_query` fills it in from the schema.
    """

    dense: NDArray[np.float32] | None = None
    sparse: SparseVector | None = None
    colbert: NDArray[Any] | None = None
    using: tuple[Kind, ...] = ("dense", "sparse")
    fusion: Literal["rrf", "dbsf"] = "rrf"
    rrf_k: int = 60
    weights: tuple[float, ...] | None = None
    prefetch: int = 100
    rerank: Literal["colbert"] | None = None
    limit: int = 10
    offset: int = 0
    where: Mapping[str, Any] | None = None
    score_threshold: float | None = None
    hnsw_ef: int | None = None
    exact: bool = False
    with_payload: bool = True
    with_vectors: tuple[Kind, ...] = ()
    quantized: tuple[Kind, ...] = ()

    def __post_init__(self) -> None:
        if not self.using or len(set(self.using)) != len(self.using):
            raise ValueError(f"using names at least one branch and each once, got {self.using}")
        if self.weights is not None:
            if len(self.weights) != len(self.using):
                raise ValueError(f"weights: one per branch, {len(self.using)}, got {len(self.weights)}")
            if not all(0 < weight < float("inf") for weight in self.weights):
                raise ValueError(f"weights are positive numbers, got {self.weights}")
            if self.fusion != "rrf":
                raise ValueError(f"weights are for fusion rrf, got {self.fusion}")
        if self.rrf_k < 1 or self.limit < 1 or self.offset < 0 or self.prefetch < 1:
            raise ValueError(
                "rrf_k, limit and prefetch are at least 1 and offset at least 0, got "
                f"{self.rrf_k}, {self.limit}, {self.prefetch} and {self.offset}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """The vectors that a hit carries; as stored, so dense and colbert come back with norm 1."""

    dense: NDArray[np.float32] | None = None
    sparse: SparseVector | None = None
    colbert: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """One answer.

    Attributes:
        id: of the point.
        score: of the last stage: cosine, inner product, fused score or MaxSim (a sum over query rows).
        payload: None where it was not asked for.
        vectors: None where none was asked for.
    """

    id: PointId
    score: float
    payload: Mapping[str, Any] | None = None
    vectors: Vectors | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """Score by one vector of a point: cosine for dense, inner product for sparse, MaxSim for colbert.

    Attributes:
        kind: which vector.
        vector: of the query.
        oversampling: of a quantized vector, `OVERSAMPLING`: rescore that many candidates per hit; else None.
    """

    kind: Kind
    vector: NDArray[Any] | SparseVector
    oversampling: float | None = None


@dataclass(frozen=True, slots=True)
class Fuse:
    """Combine the ranks or scores of the branches.

    Attributes:
        method: as in `Search`.
        k: Qdrant's own, one more than the literature's; for "rrf".
        weights: one per branch, or None; for "rrf".
    """

    method: Literal["rrf", "dbsf"]
    k: int
    weights: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """Candidates of one vector, before fusion or reranking."""

    query: Nearest
    limit: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a store is asked, in Qdrant's terms but in no client's types.

    Attributes:
        query: the last stage.
        branches: what feeds it; empty: `query` runs on the collection itself.
        limit: hits to ask for.
        offset: hits to skip; `page` skips the rest.
        search: for the rest: filter, threshold, parameters, what hits carry. The filter and the parameters
            apply in every branch, or to `query` where there is none; oversampling applies wherever it stands.
    """

    query: Nearest | Fuse
    branches: tuple[Branch, ...]
    limit: int
    offset: int
    search: Search


def plan(search: Search) -> Plan | None:
    """The stages that answer `search`, or None where no branch can contribute (sparse without weights).

    Raises:
        ValueError: a dense or colbert branch, or the reranking, has no query vector.
    """
    wanted = max(search.prefetch, search.limit + search.offset)
    weights = search.weights or (1.0,) * len(search.using)
    active: list[tuple[Branch, float]] = []
    for kind, weight in zip(search.using, weights, strict=True):
        query = _nearest(search, kind)
        if query is not None:
            active.append((Branch(query, wanted), weight))
    if not active:
        return None
    branches = tuple(branch for branch, _ in active)
    if search.rerank:
        query = _nearest(search, search.rerank)
        if query is None:
            raise ValueError("rerank: the query has no colbert vector")
        return Plan(query, branches, search.limit, search.offset, search)
    if len(search.using) == 1:  # a lone branch left of several is fused all the same: scores keep their scale
        return Plan(branches[0].query, (), search.limit, search.offset, search)
    weighed = None if search.weights is None else tuple(weight for _, weight in active)
    fuse = Fuse(search.fusion, search.rrf_k + 1, weighed)
    return Plan(fuse, branches, search.limit + search.offset + TIE_MARGIN, 0, search)


def page(planned: Plan, hits: Sequence[Hit]) -> list[Hit]:
    """The hits of the search out of those of the plan: best first, equal scores by ascending id."""
    ordered = sorted(hits, key=_order)
    skip = planned.search.offset - planned.offset
    return ordered[skip : skip + planned.search.limit]


def _order(hit: Hit) -> tuple[float, bool, int]:
    by_uuid = isinstance(hit.id, uuid.UUID)
    return -hit.score, by_uuid, hit.id.int if isinstance(hit.id, uuid.UUID) else hit.id


def _nearest(search: Search, kind: Kind) -> Nearest | None:
    if kind == "sparse":
        if search.sparse is None or not len(search.sparse.indices):
            return None
        return Nearest("sparse", search.sparse)
    vector = search.dense if kind == "dense" else search.colbert
    if vector is None:
        raise ValueError(f"using: {kind} is a branch and the query has no {kind} vector")
    return Nearest(kind, vector, OVERSAMPLING if kind in search.quantized else None)

"""A hybrid search as data: the branches, how they are fused or reranked, and the plan both stores run.

    one branch                  a plain query
    several branches            prefetch per branch, then fusion (RRF or DBSF)
    rerank="colbert"            prefetch per branch, then MaxSim over the union of all candidates
    group_by                    any of these over all candidates, grouped in `qdrant_sink.grouping`

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
from qdrant_sink.schema import VectorNames

TIE_MARGIN: Final = 8
"""Hits asked for beyond a fused page. Ranks tie by construction, in groups of at most the permutations of
three branches, and Qdrant orders equal scores anew at every request; with the group whole, `page` can cut it
at the same place each time.
"""


OVERSAMPLING: Final = 3.0
"""Candidates that a quantized copy gives per hit wanted; the vectors themselves then choose among them. Of
ColBERT rows it restores an overlap with the exact top 10 of 0.787 to 0.993 (binary), 0.973 to 1.000 (int8).
"""


@dataclass(frozen=True, slots=True)
class PayloadKeys:
    """A part of a payload.

    Attributes:
        keys: paths such as `topic` and `metadata.topic`; one that a payload does not have is left out.
        excluded: all of the payload but these.
    """

    keys: tuple[str, ...]
    excluded: bool = False


WithPayload = bool | PayloadKeys
"""All of the payload, nothing of it, or a part."""


@dataclass(frozen=True, slots=True)
class Rescoring:
    """How the quantized copy of a vector is used, where there is one.

    Attributes:
        ignore: search the vectors themselves.
        rescore: order what the copy finds by the vectors themselves.
        oversampling: candidates from the copy per hit wanted, at least 1; for `rescore`.
    """

    ignore: bool = False
    rescore: bool = True
    oversampling: float = OVERSAMPLING


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
        score_threshold: hits below it are left out: of the final score, whichever stage gives it. One branch: cosine
            or inner product or MaxSim; several: the fused score; `rerank`: MaxSim, a sum over query rows. It cuts no
            candidates of a branch before the last stage.
        hnsw_ef: candidates of the graph search; None: the store's own.
        exact: compare with every point rather than through the graph.
        indexed_only: leave out large segments that have no graph yet: quick, and blind to what was just stored.
        rescoring: how the quantized copies of `quantized` are used.
        with_payload: what of their payload hits carry.
        with_vectors: which vectors hits carry.
        group_by: a path in the payload, such as `doc_id`; hits come from `limit` groups of points with the same
            string or integer there, after `offset` groups. What has neither there stands for itself.
        group_size: most hits of a group.
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
    indexed_only: bool = False
    rescoring: Rescoring = Rescoring()
    with_payload: WithPayload = True
    with_vectors: tuple[Kind, ...] = ()
    group_by: str | None = None
    group_size: int = 1
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
        if min(self.rrf_k, self.limit, self.prefetch, self.group_size) < 1 or self.offset < 0:
            raise ValueError(
                "rrf_k, limit, prefetch and group_size are at least 1 and offset at least 0, got "
                f"{self.rrf_k}, {self.limit}, {self.prefetch}, {self.group_size} and {self.offset}"
            )

    @property
    def depth(self) -> int:
        """Candidates per branch that cannot leave the page short while the branch has more."""
        return max(self.prefetch, (self.limit + self.offset) * (self.group_size if self.group_by else 1))


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """The vectors that a hit carries; as stored, so dense and colbert come back with norm 1."""

    dense: NDArray[np.float32] | None = None
    sparse: SparseVector | None = None
    colbert: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, found: object, names: VectorNames) -> Vectors | None:
        """From what a client or the engine gives: by name a list of numbers, of rows, or `indices` and `values`.

        None where it gives no named vectors.
        """
        if not isinstance(found, Mapping) or not found:
            return None
        dense, sparse, colbert = (found.get(name) for name in (names.dense, names.sparse, names.colbert))
        return cls(
            dense=None if dense is None else np.asarray(dense, np.float32),
            sparse=None
            if sparse is None
            else SparseVector(np.asarray(sparse.indices, np.uint32), np.asarray(sparse.values, np.float32)),
            colbert=None if colbert is None else np.asarray(colbert, np.float32),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """One answer.

    Attributes:
        id: of the point.
        score: of the last stage: cosine, inner product, fused score or MaxSim (a sum over query rows).
        payload: None where it was not asked for.
        vectors: None where none was asked for.
        group: what the point has at `group_by`; None where nothing is grouped, or the point stands for itself.
    """

    id: PointId
    score: float
    payload: Mapping[str, Any] | None = None
    vectors: Vectors | None = None
    group: str | int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """What of a stored point was asked for: its payload, its vectors, or None."""

    payload: Mapping[str, Any] | None = None
    vectors: Vectors | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """Score by one vector of a point: cosine for dense, inner product for sparse, MaxSim for colbert.

    Attributes:
        kind: which vector.
        vector: of the query.
        rescoring: how to use the quantized copy; None where there is none.
    """

    kind: Kind
    vector: NDArray[Any] | SparseVector
    rescoring: Rescoring | None = None

    @property
    def numbers(self) -> int:
        """Components of the vector, or weights."""
        return self.vector.values.size if isinstance(self.vector, SparseVector) else self.vector.size


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
        depth: candidates per branch; of a grouped search a store that gives fewer hits has no more.
        score_threshold: that the store applies; None leaves it to `page`.
        with_payload: what of their payload the hits of the store carry.
        with_vectors: which vectors they carry.
        search: for the rest: filter and parameters. These apply in every branch, or to `query` where there is none;
            rescoring applies wherever it stands.
    """

    query: Nearest | Fuse
    branches: tuple[Branch, ...]
    limit: int
    offset: int
    depth: int
    score_threshold: float | None
    with_payload: WithPayload
    with_vectors: tuple[Kind, ...]
    search: Search

    @property
    def numbers(self) -> int:
        """Of all its query vectors."""
        last = 0 if isinstance(self.query, Fuse) else self.query.numbers
        return last + sum(branch.query.numbers for branch in self.branches)


def plan(search: Search, depth: int | None = None) -> Plan | None:
    """The stages that answer `search`, or None where no branch can contribute (sparse without weights).

    A grouped search asks for all candidates, with no more of them than their key, and for deeper ones in a later round.

    Args:
        search: what is asked.
        depth: candidates per branch; None: as `Search.depth`.

    Raises:
        ValueError: a dense or colbert branch, or the reranking, has no query vector.
    """
    depth = depth or search.depth
    weights = search.weights or (1.0,) * len(search.using)
    active: list[tuple[Branch, float]] = []
    for kind, weight in zip(search.using, weights, strict=True):
        branch = _nearest(search, kind)
        if branch is not None:
            active.append((Branch(branch, depth), weight))
    if not active:
        return None
    branches = tuple(branch for branch, _ in active)
    limit, offset = search.limit, search.offset
    query: Nearest | Fuse
    if search.rerank:
        reranking = _nearest(search, search.rerank)
        if reranking is None:
            raise ValueError("rerank: the query has no colbert vector")
        query = reranking
    elif len(search.using) == 1:  # a lone branch left of several is fused all the same: scores keep their scale
        query, branches = branches[0].query, ()
    else:
        weighed = None if search.weights is None else tuple(weight for _, weight in active)
        query = Fuse(search.fusion, search.rrf_k + 1, weighed)
        limit, offset = limit + offset + TIE_MARGIN, 0
    threshold, payload, vectors = search.score_threshold, search.with_payload, search.with_vectors
    if search.group_by is not None:
        limit, offset = depth * max(len(branches), 1), 0
        payload, vectors = PayloadKeys((search.group_by,)), ()
        threshold = None if branches else threshold  # hits that it cuts would look like a store without more
    return Plan(query, branches, limit, offset, depth, threshold, payload, vectors, search)


def page(planned: Plan, hits: Sequence[Hit]) -> list[Hit]:
    """The hits of the search out of those of the plan: best first, equal scores by ascending id."""
    ordered = best_first(hits)
    skip = planned.search.offset - planned.offset
    return ordered[skip : skip + planned.search.limit]


def best_first(hits: Sequence[Hit]) -> list[Hit]:
    """By falling score, equal scores by ascending id: numbers before UUIDs."""
    return sorted(hits, key=_order)


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
    return Nearest(kind, vector, search.rescoring if kind in search.quantized else None)

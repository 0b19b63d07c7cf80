"""What a store is asked by a search and what it answers, in Qdrant's terms but in no client's types.

    one branch                  a plain query
    several branches            prefetch per branch, then fusion (RRF or DBSF)
    rerank="colbert"            prefetch per branch, then MaxSim over the union of all candidates

The filter applies in every branch, so that it never starves the stages after it. Reranking has no fusion stage: fusion
would cut candidates before MaxSim sees them. `searching.run` makes plans of searches; stores only translate them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from numpy.typing import NDArray

from embedder.vectors import Kind, SparseVector
from qdrant_sink.filters import Filter
from qdrant_sink.points import PointId, Vectors, WithPayload

OVERSAMPLING: Final = 3.0
"""Default number of candidates that a quantized copy returns per hit; the full vectors then choose among them. On
ColBERT rows it restores an overlap with the exact top 10 of 0.787 to 0.993 (binary), 0.973 to 1.000 (int8).
"""


@dataclass(frozen=True, slots=True)
class Rescoring:
    """How the quantized copy of a vector is used, where the collection keeps one.

    Attributes:
        ignore: search the full vectors instead.
        rescore: order the candidates of the copy by the full vectors.
        oversampling: candidates from the copy per hit, at least 1; for `rescore`.
    """

    ignore: bool = False
    rescore: bool = True
    oversampling: float = OVERSAMPLING


RESCORED: Final = Rescoring()
"""The default: candidates from the quantized copy, ordered by the full vectors."""


@dataclass(frozen=True, slots=True)
class Traversal:
    """How candidates are looked for.

    Attributes:
        hnsw_ef: candidates of the graph search; None: the store's default.
        exact: compare with every point instead of searching the graph.
        indexed_only: skip large segments without a graph: quick, and blind to what was just stored.
    """

    hnsw_ef: int | None = None
    exact: bool = False
    indexed_only: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """Scoring by one vector of a point: cosine for dense, inner product for sparse, MaxSim for colbert.

    Attributes:
        kind: which vector.
        vector: query vector of this kind.
        rescoring: use of the quantized copy; None where the collection keeps none.
    """

    kind: Kind
    vector: NDArray[Any] | SparseVector
    rescoring: Rescoring | None = None

    @property
    def numbers(self) -> int:
        """Number of components of the vector, or of its weights."""
        return self.vector.values.size if isinstance(self.vector, SparseVector) else self.vector.size


@dataclass(frozen=True, slots=True)
class Fuse:
    """Combination of the ranks or scores of the branches.

    Attributes:
        method: as in `SearchOptions.fusion`.
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
    """One query to a store.

    Attributes:
        query: the last stage.
        branches: the stages before it; empty: `query` searches the collection itself.
        limit: maximum number of hits.
        offset: hits to skip.
        score_threshold: hits with a lower score are left out; None: all hits are kept.
        with_payload: what the hits carry of their payload.
        with_vectors: which vectors the hits carry.
        where: filter of every branch, or of `query` where there are no branches.
        traversal: applies where `where` does. Rescoring applies to the last stage too.
    """

    query: Nearest | Fuse
    branches: tuple[Branch, ...]
    limit: int
    offset: int = 0
    score_threshold: float | None = None
    with_payload: WithPayload = True
    with_vectors: tuple[Kind, ...] = ()
    where: Filter | None = None
    traversal: Traversal = Traversal()

    @property
    def numbers(self) -> int:
        """Number of components and weights of all query vectors."""
        last = 0 if isinstance(self.query, Fuse) else self.query.numbers
        return last + sum(branch.query.numbers for branch in self.branches)


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """One answer.

    Attributes:
        id: point id.
        score: score of the last stage: cosine, inner product, fused score or MaxSim (a sum over query rows).
        payload: None unless requested.
        vectors: None unless requested.
        group: value of the point at `SearchOptions.group_by`; None where hits are not grouped, or the point stands for
            itself.
    """

    id: PointId
    score: float
    payload: Mapping[str, Any] | None = None
    vectors: Vectors | None = None
    group: str | int | None = None

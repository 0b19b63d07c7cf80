"""Queries to a store and their hits, in Qdrant's terms but independent of a client library.

    one branch                  a plain query
    several branches            prefetch per branch, then fusion (RRF or DBSF)
    rerank="colbert"            prefetch per branch, then MaxSim over the union of all candidates;
                                beside it the same prefetch, then those candidates that lack ColBERT rows

The filter applies to every branch, so that the later stages receive enough candidates. Reranking has no fusion stage,
which would cut candidates before MaxSim. `searching.planning` creates the plans, and the stores only translate them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from numpy.typing import NDArray

from embedder.vectors import Kind, SparseVector
from qdrant_sink.filters import Filter, parse_filter
from qdrant_sink.points import PointId, Vectors, WithPayload
from qdrant_sink.schema import NAMES, VectorNames

HAVING_PENALTY: Final = 1e30
"""Subtracted from the score of a candidate that has the vector of `Lacking`; all other scores are far smaller."""

LACKING_SCORE_MIN: Final = -1e29
"""Score threshold that separates the candidates that lack the vector from those that have it."""

OVERSAMPLING: Final = 3.0
"""Default number of candidates per hit that the quantized copy returns; the full vectors then rank these candidates.

For ColBERT rows it raises the overlap with the exact top 10 from 0.787 to 0.993 (binary), from 0.973 to 1.000 (int8).
"""


@dataclass(frozen=True, slots=True)
class Rescoring:
    """Use of the quantized copy of a vector, if the collection keeps one.

    Attributes:
        ignore: whether the full vectors are searched instead of the copy.
        rescore: whether the candidates from the copy are ordered by the full vectors.
        oversampling: number of candidates from the copy per hit, at least 1. It is used only with `rescore`.
    """

    ignore: bool = False
    rescore: bool = True
    oversampling: float = OVERSAMPLING


RESCORED: Final = Rescoring()
"""The default: candidates come from the quantized copy and are ordered by the full vectors."""


@dataclass(frozen=True, slots=True)
class Traversal:
    """How a collection is searched for candidates.

    Attributes:
        hnsw_ef: candidates of the graph search; None for the default of the store.
        exact: whether all points are compared instead of searching the graph.
        indexed_only: whether large segments without a graph are skipped. This is fast but misses recent points.
    """

    hnsw_ef: int | None = None
    exact: bool = False
    indexed_only: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """Scoring by one vector: the distance function for dense, inner product for sparse, MaxSim for colbert.

    Attributes:
        kind: kind of the vector.
        vector: query vector of this kind.
        rescoring: use of the quantized copy; None if the collection keeps no copy.
    """

    kind: Kind
    vector: NDArray[Any] | SparseVector
    rescoring: Rescoring | None = None

    @property
    def numbers(self) -> int:
        """Number of components of a dense or ColBERT vector, or number of weights of a sparse one."""
        return self.vector.values.size if isinstance(self.vector, SparseVector) else self.vector.size

    @property
    def rows(self) -> int:
        """Number of rows of a ColBERT vector; 1 for another one."""
        return len(self.vector) if not isinstance(self.vector, SparseVector) and self.vector.ndim > 1 else 1


@dataclass(frozen=True, slots=True)
class Fuse:
    """Fusion of the ranks or scores of the branches.

    Attributes:
        method: fusion method, as in `SearchOptions.fusion`.
        k: Qdrant's constant k for "rrf", which is one larger than that of the literature.
        weights: one weight per branch for "rrf", or None.
    """

    method: Literal["rrf", "dbsf"]
    k: int
    weights: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Lacking:
    """Selection of the candidates that lack a vector, which a stage that scores by this vector leaves out.

    The hits are ordered by the fusion of the branches, or by the score of the only branch. They are negative distances
    if smaller scores are better there. In a collection of several shards, each shard selects and fuses its own points.

    Attributes:
        kind: kind of the vector.
        fuse: fusion of the branches; None if there is one branch without fusion.
        candidates_max: maximum number of candidates that the fusion keeps.
        ascending: whether a smaller score of the only branch is better.
    """

    kind: Kind
    fuse: Fuse | None
    candidates_max: int
    ascending: bool


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """Query for the candidates of one vector, before fusion or reranking."""

    query: Nearest
    limit: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One query to a store.

    Attributes:
        query: last stage of the query.
        branches: stages before the last one. If there are none, `query` searches the collection itself.
        limit: maximum number of hits.
        offset: number of hits to skip.
        score_threshold: worst score of a hit, in the direction of the last stage; None keeps all hits.
        with_payload: part of the payload that hits contain.
        with_vectors: vectors that hits contain.
        where: filter of every branch, or of `query` if there are no branches.
        traversal: how the branches, or `query` if there are no branches, search the collection.
        names: names of the vectors in the collection.
    """

    query: Nearest | Fuse | Lacking
    branches: tuple[Branch, ...]
    limit: int
    offset: int = 0
    score_threshold: float | None = None
    with_payload: WithPayload = True
    with_vectors: tuple[Kind, ...] = ()
    where: Filter | None = None
    traversal: Traversal = Traversal()
    names: VectorNames = NAMES

    @property
    def numbers(self) -> int:
        """Total number of components and weights of all query vectors."""
        last = self.query.numbers if isinstance(self.query, Nearest) else 0
        return last + sum(branch.query.numbers for branch in self.branches)

    @property
    def filter_bytes(self) -> int:
        """Approximate size of all copies of the filter in the request in bytes: one for each branch."""
        return 0 if self.where is None else parse_filter(self.where).size_bytes * max(1, len(self.branches))


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """One hit of a search.

    Attributes:
        id: id of the point.
        score: score of the last stage: cosine, inner product, distance, fused score or MaxSim (a sum over query rows).
            None for a candidate of a reranked search that lacks ColBERT rows.
        payload: payload of the point; None unless requested.
        vectors: vectors of the point; None unless requested.
        depth: number of candidates per branch among which the search found the hit; 0 outside of `searching.run`.
        group: value of the point at `SearchOptions.group_by`; None if hits are not grouped, or if the point is a group
            of its own.
    """

    id: PointId
    score: float | None
    payload: Mapping[str, Any] | None = None
    vectors: Vectors | None = None
    depth: int = 0
    group: str | int | None = None

    @property
    def known_score(self) -> float:
        """The score of a hit that has one, as every hit of a store does. Raises ValueError if it is None."""
        if self.score is None:
            raise ValueError("the hit has no score")
        return self.score

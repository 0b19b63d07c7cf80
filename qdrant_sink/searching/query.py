"""A hybrid search as a value: its query vectors, which it proves, and its options.

Several branches are fused or reranked; `group_by` returns the best hits of each document. See `searching.plan` for the
stages, `searching.run` for pages and groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

from embedder.vectors import KINDS, Kind
from qdrant_sink.conformance import Refusal, conform_vectors
from qdrant_sink.filters import Filter
from qdrant_sink.points import Vectors, WithPayload
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.searching.plan import RESCORED, Rescoring

GROUP_KEY: Final = r"^[\w-]+(\.[\w-]+)*$"
"""Pattern of `SearchOptions.group_by`: a path that leads through objects alone, to one value."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a query is answered.

    Attributes:
        using: the branches, each at most once.
        fusion: combination of several branches. "rrf": a point at rank r (from 1) of a branch of weight w scores
            1 / (rrf_k + r / w) there, and the scores are summed. "dbsf": scores are scaled to mean ± 3
            standard deviations of their branch and summed.
        rrf_k: as the literature counts (Cormack et al. 2009: 1 / (60 + r)); Qdrant's own k is one more.
        weights: one positive number per branch of `using`, only for "rrf"; None weighs all alike. A weight
            divides ranks (Qdrant's rule): at rrf_k = 60 that moves little among the first ranks; a smaller
            rrf_k makes it felt. It does not multiply scores.
        prefetch: candidates per branch; raised to limit + offset where it is less.
        rerank: "colbert": order the union of all branches' candidates by MaxSim; None: by fusion.
        limit: maximum number of hits, at least 1.
        offset: hits skipped before the first.
        where: filter in Qdrant's JSON, or None.
        score_threshold: hits with a lower final score are left out, whichever stage computes it. One branch: cosine
            or inner product or MaxSim; several: the fused score; `rerank`: MaxSim, a sum over query rows. It cuts no
            candidates of a branch before the last stage.
        hnsw_ef: candidates of the graph search; None: the store's default.
        exact: compare with every point instead of searching the graph.
        indexed_only: skip large segments without a graph: quick, and blind to what was just stored.
        rescoring: use of the quantized copies, where the collection keeps them.
        with_payload: what hits carry of their payload.
        with_vectors: which vectors hits carry.
        group_by: path in the payload, such as `doc_id`; hits come from `limit` groups of points with the same
            string or integer there, after `offset` groups. A point with neither stands for itself.
        group_size: maximum number of hits per group.

    Raises:
        ValueError: a combination without a meaning.
    """

    using: tuple[Kind, ...] = ("dense", "sparse")
    fusion: Literal["rrf", "dbsf"] = "rrf"
    rrf_k: int = 60
    weights: tuple[float, ...] | None = None
    prefetch: int = 100
    rerank: Literal["colbert"] | None = None
    limit: int = 10
    offset: int = 0
    where: Filter | None = None
    score_threshold: float | None = None
    hnsw_ef: int | None = None
    exact: bool = False
    indexed_only: bool = False
    rescoring: Rescoring = RESCORED
    with_payload: WithPayload = True
    with_vectors: tuple[Kind, ...] = ()
    group_by: str | None = None
    group_size: int = 1

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
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of query vectors that the branches and the reranking need."""
        return tuple(kind for kind in KINDS if kind in self.using or kind == self.rerank)

    @property
    def depth(self) -> int:
        """Candidates per branch that cannot leave the page short while the branch has more."""
        return max(self.prefetch, (self.limit + self.offset) * (self.group_size if self.group_by else 1))


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """One query with vectors that the collection accepts, as `conform_query` proves.

    Attributes:
        vectors: dense and colbert are present where a branch or the reranking needs them; a sparse query without
            weights is None, and its branch contributes nothing.
        options: how it is answered.
        quantized: kinds of vectors that the collection keeps a quantized copy of, so that they are rescored.
    """

    vectors: Vectors
    options: SearchOptions
    quantized: tuple[Kind, ...] = ()

    def with_options(self, **changes: Any) -> Self:
        """The same search with other options, as in `SearchOptions`."""
        return replace(self, options=replace(self.options, **changes))


def conform_query(vectors: Vectors, options: SearchOptions, schema: CollectionSchema) -> Search | Refusal:
    """The search if a collection of this schema accepts its query vectors, otherwise the reason why not.

    The rules are those of a point.
    """
    proven = conform_vectors(vectors, schema)
    if isinstance(proven, Refusal):
        return proven
    for kind in options.kinds:
        if kind != "sparse" and getattr(proven, kind) is None:
            return Refusal("invalid_vector", f"{kind}: the search uses it and the query has none")
    return Search(proven, options, schema.quantized)

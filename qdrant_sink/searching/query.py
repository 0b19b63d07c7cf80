"""A hybrid search as a value: valid query vectors and options.

Several branches are fused or reranked; `group_by` returns the best hits of each document. See `searching.plan` for the
stages and `searching.run` for pages and groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self

from embedder.errors import FieldError, InvalidRequest
from embedder.vectors import KINDS, Kind
from qdrant_sink.conformance import Refusal, conform_vectors
from qdrant_sink.filters import Filter, parse_filter
from qdrant_sink.payload_path import canonical_value_path, named
from qdrant_sink.points import Vectors, WithPayload
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.searching.plan import RESCORED, Rescoring

PREFETCH: Final = 100
"""Default number of candidates per branch. Where a server accepts fewer, it is lowered."""

OFFSET_MAX: Final = 100_000
"""Maximum number of hits, or groups, before a page. The ids of everything before a page are read from the store."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        using: branches of the search, each at most once; empty for the default branches of the collection (see
            `with_branches`).
        fusion: how several branches are combined. With "rrf", a point at rank r (from 1) in a branch of weight w scores
            1 / (rrf_k + r / w) there, and the scores are summed. With "dbsf", scores are scaled to the mean ± 3
            standard deviations of their branch and summed.
        rrf_k: constant k of the literature (Cormack et al. 2009: 1 / (60 + r)). Qdrant's k is one larger.
        weights: one positive number per branch of `using`, only for "rrf"; None weighs all branches equally. A weight
            divides ranks and does not multiply scores (Qdrant's rule). With rrf_k = 60 it changes little among the
            first ranks; with a smaller rrf_k its effect grows.
        prefetch: number of candidates per branch. It is raised to limit (x group_size) if it is smaller. Pages beyond
            these candidates come from deeper tiers; see `searching.run`.
        rerank: with "colbert", the union of all candidates is ordered by MaxSim. Candidates without rows follow without
            a score, in the order of the fusion. None for no reranking.
        limit: maximum number of hits, at least 1.
        offset: number of hits to skip, at most `OFFSET_MAX`. All pages with the same other options are disjoint.
        where: filter in Qdrant's JSON format, or None.
        score_threshold: worst final score of a hit. The score is the cosine, the inner product, the distance or MaxSim
            for a single branch, the fused score for several branches, and MaxSim (a sum over query rows) with `rerank`.
            It is a maximum where the score is a distance (see `Search.ascending`), otherwise a minimum. Candidates of a
            branch are not cut before the last stage, and hits without a score are left out. Without `group_by`, the
            first tier with a worse score is the last one.
        hnsw_ef: candidates of the graph search; None for the default of the store.
        exact: whether all points are compared instead of searching the graph.
        indexed_only: whether large segments without a graph are skipped. This is fast but misses recent points.
        rescoring: how the quantized copies of vectors are used.
        with_payload: part of the payload that hits contain.
        with_vectors: vectors that hits contain.
        group_by: path in the payload to one value, such as `doc_id` (see `payload_path`). Points with the same string
            or integer at this path form a group; `limit` groups are returned after skipping `offset` groups. A point
            without such a value is a group of its own.
        group_size: maximum number of hits per group.

    Raises:
        ValueError: the options contradict each other or are out of range.
        InvalidRequest: the filter is invalid.
    """

    using: tuple[Kind, ...] = ()
    fusion: Literal["rrf", "dbsf"] = "rrf"
    rrf_k: int = 60
    weights: tuple[float, ...] | None = None
    prefetch: int = PREFETCH
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
        if self.where is not None:  # parsed once, for all queries and branches
            object.__setattr__(self, "where", parse_filter(self.where))
        if self.group_by is not None:
            with named("group_by"):
                object.__setattr__(self, "group_by", canonical_value_path(self.group_by))
        if len(set(self.using)) != len(self.using):
            raise ValueError(f"using: must name each branch only once, got {self.using}")
        if self.weights is not None:
            if self.using and len(self.weights) != len(self.using):
                raise ValueError(
                    f"weights: must have one weight per branch ({len(self.using)}), got {len(self.weights)}"
                )
            if not all(0 < weight < float("inf") for weight in self.weights):
                raise ValueError(f"weights: must be positive numbers, got {self.weights}")
            if self.fusion != "rrf":
                raise ValueError(f"weights: require fusion rrf, got {self.fusion}")
        if min(self.rrf_k, self.limit, self.prefetch, self.group_size) < 1 or self.offset < 0:
            raise ValueError(
                "rrf_k, limit, prefetch and group_size must be at least 1 and offset at least 0, got "
                f"{self.rrf_k}, {self.limit}, {self.prefetch}, {self.group_size} and {self.offset}"
            )
        if self.offset > OFFSET_MAX:
            raise ValueError(f"offset: must be at most {OFFSET_MAX}, got {self.offset}")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of query vectors that the branches and the reranking use."""
        return tuple(kind for kind in KINDS if kind in self.using or kind == self.rerank)

    @property
    def depth(self) -> int:
        """Number of candidates per branch that suffices to fill the first page. It does not depend on the offset."""
        return max(self.prefetch, self.limit * (self.group_size if self.group_by else 1))


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """A search with query vectors that the collection accepts. Create it with `conform_query`.

    Attributes:
        vectors: query vectors. Dense and colbert are present if a branch or the reranking uses them. A sparse vector
            without weights is None, and its branch contributes nothing.
        options: options of the search, with its branches.
        schema: schema of the collection.
    """

    vectors: Vectors
    options: SearchOptions
    schema: CollectionSchema

    @property
    def ascending(self) -> bool:
        """Whether a smaller score is better, because the only stage is a dense branch whose scores are distances."""
        dense, options = self.schema.dense, self.options
        return dense is not None and dense.ascending and options.using == ("dense",) and options.rerank is None

    def with_options(self, **changes: Any) -> Self:
        """Return the search with some of its `SearchOptions` changed."""
        return replace(self, options=replace(self.options, **changes))


def with_branches(options: SearchOptions, schema: CollectionSchema) -> SearchOptions:
    """Return the options with the default branches, and without vectors that the collection lacks in hits.

    The default branches are dense and sparse where the collection has them, and colbert only where it is alone.

    Raises:
        InvalidRequest: a branch or the reranking needs a kind that the collection lacks, the number of weights differs
            from that of the default branches, or DBSF would fuse distances.
    """
    kinds = schema.kinds
    check_kinds(options, kinds)
    branches = options.using or default_branches(kinds)
    if options.weights is not None and len(options.weights) != len(branches):
        raise _invalid(
            "weights",
            f"must have one item per branch ({', '.join(branches)}), got {len(options.weights)}",
        )
    fuses_scores = options.fusion == "dbsf" and len(branches) > 1
    if fuses_scores and "dense" in branches and schema.dense is not None and schema.dense.ascending:
        # Qdrant scales scores without regard to their direction, so that the farthest points would come first.
        distance = schema.dense.distance
        raise _invalid("fusion", f"must be 'rrf' where the scores of dense are distances ({distance}), got 'dbsf'")
    with_vectors = tuple(kind for kind in options.with_vectors if kind in kinds)
    return replace(options, using=branches, with_vectors=with_vectors)


def default_branches(kinds: Sequence[Kind]) -> tuple[Kind, ...]:
    """Return the branches of a search that names none: dense and sparse where they are, and colbert only if alone."""
    return tuple(kind for kind in kinds if kind != "colbert") or tuple(kinds)


def check_kinds(options: SearchOptions, kinds: Sequence[Kind]) -> None:
    """Check that the branches and the reranking which the options name are among the kinds of a collection.

    Raises:
        InvalidRequest: a kind is missing.
    """
    for index, kind in enumerate(options.using):
        if kind not in kinds:
            raise _lacking(f"using[{index}]", kind, kinds)
    if options.rerank is not None and options.rerank not in kinds:
        raise _lacking("rerank", options.rerank, kinds)


def conform_query(vectors: Vectors, options: SearchOptions, schema: CollectionSchema) -> Search | Refusal:
    """Validate query vectors against a schema. Returns the search, or the reason why the vectors are invalid.

    The rules are the same as for the vectors of a point.

    Raises:
        InvalidRequest: the collection lacks a kind that the options name; see `with_branches`.
    """
    options = with_branches(options, schema)
    valid = conform_vectors(vectors, schema)
    if isinstance(valid, Refusal):
        return valid
    for kind in options.kinds:
        if kind != "sparse" and getattr(valid, kind) is None:
            return Refusal("invalid_vector", f"{kind}: the search needs a {kind} vector of the query, got none")
    return Search(valid, options, schema)


def _lacking(field: str, kind: Kind, kinds: Sequence[Kind]) -> InvalidRequest:
    return _invalid(field, f"must be a kind of vector that the collection has ({', '.join(kinds)}), got '{kind}'")


def _invalid(field: str, message: str) -> InvalidRequest:
    whole = f"{field} {message}"
    return InvalidRequest(whole, fields=[FieldError(field, whole)])

"""The JSON of requests, one type per operation, and their conversion to the request values of the operations.

JSON names are camelCase, Python names snake_case. Types are strict: `1.0` is not an integer, `"true"` is not a boolean.
A field that is null is absent, and other unknown fields are errors. Every error is an `InvalidRequest` that names the
field, the limit and the value, but never quotes a text. A request that passes here needs no further validation, except
for the ids and payloads to store: the ingest rejects invalid ones row by row.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)

from embedder import CHUNK_MIN_TOKENS, KINDS, Kind, Outputs
from qdrant_sink import OFFSET_MAX, Rescoring, SearchOptions, WithPayload
from service import operations
from service.validation import needed, shown
from service.wire.fields import (
    Collection,
    Filter,
    GroupBy,
    Ids,
    Kinds,
    Pairs,
    Payloads,
    RowIds,
    SearchParams,
    TextKey,
    Texts,
    Weight,
    Wire,
    check_dtype,
    check_weight_count,
    payload_selection,
    tokens_within_model,
    vector_selection,
)

HITS_MAX = 1_000_000
"""Maximum hits of a search request before paging, which a worker can hold in memory beside the model."""

EXAMPLES_MAX = 100
"""Maximum positive, or negative, points of a search, whose vectors are read first."""


class Chunking(Wire):
    """Chunking of texts: at most `maxTokens` tokens per point, of which `overlap` repeat the end of the last one."""

    max_tokens: Annotated[int, Field(ge=CHUNK_MIN_TOKENS)] = 512
    overlap: Annotated[int, Field(ge=0)] | None = None

    @field_validator("max_tokens")
    @classmethod
    def _within_model(cls, value: int, info: ValidationInfo) -> int:
        return tokens_within_model(value, info)

    @property
    def overlap_tokens(self) -> int:
        """`overlap`, by default an eighth of `maxTokens`."""
        return self.max_tokens // 8 if self.overlap is None else self.overlap

    def check_overlap(self, path: str) -> None:
        """Raise ValueError for an overlap of more than half of a chunk, with the path of the chunking."""
        overlap_max = self.max_tokens // 2
        if self.overlap_tokens > overlap_max:
            raise ValueError(
                f"{path}.overlap: must be at most half of maxTokens ({overlap_max}), got {shown(self.overlap)}"
            )

    def value(self) -> operations.Chunking:
        """Convert to the request value."""
        return operations.Chunking(self.max_tokens, self.overlap_tokens)


class QdrantTarget(Wire):
    """The `qdrant` block of an embed request: the collection of the points, and how to store them."""

    collection: Collection | None = None
    ids: RowIds | None = None
    id_scope: Collection | None = None
    payloads: Payloads | None = None
    text_key: TextKey | None = None
    mode: Literal["upsert", "insertOnly"] = "upsert"
    compare_kept: bool = False
    chunk: Chunking | None = None
    colbert_pooling: Literal["none", "mean"] = "none"


class EmbedRequest(Wire):
    """Embed texts and, with a `qdrant` block, store them as points."""

    operation: Literal["embed"] = "embed"
    texts: Texts
    is_passage: bool = False
    batch_size: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    vectors: Kinds | None = None
    max_length: Annotated[int, Field(ge=3)] | None = None
    encoding: Literal["list", "base64"] = "list"
    dtype: Literal["float32", "float16"] = "float32"
    include_text: bool = True
    return_vectors: bool | None = None
    qdrant: QdrantTarget | None = None

    @field_validator("max_length")
    @classmethod
    def _within_model(cls, value: int | None, info: ValidationInfo) -> int | None:
        return None if value is None else tokens_within_model(value, info)

    @model_validator(mode="after")
    def _fits_together(self) -> EmbedRequest:
        check_dtype(self.encoding, self.dtype)
        if self.qdrant is not None:
            for name in ("ids", "payloads"):
                items = getattr(self.qdrant, name)
                if items is not None and len(items) != len(self.texts):
                    raise ValueError(
                        f"qdrant.{name}: must have one item per text ({len(self.texts)}), got {len(items)}"
                    )
            if self.qdrant.compare_kept and self.qdrant.mode != "insertOnly":
                raise ValueError("qdrant.compareKept: must be false without mode 'insertOnly', got true")
            if self.qdrant.chunk is not None:
                self._fits_chunks(self.qdrant.chunk)
        return self

    def _fits_chunks(self, chunk: Chunking) -> None:
        chunk.check_overlap("qdrant.chunk")
        if self.return_vectors:
            raise ValueError("returnVectors: must be false with qdrant.chunk, got true; chunks are only stored")
        if self.max_length is not None and self.max_length < chunk.max_tokens:
            raise ValueError(
                f"maxLength: must be at least qdrant.chunk.maxTokens ({chunk.max_tokens}), got {self.max_length}; "
                "leave it out"
            )

    @property
    def wants_vectors(self) -> bool:
        """Whether the answer contains vectors; by default only if they are not stored."""
        return self.qdrant is None if self.return_vectors is None else self.return_vectors

    @property
    def role(self) -> operations.Role:
        """The role of the texts."""
        return "passage" if self.is_passage else "query"

    def embed_value(self) -> operations.EmbedRequest:
        """Convert to the request value of `embed`. ColBERT rows have the type in which they are sent."""
        return operations.EmbedRequest(
            texts=self.texts,
            outputs=Outputs.of(self.vectors or KINDS, self.dtype),
            role=self.role,
            max_length=self.max_length,
            batch_size=self.batch_size,
        )

    def ingest_value(self, target: QdrantTarget) -> operations.IngestRequest:
        """Convert to the request value of `ingest`."""
        return operations.IngestRequest(
            texts=self.texts,
            vectors=self.vectors or (),
            role=self.role,
            max_length=self.max_length,
            batch_size=self.batch_size,
            return_vectors=self.wants_vectors,
            collection=target.collection,
            ids=target.ids,
            id_scope=target.id_scope,
            payloads=target.payloads,
            text_key=target.text_key,
            insert_only=target.mode == "insertOnly",
            compare_kept=target.compare_kept,
            chunk=None if target.chunk is None else target.chunk.value(),
            pool_colbert=target.colbert_pooling == "mean",
            path="qdrant.",
        )


class Like(Wire):
    """Stored points instead of queries: hits are similar to `positive` and dissimilar to `negative` points."""

    positive: Annotated[Ids, Field(min_length=1, max_length=EXAMPLES_MAX)]
    negative: Annotated[Ids, Field(max_length=EXAMPLES_MAX)] = Field(default=[])
    id_scope: Collection | None = None

    def value(self) -> operations.Like:
        """Convert to the request value."""
        return operations.Like(self.positive, self.negative, self.id_scope)


class SearchRequest(Wire):
    """Search for the stored points nearest to each query, or to the points of `like`."""

    operation: Literal["search"]
    queries: Texts = Field(default=[])
    like: Like | None = None
    collection: Collection | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10
    offset: Annotated[int, Field(ge=0, le=OFFSET_MAX)] = 0
    using: Kinds | None = None
    fusion: Literal["rrf", "dbsf"] = "rrf"
    rrf_k: Annotated[int, Field(ge=1, le=1_000_000)] = 60
    weights: (
        Annotated[
            list[Annotated[float, Field(gt=0, allow_inf_nan=False)]],
            Field(fail_fast=True),
            BeforeValidator(check_weight_count),
        ]
        | None
    ) = None
    prefetch: Annotated[int, Field(ge=1, le=100_000)] = 100
    rerank: Literal["colbert"] | None = None
    filter: Filter | None = None
    score_threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    params: SearchParams = SearchParams()
    with_payload: Annotated[WithPayload, PlainValidator(payload_selection)] = True
    with_vectors: Annotated[tuple[Kind, ...], PlainValidator(vector_selection)] = ()
    group_by: GroupBy | None = None
    group_size: Annotated[int, Field(ge=1, le=100)] = 1
    explain: bool = False
    text_key: TextKey | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> SearchRequest:
        if bool(self.queries) == (self.like is not None):
            if self.like is None:
                raise needed("queries", "like")
            raise ValueError("queries: must not be given together with like; send one of them")
        if self.group_by is None and self.group_size > 1:
            raise ValueError(f"groupSize: must be 1 without groupBy, got {self.group_size}; give groupBy")
        searches = len(self.queries) or 1
        hits = searches * (self.limit + self.offset) * self.group_size
        if hits > HITS_MAX:
            by_group = " x groupSize" if self.group_by else ""
            raise ValueError(
                f"limit: must ask for at most {HITS_MAX} hits (queries x (limit + offset){by_group}), got {hits}; "
                "lower limit or offset, or send fewer queries"
            )
        if self.weights is not None:
            if self.fusion != "rrf":
                raise ValueError(f"weights: must be left out with fusion '{self.fusion}'; only 'rrf' has weights")
            if self.using is not None and len(self.weights) != len(self.using):
                raise ValueError(
                    f"weights: must have one item per branch of using ({len(self.using)}), got {len(self.weights)}"
                )
        return self

    def value(self) -> operations.SearchRequest:
        """Convert to the request value."""
        params = self.params
        options = SearchOptions(
            using=tuple(self.using or ()),
            fusion=self.fusion,
            rrf_k=self.rrf_k,
            weights=None if self.weights is None else tuple(self.weights),
            prefetch=self.prefetch,
            rerank=self.rerank,
            limit=self.limit,
            offset=self.offset,
            where=self.filter,
            score_threshold=self.score_threshold,
            hnsw_ef=params.hnsw_ef,
            exact=params.exact,
            indexed_only=params.indexed_only,
            rescoring=Rescoring(**params.quantization.model_dump()),
            with_payload=self.with_payload,
            with_vectors=self.with_vectors,
            group_by=self.group_by,
            group_size=self.group_size,
        )
        return operations.SearchRequest(
            queries=self.queries,
            like=None if self.like is None else self.like.value(),
            collection=self.collection,
            options=options,
            explain=self.explain,
            text_key=self.text_key,
        )


class CountRequest(Wire):
    """Count the points of a collection, or those that match a filter."""

    operation: Literal["count"]
    collection: Collection | None = None
    filter: Filter | None = None

    def value(self) -> operations.CountRequest:
        """Convert to the request value."""
        return operations.CountRequest(self.collection, self.filter)


class DeleteRequest(Wire):
    """Delete points by their ids or by a filter, or all chunks of documents."""

    operation: Literal["delete"]
    collection: Collection | None = None
    ids: Annotated[Ids, Field(min_length=1)] | None = None
    doc_ids: Annotated[Ids, Field(min_length=1)] | None = None
    id_scope: Collection | None = None
    filter: Filter | None = None

    @model_validator(mode="after")
    def _one_selection(self) -> DeleteRequest:
        selections = {"ids": self.ids, "docIds": self.doc_ids, "filter": self.filter}
        given = [name for name, value in selections.items() if value is not None]
        if not given:
            raise needed("ids", "docIds", "filter")
        if len(given) > 1:
            raise ValueError(f"{given[-1]}: must not be given together with {given[0]}; send one of them")
        return self

    def value(self) -> operations.DeleteRequest:
        """Convert to the request value."""
        return operations.DeleteRequest(self.collection, self.ids, self.doc_ids, self.id_scope, self.filter)


class ScoreRequest(Wire):
    """Score how well each passage answers its query."""

    operation: Literal["score"]
    pairs: Pairs
    weights: Annotated[list[Weight], Field(fail_fast=True)] = Field(
        default=[1.0, 1.0, 1.0], json_schema_extra={"minItems": 3, "maxItems": 3}
    )
    max_query_length: Annotated[int, Field(ge=3)] | None = None
    max_passage_length: Annotated[int, Field(ge=3)] | None = None

    @field_validator("max_query_length", "max_passage_length")
    @classmethod
    def _within_model(cls, value: int | None, info: ValidationInfo) -> int | None:
        return None if value is None else tokens_within_model(value, info)

    @field_validator("weights")
    @classmethod
    def _weigh_something(cls, weights: list[float]) -> list[float]:
        if len(weights) != 3:
            raise ValueError(f"must have exactly 3 items (dense, sparse, colbert), got {len(weights)}")
        if weights[0] == weights[1] == 0:
            raise ValueError("must be above 0 for dense or sparse, got 0 for both")
        return weights

    def value(self) -> operations.ScoreRequest:
        """Convert to the request value."""
        return operations.ScoreRequest(
            self.pairs, operations.Weights(*self.weights), self.max_query_length, self.max_passage_length
        )

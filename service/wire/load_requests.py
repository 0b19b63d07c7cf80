"""The JSON of the steps of a load whose lines are stored by other requests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from embedder import KINDS
from qdrant_sink.loading import LOAD_ID, SHARD_RULE, LoadContent, Shard
from service import operations
from service.operations.load_content import (
    INPUT_MAX_OPTIONS,
    INPUT_NAME_MAX_CHARACTERS,
    INPUT_VALUE_MAX_CHARACTERS,
)
from service.validation import counted
from service.wire.fields import Collection, Kinds, TextKey, Wire, tokens_within_model
from service.wire.requests import Chunking

COUNT_MAX = 2**53 - 1
"""Maximum count of lines or points: the largest number that every JSON parser reads exactly."""

Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]


def _shard(text: str) -> str:
    try:
        Shard.parse(text)
    except ValueError:
        raise ValueError(f"must {SHARD_RULE}, got {text!r}") from None
    return text


InputName = Annotated[str, Field(min_length=1, max_length=INPUT_NAME_MAX_CHARACTERS)]
InputValue = Annotated[str, Field(max_length=INPUT_VALUE_MAX_CHARACTERS)]


def _check_options(options: object) -> object:
    """Check the number of options before any of them is validated."""
    if isinstance(options, dict) and len(options) > INPUT_MAX_OPTIONS:
        raise ValueError(f"must have at most {counted(INPUT_MAX_OPTIONS, 'field')}, got {len(options)}")
    return options


InputOptions = Annotated[
    dict[InputName, InputValue], Field(max_length=INPUT_MAX_OPTIONS), BeforeValidator(_check_options)
]


class PointContent(Wire):
    """What decides the content of the points of a load, so that its shards can be compared."""

    vectors: Kinds | None = None
    chunk: Chunking | None = None
    max_length: Annotated[int, Field(ge=3), AfterValidator(tokens_within_model)] | None = None
    colbert_pooling: Literal["none", "mean"] = "none"
    text_key: TextKey | None = None
    id_scope: Collection | None = None
    input: InputOptions | None = None

    def value(self) -> LoadContent:
        """Convert to the request value."""
        chunk = self.chunk
        return LoadContent(
            vectors=tuple(kind for kind in KINDS if kind in (self.vectors or ())),
            chunk_tokens=None if chunk is None else chunk.max_tokens,
            chunk_overlap=None if chunk is None else chunk.overlap_tokens,
            max_length=None if chunk is not None else self.max_length,
            colbert_pooling=self.colbert_pooling,
            text_key=self.text_key,
            id_scope=self.id_scope,
            input=tuple(sorted((self.input or {}).items())),
        )


class LoadRequest(Wire):
    """Begin or end a load whose lines are stored by other requests, or finish its collection."""

    operation: Literal["load"]
    action: Literal["begin", "end", "finish"]
    collection: Collection
    load_id: Annotated[str, Field(pattern=LOAD_ID)] = "load"
    alias: Collection | None = None
    shard: Annotated[str, Field(max_length=20), AfterValidator(_shard)] = "1/1"
    defer_index: bool = False
    mode: Literal["upsert", "insertOnly"] = "upsert"
    content: PointContent | None = None
    read: Count = 0
    lines: Count = 0
    points: Count = 0
    rejected: Count = 0
    complete: bool = True

    @model_validator(mode="after")
    def _fits_chunks(self) -> LoadRequest:
        if self.content is not None and self.content.chunk is not None:
            self.content.chunk.check_overlap("content.chunk")
        return self

    def value(self) -> operations.LoadAction:
        """Convert to the request value."""
        return operations.LoadAction(
            action=self.action,
            collection=self.collection,
            name=self.load_id,
            alias=self.alias,
            shard=Shard.parse(self.shard),
            defer_index=self.defer_index,
            counts=operations.LoadCounts(self.read, self.lines, self.points),
            rejected=self.rejected,
            complete=self.complete,
            content=None if self.content is None else self.content.value(),
            keeps=self.mode == "insertOnly",
        )

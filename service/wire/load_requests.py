"""The JSON of the steps of a load whose lines are stored by other requests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from qdrant_sink.loading import LOAD_ID, SHARD_RULE, Shard
from service import operations
from service.wire.fields import Collection, Wire

COUNT_MAX = 2**53 - 1
"""Maximum count of lines or points: the largest number that every JSON parser reads exactly."""

Count = Annotated[int, Field(ge=0, le=COUNT_MAX)]


def _shard(text: str) -> str:
    try:
        Shard.parse(text)
    except ValueError:
        raise ValueError(f"must {SHARD_RULE}, got {text!r}") from None
    return text


class LoadRequest(Wire):
    """Begin or end a load whose lines are stored by other requests, or finish its collection."""

    operation: Literal["load"]
    action: Literal["begin", "end", "finish"]
    collection: Collection
    load_id: Annotated[str, Field(pattern=LOAD_ID)] = "load"
    alias: Collection | None = None
    shard: Annotated[str, Field(max_length=20), AfterValidator(_shard)] = "1/1"
    defer_index: bool = False
    read: Count = 0
    lines: Count = 0
    points: Count = 0
    rejected: Count = 0
    complete: bool = True

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
        )

"""The request and the progress of the completion of a collection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedder import Kind


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Add the vectors of these kinds to the points of a collection that lack them.

    Attributes:
        kinds: kinds of vectors that every point is to have, at least one.
        collection: name of the collection or of an alias; None for the default.
        into: name of a new collection to copy the points into; None to add the vectors in place where the store can do
            that, and else to copy into a collection with `-complete` behind the name.
        alias: alias that is set to the new collection; None for the one that `collection` is.
        text_key: payload key of the text in the plain layout; None for that of the collection.
        pool_colbert: whether ColBERT rows that a multivector cannot hold are pooled instead of refused.

    Raises:
        ValueError: `kinds` is empty or repeats a kind.
    """

    kinds: Sequence[Kind]
    collection: str | None = None
    into: str | None = None
    alias: str | None = None
    text_key: str | None = None
    pool_colbert: bool = False

    def __post_init__(self) -> None:
        """Validate for callers in Python."""
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds must have 1 to 3 different items, got {list(self.kinds)}")


@dataclass(frozen=True, slots=True)
class CompletionProgress:
    """The progress of a completion.

    Attributes:
        done: number of points that are complete or could not be completed.
        points: number of all points at the start.
        copied: number of points that were copied into the new collection; None where vectors are added in place.
    """

    done: int
    points: int
    copied: int | None = None

"""The state of an existing collection, as its store describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qdrant_sink.model_identity import ModelIdentity
from qdrant_sink.schema_diff import CollectionDescription

CollectionStatus = Literal["green", "yellow", "grey", "red"]
"""Status of a collection: ready, being optimised, waiting for an optimisation, or failed to optimise."""


@dataclass(frozen=True, slots=True)
class CollectionState:
    """What a store holds under the name of a collection or of an alias.

    Attributes:
        description: vectors, payload indexes and placement.
        points: number of points as the store states it, which a running optimisation can make inexact.
        indexed_vectors: number of vectors of all kinds in a graph or an inverted index; None if the store does not say.
        status: status of the collection.
        model: model whose vectors the collection was made for; None if its metadata does not say.
    """

    description: CollectionDescription
    points: int
    indexed_vectors: int | None
    status: CollectionStatus
    model: ModelIdentity | None = None

"""The model that a re-index embeds stored texts with."""

from __future__ import annotations

from dataclasses import dataclass

from embedder import Embedder
from qdrant_sink import ModelIdentity
from service.operations.model_check import ModelCheck


@dataclass(frozen=True, slots=True)
class ReindexModel:
    """The model that embeds stored texts anew.

    Attributes:
        embedder: the loaded model.
        identity: its identity.
        check: check that a collection of the old store has its vectors.
        max_length: tokens beyond which a text is truncated.
    """

    embedder: Embedder
    identity: ModelIdentity
    check: ModelCheck
    max_length: int

"""The sizes of the vectors of a checkpoint, read without loading its model."""

from __future__ import annotations

from dataclasses import dataclass

from embedder.checkpoint.config import EncoderConfig
from embedder.checkpoint.find import find_checkpoint, revision_of


@dataclass(frozen=True, slots=True)
class VectorSizes:
    """The sizes of the vectors of a model.

    Attributes:
        dense: numbers of a dense vector.
        colbert: numbers of a ColBERT row.
        revision: revision of the checkpoint; None if unknown.
    """

    dense: int
    colbert: int
    revision: str | None


def vector_sizes(model_id: str, revision: str | None = None) -> VectorSizes:
    """Read the sizes of a model's vectors. Blocks while a model of the hub is downloaded.

    Args:
        model_id: as of `find_checkpoint`.
        revision: as of `find_checkpoint`.

    Raises:
        ConfigurationError: the checkpoint is missing or damaged.
    """
    from embedder.checkpoint.weights import read_head

    checkpoint = find_checkpoint(model_id, revision)
    weight, _ = read_head(checkpoint, "colbert_linear")
    return VectorSizes(EncoderConfig.read(checkpoint).hidden, weight.shape[0], revision_of(checkpoint))

"""One pass of an engine over some texts, and what each text gets of it: its vectors, or why it has none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.engine import EncodedBatch, Engine, GiveWay, TokenBatch
from embedder.errors import Cancelled, DeviceLost, ModelFailure, whereabouts
from embedder.tokenizer import EncodedText
from embedder.vectors import Embedding, Outputs, SparseVector

log = logging.getLogger(__name__)

Result = Embedding | ModelFailure
"""What became of one text."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a batch, and what its job wants of it."""

    encoded: EncodedText
    outputs: Outputs


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """A forward pass over some texts: what it gave, or why it failed."""

    texts: Sequence[Text]
    outcome: EncodedBatch | ModelFailure

    def results(self) -> list[Result]:
        """One result per text, checked to be finite."""
        if isinstance(self.outcome, ModelFailure):
            return [self.outcome] * len(self.texts)
        try:
            return _split(self.texts, self.outcome)
        except Exception as error:  # noqa: BLE001 - an engine at odds with the seam must not end the lane
            log.error("a batch of %d texts could not be unpacked: %s", len(self.texts), whereabouts(error))
            return [ModelFailure(f"the model gave vectors of unexpected shapes ({type(error).__name__})")] * len(
                self.texts
            )


def run(texts: Sequence[Text], engine: Engine, give_way: GiveWay | None, *, again: bool = True) -> list[Pass]:
    """One forward pass; if it fails, halves are tried until the text at fault stands alone.

    A text alone that does not fit into the memory is tried once more: another lane may have held it.

    Raises:
        DeviceLost: the engine's device computes no more; no text is at fault.
        Cancelled: raised by `give_way`.
    """
    outputs = texts[0].outputs
    for text in texts[1:]:
        outputs |= text.outputs
    tokens = sum(len(text.encoded) for text in texts)
    try:
        return [Pass(texts, engine.encode(TokenBatch.of([text.encoded.ids for text in texts]), outputs, give_way))]
    except (DeviceLost, Cancelled):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever ended the lane would leave every caller waiting
        if len(texts) == 1 and not (again and isinstance(error, MemoryError)):
            log.error("a text of %d tokens could not be encoded: %s", tokens, whereabouts(error))
            return [
                Pass(texts, ModelFailure(f"the model failed on a text of {tokens} tokens ({type(error).__name__})"))
            ]
        log.warning("a batch of %d texts, %d tokens, failed: %s", len(texts), tokens, whereabouts(error))
    # After the handler, not in it: there the exception still holds what the failed pass had allocated.
    if len(texts) == 1:
        return run(texts, engine, give_way, again=False)
    middle = len(texts) // 2
    return run(texts[:middle], engine, give_way) + run(texts[middle:], engine, give_way)


def _split(texts: Sequence[Text], batch: EncodedBatch) -> list[Result]:
    """The batch's arrays as one result per text."""
    results: list[Result] = []
    row = 0
    for b, text in enumerate(texts):
        wanted = text.outputs
        rows = slice(row, row := row + len(text.encoded) - 1)
        embedding = Embedding(
            dense=_part(batch.dense, b) if wanted.dense else None,
            sparse=_alone(batch.sparse[b]) if wanted.sparse and batch.sparse is not None else None,
            colbert=_part(batch.colbert, rows, wanted.colbert_type) if wanted.colbert else None,
            tokens=len(text.encoded),
            truncated=text.encoded.truncated,
        )
        results.append(_checked(embedding, wanted))
    return results


def _part(array: NDArray[Any] | None, where: int | slice, dtype: str = "float32") -> NDArray[Any] | None:
    """A copy: a view would keep the whole batch in memory for as long as one result of it lives."""
    return None if array is None else array[where].astype(dtype)


def _alone(sparse: SparseVector) -> SparseVector:
    """A copy, for the same reason."""
    return SparseVector(sparse.indices.copy(), sparse.values.copy())


def _checked(embedding: Embedding, wanted: Outputs) -> Result:
    """The embedding, if every kind that was asked for is there and finite."""
    values = {
        "dense": embedding.dense,
        "sparse": None if embedding.sparse is None else embedding.sparse.values,
        "colbert": embedding.colbert,
    }
    for kind in wanted.kinds:
        array = values[kind]
        if array is None:
            return ModelFailure(f"the model gave no {kind} vector for a text of {embedding.tokens} tokens")
        if kind == "colbert" and len(array) != embedding.tokens - 1:
            return ModelFailure(f"the model gave {len(array)} colbert rows for a text of {embedding.tokens} tokens")
        if not np.isfinite(array).all():
            return ModelFailure(f"the model gave a {kind} vector that is not finite ({embedding.tokens} tokens)")
    return embedding

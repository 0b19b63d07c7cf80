"""One batch through an engine: what each text gets of it, its vectors or why the model could not make them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.engines.engine import EncodedBatch, Engine, SparseBatch, TokenBatch, YieldPoint
from embedder.errors import Cancelled, DeviceLost, ModelFailure, whereabouts
from embedder.tokenizer import EncodedText
from embedder.vectors import Embedding, Outputs, SparseVector

log = logging.getLogger(__name__)

_HALF_EXPONENT = 0x7C00
"""Exponent bits of a float16; all of them are set in NaN and infinity alone."""

Result = Embedding | ModelFailure
"""The outcome of one text: its vectors, or why the model could not make them."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a batch, and what its job wants of it.

    Attributes:
        encoded: its tokens.
        outputs: the vectors to compute.
        owner: the job, which keeps the results of its texts together.
    """

    encoded: EncodedText
    outputs: Outputs
    owner: Hashable


def run(texts: Sequence[Text], engine: Engine, yield_point: YieldPoint | None, *, again: bool = True) -> list[Result]:
    """One result per text; if a pass fails, halves are tried until the text at fault stands alone.

    A text alone that does not fit into the memory is tried once more: another thread may have held it.

    Vectors are views of the batch's arrays where the text's job has at least half of the batch's tokens, and copies
    otherwise. So nothing is copied of a job that fills its batches, and holding the results of a job never holds more
    than twice its own vectors: a query does not keep those of a hundred others in memory, nor a text of a slow
    consumer those of its neighbours. Rows of ColBERT are in the type that the job asked for: where another job of the
    batch asked for float32, a job that asked for float16 has a copy.

    Args:
        texts: at least one.
        engine: runs the model.
        yield_point: None for an urgent batch; see `Engine.encode`.
        again: whether a lack of memory for a text alone may be temporary.

    Raises:
        DeviceLost: the engine's device does not compute any more; no text is at fault.
        Cancelled: raised by `yield_point`.
    """
    outputs = texts[0].outputs
    for text in texts[1:]:
        outputs |= text.outputs
    tokens = sum(len(text.encoded) for text in texts)
    try:
        batch = engine.encode(TokenBatch.of([text.encoded.ids for text in texts]), outputs, yield_point)
        return _results(texts, batch, outputs)
    except (DeviceLost, Cancelled):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever ended the thread would leave every caller waiting
        if len(texts) == 1 and not (again and isinstance(error, MemoryError)):
            log.error("a text of %d tokens could not be encoded: %s", tokens, whereabouts(error))
            return [ModelFailure(f"the model failed on a text of {tokens} tokens ({type(error).__name__})")]
        log.warning("a batch of %d texts, %d tokens, failed: %s", len(texts), tokens, whereabouts(error))
    # After the handler, not in it: there the exception still holds what the failed pass had allocated.
    if len(texts) == 1:
        return run(texts, engine, yield_point, again=False)
    middle = len(texts) // 2
    return run(texts[:middle], engine, yield_point) + run(texts[middle:], engine, yield_point)


def _results(texts: Sequence[Text], batch: EncodedBatch, outputs: Outputs) -> list[Result]:
    """The batch's arrays as one result per text, each checked to be whole and finite."""
    lengths = [len(text.encoded) for text in texts]
    fault = _fault(batch, outputs, len(texts), sum(lengths) - len(texts))
    if fault is not None:
        log.error("a batch of %d texts could not be unpacked: the engine gave %s", len(texts), fault)
        return [ModelFailure(f"the model gave {fault}")] * len(texts)
    shares: Counter[Hashable] = Counter()
    for text, length in zip(texts, lengths, strict=True):
        shares[text.owner] += length
    results: list[Result] = []
    row = 0
    for b, text in enumerate(texts):
        rows = slice(row, row := row + lengths[b] - 1)
        copy = 2 * shares[text.owner] < shares.total()
        results.append(_checked(_embedding(text, batch, b, rows, copy=copy)))
    return results


def _fault(batch: EncodedBatch, outputs: Outputs, texts: int, rows: int) -> str | None:
    """What an engine at odds with the seam left out, or gave in another shape."""
    if outputs.dense and (batch.dense is None or len(batch.dense) != texts):
        return f"{_count(batch.dense)} dense vectors for {texts} texts"
    if outputs.sparse and (batch.sparse is None or len(batch.sparse) != texts):
        return f"{_count(batch.sparse)} sparse vectors for {texts} texts"
    if outputs.colbert and (batch.colbert is None or len(batch.colbert) != rows):
        return f"{_count(batch.colbert)} colbert rows where {rows} are due"
    return None


def _count(vectors: NDArray[Any] | SparseBatch | None) -> str:
    return "no" if vectors is None else str(len(vectors))


def _embedding(text: Text, batch: EncodedBatch, b: int, rows: slice, *, copy: bool) -> Embedding:
    wanted = text.outputs
    dense = sparse = colbert = None
    if wanted.dense and batch.dense is not None:
        dense = batch.dense[b].copy() if copy else batch.dense[b]
    if wanted.sparse and batch.sparse is not None:
        sparse = batch.sparse[b]
        if copy:
            sparse = SparseVector(sparse.indices.copy(), sparse.values.copy())
    if wanted.colbert and batch.colbert is not None:
        colbert = batch.colbert[rows].astype(wanted.colbert_type, copy=copy)
    return Embedding(dense, sparse, colbert, tokens=len(text.encoded), truncated=text.encoded.truncated)


def _checked(embedding: Embedding) -> Result:
    """The embedding, if every number of it is finite."""
    values = {
        "dense": embedding.dense,
        "sparse": None if embedding.sparse is None else embedding.sparse.values,
        "colbert": embedding.colbert,
    }
    for kind, array in values.items():
        if array is not None and not _is_finite(array):
            return ModelFailure(f"the model gave a {kind} vector that is not finite ({embedding.tokens} tokens)")
    return embedding


def _is_finite(array: NDArray[Any]) -> bool:
    if array.dtype == np.float16:  # by its exponent: numpy looks at half precision number by number, eight times slower
        return int((array.view(np.uint16) & _HALF_EXPONENT).max(initial=0)) < _HALF_EXPONENT
    return bool(np.isfinite(array).all())

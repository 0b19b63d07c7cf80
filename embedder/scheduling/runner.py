"""One batch through an engine: what each text gets of it, its vectors or why the model could not make them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from embedder.engines.engine import EncodedBatch, Engine, PendingBatch, SparseBatch, TokenBatch, YieldPoint, offsets_of
from embedder.errors import Cancelled, DeviceLost, ModelFailure, whereabouts
from embedder.tokenizer import EncodedText
from embedder.vectors import Embedding, Kind, Outputs, SparseVector

log = logging.getLogger(__name__)

_HALF_EXPONENT = 0x7C00
"""Exponent bits of a float16; all of them are set in NaN and infinity alone."""

Result = Embedding | ModelFailure
"""The outcome of one text: its vectors, or why the model could not make them."""


class Text(NamedTuple):
    """A text of a batch, and what its job wants of it.

    Attributes:
        encoded: its tokens.
        outputs: the vectors to compute.
        owner: the job, which keeps the results of its texts together.
    """

    encoded: EncodedText
    outputs: Outputs
    owner: Hashable


class Launched(Protocol):
    """A batch on its way through an engine."""

    def results(self) -> list[Result]:
        """Wait for the engine; one result per text.

        Raises:
            DeviceLost: the engine's device does not compute any more; no text is at fault.
            Cancelled: raised by the yield point of a pass that was tried again.
        """
        ...


def run(texts: Sequence[Text], engine: Engine, yield_point: YieldPoint | None, *, again: bool = True) -> list[Result]:
    """One result per text, as `launch` and `Launched.results` give them."""
    return launch(texts, engine, yield_point, again=again).results()


def launch(texts: Sequence[Text], engine: Engine, yield_point: YieldPoint | None, *, again: bool = True) -> Launched:
    """Start a batch; if its pass fails, halves are tried until the text at fault stands alone.

    What a GPU could not launch is tried again by `Launched.results`: whoever launches must not wait for a device, and
    what batches before this one held of its memory is free by then. A CPU has one thread that computes, which does it.

    A text alone that does not fit into the memory is tried once more: another batch may have held it.

    Vectors are views of the batch's arrays where the text's job has at least half of the batch's tokens, and copies
    otherwise. So nothing is copied of a job that fills its batches, and holding the results of a job never holds more
    than twice its own vectors: a query does not keep those of a hundred others in memory, nor a text of a slow
    consumer those of its neighbours. Rows of ColBERT are in the type that the job asked for; an engine that gives
    float32 alone where both are asked for costs a copy.

    Args:
        texts: at least one.
        engine: runs the model.
        yield_point: None for an urgent batch; see `Engine.launch`.
        again: whether a lack of memory for a text alone may be temporary.

    Raises:
        DeviceLost: the engine's device does not compute any more; no text is at fault.
        Cancelled: raised by `yield_point`.
    """
    attempt = _Attempt(texts, reduce(or_, {text.outputs for text in texts}), engine, yield_point, again)
    try:
        batch = TokenBatch.of([text.encoded.ids for text in texts])
        return _Pending(attempt, engine.launch(batch, attempt.outputs, yield_point))
    except (DeviceLost, Cancelled):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever ended the thread would leave every caller waiting
        failure = attempt.failure(error)
    # After the handler, not in it: there the exception still holds what the failed pass had allocated.
    if failure is None and engine.device != "cpu":
        return _Halved(attempt)
    return _Done(failure or attempt.halves())


@dataclass(frozen=True, slots=True)
class Refused:
    """A batch that could not be launched, for no fault of its texts."""

    error: DeviceLost | Cancelled

    def results(self) -> list[Result]:
        """See `Launched.results`."""
        raise self.error


@dataclass(frozen=True, slots=True)
class _Done:
    """A batch that failed when it was launched, and what came of it."""

    outcome: list[Result]

    def results(self) -> list[Result]:
        return self.outcome


@dataclass(frozen=True, slots=True)
class _Halved:
    """A batch that failed when it was launched, and whose halves are tried by who waits for it."""

    attempt: _Attempt

    def results(self) -> list[Result]:
        """See `Launched.results`."""
        return self.attempt.halves()


@dataclass(slots=True)
class _Pending:
    """A batch that was launched, and is waited for once."""

    attempt: _Attempt
    batch: PendingBatch

    def results(self) -> list[Result]:
        """See `Launched.results`."""
        attempt = self.attempt
        try:
            return _results(attempt.texts, self.batch.wait(), attempt.outputs)
        except (DeviceLost, Cancelled):
            raise
        except BaseException as error:  # noqa: BLE001 - as in `launch`
            failure = attempt.failure(error)
        del self.batch  # what it holds is free while halves are tried
        return failure or attempt.halves()


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Texts on their way through an engine, and what is done where that fails."""

    texts: Sequence[Text]
    outputs: Outputs
    engine: Engine
    yield_point: YieldPoint | None
    again: bool

    def failure(self, error: BaseException) -> list[Result] | None:
        """The result of a text that fails alone and for good; None if the texts are to be tried again."""
        tokens = sum(len(text.encoded) for text in self.texts)
        if len(self.texts) == 1 and not (self.again and isinstance(error, MemoryError)):
            log.error("a text of %d tokens could not be encoded: %s", tokens, whereabouts(error))
            return [ModelFailure(f"the model failed on a text of {tokens} tokens ({type(error).__name__})")]
        log.warning("a batch of %d texts, %d tokens, failed: %s", len(self.texts), tokens, whereabouts(error))
        return None

    def halves(self) -> list[Result]:
        """The texts once more, by halves; a text alone for the last time."""
        if len(self.texts) == 1:
            return run(self.texts, self.engine, self.yield_point, again=False)
        middle = len(self.texts) // 2
        first, second = self.texts[:middle], self.texts[middle:]
        return run(first, self.engine, self.yield_point) + run(second, self.engine, self.yield_point)


def _results(texts: Sequence[Text], batch: EncodedBatch, outputs: Outputs) -> list[Result]:
    """The batch's arrays as one result per text, each checked to be whole and finite."""
    lengths = [len(text.encoded) for text in texts]
    fault = _fault(batch, outputs, len(texts), sum(lengths) - len(texts))
    if fault is not None:
        log.error("a batch of %d texts could not be unpacked: the engine gave %s", len(texts), fault)
        return [ModelFailure(f"the model gave {fault}")] * len(texts)
    results = _embeddings(texts, batch, lengths)
    for kind, text in _not_finite(batch, lengths):
        if kind in texts[text].outputs.kinds and isinstance(results[text], Embedding):
            results[text] = ModelFailure(f"the model gave a {kind} vector that is not finite ({lengths[text]} tokens)")
    return results


def _fault(batch: EncodedBatch, outputs: Outputs, texts: int, rows: int) -> str | None:
    """A description of vectors that are missing or have the wrong shape; None if the batch is complete."""
    if outputs.dense and (batch.dense is None or len(batch.dense) != texts):
        return f"{_count(batch.dense)} dense vectors for {texts} texts"
    if outputs.sparse and (batch.sparse is None or len(batch.sparse) != texts):
        return f"{_count(batch.sparse)} sparse vectors for {texts} texts"
    if outputs.colbert and (batch.colbert is None or len(batch.colbert) != rows):
        return f"{_count(batch.colbert)} colbert rows where {rows} are due"
    if batch.colbert_float16 is not None and len(batch.colbert_float16) != rows:
        return f"{_count(batch.colbert_float16)} colbert rows in float16 where {rows} are due"
    return None


def _count(vectors: NDArray[Any] | SparseBatch | None) -> str:
    return "no" if vectors is None else str(len(vectors))


def _embeddings(texts: Sequence[Text], batch: EncodedBatch, lengths: Sequence[int]) -> list[Result]:
    """Each text's part of the arrays: a view where its job has at least half of the batch's tokens, else a copy."""
    shares: Counter[Hashable] = Counter()
    for text, length in zip(texts, lengths, strict=True):
        shares[text.owner] += length
    copied = {owner for owner, tokens in shares.items() if 2 * tokens < shares.total()}
    edges = [] if batch.sparse is None else batch.sparse.offsets.tolist()
    rows_by_type = {str(rows.dtype): rows for rows in (batch.colbert, batch.colbert_float16) if rows is not None}
    results: list[Result] = []
    row = 0
    for b, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        wanted, encoded = text.outputs, text.encoded
        copy = text.owner in copied
        own = slice(row, row := row + length - 1)
        dense = sparse = colbert = None
        if wanted.dense and batch.dense is not None:
            dense = batch.dense[b].copy() if copy else batch.dense[b]
        if wanted.sparse and batch.sparse is not None:
            entries = slice(edges[b], edges[b + 1])
            indices, values = batch.sparse.indices[entries], batch.sparse.values[entries]
            sparse = SparseVector(indices.copy(), values.copy()) if copy else SparseVector(indices, values)
        if wanted.colbert and batch.colbert is not None:
            colbert = rows_by_type.get(wanted.colbert_type, batch.colbert)[own]
            if copy or colbert.dtype != wanted.colbert_type:
                colbert = colbert.astype(wanted.colbert_type)
        results.append(Embedding(dense, sparse, colbert, length, encoded.truncated))
    return results


def _not_finite(batch: EncodedBatch, lengths: Sequence[int]) -> Iterator[tuple[Kind, int]]:
    """The kind and the text of each vector that is not finite; what the engine found to be finite is not read."""
    if batch.dense is not None and "dense" not in batch.finite and not _is_finite(batch.dense):
        yield from (("dense", b) for b, row in enumerate(batch.dense) if not _is_finite(row))
    if batch.sparse is not None and "sparse" not in batch.finite and not _is_finite(batch.sparse.values):
        yield from (("sparse", b) for b in range(len(batch.sparse)) if not _is_finite(batch.sparse[b].values))
    if batch.colbert is not None and "colbert" not in batch.finite:
        edges = offsets_of(np.array(lengths, dtype=np.int32) - 1)
        for b, (start, end) in enumerate(pairwise(edges.tolist())):
            if not _is_finite(batch.colbert[start:end]):
                yield "colbert", b


def _is_finite(array: NDArray[Any]) -> bool:
    if array.dtype == np.float16:  # by its exponent: numpy looks at half precision number by number, eight times slower
        return int((array.view(np.uint16) & _HALF_EXPONENT).max(initial=0)) < _HALF_EXPONENT
    return bool(np.isfinite(array).all())

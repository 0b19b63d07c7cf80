"""The vectors of a sample in two types of one checkpoint, and how they differ."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embedder import Embedder, ModelOptions, Priority
from embedder.errors import ModelFailure
from embedder.vectors import Embedding, Outputs, SparseVector
from precision.closeness import SparseDifference, Spread, cosines, row_cosines, sparse_difference
from precision.ranking import (
    Ranking,
    Scores,
    colbert_scores,
    dense_scores,
    fused_scores,
    ndcg,
    overlap,
    sparse_scores,
    top,
)
from precision.sample import Sample

log = logging.getLogger(__name__)

SPARSE_FLOOR = 0.5
"""A weight below half of its text's largest is compared with that half. So 2 % allows a small weight an error of 1 % of
the largest: five roundings of a number of that size to bfloat16 (2^-9 each)."""
DEPTH = 10
"""Length of the rankings that are compared."""
CANDIDATES = 100
"""Passages per kind that are fused, as the service's `prefetch`."""
BATCH_TOKENS = 4096
"""Fixed rather than measured, so that both types see the same batches, in every run."""


Result = Embedding | ModelFailure
"""The result of one text."""
_Pair = tuple[Embedding, Embedding]
"""One text in both types."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens at which texts are cut, special tokens included."""

    passage: int
    query: int


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """A sample in one type: one result per text, in order."""

    passages: Sequence[Result]
    queries: Sequence[Result]


@dataclass(frozen=True, slots=True)
class Quality:
    """Mean nDCG@10 over the queries, each in [0, 1]."""

    reference: float
    other: float

    @property
    def change(self) -> float:
        """Signed, as a share of the reference's; infinite if that is 0 and the other is not."""
        if self.other == self.reference:
            return 0.0
        return (self.other - self.reference) / self.reference if self.reference else math.inf


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of the rankings of one kind.

    Attributes:
        overlap: mean over queries of overlap@10.
        same_first: share of the queries whose first passage is the same.
        quality: None if the right answers are not known.
    """

    overlap: float
    same_first: float
    quality: Quality | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between two types. Texts that failed in one of them count in `failures` alone.

    Attributes:
        passages: passages compared.
        queries: queries compared.
        tokens: of all these, special tokens included.
        truncated: how many of them were cut.
        failures: what was said of the texts that have no vectors, with how many texts that was, by type.
        failed: texts without vectors in either type.
        dense: cosines, one per text.
        colbert: cosines, one per row of any text.
        sparse: of all texts.
        rankings: `dense`, `sparse`, `colbert`, and `all three, RRF`, which is their fusion; empty without queries.
    """

    passages: int
    queries: int
    tokens: int
    truncated: int
    failures: dict[str, dict[str, int]]
    failed: int
    dense: Spread
    colbert: Spread
    sparse: SparseDifference
    rankings: dict[str, Agreement]


def embed(sample: Sample, options: ModelOptions, lengths: Lengths) -> Embedded:
    """Load the model, embed the sample as the service would, and free the model. Blocks.

    Args:
        sample: the texts.
        options: the model, its type and its devices; batches and queue are set here.
        lengths: at which texts are cut.

    Raises:
        ConfigurationError: the options cannot work on this machine.
        WorkerError: the device failed while it computed.
    """
    log.info("embedding %d passages and %d queries in %s", len(sample.passages), len(sample.queries), options.dtype)
    embedded = _embed(sample, options, lengths)
    gc.collect()  # 2.3 GB of weights must not wait for the collector while the next type loads
    _release_device_memory()
    return embedded


def compare(
    reference: Embedded, other: Embedded, answers: Sequence[frozenset[int]] | None, *, types: tuple[str, str]
) -> Comparison:
    """Measure every difference between the same sample in two types.

    Args:
        reference: the vectors to agree with.
        other: the vectors that are judged.
        answers: as in `Sample`.
        types: names of both types, for `failures`.
    """
    passages = _both(reference.passages, other.passages)
    queries = _both(reference.queries, other.queries)
    texts = [*passages.values(), *queries.values()]
    relevant = None if answers is None else _relevant(answers, list(queries), list(passages))
    return Comparison(
        passages=len(passages),
        queries=len(queries),
        tokens=sum(one.tokens for one, _ in texts),
        truncated=sum(one.truncated for one, _ in texts),
        failures={
            name: _failures([*embedded.passages, *embedded.queries])
            for name, embedded in zip(types, (reference, other), strict=True)
        },
        failed=len(reference.passages) + len(reference.queries) - len(texts),
        dense=Spread.of(cosines(_dense([one for one, _ in texts]), _dense([two for _, two in texts]))),
        colbert=Spread.of(row_cosines(_colbert(one for one, _ in texts), _colbert(two for _, two in texts))),
        sparse=sparse_difference(
            _sparse(one for one, _ in texts), _sparse(two for _, two in texts), floor=SPARSE_FLOOR
        ),
        rankings=_rankings(list(passages.values()), list(queries.values()), relevant) if passages and queries else {},
    )


def _embed(sample: Sample, options: ModelOptions, lengths: Lengths) -> Embedded:
    most = max(len(sample.passages) * lengths.passage, len(sample.queries) * lengths.query)
    embedder = Embedder.load(replace(options, batches_per_gpu=1, token_budget=BATCH_TOKENS, queue_tokens=most))

    async def run() -> Embedded:
        return Embedded(
            await embedder.embed(sample.passages, Outputs(), max_length=lengths.passage, priority=Priority.PASSAGE),
            await embedder.embed(sample.queries, Outputs(), max_length=lengths.query, priority=Priority.QUERY),
        )

    try:
        return asyncio.run(run())
    finally:
        embedder.close()


def _rankings(
    passages: Sequence[_Pair], queries: Sequence[_Pair], relevant: NDArray[np.bool_] | None
) -> dict[str, Agreement]:
    ours = _rank([one for one, _ in queries], [one for one, _ in passages])
    theirs = _rank([two for _, two in queries], [two for _, two in passages])
    return {kind: _agreement(ranking, theirs[kind], relevant) for kind, ranking in ours.items()}


def _rank(queries: Sequence[Embedding], passages: Sequence[Embedding]) -> dict[str, Ranking]:
    """The first ten passages per query, by kind; one that shares no token id with the query has no sparse rank."""
    scores: dict[str, Scores] = {
        "dense": dense_scores(_dense(queries), _dense(passages)),
        "sparse": sparse_scores(_sparse(queries), _sparse(passages)),
        "colbert": colbert_scores(_colbert(queries), _colbert(passages)),
    }
    candidates = {kind: top(one, CANDIDATES, above=0 if kind == "sparse" else -np.inf) for kind, one in scores.items()}
    fused = top(fused_scores(list(candidates.values()), len(passages)), DEPTH, above=0)
    return {kind: ranking[:, :DEPTH] for kind, ranking in candidates.items()} | {"all three, RRF": fused}


def _agreement(reference: Ranking, other: Ranking, relevant: NDArray[np.bool_] | None) -> Agreement:
    return Agreement(
        overlap=float(overlap(reference, other).mean()),
        same_first=float((reference[:, 0] == other[:, 0]).mean()),
        quality=None
        if relevant is None
        else Quality(float(ndcg(reference, relevant).mean()), float(ndcg(other, relevant).mean())),
    )


def _both(reference: Sequence[Result], other: Sequence[Result]) -> dict[int, _Pair]:
    """The texts that have vectors in both types, by number."""
    return {
        number: (one, two)
        for number, (one, two) in enumerate(zip(reference, other, strict=True))
        if isinstance(one, Embedding) and isinstance(two, Embedding)
    }


def _relevant(answers: Sequence[frozenset[int]], queries: Sequence[int], passages: Sequence[int]) -> NDArray[np.bool_]:
    """Whether a passage answers a query, bool [queries, passages]."""
    found = np.zeros((len(queries), len(passages)), dtype=np.bool_)
    for row, query in zip(found, queries, strict=True):
        row[:] = [passage in answers[query] for passage in passages]
    return found


def _failures(results: Sequence[Result]) -> dict[str, int]:
    found: dict[str, int] = {}
    for result in results:
        if isinstance(result, ModelFailure):
            found[result.message] = found.get(result.message, 0) + 1
    return found


def _dense(texts: Sequence[Embedding]) -> NDArray[np.float32]:
    vectors = [text.dense for text in texts if text.dense is not None]
    return np.stack(vectors) if vectors else np.empty((0, 1), dtype=np.float32)


def _sparse(texts: Iterable[Embedding]) -> list[SparseVector]:
    return [text.sparse for text in texts if text.sparse is not None]


def _colbert(texts: Iterable[Embedding]) -> list[NDArray[np.float32]]:
    return [text.colbert for text in texts if text.colbert is not None]


def _release_device_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()

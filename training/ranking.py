"""Rankings of a pool, and how good they are when each query has exactly one answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]
"""``[Q, N]``: per query the pool indices, best first."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over queries, each in [0, 1]."""

    r1: float
    """Share of queries whose answer ranks first."""
    r10: float
    r100: float
    mrr10: float
    """Reciprocal rank, 0 beyond ten."""
    ndcg10: float
    """NDCG@10 with one relevant document: 1 / log2(rank + 1), 0 beyond ten (Jarvelin and Kekalainen 2002)."""

    def as_dict(self) -> dict[str, float]:
        """The figures by name, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """One line, three decimals."""
        return "  ".join(f"{name} {value:.3f}" for name, value in self.as_dict().items())


def rank_by_score(scores: NDArray[Any]) -> Ranks:
    """Pool indices by falling score ``[Q, N]``; equal scores keep pool order."""
    return np.argsort(-scores, axis=1, kind="stable")


def measure(ranks: Ranks, answers: NDArray[np.int64]) -> Quality:
    """Judge rankings ``[Q, N]`` (or their first columns) against the answers ``[Q]``."""
    hit = ranks == answers[:, None]
    position = np.where(hit.any(1), hit.argmax(1), np.iinfo(np.int64).max // 2)
    return Quality(
        r1=float((position < 1).mean()),
        r10=float((position < 10).mean()),
        r100=float((position < 100).mean()),
        mrr10=float(np.where(position < 10, 1 / (position + 1.0), 0).mean()),
        ndcg10=float(np.where(position < 10, 1 / np.log2(position + 2.0), 0).mean()),
    )


def fuse(rankings: list[Ranks], *, depth: int = 100, k: int = 60) -> Ranks:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): sum over rankings of 1 / (k + rank).

    Only the first ``depth`` places of each ranking count, as a vector database would return them.

    Args:
        rankings: The first holds the whole pool, ``[Q, N]``; the others at least ``depth`` places.
        depth: Places that count.
        k: The constant of the formula.

    Returns:
        The fused ranking of the whole pool, ``[Q, N]``.
    """
    scores = np.zeros(rankings[0].shape)
    for ranks in rankings:
        top = ranks[:, :depth]
        gain = 1 / (k + 1 + np.arange(top.shape[1]))
        np.put_along_axis(scores, top, np.take_along_axis(scores, top, axis=1) + gain, axis=1)
    return rank_by_score(scores)


def rerank(ranks: Ranks, scores: NDArray[Any], depth: int) -> Ranks:
    """Sort the first ``depth`` places of a ranking by ``scores`` ``[Q, N]``; the rest stays."""
    top = ranks[:, :depth]
    order = rank_by_score(np.take_along_axis(scores, top, axis=1))
    return np.concatenate([np.take_along_axis(top, order, axis=1), ranks[:, depth:]], axis=1)

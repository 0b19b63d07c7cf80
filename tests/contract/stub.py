"""Vectors from token ids, whose inner products are the same on every machine.

Every component is a whole number of 512ths, and the squares of a row sum to exactly 1. So an inner product is a sum of
integers over 2^18, which float32 holds without rounding, in whatever order it is summed. The magnitudes of the
components all differ, so that two inner products are seldom equal. Pure: token ids in, numpy arrays out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIZE: Final = 64
"""Components of a dense vector and of a ColBERT row."""

_MAGNITUDES: Final = np.array([*range(33, 93), 95, 19, 18, 8], dtype=np.float64) / 512
"""Sizes of the components; their squares sum to 1."""

_TURNED_SHARE: Final = 0.25
"""Share of the signs of a ColBERT row that the tokens around it turn."""

_WEIGHTS: Final = 255
"""Number of different sparse weights: the multiples of 1/256 from 1/256 to 255/256."""


def dense(ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the dense vector of a text: the majority of its tokens' signs, so that similar texts are near."""
    inner = ids[1:-1] or ids[:1]
    votes = np.sum([_signs(token, 0) for token in inner], axis=0)
    signs = np.where(votes == 0, _signs(inner[0], 0), np.sign(votes))
    return _scaled(signs)


def sparse(ids: Sequence[int], dropped: Collection[int]) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """Return the ascending indices and weights of a text, which depend on the token and the whole text."""
    indices = sorted(set(ids) - set(dropped))
    text = repr(list(ids))
    weights = [1 + _draw(f"weight {token} in {text}", 2) % _WEIGHTS for token in indices]
    return np.array(indices, dtype=np.uint32), (np.array(weights) / 256).astype(np.float32)


def colbert(ids: Sequence[int]) -> NDArray[np.float32]:
    """Return a row per token but the first: its own signs, some flipped by the neighbouring tokens."""
    rows = []
    for index in range(1, len(ids)):
        around = f"{ids[index - 1]} {ids[index]} {ids[index + 1] if index + 1 < len(ids) else None}"
        turned = np.where(_bytes(around) < 256 * _TURNED_SHARE, -1.0, 1.0)
        rows.append(_signs(ids[index], 1) * turned)
    return _scaled(np.array(rows))


def _scaled(signs: NDArray[np.float64]) -> NDArray[np.float32]:
    return (signs * _MAGNITUDES).astype(np.float32)


def _signs(token: int, head: int) -> NDArray[np.float64]:
    return np.where(_bytes(f"head {head} token {token}") < 128, -1.0, 1.0)


def _bytes(name: str) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.blake2b(name.encode(), digest_size=SIZE).digest(), dtype=np.uint8)


def _draw(name: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=size).digest(), "big")

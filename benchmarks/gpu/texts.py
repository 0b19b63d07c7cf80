"""Texts and batches of the GPU benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from benchmarks.texts import QUERY_LENGTHS, Writer, mixed_lengths
from embedder import EncodedText, Outputs
from embedder.engines import TokenBatch

MAX_LENGTH = 512
"""Maximum length of the mixed passages, in tokens."""
OUTPUTS = {
    "dense": Outputs(dense=True, sparse=False, colbert=False),
    "dense + sparse": Outputs(dense=True, sparse=True, colbert=False),
    "all, float16 rows": Outputs(colbert_type="float16"),
    "all, float32 rows": Outputs(),
}


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts to embed.

    Attributes:
        queries: 5 to 12 tokens each.
        mixed: 8 to 512 tokens, log-normal.
        passages: 512 tokens each.
    """

    queries: list[str]
    mixed: list[str]
    passages: list[str]

    @classmethod
    def make(cls, checkpoint: Path, *, quick: bool) -> Self:
        """Texts for the tokenizer of a checkpoint; the same arguments give the same texts."""
        writer = Writer(checkpoint / "tokenizer.json", seed=0)
        return cls(
            queries=[writer.text(length) for length in QUERY_LENGTHS * (1 if quick else 64)],
            mixed=[writer.text(length) for length in mixed_lengths(32 if quick else 2048)],
            passages=[writer.text(MAX_LENGTH) for _ in range(2 if quick else 64)],
        )


def shapes(*, quick: bool) -> dict[str, list[int]]:
    """Lengths in tokens of the batches that the engine is measured with, by name."""
    batches = {
        "1 x 9": [9],
        "128 x 9": [9] * 128,
        "64 x 128": [128] * 64,
        "128 x 256": [256] * 128,
        "512 x 128": [128] * 512,
        "64 x 512": [512] * 64,
        "1024 mixed": mixed_lengths(1024),
        "1 x 8192": [8192],
    }
    return {name: _quick(lengths) if quick else lengths for name, lengths in batches.items()}


def random_batch(lengths: Sequence[int], vocabulary: int) -> TokenBatch:
    """Texts of these lengths, of random ordinary tokens."""
    draw = np.random.default_rng(0)
    return TokenBatch.of([draw.integers(5, vocabulary, length, dtype=np.int32) for length in lengths])


def batches(texts: Sequence[EncodedText], budget_tokens: int) -> Iterator[TokenBatch]:
    """The texts, in order, in batches of at most so many tokens."""
    batch: list[EncodedText] = []
    tokens = 0
    for text in texts:
        if batch and tokens + len(text) > budget_tokens:
            yield TokenBatch.of([member.ids for member in batch])
            batch, tokens = [], 0
        batch.append(text)
        tokens += len(text)
    if batch:
        yield TokenBatch.of([member.ids for member in batch])


def _quick(lengths: list[int]) -> list[int]:
    """Fewer and shorter texts, for a run that shows that everything works."""
    return [min(length, 1024) for length in lengths[: max(1, len(lengths) // 16)]]

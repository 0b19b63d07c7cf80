"""Sizes of a checkpoint, and the arithmetic that follows from them. Reads config.json; needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

FULL_SIZE = {"hidden": 1024, "layers": 24, "heads": 16, "intermediate": 4096, "positions": 8194, "vocab": 250_002}
"""BAAI/bge-m3."""
QUICK_SIZE = {"hidden": 256, "layers": 3, "heads": 4, "intermediate": 1024, "positions": 8194, "vocab": 30_000}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of an XLM-RoBERTa encoder."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int

    @classmethod
    def read(cls, checkpoint: Path) -> Self:
        """Read the sizes from config.json."""
        raw = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        return cls(
            hidden=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            intermediate=raw["intermediate_size"],
            vocabulary=raw["vocab_size"],
            positions=raw["max_position_embeddings"],
        )

    @property
    def max_length(self) -> int:
        """Most tokens of a text."""
        return self.positions - 2

    @property
    def linear(self) -> int:
        """Weights of the encoder's linear layers: each is multiplied and added once per token."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """All weights of encoder, pooler and heads, biases included."""
        hidden = self.hidden
        tables = (self.vocabulary + self.positions + 1) * hidden + 2 * hidden
        biases_and_norms = self.layers * (9 * hidden + self.intermediate)
        heads = 2 * (hidden**2 + hidden) + hidden + 1
        return tables + self.linear + biases_and_norms + heads

    def flops(self, length: int) -> float:
        """Per token of a text of this length, attention included."""
        return 2.0 * self.linear + 4.0 * length * self.hidden * self.layers

    def attention_bytes(self, length: int) -> int:
        """One float32 tensor [heads, length, length]."""
        return self.heads * length**2 * 4

"""A checkpoint with everything that can embed with it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from embedder.engines.flagembedding import FlagEmbeddingEngine
from embedder.engines.packed import PackedEngine
from embedder.model import Model, load_model
from embedder.tokenizer import Tokenizer
from tests.embedder.oracle import Oracle


@dataclass(frozen=True)
class Bench:
    """A checkpoint with everything that can embed with it; each is loaded on first use."""

    checkpoint: Path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Ours."""
        return Tokenizer(self.checkpoint)

    @cached_property
    def model(self) -> Model:
        """Our model in float32."""
        return self.model_as("float32")

    @cached_property
    def packed(self) -> PackedEngine:
        """Our engine in float32."""
        return PackedEngine(self.model)

    @cached_property
    def flagembedding(self) -> FlagEmbeddingEngine:
        """FlagEmbedding behind the seam."""
        return FlagEmbeddingEngine.load(
            self.checkpoint, device="cpu", dtype="float32", dropped_ids=self.tokenizer.dropped_ids
        )

    @cached_property
    def oracle(self) -> Oracle:
        """FlagEmbedding by its public interface."""
        return Oracle(self.checkpoint)

    @cache  # noqa: B019 - benches live as long as the session
    def model_as(self, dtype: str, device: str = "cpu") -> Model:
        """Our model in another type or elsewhere, loaded once."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor", category=UserWarning)
            return load_model(self.checkpoint, device=device, dtype=dtype, dropped_ids=self.tokenizer.dropped_ids)

    def packed_as(self, dtype: str, device: str = "cpu") -> PackedEngine:
        """Our engine in another type or elsewhere."""
        return PackedEngine(self.model_as(dtype, device))

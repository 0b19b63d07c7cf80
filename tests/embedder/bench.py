"""A checkpoint and every implementation that can embed with it."""

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
    """A checkpoint and every implementation that can embed with it; each is loaded on first use."""

    checkpoint: Path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Return the project's tokenizer."""
        return Tokenizer(self.checkpoint)

    @cached_property
    def model(self) -> Model:
        """Return the project's model in float32."""
        return self.model_as("float32")

    @cached_property
    def packed(self) -> PackedEngine:
        """Return the packed engine in float32."""
        return PackedEngine(self.model)

    @cached_property
    def flagembedding(self) -> FlagEmbeddingEngine:
        """Return FlagEmbedding as an `Engine`."""
        return FlagEmbeddingEngine.load(
            self.checkpoint, device="cpu", dtype="float32", dropped_ids=self.tokenizer.dropped_ids
        )

    @cached_property
    def oracle(self) -> Oracle:
        """Return FlagEmbedding through its public interface."""
        return Oracle(self.checkpoint)

    @cache  # noqa: B019 - benches live as long as the session
    def model_as(self, dtype: str, device: str = "cpu") -> Model:
        """Return the project's model in another type or on another device, loaded once."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor", category=UserWarning)
            return load_model(self.checkpoint, device=device, dtype=dtype, dropped_ids=self.tokenizer.dropped_ids)

    def packed_as(self, dtype: str, device: str = "cpu") -> PackedEngine:
        """Return the packed engine in another type or on another device."""
        return PackedEngine(self.model_as(dtype, device))

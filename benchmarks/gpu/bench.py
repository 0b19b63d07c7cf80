"""The state that sections share: the device, the checkpoint, and engines loaded on first use."""

from __future__ import annotations

import inspect
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.gpu.clock import is_gpu
from benchmarks.gpu.texts import Texts
from benchmarks.shape import Shape
from embedder import BatchReport, Embedder, ModelOptions
from embedder.engines.packed import PackedEngine
from embedder.model.model import load_model
from embedder.tokenizer import Tokenizer

_BUDGET_DEFAULT_TOKENS = 32_768


class NotRunError(Exception):
    """A section does not apply here; the message says why."""


@dataclass
class Bench:
    """One device and one checkpoint.

    Attributes:
        device: `cuda:N`, or `cpu` to try the benchmark where no GPU is.
        checkpoint: a directory in the published layout.
        quick: whether few repetitions are enough.
    """

    device: str
    checkpoint: Path
    quick: bool = False
    _reports: deque[BatchReport] = field(default_factory=lambda: deque(maxlen=1))

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return is_gpu(self.device)

    @property
    def dtype(self) -> str:
        """The type of the matrix products: float16, on a CPU float32."""
        return "float16" if self.on_gpu else "float32"

    def seconds(self, full: float) -> float:
        """Seconds of a measurement: `full`, or a moment in a quick run."""
        return min(full, 0.05) if self.quick else full

    @cached_property
    def shape(self) -> Shape:
        """Sizes of the checkpoint."""
        return Shape.read(self.checkpoint)

    @cached_property
    def texts(self) -> Texts:
        """The texts, written when a section first needs them."""
        return Texts.make(self.checkpoint, quick=self.quick)

    @cached_property
    def engine(self) -> PackedEngine:
        """The engine alone, in 16 bits on a GPU."""
        return self.load_engine(self.dtype)

    @cached_property
    def float8_engine(self) -> PackedEngine:
        """The engine alone, with float8 products."""
        return self.load_engine("float8")

    @property
    def engines(self) -> dict[str, PackedEngine]:
        """The engines that are loaded, by type."""
        loaded = {self.dtype: self.engine}
        return loaded | {"float8": self.float8_engine} if "float8_engine" in self.__dict__ else loaded

    @cached_property
    def embedder(self) -> Embedder:
        """Tokenizer, pool and engine, with the defaults of the service."""
        embedder = Embedder.load(ModelOptions(str(self.checkpoint), dtype=self.dtype, device=self.device))
        embedder.observe(self._reports.append)
        return embedder

    @property
    def budget_tokens(self) -> int:
        """The token budget of the pool, as the report of its last batch shows it."""
        for report in list(self._reports):
            return round(report.tokens / report.fill)
        return _BUDGET_DEFAULT_TOKENS

    def load_engine(self, dtype: str, **options: Any) -> PackedEngine:
        """Another engine over the checkpoint, warm; `options` are those of its constructor."""
        dropped_ids = Tokenizer(self.checkpoint).dropped_ids
        model = load_model(self.checkpoint, device=self.device, dtype=dtype, dropped_ids=dropped_ids)
        engine = PackedEngine(model, **options)
        engine.warm()
        engine.prepare(_BUDGET_DEFAULT_TOKENS)
        return engine

    @property
    def graphs_optional(self) -> bool:
        """Whether the engine can be loaded with and without CUDA graphs."""
        return self.on_gpu and "graphs" in inspect.signature(PackedEngine).parameters

    def close(self) -> None:
        """Stop the worker threads."""
        if "embedder" in self.__dict__:
            self.embedder.close()

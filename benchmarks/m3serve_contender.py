"""m3serve's engine in process, with its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.seam import NotInstalledError, Phase, Setup

_PATIENCE = 3600.0
"""Time limit per request in seconds, in place of m3serve's 60 s, which slow machines would reach."""


class M3serve:
    """A pipeline of three threads; requests that wait together share a padded batch."""

    detail = ""
    cancels = False

    def __init__(self, engine: Any, device: str) -> None:
        self._engine = engine
        half = device != "cpu"
        self.dtype = "float16" if half else "float32"
        # In float32 it asks transformers for "eager" attention: products, masked products, softmax.
        self.attention_copies = 0 if half else 3

    async def embed(self, texts: Sequence[str], *, query: bool, max_length: int, dense_only: bool = False) -> None:
        """One `embed`. It knows no priority, and its length limit is the model's."""
        del query, max_length
        await self._engine.embed(
            list(texts), return_sparse=not dense_only, return_colbert=not dense_only, timeout=_PATIENCE
        )

    async def close(self) -> None:
        """Stop its threads."""
        await self._engine.stop()


async def load(setup: Setup, phase: Phase) -> M3serve:
    """The engine, started."""
    try:
        from m3serve import Engine
    except ImportError as error:
        raise NotInstalledError("m3serve is not installed") from error

    phase("imported")
    engine = Engine(model_name=str(setup.checkpoint), device=setup.device)
    await engine.start()
    phase("loaded")
    return M3serve(engine, setup.device)

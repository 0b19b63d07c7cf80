"""The original design: several FlagEmbedding models in one process; a request takes a free one for one `encode`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks.seam import NotInstalledError, Phase, Setup

INSTANCES = 4


class Original:
    """Requests wait for a free instance. Batch size is the library's default, 256 texts padded to the longest."""

    detail = ""
    cancels = False
    attention_copies = 0

    def __init__(self, models: list[Any], dtype: str) -> None:
        self.dtype = dtype
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for model in models:
            self._free.put_nowait(model)
        self._threads = ThreadPoolExecutor(len(models), thread_name_prefix="instance")

    async def embed(self, texts: Sequence[str], *, query: bool, max_length: int, dense_only: bool = False) -> None:
        """One `encode` of one instance; it knows no priority."""
        del query
        model = await self._free.get()
        try:
            call = partial(
                model.encode,
                list(texts),
                max_length=max_length,
                return_dense=True,
                return_sparse=not dense_only,
                return_colbert_vecs=not dense_only,
            )
            await asyncio.get_running_loop().run_in_executor(self._threads, call)
        finally:
            self._free.put_nowait(model)

    async def close(self) -> None:
        """Wait for the threads."""
        self._threads.shutdown()


async def load(setup: Setup, phase: Phase) -> Original:
    """Load FlagEmbedding in half precision on CUDA, its default, and in float32 on the CPU, its only type there."""
    try:
        from FlagEmbedding import BGEM3FlagModel
    except ImportError as error:
        raise NotInstalledError("FlagEmbedding is not installed") from error

    phase("imported")
    half = setup.device != "cpu"
    models = [BGEM3FlagModel(str(setup.checkpoint), use_fp16=half, devices=[setup.device]) for _ in range(INSTANCES)]
    phase("loaded")
    return Original(models, "float16" if half else "float32")

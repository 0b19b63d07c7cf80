"""Queries through the pool: many clients, and one client beside bulk passages."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.clock import percentile
from benchmarks.gpu.results import Row
from benchmarks.gpu.texts import MAX_LENGTH
from embedder import Embedder, Embedding, Outputs, Priority

CLIENTS = (1, 8, 128, 512)
_QUICK_CLIENTS = (1, 4)
_PAUSE_S = (0.005, 0.05)
"""Seconds between queries beside bulk work, drawn at random so that they do not fall in step with batches."""
_BULK_TEXTS = 64
_FIRST_JOB_MAX_S = 20.0


@dataclass(slots=True)
class Client:
    """Sends queries in turn, all three outputs, and keeps how long each took."""

    embedder: Embedder
    queries: Iterator[str]
    durations: list[float]

    async def ask(self) -> None:
        """One query."""
        started_s = time.perf_counter()
        await embed_checked(self.embedder, [next(self.queries)], Priority.QUERY)
        self.durations.append(time.perf_counter() - started_s)


def queries(bench: Bench) -> Iterator[Row]:
    """Queries per second and latency by number of clients, then beside bulk passages."""
    embedder, texts = bench.embedder, bench.texts
    for clients in _QUICK_CLIENTS if bench.quick else CLIENTS:
        asyncio.run(_clients(embedder, texts.queries, clients, bench.seconds(0.5)))  # warm
        durations, seconds = asyncio.run(_clients(embedder, texts.queries, clients, bench.seconds(3.0)))
        yield {"clients": clients, "queries_s": len(durations) / seconds} | _latency(durations)
    jobs: dict[str, Iterator[Sequence[str]]] = {
        "64 x 512": itertools.cycle([texts.passages]),
        "mixed": itertools.cycle(_jobs(texts.mixed)),
    }
    for name, passages in jobs.items():
        durations, tokens_s = asyncio.run(_beside(embedder, texts.queries, passages, bench.seconds(5.0)))
        yield {"clients": 1, "beside": name, "bulk_tokens_s": tokens_s} | _latency(durations)


async def embed_checked(embedder: Embedder, texts: Sequence[str], priority: Priority) -> list[Embedding]:
    """All three kinds of vectors of the texts.

    Raises:
        RuntimeError: the model could not embed a text.
    """
    results = await embedder.embed(texts, Outputs(), max_length=MAX_LENGTH, priority=priority)
    embeddings = [result for result in results if isinstance(result, Embedding)]
    if len(embeddings) < len(results):
        raise RuntimeError(f"{len(results) - len(embeddings)} of {len(texts)} texts failed")
    return embeddings


async def _clients(embedder: Embedder, texts: Sequence[str], clients: int, seconds: float) -> tuple[list[float], float]:
    """Clients that each send the next query when the last one is answered; all are awaited."""
    client = Client(embedder, itertools.cycle(texts), [])
    started_s = time.perf_counter()

    async def work() -> None:
        while True:
            await client.ask()
            if time.perf_counter() - started_s >= seconds:
                return

    await asyncio.gather(*(work() for _ in range(clients)))
    return client.durations, time.perf_counter() - started_s


async def _beside(
    embedder: Embedder, texts: Sequence[str], jobs: Iterator[Sequence[str]], seconds: float
) -> tuple[list[float], float]:
    """Queries one at a time while jobs of passages follow each other; also the passages' tokens per second."""
    client = Client(embedder, itertools.cycle(texts), [])
    pauses = random.Random(0)
    tokens = 0
    begun = asyncio.Event()

    async def bulk() -> None:
        nonlocal tokens
        while True:
            embeddings = await embed_checked(embedder, next(jobs), Priority.PASSAGE)
            tokens += sum(embedding.tokens for embedding in embeddings)
            del embeddings
            begun.set()

    work = asyncio.create_task(bulk())
    started_s = time.perf_counter()
    try:
        await asyncio.wait_for(begun.wait(), _FIRST_JOB_MAX_S)  # the first job meets cold buffers
        tokens, started_s = 0, time.perf_counter()
        while time.perf_counter() - started_s < seconds or len(client.durations) < 3:
            await asyncio.sleep(pauses.uniform(*_PAUSE_S))
            await client.ask()
        if work.done():
            work.result()
        return client.durations, tokens / (time.perf_counter() - started_s)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await client.ask()  # whatever was under way is done when this is answered


def _jobs(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + _BULK_TEXTS] for start in range(0, len(texts), _BULK_TEXTS)]


def _latency(durations: Sequence[float]) -> Row:
    return {"p50_s": percentile(durations, 0.5), "p95_s": percentile(durations, 0.95), "n": len(durations)}

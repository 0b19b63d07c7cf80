"""The memory of the process stays within the configured ceiling, whatever clients ask for at the same time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.hostile.worker_process import PATIENCE, ServedProcess, served_process

CEILING_MB: Final = 200
ALLOCATOR_TOLERANCE: Final = 0.5
"""Share of the ceiling by which the process may exceed it: what its allocator keeps of freed memory."""

CLIENTS: Final = 48
ROUNDS: Final = 6
COLLECTION: Final = "notes"

Body = Mapping[str, Any]

LONG: Final = "a word and a word " * 120
LARGE: Final[tuple[tuple[str, Body], ...]] = (
    ("/embed", {"texts": [LONG] * 60, "isPassage": True, "vectors": ["colbert"], "includeText": False}),
    ("/embed", {"texts": [LONG] * 80, "isPassage": True, "encoding": "base64", "dtype": "float16"}),
    ("/search", {"collection": COLLECTION, "queries": ["word"], "limit": 40}),
    ("/search", {"collection": COLLECTION, "queries": ["word"] * 40, "limit": 5, "rerank": "colbert"}),
    ("/embed", {"texts": ["x" * 7_000_000], "vectors": ["dense"], "includeText": True}),
    ("/embed", {"texts": [{}] * 60_000}),
    ("/rerank", {"query": "word", "documents": [LONG] * 60, "return_documents": True}),
    (
        "/points",
        {"texts": [LONG] * 40, "includeText": False, "qdrant": {"collection": COLLECTION, "chunk": {"maxTokens": 32}}},
    ),
)
SMALL: Final[tuple[str, Body]] = ("/embed", {"texts": ["a"], "vectors": ["dense"]})
STATUSES: Final = frozenset({200, 400, 413, 429})


@pytest.mark.slow
def test_the_process_stays_within_the_ceiling(tmp_path: Path) -> None:
    """Large requests that fill the account are answered or told to come again, and small ones go on beside them."""
    settings = {"MEMORY_BUDGET_MB": str(CEILING_MB)}
    with served_process(tmp_path / "store", **settings) as served:
        _prepare(served)
        served.forget_peak()
        before = served.usage().memory_bytes
        large, small = asyncio.run(_asked(served))
        taken = served.peak_bytes() - before
        print(f"{taken / 1e6:.0f} MB of {CEILING_MB}; large {dict(large)}, small {dict(small)}")  # noqa: T201
        assert taken <= (1 + ALLOCATOR_TOLERANCE) * CEILING_MB * 1e6
        assert taken > 0.2 * CEILING_MB * 1e6  # the account was filled
        assert set(large) | set(small) <= STATUSES
        assert large[429] > 0
        assert large[200] > 0
        assert set(small) <= {200, 429}
        assert small[200] > 0
        with served.client() as client:
            assert client.post(SMALL[0], json=SMALL[1]).status_code == 200
            assert "bge_m3_reserved_bytes 0.0" in client.get("/metrics").text or _is_little(client)


def _is_little(client: httpx.Client) -> bool:
    """Whether hardly anything is reserved: the question itself is."""
    [line] = [line for line in client.get("/metrics").text.splitlines() if line.startswith("bge_m3_reserved_bytes ")]
    return float(line.split()[1]) < 100_000


def _prepare(served: ServedProcess) -> None:
    """Store points with payloads of 200 KB, and let the model compute its largest batches once."""
    with served.client() as client:
        for start in range(0, 40, 4):
            texts = [f"word {n}" for n in range(start, start + 4)]
            qdrant = {"collection": COLLECTION, "payloads": [{"long": "y" * 200_000}] * 4}
            body = {"texts": texts, "includeText": False, "qdrant": qdrant}
            assert client.post("/points", json=body).status_code == 200
        for path, large in LARGE[:4]:
            assert client.post(path, json=large).status_code in STATUSES


async def _asked(served: ServedProcess) -> tuple[Counter[int], Counter[int]]:
    """The statuses of large and of small requests of all clients."""
    large: Counter[int] = Counter()
    small: Counter[int] = Counter()
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=served.url, timeout=PATIENCE, trust_env=False, limits=limits) as client:

        async def ask(number: int) -> None:
            for turn in range(ROUNDS):
                path, body = LARGE[(number + turn) % len(LARGE)]
                large[(await client.post(path, json=body)).status_code] += 1
                small[(await client.post(SMALL[0], json=SMALL[1])).status_code] += 1

        await asyncio.gather(*(ask(number) for number in range(CLIENTS)))
    return large, small

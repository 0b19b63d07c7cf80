"""A worker keeps its memory, its descriptors and its answers under many clients of all kinds."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path
from typing import Final

import pytest

from service.operations.memory_parts import WORKING_THREADS
from service.operations.store_access import CALLS_MAX, INGESTS_MAX, SENDER_THREADS
from tests.hostile.mixed_clients import MixedClients
from tests.hostile.worker_process import ServedProcess, Usage, served_process

CLIENTS: Final = 200
SECONDS: Final = 60.0
GROWTH_MAX: Final = 0.05
"""Greatest growth of the memory over the last half."""

POOLED_THREADS_MAX: Final = WORKING_THREADS + 2 * CALLS_MAX + SENDER_THREADS + min(INGESTS_MAX, CLIENTS)
"""Threads of all pools, which begin one when they need it, however late: a thread per ingest, of a client each."""

DESCRIPTORS_MARGIN: Final = 2 * CLIENTS
"""Connections of the clients themselves: each has one that stays and at times one that does not."""


@pytest.mark.slow
def test_200_mixed_clients_for_a_minute(tmp_path: Path) -> None:
    """200 clients who ask, store, err, leave and wait get right answers, and the worker is as large as before."""
    with served_process(tmp_path / "store") as served:
        clients = MixedClients(served.url, served.port, seed=19)
        before = served.usage()
        samples = asyncio.run(_watched(served, clients))
        assert clients.outcome.wrong[:5] == []
        assert min(clients.outcome.answered[kind] for kind in ("embed", "search", "store_and_delete", "leave")) > 10
        quarters = [samples[len(samples) // 2 : 3 * len(samples) // 4], samples[3 * len(samples) // 4 :]]
        third, fourth = (statistics.median(usage.memory_bytes for usage in quarter) for quarter in quarters)
        assert fourth < (1 + GROWTH_MAX) * third
        assert clients.outcome.answered.total() > 2 * POOLED_THREADS_MAX, "a thread that a request leaves would be seen"
        assert max(usage.threads for usage in samples) <= before.threads + POOLED_THREADS_MAX
        assert max(usage.descriptors for usage in samples) <= before.descriptors + DESCRIPTORS_MARGIN + 100


async def _watched(served: ServedProcess, clients: MixedClients) -> list[Usage]:
    """What the worker held, second by second, while the clients asked."""
    await clients.prepare()
    running = asyncio.create_task(clients.run(CLIENTS, SECONDS))
    samples = []
    while not running.done():
        samples.append(served.usage())
        await asyncio.sleep(1)
    await running
    return samples

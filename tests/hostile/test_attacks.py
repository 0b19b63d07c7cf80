"""What is refused costs next to nothing, whatever its size, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import io
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from tests.hostile.attacks import ATTACKS, COLLECTION, Attack
from tests.hostile.worker_process import PATIENCE, ROOT, SETTINGS, ServedProcess, served_process
from tests.loopback import JobQueue, Worker

REFUSED_MAX_BYTES: Final = 256_000_000
"""Maximum growth of the worker's memory by input that it refuses."""

ANSWER_MAX_BYTES: Final = 4_000
"""Maximum size of an error."""

WAIT_MAX_S: Final = 0.25
"""Maximum wait for `/livez` beside input that is refused."""

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""A client that is refused in the middle of its body leaves a transport that aiohttp closes later."""

KEY: Final = "a-key-of-the-operator"
POINTS: Final = 12_000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    """A worker without a key, with a collection that can be attacked."""
    with served_process(tmp_path_factory.mktemp("attacked")) as process:
        asyncio.run(_fill(process))
        yield process


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    """A worker with a key."""
    with served_process(tmp_path_factory.mktemp("locked"), API_KEY=KEY) as process:
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_refused_input_takes_little_memory(served: ServedProcess, attack: Attack) -> None:
    """A refused request has its status, a short error, and costs the worker less than 256 MB."""
    before = served.usage().memory_bytes
    served.forget_peak()
    for status, size in asyncio.run(_attack(served, attack, attack.body())):
        assert status in attack.statuses
        assert size < ANSWER_MAX_BYTES
    assert served.peak_bytes() - before < REFUSED_MAX_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_without_the_key_nothing_is_read(locked: ServedProcess, attack: Attack) -> None:
    """A client without the key is refused with 401 before its body counts, except where the key may be in the body."""
    before = locked.usage().memory_bytes
    locked.forget_peak()
    allowed = {401, *attack.statuses} if attack.path == "/qdrant/inference" else {401}
    assert {status for status, _ in asyncio.run(_attack(locked, attack, attack.body()))} <= allowed
    assert locked.peak_bytes() - before < REFUSED_MAX_BYTES


@pytest.mark.slow
def test_refused_jobs_take_little_memory(tmp_path: Path) -> None:
    """The same input is refused on the queue, within the same memory, and an honest job among it is answered."""
    settings = {**SETTINGS, "QDRANT_PATH": str(tmp_path / "store")}
    with JobQueue() as queue, Worker(queue, cwd=ROOT, env=settings) as worker:
        worker.wait_for_first_poll(PATIENCE)
        process = ServedProcess(worker, 0)
        texts = ["one", "two"]
        for job in queue.submit_many({**body, "isPassage": True} for body in _ingests()):
            assert "output" in queue.result(job, PATIENCE)
        for attack in (attack for attack in ATTACKS if attack.on_queue):
            before = process.usage().memory_bytes
            process.forget_peak()
            operation = {"/points/get": "points"}.get(attack.path, attack.path.removeprefix("/"))
            raw = {"operation": operation, **json.loads(attack.body())} if "nested" not in attack.name else None
            if raw is None:  # no Python value of this depth can be sent by the SDK's own encoder
                continue
            answer = queue.result(queue.submit(raw), PATIENCE)
            assert "error" in answer, attack.name
            assert len(json.dumps(answer)) < ANSWER_MAX_BYTES, attack.name
            # The SDK itself holds a job as bytes, text and values.
            assert process.peak_bytes() - before < REFUSED_MAX_BYTES + 20 * len(attack.body()), attack.name
        assert "output" in queue.result(queue.submit({"texts": texts}), PATIENCE)


@pytest.mark.timed
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_nobody_waits_for_refused_input(
    served: ServedProcess, attack: Attack, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside refused input `/livez` answers within 250 ms, and a query is only a few times slower than idle."""
    waits = asyncio.run(_waits(served, attack))
    ratios = {path: max(beside) / _p99(idle) for path, (idle, beside) in waits.items()}
    with capsys.disabled():
        shown = ", ".join(
            f"{path} idle p99 {1e3 * _p99(idle):.0f} ms, longest beside {1e3 * max(beside):.0f} ms "
            f"({ratios[path]:.1f} x)"
            for path, (idle, beside) in waits.items()
        )
        print(f"\n  {attack.name}: {shown}")
    record_property("ratios", ratios)
    assert max(waits["/livez"][1]) < max(WAIT_MAX_S, 2 * _p99(waits["/livez"][0]))


async def _fill(served: ServedProcess) -> None:
    async with _session(served) as session:
        for body in _ingests():
            async with session.post("/points", json=body) as response:
                assert response.status == 200, await response.text()


def _ingests() -> Iterator[dict[str, Any]]:
    """The requests that fill the collection."""
    for start in range(0, POINTS, 2000):
        texts = [f"text number {number}" for number in range(start, start + 2000)]
        yield {"texts": texts, "qdrant": {"collection": COLLECTION}, "includeText": False}


async def _attack(served: ServedProcess, attack: Attack, body: bytes) -> list[tuple[int, int]]:
    """The statuses and sizes of the answers."""
    headers = {"Content-Type": "application/json", **attack.headers}

    async def send() -> tuple[int, int]:
        async with (
            _session(served) as session,
            session.post(attack.path, data=io.BytesIO(body), headers=headers) as response,
        ):
            return response.status, len(await response.read())

    return list(await asyncio.gather(*(send() for _ in range(attack.copies))))


async def _waits(served: ServedProcess, attack: Attack) -> dict[str, tuple[Sequence[float], Sequence[float]]]:
    """The answer times of `/livez` and of a query in seconds, idle and beside an attack."""
    content = attack.body()  # before anything is measured, since it keeps this process busy
    waits: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    async with _session(served) as session:
        for path, body in (("/livez", None), ("/embed", {"texts": ["copying"], "vectors": ["dense"]})):
            idle = [await _asked(session, path, body) for _ in range(100)]
            attacking = asyncio.create_task(_attack(served, attack, content))
            beside = [await _asked(session, path, body)]
            while not attacking.done():
                beside.append(await _asked(session, path, body))
            await attacking
            waits[path] = (idle, beside)
    return waits


async def _asked(session: aiohttp.ClientSession, path: str, body: Any) -> float:
    started = time.perf_counter()
    async with session.get(path) if body is None else session.post(path, json=body) as response:
        assert response.status == 200
        await response.read()
    return time.perf_counter() - started


def _p99(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


@asynccontextmanager
async def _session(served: ServedProcess) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(served.url, timeout=aiohttp.ClientTimeout(total=PATIENCE)) as session:
        yield session

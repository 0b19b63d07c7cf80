"""Query latency of a client of the HTTP server, alone and beside a job that ingests."""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.results import Outcome
from tests.loopback import Worker, free_port

ROOT: Final = Path(__file__).parents[1]
CLIENTS: Final = 4
BULK: Final = 200
"""Passages of a bulk job, of about 120 tokens each."""
PATIENCE: Final = 300.0
"""Seconds."""

_SEARCH: Final = {"collection": "notes", "queries": ["how are only the changed parts copied"], "rerank": "colbert"}
_ASKED: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "/embed": ("/embed", {"texts": ["how are only the changed parts copied"], "vectors": ["dense", "sparse"]}),
    "/search": ("/search", _SEARCH),
}


@dataclass(frozen=True, slots=True)
class Load:
    """One route.

    Attributes:
        route: that is asked.
        idle: its answers when nothing else goes on but the other clients.
        beside: its answers while bulk jobs follow each other.
        ingested: passages stored meanwhile, per second.
        lost: requests of both that were not answered with 200.
    """

    route: str
    idle: Outcome
    beside: Outcome
    ingested: float
    lost: int


def measure(environment: Mapping[str, str], seconds: float) -> list[Load]:
    """Each route for so many seconds idle and as many beside bulk jobs.

    Args:
        environment: of the worker: model, type, device.
        seconds: of each of the two.
    """
    with tempfile.TemporaryDirectory() as root, _serving({**environment, "QDRANT_PATH": f"{root}/store"}) as client:
        _ingest(client, 0)
        loads = []
        for route, (path, body) in _ASKED.items():
            _asked(client, path, body, seconds / 10)  # warm
            idle, idle_lost = _asked(client, path, body, seconds)
            ended = threading.Event()
            stored: list[float] = []
            bulk = threading.Thread(target=_ingest_until, args=(client, ended, stored))
            bulk.start()
            beside, lost = _asked(client, path, body, seconds)
            ended.set()
            bulk.join(PATIENCE)
            loads.append(Load(route, idle, beside, sum(stored) / len(stored), idle_lost + lost))
        return loads


@contextmanager
def _serving(environment: Mapping[str, str]) -> Iterator[httpx.Client]:
    port = free_port()
    with (
        Worker(
            None, cwd=ROOT, script="-m", args=["service", "serve"], env={**environment, "PORT": str(port)}
        ) as worker,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client,
    ):
        deadline = time.monotonic() + PATIENCE
        while not ready(client):
            if time.monotonic() > deadline:
                raise TimeoutError(worker.output[-2000:])
            time.sleep(0.05)
        yield client


def ready(client: httpx.Client) -> bool:
    """Whether the worker behind this client has loaded its model."""
    try:
        return client.get("/ping").status_code == 200
    except httpx.TransportError:
        return False


def _asked(client: httpx.Client, path: str, body: Mapping[str, Any], seconds: float) -> tuple[Outcome, int]:
    """Answers to `CLIENTS` clients that each ask again when they are answered, and how many were not answered 200."""
    durations: list[float] = []
    lost: list[str] = []
    end = time.perf_counter() + seconds

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, timeout=PATIENCE, trust_env=False) as own:
            while (started := time.perf_counter()) < end:
                try:
                    code = own.post(path, json=body).status_code
                except httpx.TransportError as error:
                    code = 0
                    lost.append(type(error).__name__)
                if code == 200:
                    durations.append(time.perf_counter() - started)
                elif code:
                    lost.append(str(code))

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Outcome.of(durations, seconds=seconds), len(lost)


def _ingest_until(client: httpx.Client, ended: threading.Event, rates: list[float]) -> None:
    for first in itertools.count(BULK, BULK):
        started = time.perf_counter()
        _ingest(client, first)
        rates.append(BULK / (time.perf_counter() - started))
        if ended.is_set():
            return


def _ingest(client: httpx.Client, first: int) -> None:
    texts = [
        f"Passage {first + n} tells " + "how only the changed parts of a file are copied. " * 10 for n in range(BULK)
    ]
    answer = client.post("/points", json={"texts": texts, "qdrant": {"collection": "notes"}})
    answer.raise_for_status()
    if answer.json()["upsert"]["stored"] != BULK:
        raise RuntimeError(f"a bulk job stored {answer.json()['upsert']['stored']} of {BULK} passages")

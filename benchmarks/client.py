"""What the client adds to a request: beside httpx alone, against one served worker.

PYTHONPATH=clients/python/src python -m benchmarks.client             a served `mini`, half a minute
PYTHONPATH=clients/python/src python -m benchmarks.client --rounds 50

A worker in a process of its own embeds one query as a dense vector in base64. `Client.embed` and httpx alone, which
reads the same JSON and makes an array of it, take turns over a connection each, so both meet the same worker and the
same load. What the client adds is the median of the rounds' differences.
"""

from __future__ import annotations

import argparse
import base64
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from bge_m3_qdrant_client import Client, ConnectionFailed
from numpy.typing import NDArray

from benchmarks.sections import table
from tests.loopback import Worker, free_port

ROOT: Final = Path(__file__).parents[1]
ROUNDS: Final = 1000
WARM_UP_ROUNDS: Final = 20
GOAL_S: Final = 0.001
"""Maximum seconds that the client adds to a request."""

QUERY: Final = "How do I copy only the changed parts of files?"
START_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Round:
    """The seconds of one request by each side."""

    httpx_s: float
    client_s: float


def rendered(rounds: list[Round]) -> str:
    """The table of the medians, and of what the client adds."""
    added = statistics.median(entry.client_s - entry.httpx_s for entry in rounds)
    rows = [
        ["httpx alone", f"{statistics.median(entry.httpx_s for entry in rounds) * 1e3:.2f}", "", ""],
        ["`Client.embed`", f"{statistics.median(entry.client_s for entry in rounds) * 1e3:.2f}", "", ""],
        ["added", f"{added * 1e3:.2f}", f"{GOAL_S * 1e3:.0f}", "met" if added < GOAL_S else "missed"],
    ]
    return table(["one query, dense, base64", "median, ms", "goal, ms", ""], rows)


def measured(url: str, rounds: int) -> list[Round]:
    """The rounds against a worker."""
    with httpx.Client(base_url=url, trust_env=False) as bare, httpx.Client(trust_env=False) as http:
        client = Client(url, http=http)

        def by_httpx() -> NDArray[Any]:
            body = {"texts": [QUERY], "vectors": ["dense"], "encoding": "base64"}
            block = bare.post("/embed", json=body).raise_for_status().json()["results"][0]["dense"]
            return np.frombuffer(base64.b64decode(block["data"]), "<f4").reshape(block["shape"])

        def by_client() -> NDArray[Any]:
            dense = client.embed(QUERY, vectors=["dense"]).results[0].dense
            if dense is None:
                raise RuntimeError("the answer has no dense vector")
            return dense

        for _ in range(WARM_UP_ROUNDS):
            if not np.allclose(by_httpx(), by_client(), atol=1e-5):
                raise RuntimeError("both sides must read the same vector")
        return [_round(by_httpx, by_client, swapped=bool(index % 2)) for index in range(rounds)]


def _round(by_httpx: Callable[[], object], by_client: Callable[[], object], *, swapped: bool) -> Round:
    seconds = {}
    for side in (by_client, by_httpx) if swapped else (by_httpx, by_client):
        begun = time.perf_counter()
        side()
        seconds[side] = time.perf_counter() - begun
    return Round(seconds[by_httpx], seconds[by_client])


@contextmanager
def serving() -> Iterator[str]:
    """Serve `mini` in a process of its own, and yield its address."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            "MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "4096",
            "QDRANT_PATH": directory, "PORT": str(port), "OMP_WAIT_POLICY": "PASSIVE",
        }  # fmt: skip
        with Worker(None, cwd=ROOT, script="-m", args=["service", "serve"], env=environment) as worker:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_TIMEOUT_S
            with Client(url, retries=0, timeout=5) as client:
                while not _ready(client):
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"the worker is not ready after {START_TIMEOUT_S:g} s:\n{worker.output}")
                    time.sleep(0.05)
            yield url


def _ready(client: Client) -> bool:
    try:
        return client.health().ready
    except ConnectionFailed:
        return False


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    with serving() as url:
        rounds = measured(url, chosen.rounds)
    print(rendered(rounds))


if __name__ == "__main__":
    main()

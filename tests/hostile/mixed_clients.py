"""Clients of all kinds for one worker: honest ones, who check every answer, and others who disturb them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import aiohttp

from tests.hostile.worker_process import PATIENCE

COLLECTION: Final = "steady"
CHANGING: Final = "changing"
TOPICS: Final = ("copying files", "recovering photographs", "a database in one file", "drawing maps", "sending mail")
TEXTS: Final = tuple(f"Tool {number} is for {TOPICS[number % len(TOPICS)]}." for number in range(60))
QUERIES: Final = tuple(f"which tool is for {topic}" for topic in TOPICS)
TOLERANCE: Final = 2e-4
"""Greatest difference of a number of a vector in another batch."""

Body: TypeAlias = dict[str, Any]

WRONG: Final[Sequence[tuple[str, Body, int]]] = (
    ("/embed", {"texts": ["a", 1]}, 400),
    ("/embed", {"texts": [[]] * 20_000}, 400),
    ("/search", {"queries": ["a"], "collection": "missing"}, 404),
    ("/search", {"queries": ["a"], "collection": COLLECTION, "limit": -1}, 400),
    ("/search", {"queries": ["a"], "collection": COLLECTION, "filter": {"must": [{"key": "a"}]}}, 400),
    ("/points/delete", {"collection": CHANGING, "filter": {}}, 400),
    ("/nowhere", {}, 404),
)
"""Requests that are refused: path, body and status."""


@dataclass
class Expected:
    """The right answers, which one quiet client was given before the others came."""

    vectors: dict[str, Sequence[float]] = field(default_factory=dict)
    hits: dict[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of the requests.

    Attributes:
        answered: right answers by kind of request.
        wrong: descriptions of the answers that were not right.
    """

    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class MixedClients:
    """Clients of a worker, each with a connection of its own.

    Args:
        url: the address of the worker.
        port: its port on loopback.
        seed: seed of what they do.
    """

    def __init__(self, url: str, port: int, seed: int) -> None:
        self._url = url
        self._port = port
        self._seed = seed
        self._expected = Expected()
        self.outcome = Outcome()

    async def prepare(self) -> None:
        """Store the texts, and ask for the right answers while nobody disturbs."""
        async with self._session() as session:
            target = {"collection": COLLECTION, "ids": [f"tool-{number}" for number in range(len(TEXTS))]}
            status, answer = await post(session, "/points", {"texts": TEXTS, "qdrant": target})
            assert (status, answer["upsert"]["stored"]) == (200, len(TEXTS)), answer
            for query in QUERIES:
                _, answer = await post(session, "/embed", {"texts": [query], "vectors": ["dense"]})
                self._expected.vectors[query] = answer["results"][0]["dense"]
                _, answer = await post(session, "/search", search_for(query))
                self._expected.hits[query] = _ids(answer)

    async def run(self, clients: int, seconds: float) -> None:
        """Let so many clients ask for so long; each asks again when it is answered."""
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._client(number, end) for number in range(clients)))

    async def _client(self, number: int, end: float) -> None:
        draw = random.Random(f"{self._seed}-{number}")
        kinds: Sequence[tuple[int, Callable[[aiohttp.ClientSession, int, random.Random], Awaitable[str | None]]]] = (
            (6, self._embed),
            (6, self._search),
            (2, self._count),
            (2, self._read),
            (1, self._rerank),
            (1, self._store_and_delete),
            (2, self._ask_wrongly),
            (1, self._abort_upload),
            (1, self._leave),
            (1, self._wait_idly),
        )
        async with self._session() as session:
            while time.monotonic() < end:
                ask = draw.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])[0]
                name = ask.__name__.strip("_")
                try:
                    fault = await ask(session, number, draw)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    fault = type(error).__name__
                if fault is None:
                    self.outcome.answered[name] += 1
                else:
                    self.outcome.wrong.append(f"{name}: {fault}")

    async def _embed(self, session: aiohttp.ClientSession, _number: int, draw: random.Random) -> str | None:
        query = draw.choice(QUERIES)
        status, answer = await post(session, "/embed", {"texts": [query], "vectors": ["dense"]})
        if status != 200:
            return f"{status} {answer}"
        pairs = zip(answer["results"][0]["dense"], self._expected.vectors[query], strict=True)
        difference = max(abs(one - other) for one, other in pairs)
        return None if difference < TOLERANCE else f"differs by {difference}"

    async def _search(self, session: aiohttp.ClientSession, _number: int, draw: random.Random) -> str | None:
        query = draw.choice(QUERIES)
        status, answer = await post(session, "/search", search_for(query))
        if status != 200:
            return f"{status} {answer}"
        return None if set(_ids(answer)) == set(self._expected.hits[query]) else f"hits {_ids(answer)}"

    async def _count(self, session: aiohttp.ClientSession, _number: int, _draw: random.Random) -> str | None:
        status, answer = await post(session, "/points/count", {"collection": COLLECTION})
        return None if (status, answer) == (200, {"count": len(TEXTS)}) else f"{status} {answer}"

    async def _read(self, session: aiohttp.ClientSession, _number: int, draw: random.Random) -> str | None:
        number = draw.randrange(len(TEXTS))
        status, answer = await post(session, "/points/get", {"collection": COLLECTION, "ids": [f"tool-{number}"]})
        texts = [point["payload"]["text"] for point in answer.get("points", [])]
        return None if (status, texts) == (200, [TEXTS[number]]) else f"{status} {answer}"

    async def _rerank(self, session: aiohttp.ClientSession, _number: int, draw: random.Random) -> str | None:
        query = draw.choice(QUERIES)
        status, answer = await post(session, "/v1/rerank", {"query": query, "documents": TEXTS[:5], "model": "mini"})
        ranked = sorted(result["index"] for result in answer.get("results", []))
        return None if (status, ranked) == (200, [0, 1, 2, 3, 4]) else f"{status} {answer}"

    async def _store_and_delete(self, session: aiohttp.ClientSession, number: int, _draw: random.Random) -> str | None:
        ids = [f"client-{number}-{part}" for part in range(3)]
        target = {"collection": CHANGING, "ids": ids}
        status, answer = await post(session, "/points", {"texts": TEXTS[:3], "qdrant": target, "includeText": False})
        if status != 200 or answer["upsert"]["stored"] != 3:
            return f"{status} {answer}"
        status, answer = await post(session, "/points/delete", {"collection": CHANGING, "ids": ids})
        return None if (status, answer) == (200, {"deleted": 3}) else f"{status} {answer}"

    async def _ask_wrongly(self, session: aiohttp.ClientSession, _number: int, draw: random.Random) -> str | None:
        path, body, refused = draw.choice(WRONG)
        status, answer = await post(session, path, body)
        return None if status == refused and answer["error_code"] in {"invalid_request", "not_found"} else str(answer)

    async def _abort_upload(self, _session: aiohttp.ClientSession, _number: int, _draw: random.Random) -> None:
        head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        await self._send_and_close(head + b"Content-Length: 1000000\r\n\r\n" + b'{"texts": ["' + b"a" * 10_000)

    async def _leave(self, _session: aiohttp.ClientSession, _number: int, _draw: random.Random) -> None:
        body = b'{"queries": ["copying files"], "collection": "steady", "rerank": "colbert"}'
        head = (
            f"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        await self._send_and_close(head.encode() + b"\r\n\r\n" + body)

    async def _wait_idly(self, _session: aiohttp.ClientSession, _number: int, draw: random.Random) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.sleep(draw.random())
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _send_and_close(self, data: bytes) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(data)
        with suppress(OSError):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(self._url, timeout=aiohttp.ClientTimeout(total=PATIENCE))


async def post(session: aiohttp.ClientSession, path: str, body: Body) -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    async with session.post(path, json=body) as response:
        return response.status, await response.json()


def search_for(query: str) -> Body:
    """A hybrid search that is ranked by ColBERT."""
    return {"queries": [query], "collection": COLLECTION, "rerank": "colbert", "limit": 12}


def _ids(answer: Any) -> list[str]:
    return [hit["payload"]["id"] for hit in answer["results"][0]["hits"]]

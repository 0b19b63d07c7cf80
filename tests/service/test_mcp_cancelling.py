"""Calls of the MCP server's tools that the client cancels, against a worker that never answers them."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import anyio
import pytest
from bge_m3_qdrant_client import HttpTarget
from mcp import Client

from service.transports.mcp.run import McpOptions, tool_server
from tests.service.client import PATIENCE


class Held:
    """A worker that never answers a search and whose jobs never end, but records what becomes of requests."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self._changed = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path = head.decode().split()[:2]
                length = [line for line in head.decode().lower().splitlines() if line.startswith("content-length:")]
                await reader.readexactly(int(length[0].split(":")[1]) if length else 0)
                await self._happened(f"{method} {path}")
                if path == "/search":
                    await reader.read()
                    await self._happened("disconnect")
                    return
                job = {"id": "7", "state": "running", "progress": None}
                status, answer = 200, job
                if path == "/points":
                    status = 202
                elif path == "/collections/notes":
                    answer = DESCRIBED
                body = json.dumps(answer).encode()
                writer.write(f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()

    async def happens(self, event: str) -> None:
        """Wait for an event."""
        async with self._changed, asyncio.timeout(PATIENCE):
            await self._changed.wait_for(lambda: event in self.events)

    async def _happened(self, event: str) -> None:
        async with self._changed:
            self.events.append(event)
            self._changed.notify_all()


DESCRIBED: Final[dict[str, Any]] = {
    "name": "notes",
    "aliases": [],
    "status": "green",
    "points": 0,
    "indexedVectors": None,
    "vectors": [],
    "payloadIndexes": [],
    "layout": {"name": "plain", "source": "config"},
    "textKey": "text",
    "model": {"name": "mini", "source": "worker"},
}


@pytest.mark.parametrize(
    ("tool", "arguments", "begun", "ended"),
    [
        ("search", {"query": "x"}, "POST /search", "disconnect"),
        ("store", {"texts": ["x" * 300_000]}, "GET /jobs/7", "DELETE /jobs/7"),
    ],
)
def test_a_cancelled_call_cancels_its_request(tool: str, arguments: dict[str, Any], begun: str, ended: str) -> None:
    """The worker sees the connection of a search end, and a large store's job deleted, and the server goes on."""

    async def cancelled() -> None:
        held = Held()
        server = await asyncio.start_server(held.serve, "127.0.0.1", 0, limit=1_000_000)
        port = server.sockets[0].getsockname()[1]
        options = McpOptions(
            target=HttpTarget(f"http://127.0.0.1:{port}"), collections=("notes",), allow_store=True, timeout_s=PATIENCE
        )
        async with server, tool_server(options, None) as tools, Client(tools, mode="legacy") as client:
            async with anyio.create_task_group() as calls:
                calls.start_soon(client.call_tool, tool, arguments)
                await held.happens(begun)
                calls.cancel_scope.cancel()
            await held.happens(ended)
            answer = await client.call_tool("search", {"query": ""})
            assert answer.is_error

    asyncio.run(cancelled())

"""Sessions of the MCP SDK's client, held open in a thread, and the program `bge-m3-qdrant mcp` behind them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import Tool

from tests.service.client import PATIENCE

ROOT: Final = Path(__file__).parents[2]

Json = dict[str, Any]
T = TypeVar("T")


class Session:
    """A client that is connected within the context.

    Args:
        connect: connects the client, in the event loop of the session.
    """

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Client]]) -> None:
        self._connect = connect
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcp")
        self._closing = asyncio.Event()
        self.client: Client

    def __enter__(self) -> Self:
        self._thread.start()
        opened = threading.Event()
        self._serving = asyncio.run_coroutine_threadsafe(self._serve(opened), self._loop)
        while not opened.wait(0.05):
            if self._serving.done():
                self._stop()
                self._serving.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        try:
            self._serving.result(PATIENCE)
        finally:
            self._stop()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of the session."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def tools(self) -> dict[str, Tool]:
        """The tools by name, listed anew."""
        return {tool.name: tool for tool in self.run(self.client.list_tools(cache_mode="refresh")).tools}

    def call(self, name: str, **arguments: Any) -> Json:
        """Call a tool, and return its result."""
        text, is_error = self.text(name, **arguments)
        assert not is_error, text
        answer: Json = json.loads(text)
        return answer

    def refused(self, name: str, **arguments: Any) -> Json:
        """Call a tool, and return its error."""
        text, is_error = self.text(name, **arguments)
        assert is_error, text
        answer: Json = json.loads(text)
        assert set(answer) <= {"error", "error_code", "retryable", "retry_after_s", "stored"}
        return answer

    def text(self, name: str, **arguments: Any) -> tuple[str, bool]:
        """Call a tool, and return the text of its result, and whether it is an error."""
        result = self.run(self.client.call_tool(name, arguments))
        (content,) = result.content
        assert content.type == "text"
        return content.text, result.is_error

    async def _serve(self, opened: threading.Event) -> None:
        async with self._connect() as self.client:
            opened.set()
            await self._closing.wait()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def environment(**variables: str) -> dict[str, str]:
    """The environment of a subprocess: that of the tests, without settings of the caller."""
    kept = {"PATH", "HOME", "XDG_CACHE_HOME", "LANG", "OMP_WAIT_POLICY"}
    inherited = {name: value for name, value in os.environ.items() if name in kept}
    path = os.pathsep.join([str(ROOT), str(ROOT / "clients" / "python" / "src")])
    return {**inherited, "PYTHONPATH": path, **variables}


@contextmanager
def stdio(
    *arguments: str, variables: Mapping[str, str], program: Sequence[str] = ("-m", "service", "mcp")
) -> Iterator[Session]:
    """A session with the program over its standard streams.

    Args:
        arguments: arguments of the program.
        variables: its environment.
        program: arguments of the interpreter before them.
    """
    parameters = StdioServerParameters(
        command=sys.executable, args=[*program, *arguments], env=environment(**variables), cwd=ROOT
    )
    with Session(lambda: Client(stdio_client(parameters))) as session:
        yield session


@contextmanager
def listening(*arguments: str, **variables: str) -> Iterator[str]:
    """The program over streamable HTTP on a free port; yields its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "mcp", "--http", "127.0.0.1:0", *arguments],
        cwd=ROOT,
        env=environment(**variables),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("serving http://"), line
        yield line.split()[1]
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
        process.stderr.close()

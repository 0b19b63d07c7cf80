"""A run of the MCP server: a client of a worker, or the operations of this process, and a transport of the protocol."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio
import httpx
from bge_m3_qdrant_client import AsyncClient, HttpTarget, RunPodTarget, Target
from mcp.server.stdio import stdio_server

from service.transports.mcp.catalogue import Catalogue
from service.transports.mcp.server import ToolServer
from service.transports.mcp.tools import MAX_CHARACTERS, Tools

if TYPE_CHECKING:
    from service.operations import Operations
    from service.settings import Settings
    from service.transports.mcp.streamable_http import HttpOptions

    Build = Callable[[Settings], Operations]

WORKER_URL: Final = "http://127.0.0.1:8000"
"""Default address of the worker."""

TIMEOUT_S: Final = 60.0
"""Default of the maximum seconds of a request to the worker."""

RETRIES: Final = 2
"""Repetitions of a request whose error is retryable; a language model should soon hear that the worker is down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpOptions:
    """What to serve.

    Attributes:
        target: the worker; None for the operations of this process.
        collections: the only collections that the tools may use; empty for all that the worker permits.
        allow_store: whether there is a tool that stores.
        max_characters: maximum length of a result in characters.
        timeout_s: maximum seconds of a request to the worker, with its retries.
    """

    target: Target | None
    collections: tuple[str, ...] = ()
    allow_store: bool = False
    max_characters: int = MAX_CHARACTERS
    timeout_s: float = TIMEOUT_S


def serve_stdio(options: McpOptions, build: Build | None = None) -> int:
    """Serve one client over the standard streams until it closes them; returns the exit status.

    Args:
        options: what to serve.
        build: loads the model, if this process is to answer; None for `Operations.build`.

    Raises:
        ConfigurationError: the settings of the model or the store are invalid.
    """
    with redirect_stdout(sys.stderr):  # what a library prints while it loads is no message of the protocol
        transport = _operations(options, build)

    async def serve() -> None:
        async with tool_server(options, transport) as server, stdio_server() as (received, sent):
            await server.run(received, sent, server.create_initialization_options())

    anyio.run(serve)
    return 0


def serve_http(options: McpOptions, listener: socket.socket, http: HttpOptions, build: Build | None = None) -> int:
    """Serve clients over streamable HTTP until a signal; returns the exit status.

    Args:
        options: what to serve.
        listener: the socket.
        http: who may call.
        build: as in `serve_stdio`.

    Raises:
        ConfigurationError: the settings of the model or the store are invalid.
    """
    from service.transports.mcp import streamable_http

    transport = _operations(options, build)

    async def serve() -> None:
        async with tool_server(options, transport) as server:
            await streamable_http.serve(server, listener, http)

    anyio.run(serve)
    return 0


@asynccontextmanager
async def tool_server(options: McpOptions, transport: httpx.AsyncBaseTransport | None) -> AsyncIterator[ToolServer]:
    """The server of the tools, with an open client.

    Args:
        options: what to serve.
        transport: answers the requests of the client in this process; None for connections.
    """
    target = options.target
    async with httpx.AsyncClient(transport=transport) as http:
        client = AsyncClient(
            target or HttpTarget(WORKER_URL), timeout=options.timeout_s, retries=RETRIES if target else 0, http=http
        )
        catalogue = Catalogue(client, options.collections)
        tools = Tools(client, catalogue, allow_store=options.allow_store, max_characters=options.max_characters)
        yield ToolServer(tools, catalogue, asks_first=not isinstance(target, RunPodTarget))


def _operations(options: McpOptions, build: Build | None) -> httpx.AsyncBaseTransport | None:
    """The operations of this process, loaded; None if a worker answers."""
    if options.target is not None:
        return None
    from service.operations import Operations
    from service.settings import Settings
    from service.transports.mcp.in_process import OperationsTransport

    return OperationsTransport((build or Operations.build)(Settings.from_environment()))

"""The protocol server: it lists and calls the tools, and tells clients when the descriptions of tools have changed."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import anyio
from bge_m3_qdrant_client import ClientError, Progress
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams, TextContent

from service import __version__
from service.transports.mcp.cancelling import in_own_task
from service.transports.mcp.catalogue import Catalogue
from service.transports.mcp.tools import Tools

NAME: Final = "bge-m3-qdrant"

LISTING_TIMEOUT_S: Final = 2.0
"""Seconds that a list of the tools waits for the worker to name its collections."""

_INSTRUCTIONS: Final = (
    "Search collections of texts. The result of a tool is JSON. An error has error_code and retryable: change the call "
    "as the error says if retryable is false; the same call may succeed a little later if it is true."
)

_Context = ServerRequestContext[Any, Any]


class ToolServer(Server[Any]):
    """The tools as the MCP SDK serves them.

    Args:
        tools: the tools.
        catalogue: what is known of the collections.
        asks_first: whether a list of the tools asks the worker for its collections. Otherwise only calls do, since to
            ask an endpoint on RunPod may start a worker.
    """

    def __init__(self, tools: Tools, catalogue: Catalogue, *, asks_first: bool = True) -> None:
        self._tools = tools
        self._catalogue = catalogue
        self._asks_first = asks_first
        self._announced: str | None = None
        self._bus = InMemorySubscriptionBus()
        super().__init__(
            NAME,
            version=__version__,
            title="BGE-M3 search in Qdrant",
            instructions=_INSTRUCTIONS,
            get_tool_input_schema=tools.schema,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_subscriptions_listen=ListenHandler(self._bus),
        )

    def create_initialization_options(
        self, notification_options: NotificationOptions | None = None, *args: Any, **more: Any
    ) -> InitializationOptions:
        """The options of the handshake, which say that the list of the tools may change."""
        options = notification_options or NotificationOptions(tools_changed=True)
        return super().create_initialization_options(options, *args, **more)

    async def _list_tools(self, _context: _Context, _params: PaginatedRequestParams | None) -> ListToolsResult:
        if self._asks_first:
            with anyio.move_on_after(LISTING_TIMEOUT_S):
                await self._refresh()
        if self._announced is None:
            self._announced = self._catalogue.text()
        return ListToolsResult(tools=self._tools.listed())

    async def _call_tool(self, context: _Context, params: CallToolRequestParams) -> CallToolResult:
        reports: list[asyncio.Task[None]] = []

        def progress(done: Progress) -> None:
            report = context.session.report_progress(done.points, done.total, "points stored or rejected")
            reports.append(asyncio.create_task(report))

        try:
            result = await in_own_task(self._tools.call(params.name, params.arguments or {}, progress))
            await asyncio.gather(*reports, return_exceptions=True)
        finally:
            for report in reports:
                report.cancel()
        await self._announce(context)
        return CallToolResult(content=[TextContent(text=result.text)], is_error=result.is_error)

    async def _refresh(self) -> None:
        try:
            await in_own_task(self._catalogue.refresh())
        except ClientError:
            return  # the descriptions of the tools say that the worker has not answered

    async def _announce(self, context: _Context) -> None:
        """Tell clients if the descriptions of the tools have changed since they were first listed or last announced."""
        if self._announced is None or self._announced == (text := self._catalogue.text()):
            return
        self._announced = text
        await self._bus.publish(ToolsListChanged())
        await context.session.send_tool_list_changed()

"""The tools of the MCP server: what a language model may ask of the worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bge_m3_qdrant_client import (
    AsyncClient,
    ClientError,
    CollectionAnswer,
    ConnectionFailed,
    Progress,
    TimedOut,
    Unauthorized,
)
from mcp.types import Tool, ToolAnnotations
from pydantic import BaseModel

from embedder.errors import InvalidRequest, whereabouts
from service.transports.mcp.arguments import (
    ListCollectionsArguments,
    ReadPointsArguments,
    SearchArguments,
    StoreArguments,
    parsed,
    schema,
)
from service.transports.mcp.catalogue import Catalogue
from service.transports.mcp.results import bounded, error_result, points_result, search_result, stored_result

log = logging.getLogger(__name__)

Json = dict[str, Any]

MAX_CHARACTERS: Final = 20_000
"""Default of the maximum length of a result in characters."""

DESCRIBED_MAX: Final = 20
"""Maximum collections that `list_collections` asks the worker about one by one."""

_SEARCH: Final = (
    "Search a collection of texts by meaning and by words, and get the best hits with their texts. The nearest texts "
    "are hits even if none answers the question: then ask again with other words, a filter or rerank. Scores compare "
    "the hits of one search only. A text that ends in … [cut] can be read with read_points."
)
_READ_POINTS: Final = (
    "Read stored points by id, with their texts and payloads. Long texts are whole if few points are read at a time."
)
_LIST_COLLECTIONS: Final = (
    "List the collections with what they hold, their number of points, and filter_keys: the payload keys with an "
    "index. Filters by other keys are slow, and some servers refuse them."
)
_STORE: Final = (
    "Store texts so that searches find them from then on. A text that is stored twice without an id is one point; a "
    "text under an id that exists replaces that point."
)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a tool.

    Attributes:
        text: the result, or the error, as JSON of bounded length.
        is_error: whether it is an error.
    """

    text: str
    is_error: bool = False


OnProgress = Callable[[Progress], None]
"""Callback for the progress of a `store`."""


class Tools:
    """The tools, over a client of the worker.

    Args:
        client: the client.
        catalogue: the collections that the tools may use.
        allow_store: whether there is a tool that stores.
        max_characters: maximum length of a result in characters.
    """

    def __init__(
        self, client: AsyncClient, catalogue: Catalogue, *, allow_store: bool, max_characters: int = MAX_CHARACTERS
    ) -> None:
        self._client = client
        self._catalogue = catalogue
        self._max_characters = max_characters
        self._run: dict[str, Callable[[Mapping[str, Any], OnProgress], Awaitable[Json]]] = {
            "search": self._search,
            "read_points": self._read_points,
            "list_collections": self._list_collections,
        }
        if allow_store:
            self._run["store"] = self._store

    def listed(self) -> list[Tool]:
        """The tools, with what is known of the collections in their descriptions."""
        collections = self._catalogue.text()
        reads = ToolAnnotations(
            read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        )
        writes = ToolAnnotations(
            read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
        )
        tools = [
            self._tool("search", "Search", f"{_SEARCH}\n\n{collections}", SearchArguments, reads),
            self._tool("read_points", "Read points", _READ_POINTS, ReadPointsArguments, reads),
            self._tool("list_collections", "List collections", _LIST_COLLECTIONS, ListCollectionsArguments, reads),
            self._tool("store", "Store texts", f"{_STORE}\n\n{collections}", StoreArguments, writes),
        ]
        return [tool for tool in tools if tool.name in self._run]

    def schema(self, name: str) -> Json | None:
        """The JSON Schema of a tool's arguments; None for an unknown tool."""
        return next((tool.input_schema for tool in self.listed() if tool.name == name), None)

    async def call(self, name: str, arguments: Mapping[str, Any], progress: OnProgress) -> Result:
        """Call a tool.

        Args:
            name: the name of the tool.
            arguments: its arguments as JSON values, not validated.
            progress: callback for the progress of a `store`.

        Raises:
            asyncio.CancelledError: the call was cancelled, and with it its request. All other errors become results.
        """
        run = self._run.get(name)
        try:
            if run is None:
                raise InvalidRequest(f"the tool is unknown; the tools are {', '.join(self._run)}")
            return Result(bounded(await run(arguments, progress), self._max_characters))
        except InvalidRequest as error:
            failure = error_result(error.message, code="invalid_request", retryable=False)
        except ClientError as error:
            failure = error_result(
                _message(error), code=error.code, retryable=error.retryable, retry_after_s=error.retry_after_s
            )
            if error.report is not None:
                failure["stored"] = error.report.stored
        except Exception as error:  # noqa: BLE001 - no traceback: it may quote a user's text
            log.error("the tool %s failed: %s", name, whereabouts(error))
            failure = error_result("internal error of the MCP server", code="internal", retryable=False)
        return Result(bounded(failure, self._max_characters), is_error=True)

    def _tool(
        self, name: str, title: str, description: str, kind: type[BaseModel], annotations: ToolAnnotations
    ) -> Tool:
        return Tool(
            name=name,
            title=title,
            description=description,
            input_schema=schema(kind, self._catalogue.allowed),
            annotations=annotations,
        )

    async def _search(self, raw: Mapping[str, Any], _progress: OnProgress) -> Json:
        arguments = parsed(SearchArguments, raw)
        collection = await self._collection(arguments.collection)
        answer = await self._client.search(
            arguments.query,
            collection=collection.name,
            limit=arguments.limit,
            filter=arguments.filter,
            rerank="colbert" if arguments.rerank else None,
            explain=arguments.explain,
        )
        return search_result(collection, answer)

    async def _read_points(self, raw: Mapping[str, Any], _progress: OnProgress) -> Json:
        arguments = parsed(ReadPointsArguments, raw)
        collection = await self._collection(arguments.collection)
        return points_result(collection, await self._client.points(ids=arguments.ids, collection=collection.name))

    async def _list_collections(self, raw: Mapping[str, Any], _progress: OnProgress) -> Json:
        parsed(ListCollectionsArguments, raw)
        await self._catalogue.refresh()
        names = self._catalogue.names()
        described = await asyncio.gather(*(self._listing(name) for name in names[:DESCRIBED_MAX]))
        others = [self._named(name) for name in names[DESCRIBED_MAX:]]
        return {"collections": [*described, *others], "default": self._catalogue.default()}

    async def _store(self, raw: Mapping[str, Any], progress: OnProgress) -> Json:
        arguments = parsed(StoreArguments, raw)
        name = await self._catalogue.chosen(arguments.collection)
        try:
            report = await self._client.ingest(
                arguments.texts,
                ids=arguments.ids,
                payloads=arguments.payloads,
                collection=name,
                include_text=False,
                progress=progress,
            )
        finally:
            self._catalogue.forget(name)
        return stored_result(report)

    async def _collection(self, name: str | None) -> CollectionAnswer:
        """The description of the collection of a call, under the name by which the call may use it."""
        chosen = await self._catalogue.chosen(name)
        described = await self._catalogue.describe(chosen)
        return described.model_copy(update={"name": chosen})

    async def _listing(self, name: str) -> Json:
        """A collection with its number of points and the keys of its filters, or the reason why they are missing."""
        listing = self._named(name)
        try:
            described = await self._catalogue.describe(name)
        except ClientError as error:
            return {**listing, "error": error.message}
        if described.name != name:
            listing["alias_of"] = described.name
        keys = {index.key: index.type for index in described.payload_indexes}
        return {**listing, "points": described.points, "filter_keys": keys}

    def _named(self, name: str) -> Json:
        description = self._catalogue.description(name)
        return {"name": name} if description is None else {"name": name, "description": description}


def _message(error: ClientError) -> str:
    """The message of an error, for a reader who sees neither the worker nor the options of this server."""
    if isinstance(error, ConnectionFailed | TimedOut):
        return f"the worker does not answer: {error.message}"
    if isinstance(error, Unauthorized):
        return "the worker refuses the key of the MCP server: whoever starts the server sets WORKER_API_KEY"
    return error.message

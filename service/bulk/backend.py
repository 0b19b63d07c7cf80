"""What a bulk load needs of an endpoint that embeds and stores its lines in the place of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from embedder import WorkerError
from service.operations import IngestRequest, IngestResult, LoadCounts, LoadEnd, LoadRequest


class TextIngest(Protocol):
    """Embeds and stores texts; see `service.operations.ingest.Ingest`."""

    async def __call__(self, request: IngestRequest) -> IngestResult: ...  # noqa: D102


class LoadRun(Protocol):
    """One run of a load; see `OngoingLoad`."""

    @property
    def is_deferred(self) -> bool: ...  # noqa: D102
    @property
    def load_id(self) -> str: ...  # noqa: D102
    async def begin(self, stopping: asyncio.Event) -> bool: ...  # noqa: D102
    def alive(self, lost: Callable[[WorkerError], None]) -> AbstractAsyncContextManager[None]: ...  # noqa: D102
    async def end(  # noqa: D102
        self, stopping: asyncio.Event, *, complete: bool, rejected: int, alias: str | None, counts: LoadCounts
    ) -> LoadEnd: ...
    async def stop(self) -> None: ...  # noqa: D102


class LoadRuns(Protocol):
    """The loads; see `Loads`."""

    async def load(self, request: LoadRequest, say: Callable[[str], None]) -> LoadRun: ...  # noqa: D102


class LoadCollections(Protocol):
    """The collections; see `Collections`."""

    async def check_alias(self, alias: str, collection: str) -> None: ...  # noqa: D102
    async def exists(self, collection: str) -> bool: ...  # noqa: D102


class Backend(Protocol):
    """Embeds and stores texts, and knows the collections; see `Operations`."""

    @property
    def ingest(self) -> TextIngest: ...  # noqa: D102
    @property
    def loads(self) -> LoadRuns: ...  # noqa: D102
    @property
    def collections(self) -> LoadCollections: ...  # noqa: D102

"""The record of a copy into a new collection: beside it no load finishes the collection, and it finishes none."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from threading import Event
from typing import Final, Literal, Self

from embedder import Cancelled, WorkerError
from qdrant_sink.loading import SignsOfLife, is_load_id
from service.operations.load_values import INTERRUPTED, LoadEnd, LoadRequest, described
from service.operations.loads import Loads
from service.operations.ongoing_load import OngoingLoad

STOP_INTERVAL_S: Final = 0.2
"""Time between two looks whether the copy is to end."""


class RecordedCopy:
    """A copy that is recorded in its new collection, which exists, as a load. Use it as a context.

    A copy that leaves the context without `finish` counts as interrupted: the same copy again goes on in its place.

    Args:
        loads: the loads of the store of the new collection.
        kind: what copies.
        source: the old collection.
        into: the new collection.
        alias: alias that is to lead to the new collection; None for none.
        allow_empty: whether it moves although the new collection has no points and the one to which it leads has some.
        say: takes messages.
        stopping: event that ends the copy.
        lost: called with the error if the copy may not go on, because its record is gone.
    """

    def __init__(
        self,
        loads: Loads,
        kind: Literal["completion", "reindex"],
        source: str,
        into: str,
        alias: str | None,
        *,
        allow_empty: bool = False,
        say: Callable[[str], None],
        stopping: Event,
        lost: Callable[[WorkerError], None],
    ) -> None:
        self._loads = loads
        self._request = LoadRequest(into, load_id_of_copy(kind, source), alias, allow_empty=allow_empty)
        self._say = say
        self._stopping = stopping
        self._stopped = asyncio.Event()
        self._lost = lost
        self._load: OngoingLoad | None = None
        self._signs: SignsOfLife | None = None
        self._alive = AsyncExitStack()
        self._entered = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Record the copy, and defer the graph of an empty collection.

        Raises:
            InvalidRequest: the same copy is under way.
            Cancelled: the copy is to end.
            WorkerError: the store fails.
        """
        async with AsyncExitStack() as entering:
            await entering.enter_async_context(self._watched())
            entering.push_async_callback(self._interrupted)
            await self._begin()
            self._entered = entering.pop_all()
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Record that the copy was interrupted, unless it is finished."""
        await self._entered.aclose()

    async def _interrupted(self) -> None:
        await self._alive.aclose()
        if self._load is not None:
            await self._load.stop()

    async def _begin(self) -> None:
        load = await self._loads.load(self._request, self._say, self._signs)
        self._signs = load.signs
        if not await load.begin(self._stopped):
            raise Cancelled(INTERRUPTED)
        self._load = load
        await self._alive.enter_async_context(load.alive(self._lost))

    async def build_index(self) -> None:
        """Build the graph, unless another load is under way, which builds it then. The copy goes on afterwards.

        Raises:
            Cancelled: the copy is to end; the store goes on building.
            WorkerError: the store fails.
        """
        await self._end(complete=False, rejected=0)
        await self._begin()

    async def finish(self, *, complete: bool, rejected: int) -> LoadEnd:
        """End the copy. If it is the last load, the graph is built, and the alias moves if all are complete.

        Args:
            complete: whether the new collection can take the place of the old one.
            rejected: number of points that could not be copied.

        Raises:
            Cancelled: the copy is to end; the store goes on building the graph.
            WorkerError: the store fails.
        """
        return await self._end(complete=complete, rejected=rejected)

    async def _end(self, *, complete: bool, rejected: int) -> LoadEnd:
        load, self._load = self._load, None
        if load is None:
            raise RuntimeError("the copy has ended already")
        await self._alive.aclose()
        end = await load.end(self._stopped, complete=complete, rejected=rejected, alias=self._request.alias)
        if end.outcome == "stopped":
            raise Cancelled(INTERRUPTED)
        return end

    def others_of(self, end: LoadEnd) -> tuple[str, ...]:
        """The other loads because of which the alias has not moved, in words."""
        return tuple(described(other) for other in end.others if other.load != self._request.load_id)

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Pass the event of the threads on to the event loop."""
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        while not self._stopping.is_set():  # noqa: ASYNC110 - threads wait for this event too
            await asyncio.sleep(STOP_INTERVAL_S)
        self._stopped.set()


def load_id_of_copy(kind: str, source: str) -> str:
    """The id of the load that copies a collection, which names the collection if its name can be a part of an id."""
    name = f"{kind}-{source}"
    return name if is_load_id(name) else f"{kind}-{hashlib.sha256(source.encode()).hexdigest()[:16]}"

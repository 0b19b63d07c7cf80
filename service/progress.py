"""How far a long job has come, posted to the platform while it runs and never after its answer.

The SDK's own `progress_update` posts from a thread of its own and can overtake the answer, which would leave the
job in progress for ever. So a post is made here, in the job's event loop, and waited for before the job ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

log = logging.getLogger(__name__)

INTERVAL: Final = 5.0
"""Seconds between two posts of a job, and from its first report to the first post."""

PATIENCE: Final = 10.0
"""Seconds for which a job that is done waits for its last post."""

Report = Callable[[dict[str, Any]], None]
"""Says how far a job has come, as JSON values; from any thread."""

Post = Callable[[dict[str, Any]], Awaitable[None]]


class Progress:
    """The latest report of one job, and the task that posts it.

    Args:
        post: sends one report.
        interval: seconds between two posts.
    """

    def __init__(self, post: Post, interval: float) -> None:
        self._post = post
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._latest: dict[str, Any] | None = None
        self._reported = False
        self._ended = asyncio.Event()
        self._posts: asyncio.Task[None] | None = None

    def report(self, latest: dict[str, Any]) -> None:
        """To be posted at the next occasion, unless another report or the end of the job comes first."""
        self._latest = latest
        if not self._reported:  # most jobs report nothing, and need no task
            self._reported = True
            self._loop.call_soon_threadsafe(self._begin)

    async def end(self, patience: float) -> None:
        """Post no more; wait for a post under way, or after `patience` seconds drop it with its connection."""
        self._ended.set()
        if self._posts is None:
            return
        _, late = await asyncio.wait([self._posts], timeout=patience)
        if late:
            self._posts.cancel()
            await asyncio.wait(late)
        elif error := self._posts.exception():  # the job does not depend on it
            log.warning("progress could not be posted (%s)", type(error).__name__)

    def _begin(self) -> None:
        if not self._ended.is_set():
            self._posts = self._loop.create_task(self._post_latest())

    async def _post_latest(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._interval):
                    await self._ended.wait()
            except TimeoutError:
                latest, self._latest = self._latest, None
                if latest is not None:
                    await self._post(latest)
            else:
                return


@asynccontextmanager
async def posting(post: Post, *, interval: float = INTERVAL, patience: float = PATIENCE) -> AsyncIterator[Report]:
    """Give the block a `Report`, of which the latest is posted every `interval` seconds while the block runs.

    Args:
        post: sends one report.
        interval: seconds.
        patience: seconds that the end of the block waits for a post under way.
    """
    progress = Progress(post, interval)
    try:
        yield progress.report
    finally:
        await progress.end(patience)

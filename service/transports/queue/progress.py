"""How far a long job has come, posted to the platform while it runs and never after its answer.

The SDK's own `progress_update` posts from a thread of its own and can overtake the answer, which would leave the
job in progress for ever. So a post is made here, in the job's event loop, and waited for before the job ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from service.wire import Progress

log = logging.getLogger(__name__)

POST_INTERVAL_S: Final = 5.0
"""Time between two posts of a job, and from its first report to the first post."""

LAST_POST_TIMEOUT_S: Final = 10.0
"""How long a job that is done waits for its last post."""

Post = Callable[[dict[str, int]], Awaitable[None]]
"""Sends one report."""


class ProgressPosts:
    """The latest report of one job, and the task that posts it.

    Args:
        post: sends one report.
        interval_s: time between two posts.
    """

    def __init__(self, post: Post, interval_s: float) -> None:
        self._post = post
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._latest: dict[str, int] | None = None
        self._reported = False
        self._ended = asyncio.Event()
        self._posts: asyncio.Task[None] | None = None

    def report(self, latest: dict[str, int]) -> None:
        """To be posted at the next occasion, unless another report or the end of the job comes first."""
        self._latest = latest
        if not self._reported:  # most jobs report nothing, and need no task
            self._reported = True
            self._loop.call_soon_threadsafe(self._begin)

    async def end(self, timeout_s: float) -> None:
        """Post no more; wait for a post under way, or after `timeout_s` drop it with its connection."""
        self._ended.set()
        if self._posts is None:
            return
        _, late = await asyncio.wait([self._posts], timeout=timeout_s)
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
                async with asyncio.timeout(self._interval_s):
                    await self._ended.wait()
            except TimeoutError:
                latest, self._latest = self._latest, None
                if latest is not None:
                    await self._post(latest)
            else:
                return


@asynccontextmanager
async def posting(
    post: Post, *, interval_s: float = POST_INTERVAL_S, timeout_s: float = LAST_POST_TIMEOUT_S
) -> AsyncIterator[Progress]:
    """Give the block a callback for reports, of which the latest is posted regularly while the block runs.

    Args:
        post: sends one report.
        interval_s: time between two posts.
        timeout_s: how long the end of the block waits for a post under way.
    """
    posts = ProgressPosts(post, interval_s)
    try:
        yield posts.report
    finally:
        await posts.end(timeout_s)

"""Progress of long jobs, which is posted to the platform while the job runs and never after its answer.

The SDK's `progress_update` posts from another thread. Such a post can arrive after the answer, which would leave the
job in progress for ever. Therefore posts are sent in the job's event loop, and the job waits for its last post.
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
"""Time between two posts of a job, and between its first report and the first post."""

LAST_POST_TIMEOUT_S: Final = 10.0
"""Maximum time that a finished job waits for its last post."""

Post = Callable[[dict[str, int]], Awaitable[None]]
"""Sends a report to the platform."""


class ProgressPosts:
    """The latest report of one job, and the task that posts it.

    Args:
        post: sends a report to the platform.
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
        """Set the report for the next post. A later report replaces it, and the end of the job drops it."""
        self._latest = latest
        if not self._reported:  # most jobs report no progress and need no task
            self._reported = True
            self._loop.call_soon_threadsafe(self._begin)

    async def end(self, timeout_s: float) -> None:
        """Stop posting. Wait for a running post, and cancel it after `timeout_s`."""
        self._ended.set()
        if self._posts is None:
            return
        _, running = await asyncio.wait([self._posts], timeout=timeout_s)
        if running:
            self._posts.cancel()
            await asyncio.wait(running)
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
    """Yield a callback for reports, the latest of which is posted at intervals while the block runs.

    Args:
        post: sends a report to the platform.
        interval_s: time between two posts.
        timeout_s: maximum time that the end of the block waits for a running post.
    """
    posts = ProgressPosts(post, interval_s)
    try:
        yield posts.report
    finally:
        await posts.end(timeout_s)

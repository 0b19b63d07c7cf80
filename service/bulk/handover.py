"""Handing batches over from the thread that reads them to the event loop that works on them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import CancelledError
from typing import TypeVar

T = TypeVar("T")


def hand_over(items: Iterable[T], queue: asyncio.Queue[T], loop: asyncio.AbstractEventLoop) -> bool:
    """Put items into a queue of an event loop from another thread, each as soon as there is room. Blocks.

    Returns:
        Whether all items are in the queue; False if the loop has ended before.
    """
    return all(_put(item, queue, loop) for item in items)


def _put(item: T, queue: asyncio.Queue[T], loop: asyncio.AbstractEventLoop) -> bool:
    putting = queue.put(item)
    try:
        asyncio.run_coroutine_threadsafe(putting, loop).result()
    except (RuntimeError, CancelledError):
        return False
    finally:
        putting.close()  # if the loop ended first, the coroutine never ran
    return True

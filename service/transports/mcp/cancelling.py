"""Cancellation that ends a request to the worker before the call that made it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def in_own_task(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a task of its own, which is cancelled once and awaited if the caller is cancelled.

    The MCP SDK cancels a call with a scope of anyio, which cancels every await within it. The client has to send one
    more request after a cancellation, the one that cancels its job.
    """
    task = asyncio.create_task(coroutine)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(task, return_exceptions=True)
        raise

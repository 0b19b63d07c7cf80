"""The size of JSON values, counted before they are validated: a job comes from the queue as values, not as bytes."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any, Final

from embedder import BODIES
from service.wire.json_limits import JSON_MAX_DEPTH, JsonLimits, JsonSize

_QUICK_MAX_NODES: Final = 2_000
"""Maximum number of values that the event loop counts itself, which takes no longer than a thread switch."""


async def size_of(raw: object, limits: JsonLimits, *, root: str = "input") -> JsonSize:
    """Count the values of a job's input, in a thread if there are many.

    Args:
        raw: the input.
        limits: the limits of the request.
        root: name of the whole value in errors.

    Raises:
        InvalidRequest: the input exceeds a limit. The rest of it is not counted.
    """
    quick_max = min(limits.max_nodes, _QUICK_MAX_NODES)
    size = _counted(raw, quick_max)
    if size.nodes > quick_max:
        size = await BODIES.run(lambda: _counted(raw, limits.max_nodes))
    size.check(limits, root)
    return size


def _counted(raw: object, max_nodes: int) -> JsonSize:
    """The size of a value. What exceeds the number of nodes, or the depth, is only counted by its length."""
    size = JsonSize()
    pending: list[tuple[list[Any] | dict[str, Any], int]] = []  # lists and objects, and the levels with each

    def add(value: object, depth: int) -> None:
        if isinstance(value, str):
            size.strings += 1
            size.character_bytes += sys.getsizeof(value)
        elif isinstance(value, list | dict):
            pending.append((value, depth + 1))
        else:
            size.scalars += 1

    add(raw, 0)
    while pending:
        container, depth = pending.pop()
        size.depth = max(size.depth, depth)
        if isinstance(container, dict):
            size.objects += 1
            size.names += len(container)
            size.character_bytes += sum(map(sys.getsizeof, container)) if size.nodes <= max_nodes else 0
            items: Collection[Any] = container.values()
        else:
            size.lists += 1
            items = container
        if size.depth > JSON_MAX_DEPTH or size.nodes + len(pending) + len(items) > max_nodes:
            size.scalars += len(items)
            break
        for item in items:
            add(item, depth)
    size.scalars += len(pending)
    return size

"""The points that a command could not finish, as its output names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from qdrant_sink.copying import UnfinishedPoint
from service.wire.errors import code_of

POINTS_PRINTED_MAX: Final = 10
"""Maximum number of points that are printed for a person; JSON has all that the report names."""


def in_json(points: Sequence[UnfinishedPoint]) -> list[dict[str, Any]]:
    """The points in the JSON summary of a command."""
    return [
        {
            "id": point.id if isinstance(point.id, int) else str(point.id),
            "code": code_of(point.cause),
            "message": point.cause.message,
        }
        for point in points
    ]


def print_points(points: Sequence[UnfinishedPoint], say: Callable[[str], None]) -> None:
    """Print the first points for a person, one a line."""
    for point in in_json(points[:POINTS_PRINTED_MAX]):
        say(f"point {point['id']}: {point['message']}")
    if len(points) > POINTS_PRINTED_MAX:
        say("further points are not shown; use --json for more")


def waiting(load: str) -> str:
    """Why the alias has not moved, and when it does.

    Args:
        load: another load into the new collection, in words.
    """
    return f"the alias has not moved: it does when {load} has stored all its lines"

"""The first points of a collection, read in small pages, because payloads may be large."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from qdrant_sink.errors import LimitExceeded
from qdrant_sink.filters import Filter
from qdrant_sink.points import PointId, Stored, WithPayload

SAMPLE_POINTS: Final = 64
"""Maximum points of a sample."""

PAGE_POINTS: Final = 8
"""Points that are read with one request."""

SAMPLE_MAX_BYTES: Final = 1_000_000
"""Bytes of payloads after which no further page is read."""


class Scrolls(Protocol):
    """The part of `Store` that reads points page by page."""

    def scroll(
        self,
        collection: str,
        where: Filter,
        with_payload: WithPayload,
        /,
        *,
        limit: int,
        after: PointId | None = None,
        interactive: bool = False,
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """Return a page of the matching points in the order of their ids."""
        ...


def _all(_payloads: Sequence[Mapping[str, Any]]) -> bool:
    return False


def sample_points(
    store: Scrolls,
    collection: str,
    *,
    points: int = SAMPLE_POINTS,
    suffices: Callable[[Sequence[Mapping[str, Any]]], bool] = _all,
) -> dict[PointId, Mapping[str, Any]]:
    """Return the payloads of the first points of a collection by id. The call blocks.

    Args:
        store: store of the collection.
        collection: name of the collection, or an alias.
        points: maximum number of points.
        suffices: function from the payloads read so far to whether no further page is needed.

    Raises:
        WorkerError: see the table in `qdrant_sink.store`.
    """
    sample: dict[PointId, Mapping[str, Any]] = {}
    size = 0
    after: PointId | None = None
    page_points = PAGE_POINTS
    whole_payload: WithPayload = True
    while len(sample) < points:
        limit = min(page_points, points - len(sample))
        try:
            page, after = store.scroll(collection, {}, whole_payload, limit=limit, after=after, interactive=True)
        except LimitExceeded as error:  # strict mode allows few points per page
            if error.field != "limit" or not 1 <= error.maximum < limit:
                raise
            page_points = int(error.maximum)
            continue
        payloads = {point: stored.payload or {} for point, stored in page.items()}
        sample |= payloads
        size += sum(len(json.dumps(payload, ensure_ascii=False, default=str)) for payload in payloads.values())
        if after is None or size >= SAMPLE_MAX_BYTES or suffices(list(sample.values())):
            break
    return sample

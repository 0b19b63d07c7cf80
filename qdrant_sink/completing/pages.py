"""Read the points of a collection page by page, in the order of their ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from qdrant_sink.errors import LimitExceeded
from qdrant_sink.filters import Filter
from qdrant_sink.points import PointId, Stored, WithPayload

PAGE_POINTS: Final = 256
"""Points of a page."""


class Scrolls(Protocol):
    """The part of `Store` that reads pages."""

    def scroll(
        self,
        collection: str,
        where: Filter,
        with_payload: WithPayload,
        /,
        *,
        limit: int,
        after: PointId | None = None,
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """Return a page of the matching points in the order of their ids, and the id at which the next page begins."""
        ...


def pages(
    store: Scrolls, collection: str, where: Filter, with_payload: WithPayload, *, limit: int = PAGE_POINTS
) -> Iterator[dict[PointId, Stored]]:
    """Yield the pages of all matching points. A server in strict mode can limit the number of points in a page.

    Points that are written or deleted meanwhile are seen if they match when their page is read.

    Raises:
        WorkerError: see the table in `qdrant_sink.store`.
    """
    after: PointId | None = None
    while True:
        try:
            page, after = store.scroll(collection, where, with_payload, limit=limit, after=after)
        except LimitExceeded as error:
            if error.field != "limit" or not 1 <= error.maximum < limit:
                raise
            limit = int(error.maximum)
            continue
        if page:
            yield page
        if after is None:
            return

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


class PageReader:
    """Reads pages of matching points. A server in strict mode can limit the number of points in a page.

    Args:
        store: store of the collection.
        collection: name of the collection.
        where: filter of the points.
        with_payload: part of the payload to read.
        limit: maximum number of points of a page.
    """

    def __init__(
        self, store: Scrolls, collection: str, where: Filter, with_payload: WithPayload, *, limit: int = PAGE_POINTS
    ) -> None:
        self._store = store
        self._collection = collection
        self._where = where
        self._with_payload = with_payload
        self._limit = limit

    def page(self, after: PointId | None) -> tuple[dict[PointId, Stored], PointId | None]:
        """Return the page that begins at an id, and the id at which the next one begins; None for the last page.

        Raises:
            WorkerError: see the table in `qdrant_sink.store`.
        """
        while True:
            limit = self._limit
            try:
                return self._store.scroll(self._collection, self._where, self._with_payload, limit=limit, after=after)
            except LimitExceeded as error:
                if error.field != "limit" or not 1 <= error.maximum < limit:
                    raise
                self._limit = int(error.maximum)


def pages(
    store: Scrolls, collection: str, where: Filter, with_payload: WithPayload, *, limit: int = PAGE_POINTS
) -> Iterator[dict[PointId, Stored]]:
    """Yield the pages of all matching points.

    Points that are written or deleted meanwhile are seen if they match when their page is read.

    Raises:
        WorkerError: see the table in `qdrant_sink.store`.
    """
    reader = PageReader(store, collection, where, with_payload, limit=limit)
    after: PointId | None = None
    while True:
        page, after = reader.page(after)
        if page:
            yield page
        if after is None:
            return

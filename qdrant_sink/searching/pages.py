"""The pages of the searches of a request, whose payloads and vectors are read while later searches are under way.

An answer that becomes too large ends with the search that shows it: the hits of the others are neither asked for nor
grouped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from qdrant_sink.points import PointId, Stored
from qdrant_sink.searching.plan import Hit
from qdrant_sink.searching.query import Search
from qdrant_sink.searching.reading import Fetches, PartReader, Parts, read_parts

WAITING_MAX_HITS: Final = 1024
"""Number of hits of complete pages from which their payloads and vectors are read before another search."""


@dataclass(frozen=True, slots=True, eq=False)
class SearchPage:
    """The page of one search.

    Attributes:
        hits: hits in the order of the ranking.
        unranked: number of candidates without ColBERT rows among those of a reranked search, on this page or not. The
            candidates are those of all tiers that the page needed. 0 without reranking.
    """

    hits: list[Hit]
    unranked: int


class Pages:
    """The pages of several searches, which become complete in any order.

    Args:
        store: store of the points.
        collection: name of the collection.
        searches: the searches.
        reader: reader of payloads and vectors; None to read them by one call, at the end.
    """

    def __init__(self, store: Fetches, collection: str, searches: Sequence[Search], reader: PartReader | None) -> None:
        self._store = store
        self._collection = collection
        self._searches = searches
        self._reader = reader
        self._pages: dict[int, SearchPage] = {}
        self._waiting: list[int] = []  # indexes of the pages whose parts are to be read
        self._waiting_hits = 0
        self._stored: dict[Parts, dict[PointId, Stored]] = {}  # parts that were read

    def __contains__(self, index: int) -> bool:
        """Whether the page of a search was added."""
        return index in self._pages

    def add(self, index: int, page: SearchPage, *, needs_parts: bool) -> None:
        """Add the page of a search, and read the parts of many hits that wait for them.

        Args:
            index: index of the search.
            page: the page.
            needs_parts: whether its hits lack their payloads and vectors.

        Raises:
            Cancelled: the caller has gone.
            WorkerError: the answer or the memory of the request became too large, or the store fails.
        """
        self._pages[index] = page
        parts = requested_parts(self._searches[index])
        if not parts[0] and not parts[1]:  # the hits of groups have their keys
            self._pages[index] = replace(page, hits=[replace(hit, payload=None, vectors=None) for hit in page.hits])
        elif needs_parts:
            self._waiting.append(index)
            self._waiting_hits += len(page.hits)
        elif self._reader is not None:
            self._reader.add_inline(self._collection, parts, [(hit.payload, hit.vectors) for hit in page.hits])
        if self._reader is not None and self._waiting_hits >= WAITING_MAX_HITS:
            self._read()

    def all(self) -> list[SearchPage]:
        """Return the pages in the order of the searches. Points that were deleted in between are left out.

        Raises:
            Cancelled: the caller has gone.
            WorkerError: the answer or the memory of the request became too large, or the store fails.
        """
        self._read()
        return [self._pages[index] for index in range(len(self._searches))]

    def _read(self) -> None:
        wanted: dict[Parts, Counter[PointId]] = {}
        for index in self._waiting:
            counts = wanted.setdefault(requested_parts(self._searches[index]), Counter())
            counts.update(hit.id for hit in self._pages[index].hits)
        for parts, counts in wanted.items():
            stored = self._stored.setdefault(parts, {})
            if self._reader is not None:
                again = [(stored[point], count) for point, count in counts.items() if point in stored]
                self._reader.add_again(again)
            new = {point: count for point, count in counts.items() if point not in stored}
            if new:
                stored |= read_parts(self._store, self._collection, new, parts, self._reader)
        for index in self._waiting:
            page = self._pages[index]
            hits = _with_parts(page.hits, self._stored[requested_parts(self._searches[index])])
            self._pages[index] = replace(page, hits=hits)
        self._waiting, self._waiting_hits = [], 0


def requested_parts(search: Search) -> Parts:
    """Return the parts of its hits that a search asks for."""
    return search.options.with_payload, search.options.with_vectors, search.schema.names


def _with_parts(hits: Sequence[Hit], stored: Mapping[PointId, Stored]) -> list[Hit]:
    return [
        replace(hit, payload=stored[hit.id].payload, vectors=stored[hit.id].vectors) for hit in hits if hit.id in stored
    ]

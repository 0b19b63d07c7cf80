"""Copy the points of a collection: pages, ranges of ids, the copy, the new collection and its losses."""

from __future__ import annotations

from qdrant_sink.copying.pages import PAGE_POINTS, Scrolls, pages
from qdrant_sink.copying.point_copy import COPY_PAGE_POINTS, COPY_WORKERS, CopyPaths, PointCopy, Round, Rounds
from qdrant_sink.copying.present_kinds import present_kinds, vectors_by_kind
from qdrant_sink.copying.schema import (
    VECTOR_KINDS,
    SourceVectors,
    existing_part,
    kept_indexes,
    losses,
    reindexed_schema,
    source_vectors,
)
from qdrant_sink.copying.unfinished import NAMED_MAX, UnfinishedPoint

__all__ = [
    "COPY_PAGE_POINTS",
    "COPY_WORKERS",
    "NAMED_MAX",
    "PAGE_POINTS",
    "VECTOR_KINDS",
    "CopyPaths",
    "PointCopy",
    "Round",
    "Rounds",
    "Scrolls",
    "SourceVectors",
    "UnfinishedPoint",
    "existing_part",
    "kept_indexes",
    "losses",
    "pages",
    "present_kinds",
    "reindexed_schema",
    "source_vectors",
    "vectors_by_kind",
]

"""Copy the points of a collection: pages, ranges of ids, the copy, the schema of the new collection, and the losses."""

from __future__ import annotations

from qdrant_sink.copying.pages import PAGE_POINTS, Scrolls, pages
from qdrant_sink.copying.point_copy import COPY_PAGE_POINTS, COPY_WORKERS, CopyPaths, PointCopy, Round, Rounds
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
    "reindexed_schema",
    "source_vectors",
]

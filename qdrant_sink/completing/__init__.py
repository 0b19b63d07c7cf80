"""Complete a collection with vectors that it lacks: its schema, the points that lack them, and their report."""

from __future__ import annotations

from qdrant_sink.completing.copying import COPY_PAGE_POINTS, CopyStore, PointCopy
from qdrant_sink.completing.lacking import kinds_lacking, of_all_kinds, of_any_lacking, of_exactly_lacking
from qdrant_sink.completing.pages import PAGE_POINTS, Scrolls, pages
from qdrant_sink.completing.report import NAMED_MAX, CompletionReport, CompletionTally, UnfinishedPoint
from qdrant_sink.completing.schema import check_copyable, completed_schema, copied_schema

__all__ = [
    "COPY_PAGE_POINTS",
    "NAMED_MAX",
    "PAGE_POINTS",
    "CompletionReport",
    "CompletionTally",
    "CopyStore",
    "PointCopy",
    "Scrolls",
    "UnfinishedPoint",
    "check_copyable",
    "completed_schema",
    "copied_schema",
    "kinds_lacking",
    "of_all_kinds",
    "of_any_lacking",
    "of_exactly_lacking",
    "pages",
]

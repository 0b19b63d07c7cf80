"""Complete a collection with vectors that it lacks: its schema, the points that lack them, and their report."""

from __future__ import annotations

from qdrant_sink.completing.lacking import kinds_lacking, of_all_kinds, of_any_lacking, of_exactly_lacking
from qdrant_sink.completing.report import CompletionReport, CompletionTally
from qdrant_sink.completing.schema import check_copyable, completed_schema, copied_schema

__all__ = [
    "CompletionReport",
    "CompletionTally",
    "check_copyable",
    "completed_schema",
    "copied_schema",
    "kinds_lacking",
    "of_all_kinds",
    "of_any_lacking",
    "of_exactly_lacking",
]

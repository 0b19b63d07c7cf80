"""Searches: run them, explain their hits, and build queries from stored points."""

from __future__ import annotations

from qdrant_sink.searching.explain import BranchRank, Explained, Explanation, explain
from qdrant_sink.searching.matches import RowMatch, TokenMatch
from qdrant_sink.searching.pages import SearchPage
from qdrant_sink.searching.plan import OVERSAMPLING, Hit, Plan, Rescoring
from qdrant_sink.searching.query import (
    OFFSET_MAX,
    Search,
    SearchOptions,
    check_kinds,
    conform_query,
    default_branches,
    with_branches,
)
from qdrant_sink.searching.reading import PORTION_MAX_BYTES, Admit, PartReader, PartSizes
from qdrant_sink.searching.recommend import recommend
from qdrant_sink.searching.run import Searchable, run, search_pages

__all__ = [
    "OFFSET_MAX",
    "OVERSAMPLING",
    "PORTION_MAX_BYTES",
    "Admit",
    "BranchRank",
    "Explained",
    "Explanation",
    "Hit",
    "PartReader",
    "PartSizes",
    "Plan",
    "Rescoring",
    "RowMatch",
    "Search",
    "SearchOptions",
    "SearchPage",
    "Searchable",
    "TokenMatch",
    "check_kinds",
    "conform_query",
    "default_branches",
    "explain",
    "recommend",
    "run",
    "search_pages",
    "with_branches",
]

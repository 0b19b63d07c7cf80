"""The requests of the contract test, grouped by area."""

from __future__ import annotations

from typing import Final

from tests.contract.cases import (
    bulk,
    collections,
    documents,
    embed,
    explain,
    faults,
    filters,
    http,
    ingest,
    invalid,
    loads,
    openai,
    points,
    rerank,
    score,
    search,
)
from tests.contract.steps import Area

AREAS: Final = (
    Area("embed", embed.SCENARIOS),
    Area("invalid", invalid.SCENARIOS),
    Area("score", score.SCENARIOS),
    Area("ingest", ingest.SCENARIOS),
    Area("documents", documents.SCENARIOS),
    Area("collections", collections.SCENARIOS),
    Area("loads", loads.SCENARIOS),
    Area("search", search.SCENARIOS),
    Area("points", points.SCENARIOS),
    Area("filters", filters.SCENARIOS),
    Area("explain", explain.SCENARIOS),
    Area("faults", faults.SCENARIOS),
    Area("openai", openai.SCENARIOS),
    Area("rerank", rerank.SCENARIOS),
    Area("http", http.SCENARIOS),
    Area("bulk", bulk.SCENARIOS),
)

"""Explanations of hits, in every kind of search and for stored texts that cannot be explained."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.cases.shared import NOTES, TEXTS, search, stored
from tests.contract.steps import Job, Scenario

QUERY: Final = "copy only the changed parts to a remote disk"


def _explained(name: str, *queries: str, **fields: Any) -> Job:
    return search(name, *queries, **{"explain": True, "limit": 2, "withPayload": False, **fields})


SCENARIOS: Final = (
    Scenario(
        "explained",
        [
            stored("ten-points"),
            _explained("hybrid", QUERY),
            _explained("payload-as-asked-for", QUERY, withPayload=["topic"], limit=1),
            _explained("payload-without-text", QUERY, withPayload={"exclude": ["text"]}, limit=1),
            _explained("vectors-as-asked-for", QUERY, withVectors=["sparse"], limit=1),
            _explained("two-queries", QUERY, "tables", limit=1),
            _explained("dense", QUERY, using=["dense"]),
            _explained("sparse", QUERY, using=["sparse"]),
            _explained("colbert", QUERY, using=["colbert"], limit=1),
            _explained("rerank", QUERY, rerank="colbert", limit=1),
            _explained("weighted", QUERY, weights=[2, 1], rrfK=10, limit=1),
            _explained("dbsf", QUERY, fusion="dbsf"),
            _explained("page-two", QUERY, offset=3),
            _explained("few-candidates", QUERY, prefetch=1, limit=1),
            _explained("grouped", QUERY, groupBy="topic", groupSize=2, limit=1),
            _explained("without-weights", "", using=["dense", "sparse"], limit=1),
        ],
        engines=("stub", "mini"),
    ),
    Scenario(
        "texts that are not those of the vectors",
        [
            Job(
                "stored-elsewhere",
                {
                    "texts": list(TEXTS[:2]),
                    "isPassage": True,
                    "qdrant": {"collection": NOTES, "ids": [1, 2], "textKey": "body"},
                },
            ),
            _explained("text-key", QUERY, textKey="body", limit=1),
            _explained("no-text", QUERY, rerank="colbert", limit=1),
            Job(
                "stored-cut",
                {
                    "texts": [" ".join(TEXTS)],
                    "isPassage": True,
                    "maxLength": 12,
                    "qdrant": {"collection": NOTES, "ids": [3]},
                },
            ),
            _explained("cut-text", QUERY, rerank="colbert", limit=1, filter={"must": [{"has_id": [3]}]}),
            Job(
                "stored-dense", {"texts": [TEXTS[0]], "vectors": ["dense"], "qdrant": {"collection": NOTES, "ids": [4]}}
            ),
            _explained("no-vectors", QUERY, limit=1, filter={"must": [{"has_id": [4]}]}),
        ],
    ),
)

"""Searches: every field, over one collection of ten points."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.cases.shared import NOTES, TEXTS, count, search, stored
from tests.contract.steps import Job, Scenario

QUERY: Final = "copy only the changed parts to a remote disk"
SECOND: Final = "a server for tables and transactions"
FILES: Final = {"must": [{"key": "topic", "match": {"value": "files"}}]}


def _bare(name: str, *queries: str, **fields: Any) -> Job:
    """Return a search whose hits carry no payload."""
    return search(name, *queries, **{"withPayload": False, "limit": 5, **fields})


def _like(name: str, positive: list[Any], **fields: Any) -> Job:
    more = {"negative": fields.pop("negative")} if "negative" in fields else {}
    more |= {"idScope": fields.pop("idScope")} if "idScope" in fields else {}
    return _bare(name, like={"positive": positive, **more}, **fields)


def _nested(levels: int) -> dict[str, Any]:
    """Return a filter at this depth of nesting."""
    condition: dict[str, Any] = {"must": [{"has_id": [1]}]}
    for _ in range(levels):
        condition = {"must": [condition]}
    return condition


SCENARIOS: Final = (
    Scenario(
        "hybrid",
        [
            stored("ten-points"),
            search("by-default", QUERY),
            _bare("two-queries", QUERY, SECOND),
            _bare("same-query-twice", QUERY, QUERY),
            _bare("dense", QUERY, using=["dense"]),
            _bare("sparse", QUERY, using=["sparse"]),
            _bare("colbert", QUERY, using=["colbert"]),
            _bare("all-branches", QUERY, using=["colbert", "sparse", "dense"]),
            _bare("rerank", QUERY, rerank="colbert"),
            _bare("rerank-of-dense", QUERY, using=["dense"], rerank="colbert"),
            _bare("rerank-of-few", QUERY, rerank="colbert", prefetch=2, limit=2),
            _bare("rrf-with-small-k", QUERY, rrfK=2),
            _bare("rrf-with-weights", QUERY, rrfK=5, weights=[3.0, 0.5]),
            _bare("rrf-with-integer-weights", QUERY, weights=[3, 1], fusion="rrf"),
            _bare("dbsf", QUERY, fusion="dbsf"),
            _bare("dbsf-of-three", SECOND, fusion="dbsf", using=["dense", "sparse", "colbert"]),
            _bare("limit-one", QUERY, limit=1),
            _bare("page-two", QUERY, limit=2, offset=2),
            _bare("page-two-reranked", QUERY, limit=2, offset=2, rerank="colbert"),
            _bare("page-two-of-dense", QUERY, limit=2, offset=2, using=["dense"]),
            _bare("beyond-the-last", QUERY, offset=100),
            _bare("threshold-of-dense", QUERY, using=["dense"], scoreThreshold=0.0),
            _bare("threshold-of-rerank", QUERY, rerank="colbert", scoreThreshold=1.0),
            _bare("threshold-of-fusion", QUERY, scoreThreshold=0.02),
            _bare("threshold-above-all", QUERY, using=["dense"], scoreThreshold=2),
            _bare("few-candidates", QUERY, prefetch=1, limit=1),
            _bare("exact", QUERY, params={"exact": True}),
            _bare("params", QUERY, params={"hnswEf": 64, "indexedOnly": False, "quantization": {"ignore": True}}),
            _bare("quantization-params", QUERY, params={"quantization": {"rescore": False, "oversampling": 2}}),
            _bare("filtered", QUERY, filter=FILES),
            _bare("filtered-and-reranked", QUERY, filter=FILES, rerank="colbert"),
            _bare("search-timings", QUERY, limit=1, timings=True),
            _bare("empty-query", ""),
            _bare("empty-query-sparse", "", using=["sparse"]),
            _bare("long-query", "some words of it " * 300, limit=1),
        ],
        engines=("stub", "mini"),
    ),
    Scenario(
        "indexed only",
        [stored("ten-points-again"), _bare("indexed-only", QUERY, params={"indexedOnly": True})],
    ),
    Scenario(
        "at the limits",
        [
            stored("ten-points-at-the-limits"),
            _bare("payload-of-100-keys", QUERY, limit=1, withPayload=["n", *(f"key{n}" for n in range(99))]),
            _bare("largest-rrfK", QUERY, rrfK=1_000_000, limit=1),
            _bare("largest-prefetch", QUERY, prefetch=100_000, limit=1),
            _bare("largest-limit", QUERY, limit=10_000),
            _bare("largest-page", QUERY, limit=1, offset=100_000),
            _bare("largest-group", QUERY, groupBy="topic", groupSize=100, limit=1),
            _bare("largest-hnswEf", QUERY, limit=1, params={"hnswEf": 100_000}),
            _bare("largest-oversampling", QUERY, limit=1, params={"quantization": {"oversampling": 100}}),
            _bare("most-explained", QUERY, using=["dense"], explain=True, limit=1000),
            _bare("most-explained-rows", QUERY, using=["sparse"], explain=True, limit=100, rerank="colbert", offset=9),
            _bare("most-examples", like={"positive": [1, *range(101, 200)]}),
            _bare("longest-text-key", QUERY, limit=1, textKey="k" * 255),
            _bare("deepest-filter", QUERY, limit=1, filter=_nested(15)),
        ],
    ),
    Scenario(
        "hits",
        [
            stored("ten-points-for-hits"),
            search("payload-of-keys", QUERY, limit=2, withPayload=["topic", "owner.name", "absent"]),
            search("payload-include", QUERY, limit=2, withPayload={"include": ["text"]}),
            search("payload-exclude", QUERY, limit=2, withPayload={"exclude": ["text", "offers[].price", "place"]}),
            search("payload-none", QUERY, limit=2, withPayload=False),
            _bare("vectors-all", QUERY, limit=1, withVectors=True),
            _bare("vectors-none", QUERY, limit=1, withVectors=False),
            _bare("vectors-of-kinds", QUERY, limit=1, withVectors=["sparse"]),
            _bare("vectors-empty-list", QUERY, limit=1, withVectors=[]),
            Job(
                "hits-too-large",
                {"operation": "search", "collection": NOTES, "queries": [QUERY], "withVectors": True},
                settings={"MAX_RESPONSE_MB": "0.003"},
            ),
            _bare("a-failing-query", QUERY, "a zebra"),
            _bare("a-failing-query-sparse", "a zebra", using=["sparse"]),
            Job(
                "too-many-queries",
                {"operation": "search", "collection": NOTES, "queries": ["a", "b"]},
                settings={"MAX_TEXTS": "1"},
            ),
            Job(
                "queries-more-than-the-queue",
                {"operation": "search", "collection": NOTES, "queries": [QUERY]},
                settings={"QUEUE_TOKENS": "5"},
            ),
            Job(
                "queue-full",
                {"operation": "search", "collection": NOTES, "queries": [QUERY]},
                settings={"QUEUE_TOKENS": "100"},
                fault="queue full",
            ),
        ],
    ),
    Scenario(
        "groups",
        [
            stored("ten-points-for-groups"),
            _bare("groups", QUERY, groupBy="topic"),
            _bare("groups-of-two", QUERY, groupBy="topic", groupSize=2, limit=3),
            _bare("groups-page-two", QUERY, groupBy="topic", limit=2, offset=2),
            _bare("groups-reranked", QUERY, groupBy="topic", groupSize=3, limit=2, rerank="colbert"),
            _bare("groups-of-dense", QUERY, SECOND, groupBy="topic", using=["dense"], limit=3),
            _bare("groups-by-a-path", QUERY, groupBy="owner.name", limit=3),
            _bare("groups-with-threshold", QUERY, groupBy="topic", using=["dense"], scoreThreshold=0.0),
            search(
                "groups-with-payload-and-vectors",
                QUERY,
                groupBy="topic",
                limit=1,
                withPayload=["n"],
                withVectors=["dense"],
            ),
            _bare("groups-from-few-candidates", QUERY, groupBy="topic", prefetch=2, limit=2),
        ],
        engines=("stub", "mini"),
    ),
    Scenario(
        "like",
        [
            stored("ten-points-to-be-like"),
            Job(
                "strings-to-be-like",
                {
                    "texts": ["copy the changed parts", "tables"],
                    "qdrant": {"collection": NOTES, "ids": ["a", "b"], "idScope": "lasting"},
                },
            ),
            _like("like-one", [1]),
            _like("like-two", [1, 4], using=["dense"]),
            _like("like-and-unlike", [1], negative=[2, 8]),
            _like("like-sparse", [1, 9], using=["sparse"]),
            _like("like-sparse-and-unlike", [1], negative=[4], using=["sparse"]),
            _like("like-reranked", [1, 4], rerank="colbert"),
            _like("like-filtered", [1], filter=FILES),
            _like("like-filtered-out", [1], filter={"must_not": [{"has_id": [4]}, {"has_id": [9]}]}),
            _like("like-grouped", [1], groupBy="topic", limit=3),
            _like("like-scoped", ["a"], negative=["b"], idScope="lasting"),
            _like("like-explained", [1], explain=True, limit=1),
            _like("like-missing-points", [1, 77, "gone"], negative=[78]),
            _like("like-both", [1, 2], negative=[2]),
            _like("like-colbert-and-unlike", [1], negative=[2], rerank="colbert"),
            _like("like-itself-cancelled", [1], negative=[1]),
        ],
        engines=("stub", "mini"),
    ),
    Scenario(
        "like without vectors",
        [
            Job(
                "sparse-points",
                {"texts": list(TEXTS[:2]), "vectors": ["sparse"], "qdrant": {"collection": NOTES, "ids": [1, 2]}},
            ),
            _like("like-without-dense", [1], using=["dense"]),
            _like("like-without-colbert", [1], using=["sparse"], rerank="colbert"),
            _like("like-without-sparse-in-common", [1], using=["sparse"]),
        ],
    ),
    Scenario(
        "deletions",
        [
            stored("ten-points-to-be-deleted"),
            Job("delete-by-filter", {"operation": "delete", "collection": NOTES, "filter": FILES}),
            count("count-after-delete-by-filter"),
            Job("delete-timings", {"operation": "delete", "collection": NOTES, "ids": [2], "timings": True}),
            Job("delete-everything", {"operation": "delete", "collection": NOTES, "filter": {"must": []}}),
            Job("delete-nothing-found", {"operation": "delete", "collection": NOTES, "filter": FILES}),
            count("count-timings", timings=True),
            count("count-with-empty-filter", filter={}),
            _bare("search-after-deletions", QUERY),
        ],
    ),
)

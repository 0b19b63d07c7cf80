"""Stored points by their ids and page by page, and the collections that hold them."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.contract.cases.shared import NOTES, TEXTS, stored
from tests.contract.steps import Call, Job, Scenario

INDEXES: Final = {"n": "integer", "price": "float", "when": "datetime", "topic": "keyword"}
CONFIG: Final = {"QDRANT_COLLECTION_CONFIG": json.dumps({"payloadIndexes": INDEXES})}
FILES: Final = {"must": [{"key": "topic", "match": {"value": "files"}}]}


def _points(name: str, **fields: Any) -> Job:
    return Job(name, {"operation": "points", "collection": NOTES, **fields})


def _collections(name: str, **fields: Any) -> Job:
    return Job(name, {"operation": "collections", **fields})


def _order(key: str, **fields: Any) -> dict[str, Any]:
    return {"orderBy": {"key": key, **fields}, "withPayload": [key]}


SCENARIOS: Final = (
    Scenario(
        "ids",
        [
            Job(
                "points-with-names",
                {
                    "texts": list(TEXTS[:3]),
                    "isPassage": True,
                    "qdrant": {"collection": NOTES, "ids": ["rsync", 2, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"]},
                },
            ),
            _points("ids-in-order", ids=["none", 2, "rsync", 2, "6BA7B8109DAD11D180B400C04FD430C8"]),
            _points("ids-of-another-scope", ids=["rsync"], idScope="papers"),
            _points("ids-with-vectors", ids=[2], withVectors=True, withPayload=False),
            _points("ids-in-base64", ids=[2], withVectors=["dense"], encoding="base64", dtype="float16"),
            _points("ids-and-filter", ids=[2], filter=FILES),
            _points("ids-with-an-invalid-one", ids=[2, -1]),
            _points("ids-of-a-missing-collection", ids=[2], collection="absent"),
        ],
    ),
    Scenario(
        "pages",
        [
            stored("points-to-read"),
            _points("first-page", limit=4, withPayload=["n"]),
            _points("second-page", limit=4, withPayload=["n"], after=5),
            _points("last-page", limit=4, withPayload=["n"], after=9),
            _points("filtered-page", filter=FILES, limit=2, withPayload=["n", "topic"]),
            _points("ordered-page", limit=4, **_order("price")),
            _points("ordered-page-after", limit=4, after={"value": 3.5, "id": None}, **_order("price")),
            _points("ordered-page-within-a-value", limit=4, after={"value": 3.5, "id": 4}, **_order("price")),
            _points("descending-page", limit=2, **_order("n", direction="desc", startFrom=5)),
            _points("page-by-date", limit=2, filter={"must": [{"key": "n", "range": {"lt": 4}}]}, **_order("when")),
            _points("page-by-another-index", **_order("topic")),
            _points("page-by-a-key-without-index", **_order("free")),
            _points("page-from-a-date-by-a-number", **_order("n", startFrom="2024-01-01")),
            _points("page-after-an-invalid-position", after="soon"),
            _points("page-of-a-missing-collection", collection="absent"),
            _collections("one-collection", collection=NOTES),
            _collections("a-missing-collection", collection="absent"),
            _collections("collections"),
            Job(
                "allowed-collections",
                {"operation": "collections"},
                settings={"QDRANT_COLLECTIONS": f"{NOTES},more", "QDRANT_COLLECTION": "more"},
            ),
            Job(
                "a-collection-not-allowed",
                {"operation": "collections", "collection": NOTES},
                settings={"QDRANT_COLLECTIONS": "more"},
            ),
            Job("page-too-large", {"operation": "points", "collection": NOTES}, settings={"MAX_RESPONSE_MB": "0.0005"}),
        ],
        settings=CONFIG,
    ),
    Scenario(
        "tenants",
        [
            Job(
                "points-of-tenants",
                {
                    "texts": ["a", "b"],
                    "isPassage": True,
                    "qdrant": {"collection": NOTES, "ids": [1, 2], "payloads": [{"tenant": "x"}, {"tenant": "y"}]},
                },
            ),
            _points("page-of-all-tenants"),
            _points("page-of-a-tenant", filter={"must": [{"key": "tenant", "match": {"value": "x"}}]}),
        ],
        settings={"QDRANT_COLLECTION_CONFIG": json.dumps({"tenantKey": "tenant"})},
    ),
    Scenario(
        "over HTTP",
        [
            stored("points-for-http"),
            Call("get-points", "POST", "/points/get", {"collection": NOTES, "ids": [1, 11], "withPayload": ["n"]}),
            Call(
                "get-a-page",
                "POST",
                "/points/get",
                {"collection": NOTES, "limit": 2, "withPayload": False, "timings": True},
            ),
            Call("get-collections", "GET", "/collections"),
            Call("get-a-collection", "GET", "/collections/no%74es"),
            Call("get-a-missing-collection", "GET", "/collections/absent"),
            Call("get-an-invalid-name", "GET", "/collections/a%2Fb"),
        ],
    ),
)

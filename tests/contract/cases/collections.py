"""Collections: valid names, required configurations and payload layouts."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.contract.cases.shared import NOTES, TEXTS, contents, count, search, stored
from tests.contract.steps import Job, Scenario

LONG: Final = " ".join(f"Sentence number {n} speaks of topic {n % 7}, at some length." for n in range(8))


def _config(**block: Any) -> dict[str, str]:
    return {"QDRANT_COLLECTION_CONFIG": json.dumps(block)}


def _ingest(name: str, *texts: str, settings: dict[str, str] | None = None, **qdrant: Any) -> Job:
    target = {"collection": NOTES, **qdrant}
    return Job(name, {"texts": list(texts), "isPassage": True, "qdrant": target}, settings=settings or {})


def _layout(layout: str) -> Scenario:
    """Return the same steps for one payload layout."""
    names = {"vectorNames": {"dense": "text-dense", "sparse": "text-sparse"}} if layout == "haystack" else {}
    return Scenario(
        layout,
        [
            _ingest(
                f"{layout}-stored",
                *TEXTS[:3],
                ids=[1, "two", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"],
                payloads=[{"topic": "files"}, {}, {"o": {"k": 1}}],
            ),
            _ingest(f"{layout}-chunks", LONG, ids=["manual"], payloads=[{"topic": "long"}], chunk={"maxTokens": 48}),
            contents(f"{layout}-contents"),
            search(f"{layout}-explained", "changed parts", explain=True, limit=1, withPayload=False),
            search(f"{layout}-search-textKey", "changed parts", explain=True, limit=1, textKey="body"),
            _ingest(f"{layout}-textKey", "a", textKey="body"),
            _ingest(
                f"{layout}-key-of-the-layout",
                "a",
                payloads=[{"page_content": 1, "content": 2, "_node_content": 3, "metadata": 4, "meta": 5}],
            ),
            _ingest(f"{layout}-key-of-the-worker", "a", ids=["x"], payloads=[{"id": 1}]),
        ],
        settings=_config(layout=layout, **names),
    )


SCENARIOS: Final = (
    Scenario(
        "absent",
        [
            count("count-absent"),
            search("search-absent", "a"),
            search("like-absent", like={"positive": [1]}),
            Job("delete-absent", {"operation": "delete", "collection": NOTES, "ids": [1]}),
            _ingest("ingest-creates", "a", ids=[1]),
            count("count-created"),
        ],
    ),
    Scenario(
        "allow-list",
        [
            _ingest("ingest-not-allowed", "a", ids=[1], collection="others"),
            search("search-not-allowed", "a", collection="others"),
            count("count-not-allowed", collection="others"),
            Job("delete-not-allowed", {"operation": "delete", "collection": "others", "ids": [1]}),
            Job("ingest-by-default", {"texts": ["a"], "qdrant": {"ids": [1]}}),
            Job("search-by-default", {"operation": "search", "queries": ["a"]}),
            Job("count-by-default", {"operation": "count"}),
            Job("delete-by-default", {"operation": "delete", "ids": [1]}),
        ],
        settings={"QDRANT_COLLECTION": NOTES, "QDRANT_COLLECTIONS": f"{NOTES}, more"},
    ),
    Scenario(
        "another schema",
        [
            _ingest("ingest-with-cosine", "a", ids=[1]),
            _ingest("ingest-with-dot", "a", ids=[1], settings=_config(dense={"distance": "dot"})),
            Job(
                "search-with-dot",
                {"operation": "search", "collection": NOTES, "queries": ["a"]},
                settings=_config(dense={"distance": "dot"}),
            ),
            Job(
                "search-with-float32-rows",
                {"operation": "search", "collection": NOTES, "queries": ["a"]},
                settings=_config(colbert={"datatype": "float32"}),
            ),
            Job(
                "count-with-dot",
                {"operation": "count", "collection": NOTES},
                settings=_config(dense={"distance": "dot"}),
            ),
            _ingest("ingest-with-an-index", "b", ids=[2], settings=_config(payloadIndexes={"topic": "keyword"})),
            _ingest("ingest-with-another-index", "b", ids=[2], settings=_config(payloadIndexes={"topic": "integer"})),
        ],
    ),
    Scenario(
        "tenants",
        [
            _ingest(
                "tenants",
                "a",
                "b",
                "c",
                "d",
                ids=[1, 2, 3, 4],
                payloads=[{"tenant": "x"}, {}, {"tenant": 5}, {"tenant": ""}],
            ),
            search("search-of-a-tenant", "a", filter={"must": [{"key": "tenant", "match": {"value": "x"}}]}),
            search("search-of-all-tenants", "a"),
            search("search-with-the-filter-null", "a", filter=None),
            count("count-of-all-tenants"),
            count("count-with-an-empty-filter", filter={"must": []}),
        ],
        settings=_config(tenantKey="tenant"),
    ),
    Scenario(
        "schema options",
        [
            stored("stored-with-options"),
            search("search-with-options", "copy files", rerank="colbert", limit=3, withPayload=["n"]),
            search("dot-alone", "copy files", using=["dense"], limit=3, withPayload=False),
            search("named-vectors", "copy files", limit=1, withPayload=False, withVectors=["dense", "sparse"]),
            count("count-by-an-index", filter={"must": [{"key": "topic", "match": {"value": "files"}}]}),
        ],
        settings=_config(
            vectorNames={"dense": "d", "sparse": "s", "colbert": "c"},
            dense={"distance": "dot", "m": 8, "efConstruct": 32, "datatype": "float16", "onDisk": True},
            sparse={"datatype": "float16", "onDisk": True},
            colbert={"datatype": "float32", "onDisk": False},
            payloadIndexes={"topic": "keyword", "n": "integer", "owner.name": "keyword", "offers[].price": "float"},
            payloadOnDisk=True,
        ),
    ),
    Scenario(
        "quantization",
        [
            stored("stored-quantized"),
            search(
                "search-quantized",
                "copy files",
                rerank="colbert",
                limit=3,
                withPayload=False,
                params={"quantization": {"rescore": True, "oversampling": 4.0}},
            ),
        ],
        settings=_config(dense={"quantization": "int8"}, colbert={"quantization": "binary"}),
    ),
    _layout("langchain"),
    _layout("llamaindex"),
    _layout("haystack"),
)

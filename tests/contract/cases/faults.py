"""Failures of the store, the queue and the device, and a defect."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.cases.shared import NOTES, TEXTS, count, search, stored
from tests.contract.steps import Call, Fault, Job, Scenario


def _ingest(name: str, fault: Fault, **fields: Any) -> Job:
    raw = {"texts": list(TEXTS[:2]), "isPassage": True, "qdrant": {"collection": NOTES, "ids": [7, 8]}, **fields}
    return Job(name, raw, fault=fault)


def _every(name: str, fault: Fault) -> list[Job]:
    """Return the operations on a store while it has this fault."""
    return [
        _ingest(f"ingest-{name}", fault),
        Job(f"search-{name}", search("", "a").input, fault=fault),
        Job(f"count-{name}", count("").input, fault=fault),
        Job(f"delete-{name}", {"operation": "delete", "collection": NOTES, "ids": [1]}, fault=fault),
        Job(f"points-{name}", {"operation": "points", "collection": NOTES, "ids": [1]}, fault=fault),
        Job(f"page-{name}", {"operation": "points", "collection": NOTES}, fault=fault),
        Job(f"collections-{name}", {"operation": "collections"}, fault=fault),
    ]


SCENARIOS: Final = (
    Scenario("store away at first", _every("away-at-first", "away")),
    Scenario(
        "store",
        [
            stored("ten-points"),
            *_every("away", "away"),
            *_every("denied", "denied"),
            *_every("rejects", "rejects"),
            *_every("busy", "busy"),
            *_every("defect", "defect"),
            _ingest("ingest-refuses-a-point", "refuses 7"),
            _ingest("ingest-away-with-vectors", "away", returnVectors=True, vectors=["sparse"]),
            _ingest(
                "ingest-chunks-away", "away", qdrant={"collection": NOTES, "ids": [7, 8], "chunk": {"maxTokens": 32}}
            ),
            _ingest(
                "ingest-insert-only-away", "away", qdrant={"collection": NOTES, "ids": [7, 8], "mode": "insertOnly"}
            ),
            count("count-after-faults"),
        ],
    ),
    Scenario(
        "model",
        [
            Job("embed-device-lost", {"texts": ["a"]}, fault="device lost"),
            _ingest("ingest-device-lost", "device lost"),
            Job("score-device-lost", {"operation": "score", "pairs": [["a", "b"]]}, fault="device lost"),
            Job(
                "ingest-queue-full",
                {"texts": ["a"], "returnVectors": True, "qdrant": {"collection": NOTES, "ids": [1]}},
                {"QUEUE_TOKENS": "100"},
                "queue full",
            ),
            Job(
                "score-queue-full", {"operation": "score", "pairs": [["a", "b"]]}, {"QUEUE_TOKENS": "100"}, "queue full"
            ),
        ],
        stores=("edge",),
    ),
    Scenario(
        "over HTTP",
        [
            Call("http-away", "POST", "/points/count", {"collection": NOTES}, fault="away"),
            Call("http-busy", "POST", "/points/count", {"collection": NOTES}, fault="busy"),
            Call("http-denied", "POST", "/points/count", {"collection": NOTES}, fault="denied"),
            Call("http-rejects", "POST", "/points/count", {"collection": NOTES}, fault="rejects"),
            Call("http-defect", "POST", "/points/count", {"collection": NOTES}, fault="defect"),
            Call("http-device-lost", "POST", "/embed", {"texts": ["a"], "vectors": ["dense"]}, fault="device lost"),
            Call("http-openai-device-lost", "POST", "/v1/embeddings", {"input": "a"}, fault="device lost"),
            Call(
                "http-queue-full",
                "POST",
                "/embed",
                {"texts": ["a"]},
                settings={"QUEUE_TOKENS": "100"},
                fault="queue full",
            ),
            Call(
                "http-openai-queue-full",
                "POST",
                "/v1/embeddings",
                {"input": "a"},
                settings={"QUEUE_TOKENS": "100"},
                fault="queue full",
            ),
        ],
    ),
)

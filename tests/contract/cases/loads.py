"""Loads whose points other requests store: their begin, their end, and the finish of all shards."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.cases.shared import NOTES, count
from tests.contract.steps import Call, Job, Scenario

ALLOWED: Final = {"ALLOW_LOADS": "true"}


_COMMON: Final = {"idScope": "live", "colbertPooling": "mean"}
_OPTIONS: Final = {**_COMMON, "vectors": ["sparse"], "chunk": {"maxTokens": 64}, "input": {"text-field": "title"}}


def _load(name: str, action: str, **fields: Any) -> Job:
    return Job(name, {"operation": "load", "action": action, "collection": NOTES, "alias": "live", **fields})


def _ingest(name: str, *texts: str, ids: list[int]) -> Job:
    return Job(name, {"texts": list(texts), "isPassage": True, "qdrant": {"collection": NOTES, "ids": ids}})


SCENARIOS: Final = (
    Scenario(
        "shards",
        [
            _load("begin", "begin", loadId="v2", shard="1/2", deferIndex=True),
            _load("begin-again", "begin", loadId="v2", shard="1/2"),
            _ingest("ingest-1", "a", "b", ids=[1, 2]),
            _load("end", "end", loadId="v2", shard="1/2", read=3, lines=2, points=2, rejected=0, complete=True),
            _load("finish-too-early", "finish"),
            _load("begin-2", "begin", loadId="v2", shard="2/2"),
            _ingest("ingest-2", "c", ids=[3]),
            _load("end-2", "end", loadId="v2", shard="2/2", read=3, lines=1, points=1, rejected=1, complete=False),
            _load("finish-with-rejected-lines", "finish"),
            _load("end-2-again", "end", loadId="v2", shard="2/2", read=3, lines=1, points=1),
            _load("finish", "finish"),
            _load("finish-again", "finish", timings=True),
            count("count-by-alias", collection="live"),
        ],
        settings=ALLOWED,
    ),
    Scenario(
        "options of shards",
        [
            _load("options", "begin", loadId="v3", shard="1/2", content=_OPTIONS),
            _load("options-other", "begin", loadId="v3", shard="2/2", content={**_OPTIONS, "textKey": "body"}),
            _load(
                "options-kept",
                "begin",
                loadId="v3",
                shard="1/2",
                content={**_COMMON, "maxLength": 100},
                mode="insertOnly",
            ),
            _load("options-wrong", "begin", loadId="v3", shard="2/2", content={"input": {"encoding": 8}}),
        ],
        settings=ALLOWED,
    ),
    Scenario(
        "over HTTP",
        [
            Call("http-begin", "POST", "/loads", json={"action": "begin", "collection": NOTES}),
            Call("http-end", "POST", "/loads", json={"action": "end", "collection": NOTES}),
            Call("http-finish", "POST", "/loads", json={"action": "finish", "collection": NOTES}),
            Call("http-shard-wrong", "POST", "/loads", json={"action": "end", "collection": NOTES, "shard": "3/2"}),
        ],
        settings=ALLOWED,
    ),
    Scenario(
        "not allowed",
        [
            _load("not-allowed", "begin"),
            Call("http-not-allowed", "POST", "/loads", json={"action": "begin", "collection": NOTES}),
        ],
    ),
    Scenario(
        "names",
        [
            _load("alias-not-allowed", "begin"),
            _load("load-id-wrong", "begin", loadId="a b"),
            _load("action-unknown", "stop"),
        ],
        settings={**ALLOWED, "QDRANT_COLLECTIONS": NOTES},
    ),
)

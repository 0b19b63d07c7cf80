"""Bulk loads from the command line: exit status, summary and rejected lines."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.cases.shared import NOTES, TEXTS, contents, count
from tests.contract.steps import Job, Load, Scenario

LINES: Final = [{"text": text, "id": n, "payload": {"n": n}} for n, text in enumerate(TEXTS, start=1)]
LONG: Final = " ".join(f"Sentence number {n} speaks of topic {n % 7}, at some length." for n in range(12))
BAD: Final[list[Any]] = [
    {"text": "fine", "id": 1},
    b"{",
    b'{"text": "\xff"}',
    [1],
    {"txt": "a"},
    {"text": 1},
    {"text": "a", "id": 1.5},
    {"text": "a", "id": True},
    {"text": "a", "payload": []},
    b"",
    {"text": "b", "id": -1},
    {"text": "c", "id": ""},
    {"text": "e", "id": 5, "payload": {"text": "mine"}},
    {"text": "f", "id": 6, "payload": {"n": 2**80}},
    {"text": "a zebra", "id": 7},
    {"text": "last", "id": 8},
]


def _load(name: str, lines: list[Any] | None, *options: str, **more: Any) -> Load:
    return Load(name, lines, ["--collection", NOTES, *options], **more)


SCENARIOS: Final = (
    Scenario(
        "loads",
        [
            _load("ten-lines", LINES),
            contents("contents-of-ten-lines"),
            _load("ten-lines-insert-only", [*LINES, {"text": "one more"}], "--insert-only"),
            _load("without-ids", [{"text": "x"}, {"text": "y", "payload": {"k": 1}}, {"text": "x"}]),
            _load("mixed-ids", [{"text": "x", "id": "a"}, {"text": "y"}, {"text": "z", "id": 70}]),
            _load("dense-alone", [{"text": "only dense", "id": 80}], "--vectors", "dense"),
            _load("text-key", [{"text": "elsewhere", "id": 81, "payload": {"text": "mine"}}], "--text-key", "body"),
            _load("pooling", [{"text": "few rows", "id": 82}], "--colbert-pooling", "mean", "--defer-index"),
            _load("chunks", [{"text": LONG, "id": "manual"}], "--chunk-tokens", "48", "--chunk-overlap", "8"),
            _load("fewer-chunks", [{"text": LONG[:200], "id": "manual"}], "--chunk-tokens", "48"),
            _load("no-lines", []),
            count("count-after-loads"),
        ],
        engines=("stub", "mini"),
    ),
    Scenario(
        "rejects",
        [
            _load("bad-lines", BAD),
            count("count-of-good-lines"),
            _load("rejected-chunks", [{"text": LONG, "id": 1, "payload": {"n": 2**80}}], "--chunk-tokens", "48"),
            _load("same-id-twice", [{"text": "first", "id": 30}, {"text": "second", "id": 30}]),
            contents("the-later-of-two-lines", filter={"must": [{"has_id": [30]}]}),
        ],
    ),
    Scenario(
        "aliases",
        [
            Load("first-version", LINES[:2], ["--collection", "v1", "--alias", "live"]),
            Job("count-by-alias", {"operation": "count", "collection": "live"}),
            Load("second-version", LINES[:3], ["--collection", "v2", "--alias", "live"]),
            Job("count-of-the-second-version", {"operation": "count", "collection": "live"}),
            Load("rejects-keep-the-alias", [*LINES[:1], b"{"], ["--collection", "v3", "--alias", "live"]),
            Load("rejects-allowed", [*LINES[:1], b"{"], ["--collection", "v3", "--alias", "live", "--allow-rejected"]),
            Load("no-lines-keep-the-alias", [], ["--collection", "v4", "--alias", "live"]),
            Load("alias-of-a-collection", LINES[:1], ["--collection", "v4", "--alias", "v1"]),
            Load("collection-by-its-alias", LINES[:1], ["--collection", "live", "--alias", "other"]),
            Load("derived-ids-of-an-alias", [{"text": "a", "id": "x"}], ["--collection", "v5", "--alias", "live"]),
            Job("search-by-alias", {"operation": "search", "collection": "live", "queries": ["a"]}),
            Job("ingest-by-alias", {"texts": ["b"], "qdrant": {"collection": "live", "ids": [1]}}),
            Job("delete-by-alias", {"operation": "delete", "collection": "live", "ids": [1]}),
        ],
    ),
    Scenario(
        "refused",
        [
            _load("no-such-file", None),
            _load("overlap-without-tokens", LINES, "--chunk-overlap", "8"),
            Load("collection-not-given", LINES, []),
            _load("tokens-below", LINES[:1], "--chunk-tokens", "5"),
            _load("unknown-option", LINES[:1], "--fast"),
            _load("not-allowed", LINES[:1], settings={"QDRANT_COLLECTIONS": "others"}),
            _load("store-away", LINES[:2], fault="away"),
            _load("invalid-settings", LINES[:1], settings={"MAX_TEXTS": "none"}),
            Load("bad-collection", LINES[:1], ["--collection", "../notes"]),
        ],
    ),
    Scenario(
        "interrupted store",
        [
            _load("loaded", LINES[:2]),
            _load("store-rejects", LINES[:3], fault="refuses 7"),
            _load("store-refuses-one", LINES[5:8], fault="refuses 7"),
        ],
    ),
)

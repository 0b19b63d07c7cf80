"""Requests that are refused, each of which once took seconds or gigabytes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

COLLECTION: Final = "attacked"

_LIST_BYTES: Final = 28_000_000
"""Size of a body just below the limit of 30 MB."""


@dataclass(frozen=True)
class Attack:
    """A body that is sent several times at once.

    Attributes:
        name: what it is.
        path: path of the request.
        body: makes the body.
        statuses: statuses of the refusal.
        copies: number of clients that send it at once.
        headers: further headers.
        on_queue: whether a job of the queue can have the same input.
    """

    name: str
    path: str
    body: Callable[[], bytes]
    statuses: Sequence[int] = (400,)
    copies: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    on_queue: bool = True


def _wrong_items(name: str, item: str, size: int, **others: Any) -> Callable[[], bytes]:
    """An object with a list of wrong items under a name."""

    def body() -> bytes:
        items = ",".join([item] * (size // (len(item) + 1)))
        rest = json.dumps(others)[1:-1]
        return f'{{"{name}": [{items}]{", " + rest if rest else ""}}}'.encode()

    return body


def _unknown_fields() -> bytes:
    return json.dumps({"texts": ["a"], **{f"field{number}": number for number in range(200_000)}}).encode()


def _search(**fields: Any) -> Callable[[], bytes]:
    return lambda: json.dumps({"queries": ["a"], "collection": COLLECTION, **fields}).encode()


def _nested_filter() -> bytes:
    condition = '{"must":[' * 500_000 + "]}" * 500_000
    return f'{{"queries": ["a"], "collection": "{COLLECTION}", "filter": {condition}}}'.encode()


def _repeated_filter() -> bytes:
    ids = {"must": [{"has_id": list(range(300_000))}]}
    return json.dumps({"queries": ["a"] * 400, "collection": COLLECTION, "filter": ids}).encode()


def _many_conditions() -> bytes:
    conditions = [{"key": "topic", "match": {"value": "a"}}] * 100_000
    return json.dumps({"queries": ["a"], "collection": COLLECTION, "filter": {"should": conditions}}).encode()


def _inflated() -> bytes:
    return gzip.compress(b'{"texts": [' + b" " * 1_000_000_000 + b'"a"]}')


ATTACKS: Final = (
    Attack("2 MB of wrong texts", "/embed", _wrong_items("texts", "1", 2_000_000)),
    Attack("28 MB of wrong texts", "/embed", _wrong_items("texts", "1", _LIST_BYTES)),
    Attack("28 MB of lists as texts, 8 times", "/embed", _wrong_items("texts", "[]", _LIST_BYTES), (400, 429), 8),
    Attack("2 MB of wrong pairs", "/score", _wrong_items("pairs", "[1,2]", 2_000_000)),
    Attack("28 MB of wrong pairs", "/score", _wrong_items("pairs", "[1,2]", _LIST_BYTES)),
    Attack("2 MB of wrong kinds", "/embed", _wrong_items("vectors", '"x"', 2_000_000, texts=["a"])),
    Attack("2 MB of wrong weights", "/score", _wrong_items("weights", '"x"', 2_000_000, pairs=[["a", "b"]])),
    Attack("2 MB of wrong queries", "/search", _wrong_items("queries", "null", 2_000_000, collection=COLLECTION)),
    Attack("2 MB of wrong ids", "/points/get", _wrong_items("ids", "{}", 2_000_000, collection=COLLECTION)),
    Attack(
        "2 MB of wrong documents", "/v1/rerank", _wrong_items("documents", "1", 2_000_000, query="a"), on_queue=False
    ),
    Attack("2 MB of wrong inputs", "/v1/embeddings", _wrong_items("input", "{}", 2_000_000), on_queue=False),
    Attack(
        "2 MB of wrong inputs for Qdrant", "/qdrant/inference", _wrong_items("inputs", "1", 2_000_000), on_queue=False
    ),
    Attack("200 000 unknown fields", "/embed", _unknown_fields),
    Attack("a field name of 20 MB", "/embed", lambda: b'{"texts": ["a"], "' + b"x" * 20_000_000 + b'": 1}'),
    Attack("an enumeration of 20 MB", "/embed", lambda: b'{"texts": ["a"], "encoding": "' + b"x" * 20_000_000 + b'"}'),
    Attack("a filter nested 500 000 deep", "/search", _nested_filter),
    Attack("300 000 ids for 400 queries", "/search", _repeated_filter),
    Attack("100 000 conditions", "/search", _many_conditions),
    Attack(
        "a text condition of 200 KB",
        "/search",
        _search(filter={"must": [{"key": "text", "match": {"text": "word " * 40_000}}]}),
    ),
    Attack("10 000 hits with vectors", "/search", _search(limit=10_000, withVectors=True, prefetch=10_000), (400, 413)),
    Attack("10 MB of opening brackets", "/embed", lambda: b"[" * 10_000_000, on_queue=False),
    Attack(
        "a body that inflates to 1 GB",
        "/embed",
        _inflated,
        (413,),
        headers={"Content-Encoding": "gzip"},
        on_queue=False,
    ),
)
"""Every attack with a body."""

"""Requests that are refused before any work: every rule of every field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tests.contract.steps import Job, Scenario

HUGE: Final = 10**40
SURROGATE: Final = "\ud800"

_EMBED: Final[Mapping[str, Mapping[str, Any]]] = {
    "texts-missing": {"texts": None},
    "texts-empty": {"texts": []},
    "texts-a-string": {"texts": "a"},
    "texts-with-a-number": {"texts": ["a", 1]},
    "texts-surrogate": {"texts": ["a", SURROGATE]},
    "isPassage-a-string": {"isPassage": "maybe"},
    "isPassage-one": {"isPassage": 1},
    "batchSize-negative": {"batchSize": -1},
    "batchSize-above": {"batchSize": 1_000_001},
    "batchSize-a-float": {"batchSize": 1.0},
    "batchSize-a-string": {"batchSize": "1"},
    "vectors-empty": {"vectors": []},
    "vectors-unknown": {"vectors": ["dense", "late"]},
    "vectors-repeated": {"vectors": ["dense", "dense"]},
    "vectors-a-string": {"vectors": "dense"},
    "maxLength-below": {"maxLength": 2},
    "maxLength-above": {"maxLength": 513},
    "maxLength-huge": {"maxLength": HUGE},
    "encoding-unknown": {"encoding": "hex"},
    "dtype-unknown": {"encoding": "base64", "dtype": "int8"},
    "dtype-float16-in-a-list": {"dtype": "float16"},
    "returnVectors-a-number": {"returnVectors": 0},
    "timings-a-string": {"timings": "yes"},
    "unknown-field": {"text": ["a"]},
    "unknown-field-instead-of-texts": {"texts": None, "text": ["a"]},
    "unknown-field-of-the-block": {"collection": "notes"},
    "input-of-an-input": {"texts": None, "input": {"texts": ["a"]}},
    "unknown-fields-before-others": {"isPassage": 1, "batchSize": -1, "vectors": [], "maxLength": 1, "zeal": 1},
    "unknown-field-with-a-surrogate": {SURROGATE: 1},
    "qdrant-a-string": {"qdrant": "notes"},
}

_QDRANT: Final[Mapping[str, Mapping[str, Any]]] = {
    "collection-missing": {"collection": None},
    "collection-pattern": {"collection": "../notes"},
    "collection-a-number": {"collection": 1},
    "ids-too-few": {"ids": []},
    "ids-too-many": {"ids": [1, 2]},
    "idScope-pattern": {"idScope": "a:b"},
    "payloads-too-many": {"payloads": [{}, {}]},
    "textKey-empty": {"textKey": ""},
    "textKey-long": {"textKey": "k" * 256},
    "textKey-surrogate": {"textKey": SURROGATE},
    "textKey-of-an-id": {"textKey": "id", "ids": ["a"]},
    "textKey-of-a-chunk": {"textKey": "chunk", "chunk": {}},
    "mode-unknown": {"mode": "replace"},
    "colbertPooling-unknown": {"colbertPooling": "max"},
    "chunk-a-number": {"chunk": 512},
    "chunk-maxTokens-below": {"chunk": {"maxTokens": 31}},
    "chunk-maxTokens-above": {"chunk": {"maxTokens": 513}},
    "chunk-overlap-negative": {"chunk": {"overlap": -1}},
    "chunk-overlap-above-half": {"chunk": {"maxTokens": 64, "overlap": 33}},
    "chunk-unknown-field": {"chunk": {"tokens": 64}},
    "qdrant-unknown-field": {"url": "http://example"},
}

_SEARCH: Final[Mapping[str, Mapping[str, Any]]] = {
    "queries-missing": {"queries": None},
    "queries-misspelt": {"queries": None, "query": "a"},
    "queries-empty": {"queries": []},
    "queries-surrogate": {"queries": [SURROGATE]},
    "queries-and-like": {"like": {"positive": [1]}},
    "like-without-positive": {"queries": None, "like": {"negative": [1]}},
    "like-positive-empty": {"queries": None, "like": {"positive": []}},
    "like-positive-too-many": {"queries": None, "like": {"positive": list(range(101))}},
    "like-negative-too-many": {"queries": None, "like": {"positive": [0], "negative": list(range(1, 102))}},
    "like-idScope-pattern": {"queries": None, "like": {"positive": [1], "idScope": "."}},
    "search-collection-missing": {"collection": None},
    "search-collection-pattern": {"collection": ".."},
    "limit-zero": {"limit": 0},
    "limit-above": {"limit": 10_001},
    "offset-negative": {"offset": -1},
    "offset-above": {"offset": 100_001},
    "limit-and-offset-together": {"limit": 10, "offset": 100_000, "groupBy": "topic", "groupSize": 10},
    "using-empty": {"using": []},
    "using-repeated": {"using": ["dense", "dense"]},
    "using-unknown": {"using": ["bm25"]},
    "fusion-unknown": {"fusion": "sum"},
    "rrfK-zero": {"rrfK": 0},
    "weights-too-few": {"weights": [1.0], "using": ["dense", "sparse"]},
    "weights-zero": {"weights": [1.0, 0.0]},
    "weights-with-dbsf": {"weights": [1.0, 1.0], "fusion": "dbsf"},
    "prefetch-zero": {"prefetch": 0},
    "prefetch-above": {"prefetch": 100_001},
    "rerank-unknown": {"rerank": "dense"},
    "filter-a-list": {"filter": []},
    "scoreThreshold-a-string": {"scoreThreshold": "0.5"},
    "params-hnswEf-zero": {"params": {"hnswEf": 0}},
    "params-exact-a-number": {"params": {"exact": 1}},
    "params-oversampling-below": {"params": {"quantization": {"oversampling": 0.5}}},
    "params-unknown-field": {"params": {"ef": 1}},
    "withPayload-a-number": {"withPayload": 1},
    "withPayload-empty": {"withPayload": []},
    "withPayload-of-101-keys": {"withPayload": [f"key{n}" for n in range(101)]},
    "params-oversampling-above": {"params": {"quantization": {"oversampling": 100.5}}},
    "params-hnswEf-above": {"params": {"hnswEf": 100_001}},
    "rrfK-above": {"rrfK": 1_000_001},
    "withPayload-both": {"withPayload": {"include": ["a"], "exclude": ["b"]}},
    "withPayload-exclude-a-string": {"withPayload": {"exclude": "a"}},
    "withPayload-no-path": {"withPayload": ["a..b"]},
    "withVectors-unknown": {"withVectors": ["late"]},
    "withVectors-repeated": {"withVectors": ["dense", "dense"]},
    "withVectors-a-string": {"withVectors": "dense"},
    "groupBy-no-path": {"groupBy": "a[].b"},
    "groupSize-without-groupBy": {"groupSize": 2},
    "groupSize-above": {"groupBy": "topic", "groupSize": 101},
    "groups-too-many": {"groupBy": "topic", "groupSize": 100, "limit": 10_000, "offset": 1},
    "groups-with-deep-prefetch": {
        "groupBy": "topic",
        "prefetch": 100_000,
        "queries": ["a"] * 6,
        "using": ["dense", "sparse"],
    },
    "explain-too-many": {"explain": True, "limit": 1001},
    "explain-too-many-rows": {"explain": True, "limit": 101, "rerank": "colbert"},
    "explain-too-deep": {"explain": True, "prefetch": 100_000, "queries": ["a"] * 6, "using": ["dense", "sparse"]},
    "explain-too-many-of-groups": {"explain": True, "groupBy": "topic", "groupSize": 100, "limit": 11},
    "explain-a-string": {"explain": "yes"},
    "search-textKey-empty": {"textKey": ""},
    "search-unknown-field": {"top": 3},
}

_SCORE: Final[Mapping[str, Mapping[str, Any]]] = {
    "pairs-missing": {"pairs": None},
    "pairs-empty": {"pairs": []},
    "pairs-of-one": {"pairs": [["a"]]},
    "pairs-of-three": {"pairs": [["a", "b"], ["a", "b", "c"]]},
    "pairs-surrogate": {"pairs": [["a", SURROGATE]]},
    "pairs-not-lists": {"pairs": ["ab"]},
    "score-weights-two": {"weights": [1, 1]},
    "score-weights-negative": {"weights": [1, 1, -1]},
    "score-weights-zero": {"weights": [0, 0, 1]},
    "score-weights-above": {"weights": [1, 1, 1_000_001]},
    "maxQueryLength-below": {"maxQueryLength": 2},
    "maxQueryLength-above": {"maxQueryLength": 513},
    "maxPassageLength-above": {"maxPassageLength": 513},
    "score-unknown-field": {"texts": ["a"]},
}

_DELETE: Final[Mapping[str, Mapping[str, Any]]] = {
    "delete-nothing": {},
    "delete-ids-and-filter": {"ids": [1], "filter": {"must": [{"has_id": [1]}]}},
    "delete-ids-empty": {"ids": []},
    "delete-ids-negative": {"ids": [-1]},
    "delete-filter-empty": {"filter": {}},
    "delete-idScope-pattern": {"ids": ["a"], "idScope": "/"},
    "delete-unknown-field": {"ids": [1], "all": True},
}

_WHOLE: Final[Mapping[str, Any]] = {
    "input-null": None,
    "input-a-list": [1],
    "input-a-string": "text",
    "input-a-number": 1.5,
    "operation-unknown": {"operation": "upsert", "texts": ["a"]},
    "operation-a-number": {"operation": 1},
    "operation-surrogate": {"operation": SURROGATE},
    "twenty-faults": {"texts": ["a"], **{f"field{n}": n for n in range(30)}},
    "long-field-name": {"texts": ["a"], "x" * 100: 1},
    "chunk-with-returnVectors": {"texts": ["a"], "returnVectors": True, "qdrant": {"collection": "notes", "chunk": {}}},
    "chunk-above-maxLength": {"texts": ["a"], "maxLength": 40, "qdrant": {"collection": "notes", "chunk": {}}},
}


def _jobs(base: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> Iterator[Job]:
    """Return a job for each change to a valid request; None removes a field."""
    for name, change in changes.items():
        merged = {**base, **change}
        absent = {key for key, value in change.items() if value is None and name.endswith("missing")}
        absent |= {"queries"} if merged.get("queries", 0) is None else set()
        yield Job(name, {key: value for key, value in merged.items() if key not in absent})


SCENARIOS: Final = (
    Scenario("inputs", [Job(name, raw) for name, raw in _WHOLE.items()], stores=("edge",)),
    Scenario("embed", list(_jobs({"texts": ["a"]}, _EMBED)), stores=("edge",)),
    Scenario(
        "qdrant",
        [Job(job.name, {"texts": ["a"], "qdrant": job.input}) for job in _jobs({"collection": "notes"}, _QDRANT)],
        stores=("edge",),
    ),
    Scenario(
        "search",
        list(_jobs({"operation": "search", "collection": "notes", "queries": ["a"]}, _SEARCH)),
        stores=("edge",),
    ),
    Scenario("score", list(_jobs({"operation": "score", "pairs": [["a", "b"]]}, _SCORE)), stores=("edge",)),
    Scenario("delete", list(_jobs({"operation": "delete", "collection": "notes"}, _DELETE)), stores=("edge",)),
    Scenario(
        "count",
        [
            Job("count-collection-missing", {"operation": "count"}),
            Job("count-collection-long", {"operation": "count", "collection": "n" * 256}),
            Job("count-filter-a-string", {"operation": "count", "collection": "notes", "filter": "all"}),
            Job("count-unknown-field", {"operation": "count", "collection": "notes", "exact": True}),
        ],
        stores=("edge",),
    ),
)

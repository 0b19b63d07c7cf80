"""Requests: valid ones are accepted, and errors of invalid ones name the field."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from embedder import InvalidRequest
from qdrant_sink import PayloadKeys
from service.wire import error_answer
from service.wire.fields import FIELDS_MAX, Limits
from service.wire.parsing import completed, parse
from service.wire.requests import CountRequest, DeleteRequest, EmbedRequest, SearchRequest

LIMITS = Limits(max_texts=4, max_length=512)
SURROGATE = "\ud800"
PRIVATE = "a text of the user's that is longer than anything which is quoted"

EMBED: dict[str, Any] = {"texts": ["one", "two"]}
STORE: dict[str, Any] = {"collection": "notes"}
SEARCH: dict[str, Any] = {"operation": "search", "queries": ["one"], "collection": "notes"}
COUNT: dict[str, Any] = {"operation": "count", "collection": "notes"}
DELETE: dict[str, Any] = {"operation": "delete", "collection": "notes"}


def stored(**fields: Any) -> dict[str, Any]:
    """An embed request of two texts whose `qdrant` block has these fields."""
    return {**EMBED, "qdrant": {**STORE, **fields}}


@pytest.mark.parametrize("raw", [None, [], [EMBED], "texts", 1, 1.5, True])
def test_an_input_must_be_an_object(raw: object) -> None:
    """An input that is not an object is an error."""
    with pytest.raises(InvalidRequest, match=r"^input must be an object, got "):
        parse(raw, LIMITS)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"texts": None}, "texts is required"),
        ({"texts": "one"}, "texts"),
        ({"texts": {"0": "one"}}, "texts"),
        ({"texts": []}, "texts"),
        ({"texts": ["one", 2]}, r"texts\[1\]"),
        ({"texts": ["one", None]}, r"texts\[1\]"),
        ({"texts": [["one"]]}, r"texts\[0\]"),
        ({"texts": ["a"] * 5}, "texts must have at most 4 items .*got 5"),
        ({"texts": ["one", "two" + SURROGATE]}, r"texts\[1\]"),
        ({"isPassage": "maybe"}, "isPassage"),
        ({"isPassage": "true"}, "isPassage"),
        ({"isPassage": 1}, "isPassage"),
        ({"batchSize": -1}, "batchSize must be at least 0, got -1"),
        ({"batchSize": 1.0}, "batchSize"),
        ({"batchSize": True}, "batchSize"),
        ({"batchSize": "1"}, "batchSize"),
        ({"batchSize": 2**80}, "batchSize"),
        ({"batchSize": 10**5000}, "batchSize"),
        ({"vectors": []}, "vectors"),
        ({"vectors": "dense"}, "vectors"),
        ({"vectors": ["dense", "dense"]}, "vectors must not repeat"),
        ({"vectors": ["dense", "lexical"]}, r"vectors\[1\]"),
        ({"vectors": [None]}, r"vectors\[0\]"),
        ({"maxLength": 2}, "maxLength must be at least 3, got 2"),
        ({"maxLength": 513}, "maxLength .*512.*got 513"),
        ({"maxLength": 1.5}, "maxLength"),
        ({"maxLength": True}, "maxLength"),
        ({"maxLength": 10**5000}, "maxLength"),
        ({"encoding": "binary"}, "encoding"),
        ({"encoding": SURROGATE}, "encoding"),
        ({"encoding": "base64", "dtype": "float64"}, "dtype"),
        ({"dtype": "float16"}, "dtype"),
        ({"includeText": 0}, "includeText"),
        ({"returnVectors": "no"}, "returnVectors"),
        ({"chunk": {"maxTokens": 100}}, "unknown field 'chunk'"),
        ({"text": "one"}, "unknown field 'text'"),
        ({"is_passage": True}, "unknown field 'is_passage'"),
        ({SURROGATE: 1}, "input must have field names of valid Unicode, got a lone surrogate"),
        ({"operation": "rank"}, "operation must be one of .*got 'rank'"),
        ({"operation": "Embed"}, "operation"),
        ({"operation": ["embed"]}, "operation"),
        ({"operation": SURROGATE}, "operation"),
        ({"operation": PRIVATE}, "operation"),
        ({"qdrant": []}, "qdrant"),
        ({"qdrant": "notes"}, "qdrant"),
        ({"qdrant": True}, "qdrant"),
    ],
)
def test_an_invalid_embed_request_names_its_field(fields: dict[str, Any], field: str) -> None:
    """The error names the field, the rule and the value."""
    with pytest.raises(InvalidRequest, match=f"^{field}") as refusal:
        parse({**EMBED, **fields}, LIMITS)
    assert_short(refusal.value)


def test_texts_are_required() -> None:
    """A request without texts is an error."""
    with pytest.raises(InvalidRequest, match=r"^texts is required$"):
        parse({}, LIMITS)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"collection": 1}, r"qdrant\.collection"),
        ({"collection": ""}, r"qdrant\.collection"),
        ({"collection": "a/b"}, r"qdrant\.collection"),
        ({"collection": "../a"}, r"qdrant\.collection"),
        ({"collection": ".."}, r"qdrant\.collection"),
        ({"collection": "a\n"}, r"qdrant\.collection"),
        ({"collection": "a" * 256}, r"qdrant\.collection"),
        ({"collection": "é?"}, r"qdrant\.collection"),
        ({"collection": SURROGATE}, r"qdrant\.collection"),
        ({"ids": "ab"}, r"qdrant\.ids"),
        ({"ids": {}}, r"qdrant\.ids"),
        ({"ids": []}, r"qdrant\.ids.*\(2\), got 0"),
        ({"ids": [1]}, r"qdrant\.ids.*\(2\), got 1"),
        ({"ids": [1, 2, 3]}, r"qdrant\.ids.*\(2\), got 3"),
        ({"payloads": {}}, r"qdrant\.payloads"),
        ({"payloads": [{}]}, r"qdrant\.payloads.*\(2\), got 1"),
        ({"textKey": ""}, r"qdrant\.textKey"),
        ({"textKey": 1}, r"qdrant\.textKey"),
        ({"textKey": "k" * 256}, r"qdrant\.textKey"),
        ({"textKey": "k" + SURROGATE}, r"qdrant\.textKey"),
        ({"mode": "insert"}, r"qdrant\.mode"),
        ({"url": "http://example.org"}, r"unknown field 'qdrant\.url'"),
        ({"chunk": {"tokens": 100}}, r"unknown field 'qdrant\.chunk\.tokens'"),
        ({"chunk": {"maxTokens": 31}}, r"qdrant\.chunk\.maxTokens.*32.*31"),
        ({"chunk": {"overlap": 257}}, r"qdrant\.chunk\.overlap.*256.*257"),
        ({"chunk": {"overlap": -1}}, r"qdrant\.chunk\.overlap.*0.*-1"),
        ({"colbertPooling": "max"}, r"qdrant\.colbertPooling.*'mean'"),
        ({"compareKept": True}, r"qdrant\.compareKept must be false without mode 'insertOnly'"),
    ],
)
def test_an_invalid_qdrant_block_names_its_field(fields: dict[str, Any], field: str) -> None:
    """The error names the field of the block, and the block cannot name a server."""
    with pytest.raises(InvalidRequest, match=f"^{field}") as refusal:
        parse(stored(**fields), LIMITS)
    assert_short(refusal.value)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"queries": []}, "queries"),
        ({"queries": "one"}, "queries"),
        ({"queries": [1]}, r"queries\[0\]"),
        ({"queries": ["a"] * 5}, "queries must have at most 4"),
        ({"queries": [SURROGATE]}, r"queries\[0\]"),
        ({"texts": ["one"]}, "unknown field 'texts'"),
        ({"collection": "a/b"}, "collection"),
        ({"like": {"positive": [1]}}, "queries must not be given together with like"),
        ({"groupBy": "a[]"}, "groupBy must be a path through objects to one value, without"),
        ({"groupBy": ""}, "groupBy must be a path of keys .* got an empty string"),
        ({"groupBy": "doc_id", "groupSize": 0}, "groupSize must be at least 1, got 0"),
        ({"groupBy": "doc_id", "groupSize": 101}, "groupSize must be at most 100, got 101"),
        ({"groupSize": 2}, "groupSize must be 1 without groupBy, got 2"),
        (
            {"groupBy": "a", "groupSize": 100, "limit": 10_000, "offset": 1},
            r"limit must ask for at most 1000000 hits \(queries x .* x groupSize\), got 1000100",
        ),
        ({"explain": 1}, "explain must be a boolean"),
        ({"textKey": ""}, "textKey"),
        ({"textKey": "k" + SURROGATE}, "textKey"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"limit": 10_001}, "limit"),
        ({"limit": "10"}, "limit"),
        ({"offset": -1}, "offset must be at least 0, got -1"),
        ({"offset": 0.5}, "offset"),
        ({"prefetch": 0}, "prefetch must be at least 1, got 0"),
        ({"prefetch": False}, "prefetch"),
        ({"using": []}, "using"),
        ({"using": ["dense", "dense"]}, "using must not repeat"),
        ({"using": ["bm25"]}, r"using\[0\]"),
        ({"using": "dense"}, "using"),
        ({"fusion": "sum"}, "fusion"),
        ({"rrfK": 0}, "rrfK must be at least 1, got 0"),
        ({"rrfK": 60.0}, "rrfK"),
        ({"weights": [1.0], "using": ["dense", "sparse"]}, r"weights.*\(2\), got 1"),
        ({"weights": [1.0, 2.0, 3.0], "using": ["dense", "sparse"]}, r"weights.*\(2\), got 3"),
        ({"weights": [1.0, 0.0]}, r"weights\[1\]"),
        ({"weights": [1.0, -2.0]}, r"weights\[1\]"),
        ({"weights": [1.0, float("nan")]}, r"weights\[1\]"),
        ({"weights": [1.0, float("inf")]}, r"weights\[1\]"),
        ({"weights": [1.0, "2"]}, r"weights\[1\]"),
        ({"weights": [1.0, True]}, r"weights\[1\]"),
        ({"weights": 1.0}, "weights"),
        ({"weights": [1.0, 2.0], "fusion": "dbsf"}, "weights.*dbsf"),
        ({"rerank": "cross-encoder"}, "rerank"),
        ({"rerank": True}, "rerank"),
        ({"filter": []}, "filter"),
        ({"filter": "a"}, "filter"),
        ({"filter": 1}, "filter"),
        ({"scoreThreshold": float("nan")}, "scoreThreshold"),
        ({"scoreThreshold": float("-inf")}, "scoreThreshold"),
        ({"scoreThreshold": "0.5"}, "scoreThreshold"),
        ({"params": []}, "params"),
        ({"params": {"hnswEf": 0}}, r"params\.hnswEf"),
        ({"params": {"exact": "yes"}}, r"params\.exact"),
        ({"params": {"ef": 10}}, r"unknown field 'params\.ef'"),
        ({"withPayload": "all"}, "withPayload"),
        ({"withPayload": []}, "withPayload must have 1 to 100 keys, got 0"),
        ({"withPayload": ["a", 1]}, r"withPayload\[1\] must be a string, got an integer"),
        ({"withPayload": ["a..b"]}, r"withPayload\[0\] must be a path of keys"),
        ({"withPayload": {"include": "a"}}, r"withPayload\.include must be a list, got a string"),
        ({"withPayload": {"exclude": ["a", "b", ""]}}, r"withPayload\.exclude\[2\] must be a path of keys"),
        ({"withPayload": {"include": ["a"], "exclude": ["b"]}}, "withPayload must be .* got an object with both"),
        ({"withPayload": {"include": None, "exclude": None}}, "withPayload must be .* got an object with neither"),
        ({"withPayload": {"include": ["a"], "keys": ["b"]}}, "withPayload must be .* got an object with other fields"),
        ({"withVectors": ["dense", "text"]}, r"withVectors\[1\] must be one of dense, sparse, colbert, got 'text'"),
        ({"withVectors": ["dense", "dense"]}, "withVectors must not repeat"),
        ({"withVectors": "dense"}, "withVectors must be a boolean or a list"),
        ({"withVectors": [["dense"]]}, r"withVectors\[0\]"),
        ({"params": {"indexedOnly": 1}}, r"params\.indexedOnly"),
        ({"params": {"quantization": {"oversampling": 0.5}}}, r"params\.quantization\.oversampling must be at least"),
        ({"params": {"quantization": {"rescore": "no"}}}, r"params\.quantization\.rescore"),
        ({"isPassage": False}, "unknown field 'isPassage'"),
    ],
)
def test_an_invalid_search_names_its_field(fields: dict[str, Any], field: str) -> None:
    """The error names the field, the rule and the value."""
    with pytest.raises(InvalidRequest, match=f"^{field}") as refusal:
        parse({**SEARCH, **fields}, LIMITS)
    assert_short(refusal.value)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({**COUNT, "filter": []}, "filter"),
        ({**COUNT, "collection": 5}, "collection"),
        ({**COUNT, "ids": [1]}, "unknown field 'ids'"),
        (DELETE, "ids or docIds or filter must be given"),
        ({**DELETE, "ids": None, "filter": None}, "ids or docIds or filter must be given"),
        ({**DELETE, "ids": [1], "filter": {"must": []}}, "filter"),
        ({**DELETE, "ids": []}, "ids"),
        ({**DELETE, "ids": [-1]}, r"ids\[0\]"),
        ({**DELETE, "ids": [1, 1.5]}, r"ids\[1\]"),
        ({**DELETE, "ids": [1, None]}, r"ids\[1\] must be an integer or a string, got null"),
        ({**DELETE, "ids": [1, True]}, r"ids\[1\]"),
        ({**DELETE, "ids": [1, 10**5000]}, r"ids\[1\]"),
        ({**DELETE, "ids": [1, ""]}, r"ids\[1\]"),
        ({**DELETE, "ids": [1, ["a"]]}, r"ids\[1\]"),
        ({**DELETE, "ids": [SURROGATE]}, r"ids\[0\]"),
        ({**DELETE, "ids": "all"}, "ids"),
        ({**DELETE, "filter": []}, "filter"),
    ],
)
def test_an_invalid_count_or_deletion_names_its_field(raw: dict[str, Any], field: str) -> None:
    """A deletion without ids and without a condition is an error."""
    with pytest.raises(InvalidRequest, match=f"^{field}") as refusal:
        parse(raw, LIMITS)
    assert_short(refusal.value)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"pairs": None}, "pairs"),
        ({"pairs": []}, "pairs must have at least 1 item, got 0"),
        ({"pairs": ["one", "two"]}, r"pairs\[0\] must be a list, got a string"),
        ({"pairs": [["one"]]}, r"pairs\[0\] must have 2 items, a query and a passage, got 1"),
        ({"pairs": [["one", "two"], ["one", "two", "three"]]}, r"pairs\[1\] must have 2 items, .* got 3"),
        ({"pairs": [["one", 2]]}, r"pairs\[0\]\[1\]"),
        ({"pairs": [["one", "two" + SURROGATE]]}, r"pairs\[0\]\[1\]"),
        ({"pairs": [["a", "b"]] * 5}, "pairs must have at most 4 items .*got 5"),
        ({"weights": [1.0, 1.0]}, r"weights must have exactly 3 items \(dense, sparse, colbert\), got 2"),
        ({"weights": [1.0] * 4}, r"weights must have exactly 3 items \(dense, sparse, colbert\), got 4"),
        ({"weights": [1.0, -1.0, 1.0]}, r"weights\[1\] must be at least 0"),
        ({"weights": [1.0, float("nan"), 1.0]}, r"weights\[1\]"),
        ({"weights": [1.0, 1e7, 1.0]}, r"weights\[1\] must be at most 1000000"),
        ({"weights": [0.0, 0, 1.0]}, "weights must be above 0 for dense or sparse"),
        ({"weights": [True, 1.0, 1.0]}, r"weights\[0\]"),
        ({"maxQueryLength": 2}, "maxQueryLength must be at least 3, got 2"),
        ({"maxPassageLength": 513}, "maxPassageLength .*512.*got 513"),
        ({"texts": ["one"]}, "unknown field 'texts'"),
    ],
)
def test_an_invalid_score_request_names_its_field(fields: dict[str, Any], field: str) -> None:
    """Pairs are validated like texts, and weights so that no mean divides by 0."""
    with pytest.raises(InvalidRequest, match=f"^{field}") as refusal:
        parse({"operation": "score", "pairs": [["one", "two"]], **fields}, LIMITS)
    assert_short(refusal.value)


def test_all_errors_are_listed() -> None:
    """The message has three errors and counts the others; the details list all."""
    with pytest.raises(InvalidRequest) as refusal:
        parse({"texts": ["a"], "isPassage": 1, "batchSize": -1, "encoding": "b64", "typo": 1}, LIMITS)
    assert refusal.value.message == (
        "unknown field 'typo'; isPassage must be a boolean, got an integer; "
        "batchSize must be at least 0, got -1 (and 1 more)"
    )
    assert [field.field for field in refusal.value.fields] == ["typo", "isPassage", "batchSize", "encoding"]


def test_the_list_of_errors_is_limited() -> None:
    """Ten thousand invalid items have a short answer."""
    with pytest.raises(InvalidRequest) as refusal:
        parse({"texts": [1] * 10_000, **{f"unknown{n}" * 50: n for n in range(100)}}, LIMITS)
    assert len(json.dumps(error_answer(refusal.value))) < 10_000


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"texts": [1] * 300_000}, "texts"),
        ({**EMBED, "vectors": ["x"] * 300_000}, "vectors[0]"),
        ({**SEARCH, "weights": ["x"] * 300_000}, "weights"),
        ({"operation": "score", "pairs": [1] * 300_000}, "pairs"),
        ({"operation": "score", "pairs": [[1] * 300_000]}, "pairs[0][0]"),
        ({"operation": "score", "pairs": [["a", "b"]], "weights": ["x"] * 300_000}, "weights[0]"),
        ({**EMBED, **{f"unknown{n}": n for n in range(300_000)}}, "input"),
        (stored(**{f"unknown{n}": n for n in range(300_000)}), "qdrant"),
    ],
)
def test_an_invalid_request_of_many_items_costs_no_error_for_each(raw: dict[str, Any], field: str) -> None:
    """A wrong body of megabytes is refused by its first invalid item, without gigabytes of errors."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as refusal:
            parse(raw, LIMITS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert field in [error.field for error in refusal.value.fields]
    assert peak < 20_000_000


def test_many_unknown_fields_of_a_block_are_refused_soon() -> None:
    """The block is copied once, and not again for each unknown field; the message counts them."""
    fields = {f"unknown{n}": n for n in range(FIELDS_MAX - 1)}
    with pytest.raises(InvalidRequest, match=rf"\(and {FIELDS_MAX - 4} more\)"):
        parse(stored(**fields), LIMITS)
    with pytest.raises(InvalidRequest, match=f"qdrant must have at most {FIELDS_MAX} fields, got {FIELDS_MAX + 1}"):
        parse(stored(**fields, more=1), LIMITS)


def test_a_body_without_its_block_names_few_of_many_unknown_fields() -> None:
    """Only the names that the answer shows are compared with the known ones."""
    raw = {**EMBED, **{f"unknown{n}": n for n in range(900)}}
    with pytest.raises(InvalidRequest, match=r"qdrant is required on /points; .* \(and 898 more\)") as refusal:
        completed(raw, "embed", passages=True, path="/points")
    assert len(refusal.value.fields) == 20
    raw |= {f"more{n}": n for n in range(100_000)}
    with pytest.raises(InvalidRequest, match=r"the body must have at most 1000 fields, got 100901"):
        completed(raw, "embed", passages=True, path="/points")


def test_the_original_request_is_accepted_unchanged() -> None:
    """The request of the first version is valid."""
    request = parse({"texts": ["a", ""], "isPassage": False, "batchSize": 0}, LIMITS)
    assert isinstance(request, EmbedRequest)
    assert request.texts == ["a", ""]
    assert request.embed_value().outputs.kinds == ("dense", "sparse", "colbert")
    assert (request.is_passage, request.batch_size, request.max_length) == (False, 0, None)
    assert (request.encoding, request.dtype) == ("list", "float32")
    assert (request.include_text, request.wants_vectors, request.qdrant) == (True, True, None)


def test_the_defaults_of_a_search() -> None:
    """A search with queries alone has the branches of the collection, fused by RRF, and ten hits with their payload."""
    request = parse({"operation": "search", "queries": ["a"]}, LIMITS)
    assert isinstance(request, SearchRequest)
    assert (request.collection, request.limit, request.offset, request.prefetch) == (None, 10, 0, 100)
    assert (request.using, request.fusion, request.rrf_k) == (None, "rrf", 60)
    assert (request.weights, request.rerank, request.filter, request.score_threshold) == (None, None, None, None)
    assert (request.params.hnsw_ef, request.params.exact) == (None, False)
    assert (request.with_payload, request.with_vectors) == (True, ())


@pytest.mark.parametrize(
    ("like", "field"),
    [
        ({}, "like.positive is required"),
        ({"positive": []}, "like.positive must have at least 1 item, got 0"),
        ({"positive": [1] * 101}, "like.positive must have at most 100 items, got 101"),
        ({"positive": [1], "negative": [-1]}, r"like.negative\[0\] must be from 0"),
        ({"positive": [True]}, r"like.positive\[0\] must be an integer or a string"),
        ({"positive": [1], "strategy": "best"}, "unknown field 'like.strategy'"),
        ([1], "like must be an object"),
        (None, "queries or like must be given"),
    ],
)
def test_invalid_examples_are_named(like: Any, field: str) -> None:
    """The error of a search by stored points names the field or the point."""
    with pytest.raises(InvalidRequest, match=f"^{field}"):
        parse({"operation": "search", "collection": "notes", "like": like}, LIMITS)


def test_selections_of_payload_and_vectors() -> None:
    """A payload selection is a boolean, a list or an object; a vector selection is a boolean or a list."""
    search = {"operation": "search", "queries": ["a"]}
    parsed = [
        parse({**search, "withPayload": selection, "withVectors": vectors}, LIMITS)
        for selection, vectors in (
            (["a", "b.c"], ["dense"]),
            ({"include": ["a"]}, True),
            ({"exclude": ["a"]}, []),
            ({"include": ["a"], "exclude": None, "other": None}, False),
            (False, False),
        )
    ]
    assert [
        (request.with_payload, request.with_vectors) for request in parsed if isinstance(request, SearchRequest)
    ] == [
        (PayloadKeys(("a", "b.c")), ("dense",)),
        (PayloadKeys(("a",)), ("dense", "sparse", "colbert")),
        (PayloadKeys(("a",), excluded=True), ()),
        (PayloadKeys(("a",)), ()),
        (False, ()),
    ]


def test_each_operation_has_its_type() -> None:
    """`operation` selects the type of a request; the default is embed."""
    assert isinstance(parse(EMBED, LIMITS), EmbedRequest)
    assert isinstance(parse({**EMBED, "operation": "embed"}, LIMITS), EmbedRequest)
    assert isinstance(parse(SEARCH, LIMITS), SearchRequest)
    assert isinstance(parse(COUNT, LIMITS), CountRequest)
    assert isinstance(parse({**DELETE, "ids": [1]}, LIMITS), DeleteRequest)


@pytest.mark.parametrize("given", [None, True, False])
@pytest.mark.parametrize("stores", [True, False])
def test_vectors_are_returned_unless_they_are_stored(given: bool | None, stores: bool) -> None:
    """By default, only a request without a `qdrant` block returns vectors; `returnVectors` overrides this."""
    more = {} if given is None else {"returnVectors": given}
    request = parse({**(stored() if stores else EMBED), **more}, LIMITS)
    assert isinstance(request, EmbedRequest)
    assert request.wants_vectors is (given if given is not None else not stores)


@pytest.mark.parametrize("ids", [[0, 2**64 - 1], ["a", "1"], ["\0", "ü"], [7, "A" * 10_000]])
def test_every_kind_of_id_is_accepted(ids: list[Any]) -> None:
    """An id is an unsigned 64-bit integer or a string that is not empty."""
    request = parse(stored(ids=ids), LIMITS)
    assert isinstance(request, EmbedRequest)
    assert request.qdrant is not None
    assert request.qdrant.ids == ids


def assert_short(error: InvalidRequest) -> None:
    """Check that an error can be serialized, is short, and quotes no text."""
    sent = json.dumps(error_answer(error), ensure_ascii=False).encode("utf-8")
    assert len(sent) < 1000
    assert PRIVATE.encode() not in sent

"""Rows of an ingest: a text with an invalid id or payload is rejected alone, and all others are stored."""

from __future__ import annotations

import json
from typing import Any, Final, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qdrant_sink import Layout
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json
from tests.service.conftest import Serve
from tests.service.doubles import Watched
from tests.service.ingests import CHUNK, LONG, NOTES, count, job

LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)
SURROGATE: Final = "\ud800"
DEEP: Final = json.loads("[" * 30 + "]" * 30)

INVALID_IDS: Final[tuple[Any, ...]] = (
    -1, 2**64, 10**5000, 1.0, 1.5, float("nan"), True, "", SURROGATE, [1], [], {"uuid": "a"}, {},
)  # fmt: skip
"""Values that are not valid ids."""

INVALID_PAYLOADS: Final[tuple[Any, ...]] = (
    [], [["a", 1]], "a", "", 5, 0.0, False, {"a": float("nan")}, {"a": [DEEP]}, {"a": SURROGATE}, {SURROGATE: 1},
    {"n": 2**64}, {"id": "another"},
)  # fmt: skip
"""Payloads that no layout can hold for a text with a string id."""


def rows(identities: list[Any], payloads: list[Any], text: str = "a text") -> tuple[list[str], list[Any], list[Any]]:
    """Texts with these ids, then texts with these payloads, each followed by a valid row."""
    ids: list[Any] = []
    for number, identity in enumerate(identities):
        ids += [identity, f"valid {number}"]
    ids += [f"row {number}" for number in range(2 * len(payloads))]
    bodies: list[Any] = [{"n": 1}] * (2 * len(identities))
    for payload in payloads:
        bodies += [payload, None]
    return [f"{text} {number}" for number in range(len(ids))], ids, bodies


def codes(answer: Json) -> dict[int, str]:
    """The code of each rejected text by its index."""
    return {point["index"]: point["code"] for point in answer["upsert"]["rejected"]}


def stored_ids(worker: Client) -> set[Any]:
    """The ids of all points in `NOTES`."""
    raw = {"operation": "search", "collection": NOTES, "queries": ["text"], "using": ["dense"], "limit": 1000}
    return {hit["id"] for hit in worker.good({**raw, "withPayload": False})["results"][0]["hits"]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options",
    [{}, {"returnVectors": True}, {"qdrant": {"mode": "insertOnly"}}, {"qdrant": {"chunk": CHUNK}}],
    ids=["upsert", "vectors", "insert-only", "chunks"],
)
def test_an_invalid_row_is_rejected_alone(serve: Serve, layout: Layout, options: Json) -> None:
    """Each invalid id or payload rejects its own text with its code, in every layout and mode."""
    worker = serve(QDRANT_COLLECTION_CONFIG=json.dumps({"layout": layout}))
    own = INVALID_PAYLOADS if "chunk" not in options.get("qdrant", {}) else INVALID_PAYLOADS[:-1]
    texts, ids, payloads = rows([*INVALID_IDS], [*own])
    raw = {**job(*texts, ids=ids, payloads=payloads, **options.get("qdrant", {})), "vectors": ["dense"]}
    answer = worker.good({**raw, "returnVectors": options.get("returnVectors", False)})
    wrong = {2 * n: "invalid_id" for n in range(len(INVALID_IDS))}
    wrong |= {2 * (len(INVALID_IDS) + n): "invalid_payload" for n in range(len(own))}
    assert codes(answer) == wrong
    assert answer["upsert"]["stored"] == len(texts) - len(wrong) == count(worker)
    for index, result in enumerate(answer["results"]):
        assert (result["id"] is None) == (wrong.get(index) == "invalid_id")
        assert result["tokens"] > 0
        assert ("dense" in result) == ("returnVectors" in options)
    if "chunk" not in options.get("qdrant", {}):
        valid = {result["id"] for index, result in enumerate(answer["results"]) if index not in wrong}
        assert stored_ids(worker) == valid


def test_the_rows_of_the_issue_are_stored(worker: Client) -> None:
    """In `ids: [1, -2, 3]` only the second is rejected, with what is wrong, the limit and the value."""
    answer = worker.good(job("one", "two", "three", ids=[1, -2, 3]))
    message = "id: an integer id must be 0 to 18446744073709551615, got -2"
    assert answer["upsert"] == {
        "collection": NOTES,
        "stored": 2,
        "skipped": 0,
        "rejected": [{"index": 1, "code": "invalid_id", "message": message}],
    }
    assert [result["id"] for result in answer["results"]] == [1, None, 3]
    assert stored_ids(worker) == {1, 3}


def test_a_job_of_invalid_rows_alone_is_answered(worker: Client) -> None:
    """If every row is rejected, the answer says so, and the job is no error."""
    answer = worker.good(job("one", "two", ids=[-1, 2], payloads=[{}, []]))
    assert codes(answer) == {0: "invalid_id", 1: "invalid_payload"}
    assert answer["upsert"]["stored"] == 0
    assert answer["usage"]["tokens"] == 0


def test_an_invalid_id_does_not_touch_the_point_of_its_text(worker: Client) -> None:
    """A text that is stored without an id stays as it is when the same text comes with an invalid id."""
    worker.good(job("same", payloads=[{"version": 1}]))
    answer = worker.good(job("same", "same", ids=[-1, None], payloads=[{"version": 2}, {"version": 3}]))
    assert codes(answer) == {0: "invalid_id"}
    assert count(worker) == 1
    filtered = {"operation": "count", "collection": NOTES}
    assert worker.good({**filtered, "filter": {"must": [{"key": "version", "match": {"value": 3}}]}}) == {"count": 1}


def test_every_chunk_of_an_invalid_document_is_rejected(worker: Client) -> None:
    """A document with an invalid id or a payload key of its chunks is rejected as a whole, and no other is."""
    worker.good(job(LONG, ids=["kept"], chunk=CHUNK))
    before = count(worker)
    payloads = [None, {"chunk": 0}, {"start": 5}, {"doc_id": "other"}, {"doc_id": "e"}, {"text": LONG}]
    answer = worker.good(job(*[LONG] * 6, ids=[-1, "b", "c", "d", "e", "f"], payloads=payloads, chunk=CHUNK))
    chunks = answer["results"][0]["chunks"]
    assert codes(answer) == {0: "invalid_id"} | dict.fromkeys((1, 2, 3), "invalid_payload")
    assert [(point["index"], point["chunk"]) for point in answer["upsert"]["rejected"]] == [
        (index, chunk) for index in range(4) for chunk in range(chunks)
    ]
    assert answer["upsert"]["stored"] == 2 * chunks == count(worker) - before


def test_invalid_rows_are_not_embedded(watched: Watched, store: EdgeStore) -> None:
    """A row that is rejected before the model runs costs no computation, unless its vectors are returned."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, store))
    watched.engine.batches.clear()
    raw = job("one", "two", "three", "four", ids=[-1, 2, 3, 4], payloads=[{}, [], {"text": "another"}, {}])
    worker.good(raw)
    assert [len(batch) for batch in watched.engine.batches] == [1]
    worker.good({**raw, "returnVectors": True})
    assert sum(len(batch) for batch in watched.engine.batches) == 5


def test_a_payload_may_repeat_the_text_and_the_id(worker: Client) -> None:
    """A payload that repeats the text under `textKey`, or a string id under `id`, is stored as it would be without."""
    payloads = [{"body": "one", "id": "a"}, {"body": "two "}, {"text": 1}]
    answer = worker.good(job("one", "two", "three", ids=["a", "b", "c"], payloads=payloads, textKey="body"))
    assert codes(answer) == {1: "invalid_payload"}
    assert answer["upsert"]["rejected"][0]["message"] == (
        "payload.body: must be left out or equal what the worker writes there"
    )


def test_null_is_an_absent_id_or_payload(worker: Client) -> None:
    """A text with the id null has the id that it would have without ids, and the payload null is empty."""
    without = worker.good(job("one", "two"))["results"]
    answer = worker.good(job("one", "two", ids=[None, 7], payloads=[None, {"n": None}]))
    assert codes(answer) == {}
    assert [result["id"] for result in answer["results"]] == [without[0]["id"], 7]
    assert count(worker) == 3


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"ids": [1]}, "qdrant.ids must have one item per text (2), got 1"),
        ({"ids": []}, "qdrant.ids must have one item per text (2), got 0"),
        ({"ids": [-1, 2, 3]}, "qdrant.ids must have one item per text (2), got 3"),
        ({"payloads": [{}, {}, 5]}, "qdrant.payloads must have one item per text (2), got 3"),
        ({"ids": {"0": 1, "1": 2}}, "qdrant.ids must be a list, got an object"),
        ({"payloads": {}}, "qdrant.payloads must be a list, got an object"),
    ],
)
def test_a_list_of_another_length_is_an_error_of_the_request(worker: Client, fields: Json, error: str) -> None:
    """Where it is unknown which row is which, nothing is stored."""
    assert worker.error(job("one", "two", **fields), "invalid_request")["error"] == error
    worker.error({"operation": "count", "collection": NOTES}, "not_found")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(0, 2**64) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.lists(st.tuples(JSON_VALUES, JSON_VALUES), min_size=1, max_size=6))
def test_any_row_is_stored_or_rejected(worker: Client, raw: list[tuple[Any, Any]]) -> None:
    """Whatever JSON stands for an id or a payload, the job is answered, and every row is accounted for."""
    texts = [f"text {number}" for number in range(len(raw))]
    qdrant = {"ids": [identity for identity, _ in raw], "payloads": [payload for _, payload in raw]}
    answer = worker.good({**job(*texts, **qdrant), "vectors": ["dense"]})
    rejected = codes(answer)
    assert answer["upsert"]["stored"] + len(rejected) == len(raw)
    for index, (identity, payload) in enumerate(raw):
        is_integer_id = type(identity) is int and 0 <= identity < 2**64
        is_string_id = type(identity) is str and identity != ""
        if not (identity is None or is_integer_id or is_string_id):
            assert rejected[index] == "invalid_id"
        elif payload is not None and type(payload) is not dict:
            assert rejected[index] == "invalid_payload"
        elif not payload:
            assert rejected.get(index) in (None, "duplicate_id")

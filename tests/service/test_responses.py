"""Answers on the wire: numbers that read back exactly, and a bound on the size that the queue's own encoder meets."""

from __future__ import annotations

import json
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.errors import ResponseTooLarge, SchemaMismatch, StoreUnavailable
from embedder.vectors import Embedding, SparseVector
from qdrant_sink.points import PointId
from qdrant_sink.search import Hit, Vectors
from service.responses import check_size, error_answer, search_answer, vectors_json
from tests.service.client import decoded

ENVELOPE = 64
"""Bytes that the queue may put around an answer: `{"output": ...}` and more."""

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
texts = st.text()
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)


def sent(answer: Any) -> int:
    """Bytes of an answer as the RunPod SDK encodes it."""
    return len(json.dumps(answer, ensure_ascii=False).encode("utf-8"))


@given(st.lists(floats, min_size=1, max_size=50))
def test_a_list_of_numbers_is_the_float32_it_was(numbers: list[float]) -> None:
    """Whoever reads a list into float32 has the bits that the model made."""
    dense = np.array(numbers, dtype=np.float32)
    embedding = Embedding(dense, None, dense.reshape(1, -1), tokens=2, truncated=False)
    answer = decoded(vectors_json(embedding))
    assert np.array(answer["dense"], dtype=np.float32).tobytes() == dense.tobytes()
    assert np.array(answer["colbert"], dtype=np.float32).tobytes() == dense.tobytes()
    assert set(answer) == {"dense", "colbert"}


@given(st.dictionaries(st.integers(0, 2**32 - 1), floats))
def test_a_sparse_vector_keeps_every_index_and_weight(weights: dict[int, float]) -> None:
    """Indices up to 2^32 - 1 and their weights arrive as they are."""
    indices = np.array(sorted(weights), dtype=np.uint32)
    values = np.array([weights[index] for index in sorted(weights)], dtype=np.float32)
    answer = decoded(vectors_json(Embedding(None, SparseVector(indices, values), None, tokens=2, truncated=False)))
    assert answer["sparse"]["indices"] == indices.tolist()
    assert np.array(answer["sparse"]["values"], dtype=np.float32).tobytes() == values.tobytes()


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(texts, json_values), st.integers(0, 3))
def test_no_answer_over_the_limit_passes_and_none_that_fits_is_refused(answer: dict[str, Any], points: int) -> None:
    """The guard never lets through what the queue would drop, and never refuses for an estimate."""
    with pytest.raises(ResponseTooLarge):
        check_size(answer, sent({"output": answer}) - 1, points=points, remedy="send less")
    assert check_size(answer, sent(answer) + ENVELOPE, remedy="send less") is answer


@pytest.mark.parametrize("number", [1e-5, 1.5e-7, 5e-324, 1e16, 1.7976931348623157e308, 0.1, 123456789.123])
def test_numbers_with_exponents_are_counted_as_they_are_sent(number: float) -> None:
    """Two encoders write exponents differently; the size is that of the one that sends."""
    answer = {"results": [number] * 10_000}
    with pytest.raises(ResponseTooLarge):
        check_size(answer, sent({"output": answer}) - 1, remedy="send less")
    check_size(answer, sent(answer) + ENVELOPE, remedy="send less")


def test_room_is_kept_for_what_an_upsert_will_report() -> None:
    """A job that stores is measured before it stores, so its report must still fit in afterwards."""
    answer: dict[str, Any] = {"results": [{}] * 100}
    check_size(answer, 10_000, remedy="send less")
    with pytest.raises(ResponseTooLarge):
        check_size(answer, 10_000, points=100, remedy="send less")


def test_an_error_says_what_it_is_and_whether_to_retry() -> None:
    """An error is plain JSON: a message, a code, whether a retry can help, and details."""
    assert error_answer(StoreUnavailable("gone", details={"upsert": {"stored": 1}})) == {
        "error": "gone",
        "error_code": "store_unavailable",
        "retryable": True,
        "details": {"upsert": {"stored": 1}},
    }
    assert error_answer(SchemaMismatch("other"))["retryable"] is False


@pytest.mark.parametrize(
    ("point_id", "wire"),
    [
        (0, 0),
        (2**64 - 1, 2**64 - 1),
        (uuid.UUID("6f2b1c0e-8d3a-5b47-9c61-0f7e4a92d815"), "6f2b1c0e-8d3a-5b47-9c61-0f7e4a92d815"),
    ],
)
def test_ids_come_back_as_qdrant_writes_them(point_id: PointId, wire: int | str) -> None:
    """A number stays a number, and a UUID is its hyphenated text."""
    answer = search_answer([[Hit(point_id, 0.5)]], model="m", tokens=3)
    assert decoded(answer) == {
        "results": [{"hits": [{"id": wire, "score": 0.5}]}],
        "usage": {"tokens": 3},
        "model": "m",
    }


def test_a_hit_shows_what_it_carries() -> None:
    """Payload and vectors are there exactly where they were asked for; a kind the point lacks is absent."""
    vectors = Vectors(dense=np.array([0.1, 0.2], np.float32), colbert=np.array([[0.5, 0.25]], np.float32))
    hits = [[Hit(1, 1.0, {"a": [None, True]}, vectors), Hit(2, 0.5, {})], []]
    first, second = decoded(search_answer(hits, model="m", tokens=0))["results"]
    assert first["hits"] == [
        {
            "id": 1,
            "score": 1.0,
            "payload": {"a": [None, True]},
            "vectors": {"dense": [0.1, 0.2], "colbert": [[0.5, 0.25]]},
        },
        {"id": 2, "score": 0.5, "payload": {}},
    ]
    assert second == {"hits": []}

"""Answers in JSON: numbers read back exactly, ids are as Qdrant writes them, and fields are those requested."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder import Embedding, ModelFailure, SparseVector
from qdrant_sink import Hit, PointId, Vectors
from service.operations import EmbedResult, SearchResult
from service.wire.answers import embed_answer, search_answer
from service.wire.body import Body
from service.wire.fields import Limits
from service.wire.parsing import validated
from service.wire.requests import EmbedRequest
from tests.service.client import Json, read, unpacked

LIMITS = Limits(max_texts=2, max_length=512)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def embedded(embedding: Embedding, **fields: Any) -> Json:
    """The result of one text in an embed answer, as a client reads it."""
    request = validated(EmbedRequest, {"texts": ["a text"], **fields}, LIMITS)
    answer = read(bytes(Body.of(embed_answer(request, EmbedResult([embedding]), "m"))))
    (result,) = answer["results"]
    assert isinstance(result, dict)
    return result


def searched(result: SearchResult) -> Json:
    """A search answer as a client reads it."""
    return read(bytes(Body.of(search_answer(result, "m"))))


@given(st.lists(floats, min_size=1, max_size=50))
def test_a_list_of_numbers_is_the_float32_it_was(numbers: list[float]) -> None:
    """A list of numbers reads back to the float32 bits of the model."""
    dense = np.array(numbers, dtype=np.float32)
    result = embedded(Embedding(dense, None, dense.reshape(1, -1), tokens=2, truncated=False))
    assert set(result) == {"text", "tokens", "truncated", "dense", "colbert"}
    assert np.array(result["dense"], dtype=np.float32).tobytes() == dense.tobytes()
    assert np.array(result["colbert"], dtype=np.float32).tobytes() == dense.tobytes()


@given(st.dictionaries(st.integers(0, 2**32 - 1), floats))
def test_a_sparse_vector_keeps_every_index_and_weight(weights: dict[int, float]) -> None:
    """Indices up to 2^32 - 1 and their weights arrive unchanged."""
    indices = np.array(sorted(weights), dtype=np.uint32)
    values = np.array([weights[index] for index in sorted(weights)], dtype=np.float32)
    sparse = embedded(Embedding(None, SparseVector(indices, values), None, tokens=2, truncated=False))["sparse"]
    assert sparse["indices"] == indices.tolist()
    assert np.array(sparse["values"], dtype=np.float32).tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_base64_is_the_bytes_of_the_array(dtype: str) -> None:
    """Base64 holds little-endian rows with their shape and type, also for a view of a larger array."""
    rows = np.linspace(-1, 1, 120, dtype=np.float32).reshape(6, 20)
    view = rows[1:5, ::2]
    result = embedded(
        Embedding(rows[0], None, view, tokens=5, truncated=False), encoding="base64", dtype=dtype, includeText=False
    )
    assert set(result) == {"tokens", "truncated", "dense", "colbert"}
    assert result["colbert"]["shape"] == [4, 10]
    np.testing.assert_array_equal(unpacked(result["colbert"]), view.astype(dtype))
    np.testing.assert_array_equal(unpacked(result["dense"]), rows[0].astype(dtype))


def test_a_failed_text_has_an_error_instead_of_vectors() -> None:
    """The error of one text has the four keys of any error, beside the text, and does not affect other texts."""
    good = Embedding(np.array([0.5], np.float32), None, None, tokens=3, truncated=True)
    request = validated(EmbedRequest, {"texts": ["one", "two"]}, LIMITS)
    results: list[Embedding | ModelFailure] = [good, ModelFailure("dense: not finite")]
    answer = read(bytes(Body.of(embed_answer(request, EmbedResult(results), "m"))))
    assert answer == {
        "results": [
            {"text": "one", "tokens": 3, "truncated": True, "dense": [0.5]},
            {
                "text": "two",
                "error": "dense: not finite",
                "error_code": "model_failure",
                "retryable": False,
                "details": {},
            },
        ],
        "usage": {"tokens": 3},
        "model": "m",
    }


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
    assert searched(SearchResult([[Hit(point_id, 0.5)]], tokens=3)) == {
        "results": [{"hits": [{"id": wire, "score": 0.5}]}],
        "usage": {"tokens": 3},
        "model": "m",
    }


def test_unranked_candidates_are_counted_where_there_are_any() -> None:
    """A hit without ColBERT rows has a score of null, and a query without such candidates has no count of them."""
    first, second = searched(SearchResult([[Hit(1, None)], [Hit(2, 0.5)]], tokens=3, unranked=[12, 0]))["results"]
    assert first == {"hits": [{"id": 1, "score": None}], "unranked": 12}
    assert second == {"hits": [{"id": 2, "score": 0.5}]}


def test_a_hit_has_the_requested_payload_and_vectors() -> None:
    """A hit has its payload and vectors only if they were requested; missing kinds of vectors are absent."""
    vectors = Vectors(dense=np.array([0.1, 0.2], np.float32), colbert=np.array([[0.5, 0.25]], np.float32))
    hits = [[Hit(1, 1.0, {"a": [None, True]}, vectors), Hit(2, 0.5, {})], []]
    first, second = searched(SearchResult(hits, tokens=0))["results"]
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

"""The size limit rejects answers that are too large, and only those."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder import Embedding
from service.operations import EmbedResult
from service.wire.answers import REJECTION_MAX_BYTES, embed_answer
from service.wire.body import Body
from service.wire.errors import ResponseTooLarge
from service.wire.fields import Limits
from service.wire.parsing import validated
from service.wire.requests import EmbedRequest
from service.wire.size import Encoding, NumberType, SizeLimit, vectors_min_bytes
from tests.service.client import read

ENVELOPE = 64
"""Bytes that the queue may put around an answer: `{"output": ...}` and more."""

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


def check(answer: Any, max_bytes: int, *, points: int = 0) -> None:
    """Check the size of an answer with a reserve for the report of some points."""
    SizeLimit(max_bytes, "send less").check(Body.of(answer), reserve=points * REJECTION_MAX_BYTES)


def sent(answer: Any) -> int:
    """Size of an answer as the RunPod SDK encodes it."""
    return len(json.dumps(answer, ensure_ascii=False).encode("utf-8"))


@pytest.mark.slow
@settings(max_examples=80)
@given(st.dictionaries(texts, json_values), st.integers(0, 3))
def test_the_limit_is_exact(answer: dict[str, Any], points: int) -> None:
    """The check fails exactly for answers that the queue would drop."""
    with pytest.raises(ResponseTooLarge):
        check(answer, sent({"output": answer}) - 1, points=points)
    check(answer, sent(answer) + ENVELOPE)


@pytest.mark.parametrize("number", [1e-5, 1.5e-7, 5e-324, 1e16, 1.7976931348623157e308, 0.1, 123456789.123])
def test_numbers_with_exponents_are_counted_as_they_are_sent(number: float) -> None:
    """The size counts exponents as the queue's encoder writes them."""
    answer = {"results": [number] * 10_000}
    with pytest.raises(ResponseTooLarge):
        check(answer, sent({"output": answer}) - 1)
    check(answer, sent(answer) + ENVELOPE)


def test_the_report_of_an_upsert_is_reserved() -> None:
    """The size is checked before points are stored, with a reserve for their report."""
    answer: dict[str, Any] = {"results": [{}] * 100}
    check(answer, 10_000)
    with pytest.raises(ResponseTooLarge):
        check(answer, 10_000, points=100)


@pytest.mark.parametrize(("limit", "size"), [(4000, "got 5081;"), (1000, "got at least 25")])
def test_the_error_names_the_size_the_limit_and_the_remedy(limit: int, size: str) -> None:
    """The error names the size or a lower bound, the limit, its setting and the remedy."""
    with pytest.raises(ResponseTooLarge) as refusal:
        check({"results": ["x" * 5000]}, limit)
    for named in (size, str(refusal.value.size), str(limit), "MAX_RESPONSE_MB", "send less"):
        assert named in refusal.value.message
    assert (refusal.value.limit, refusal.value.retryable) == (limit, False)


@settings(max_examples=60)
@given(
    tokens=st.lists(st.integers(2, 12), min_size=1, max_size=5),
    kinds=st.sampled_from([("dense",), ("colbert",), ("dense", "colbert")]),
    encoding=st.sampled_from([("list", "float32"), ("base64", "float32"), ("base64", "float16")]),
    scale=st.sampled_from([0.0, 1.0, 1e-8]),
)
def test_the_lower_bound_never_exceeds_the_size(
    tokens: list[int], kinds: tuple[str, ...], encoding: tuple[Encoding, NumberType], scale: float
) -> None:
    """The lower bound from the shapes never exceeds the size of the answer."""
    form, dtype = encoding
    raw = {"texts": ["a"] * len(tokens), "includeText": False, "encoding": form, "dtype": dtype}
    request = validated(EmbedRequest, raw, Limits(max_texts=5, max_length=512))
    vectors = [np.full((length, 8), scale, np.float32) for length in tokens]
    embeddings = [
        Embedding(
            rows[0] if "dense" in kinds else None,
            None,
            rows[1:] if "colbert" in kinds else None,
            tokens=len(rows),
            truncated=False,
        )
        for rows in vectors
    ]
    body = bytes(Body.of(embed_answer(request, EmbedResult(embeddings), "m")))
    bound = vectors_min_bytes(
        tokens,
        dense=8 if "dense" in kinds else 0,
        colbert=8 if "colbert" in kinds else 0,
        encoding=form,
        dtype=dtype,
    )
    assert bound <= sent(read(body))

"""The limit on the size of an answer: no answer that is too large is sent, and none that fits is refused."""

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
    """Check an answer that leaves room for the report of some points."""
    SizeLimit(max_bytes, "send less").check(Body.of(answer), reserve=points * REJECTION_MAX_BYTES)


def sent(answer: Any) -> int:
    """Bytes of an answer as the RunPod SDK encodes it."""
    return len(json.dumps(answer, ensure_ascii=False).encode("utf-8"))


@settings(max_examples=80)
@given(st.dictionaries(texts, json_values), st.integers(0, 3))
def test_no_answer_over_the_limit_passes_and_none_that_fits_is_refused(answer: dict[str, Any], points: int) -> None:
    """The check never passes what the queue would drop, and never refuses for an estimate."""
    with pytest.raises(ResponseTooLarge):
        check(answer, sent({"output": answer}) - 1, points=points)
    check(answer, sent(answer) + ENVELOPE)


@pytest.mark.parametrize("number", [1e-5, 1.5e-7, 5e-324, 1e16, 1.7976931348623157e308, 0.1, 123456789.123])
def test_numbers_with_exponents_are_counted_as_they_are_sent(number: float) -> None:
    """Two encoders write exponents differently; the size is that of the encoder that sends."""
    answer = {"results": [number] * 10_000}
    with pytest.raises(ResponseTooLarge):
        check(answer, sent({"output": answer}) - 1)
    check(answer, sent(answer) + ENVELOPE)


def test_room_is_kept_for_what_an_upsert_will_report() -> None:
    """A job that stores is measured before it stores, so its report must still fit in afterwards."""
    answer: dict[str, Any] = {"results": [{}] * 100}
    check(answer, 10_000)
    with pytest.raises(ResponseTooLarge):
        check(answer, 10_000, points=100)


@pytest.mark.parametrize(("limit", "size"), [(4000, "got 5081;"), (1000, "got at least 25")])
def test_a_refusal_names_the_size_the_limit_and_the_way_out(limit: int, size: str) -> None:
    """Whoever asked for too much reads how much it is, or at least is, the limit, its setting, and what to do."""
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
def test_vectors_that_would_fit_are_not_refused_before_they_are_computed(
    tokens: list[int], kinds: tuple[str, ...], encoding: tuple[Encoding, NumberType], scale: float
) -> None:
    """The bound by which an answer is refused from its shapes alone is never above the answer's real size."""
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

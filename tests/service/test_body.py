"""Answers as bytes in parts and as JSON values are the same JSON, with a known size."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.wire.body import Base64Array, Body
from service.wire.errors import ResponseTooLarge
from service.wire.size import SizeLimit
from service.wire.values import Values

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = st.lists(numbers, min_size=1, max_size=20).map(lambda values: np.array(values, dtype=np.float32))
answers = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | arrays | arrays.map(Base64Array),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ),
)


def expected(answer: Any) -> Any:
    """The expected JSON values of an answer."""
    match answer:
        case np.ndarray():
            return [float(str(number)) for number in answer]
        case Base64Array():
            return bytes(answer.written()).decode()
        case dict():
            return {key: expected(value) for key, value in answer.items()}
        case list():
            return [expected(value) for value in answer]
    return answer


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(answers, st.integers(1, 64))
def test_the_parts_of_a_body_are_its_json(answer: dict[str, Any], size: int) -> None:
    """The chunks of a body are its JSON, whose length is known before."""
    body = Body.of(answer)
    chunks = list(body.chunks(size))
    assert b"".join(chunks) == bytes(body)
    assert len(bytes(body)) == len(body)
    assert all(size <= len(chunk) < 2 * size for chunk in chunks[:-1])
    assert json.loads(bytes(body)) == expected(answer)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(answers)
def test_values_are_the_json_of_the_body(answer: dict[str, Any]) -> None:
    """Values equal the JSON of the body, within the upper bound of their size."""
    values = Values.of(answer)
    assert values.json == json.loads(bytes(Body.of(answer)))
    assert len(json.dumps(values.json, ensure_ascii=False).encode()) <= values.max_bytes


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(answers, st.sampled_from([Body, Values]))
def test_the_limit_is_exact_to_the_byte(answer: dict[str, Any], form: type[Body | Values]) -> None:
    """The check fails exactly for answers that the queue would drop."""
    content = form.of(answer)
    sent = len(json.dumps(expected(answer), ensure_ascii=False).encode())
    SizeLimit(sent + 64, "").check(content)
    with pytest.raises(ResponseTooLarge) as raised:
        SizeLimit(sent + 63, "").check(content)
    assert raised.value.limit == sent + 63


@pytest.mark.parametrize("form", [Body, Values])
@pytest.mark.parametrize("answer", [{}, {"a": 1}, {"a": Base64Array(np.zeros(3, np.float32))}])
def test_a_member_is_added_at_the_end(form: type[Body | Values], answer: dict[str, Any]) -> None:
    """A new member follows the others and counts for the size."""
    content = form.of(answer).with_member("more", Body.of({"b": [1]}))
    written = json.loads(bytes(content)) if isinstance(content, Body) else content.json
    assert written == {**expected(answer), "more": {"b": [1]}}
    assert len(json.dumps(written)) <= content.max_bytes


@pytest.mark.parametrize("array", [np.zeros((2, 3), np.float16), np.ones(1, np.float32), np.ones(5, np.uint8)])
def test_the_length_of_base64_is_known(array: NDArray[Any]) -> None:
    """The length of base64 includes the padding."""
    text = Base64Array(array)
    assert text.written() == base64.b64encode(array.tobytes())
    assert len(text) == len(text.written())


def test_a_value_without_json_is_an_error() -> None:
    """A value that JSON cannot represent raises TypeError."""
    with pytest.raises(TypeError):
        Body.of({"a": object()})

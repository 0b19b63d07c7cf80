"""Answers as bytes in parts, and as JSON values: the same JSON, whose size is known without writing it again."""

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
    """The JSON values of an answer, its arrays apart: written by other means."""
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


@settings(max_examples=50, deadline=None)
@given(answers, st.integers(1, 64))
def test_the_parts_of_a_body_are_its_json(answer: dict[str, Any], size: int) -> None:
    """Whatever its arrays are, the chunks make up the JSON, whose length is known before."""
    body = Body.of(answer)
    chunks = list(body.chunks(size))
    assert b"".join(chunks) == bytes(body)
    assert len(bytes(body)) == len(body)
    assert all(size <= len(chunk) < 2 * size for chunk in chunks[:-1])
    assert json.loads(bytes(body)) == expected(answer)


@settings(max_examples=50, deadline=None)
@given(answers)
def test_values_are_the_json_of_the_body(answer: dict[str, Any]) -> None:
    """The queue gets what HTTP sends, and its JSON is no longer than the values say."""
    values = Values.of(answer)
    assert values.json == json.loads(bytes(Body.of(answer)))
    assert len(json.dumps(values.json, ensure_ascii=False).encode()) <= values.max_bytes


@settings(max_examples=50, deadline=None)
@given(answers, st.sampled_from([Body, Values]))
def test_a_limit_is_kept_to_the_byte(answer: dict[str, Any], form: type[Body | Values]) -> None:
    """No answer that the queue would drop passes, and none that fits is refused for an estimate."""
    content = form.of(answer)
    sent = len(json.dumps(expected(answer), ensure_ascii=False).encode())
    SizeLimit(sent + 64, "").check(content)
    with pytest.raises(ResponseTooLarge) as raised:
        SizeLimit(sent + 63, "").check(content)
    assert raised.value.limit == sent + 63


@pytest.mark.parametrize("form", [Body, Values])
@pytest.mark.parametrize("answer", [{}, {"a": 1}, {"a": Base64Array(np.zeros(3, np.float32))}])
def test_a_member_is_added_at_the_end(form: type[Body | Values], answer: dict[str, Any]) -> None:
    """A report or timings follow what is there, and count for the size."""
    content = form.of(answer).with_member("more", Body.of({"b": [1]}))
    written = json.loads(bytes(content)) if isinstance(content, Body) else content.json
    assert written == {**expected(answer), "more": {"b": [1]}}
    assert len(json.dumps(written)) <= content.max_bytes


@pytest.mark.parametrize("array", [np.zeros((2, 3), np.float16), np.ones(1, np.float32), np.ones(5, np.uint8)])
def test_base64_is_as_long_as_it_says(array: NDArray[Any]) -> None:
    """Padding included, whatever the number of bytes."""
    text = Base64Array(array)
    assert text.written() == base64.b64encode(array.tobytes())
    assert len(text) == len(text.written())


def test_what_has_no_json_is_an_error() -> None:
    """An object that nobody meant to send is not sent as something else."""
    with pytest.raises(TypeError):
        Body.of({"a": object()})

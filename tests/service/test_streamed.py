"""Lists of numbers are written in slices, and read back as the same numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from service.wire.streamed import NUMBER_MAX_BYTES, Streamed

_shapes = st.tuples(st.integers(0, 60)) | st.tuples(st.integers(0, 5), st.integers(1, 8))
_finite = {"allow_nan": False, "allow_infinity": False}
_arrays = hnp.arrays(np.float32, _shapes, elements=_finite) | hnp.arrays(np.float16, _shapes, elements=_finite)


@pytest.mark.slow
@given(arrays=st.lists(_arrays, max_size=3), size=st.integers(1, 200))
def test_numbers_read_back_as_the_same_float32(arrays: list[NDArray[Any]], size: int) -> None:
    """Every number of the JSON is the float32 or float16 that was written, whatever the size of the chunks."""
    parts: list[bytes | NDArray[Any]] = [b"["]
    for array in arrays:
        parts += [array, b","]
    parts = [*parts[:-1], b"]"] if arrays else [b"[]"]
    answer = Streamed(parts)
    chunks = list(answer.chunks(size))
    assert b"".join(chunks) == bytes(answer)
    assert all(len(chunk) >= size for chunk in chunks[:-1])
    for array, read in zip(arrays, json.loads(bytes(answer)), strict=True):
        assert np.array_equal(np.array(read, dtype=np.float32).reshape(array.shape), array.astype(np.float32))


def test_a_large_array_is_written_in_slices() -> None:
    """No more than a few slices of an answer are in memory, and no number has more bytes than is counted."""
    draw = np.random.default_rng(1024)
    rows = (draw.standard_normal((2000, 192)) * 10.0 ** draw.integers(-9, 1, (2000, 192))).astype(np.float32)
    chunks = list(Streamed([rows]).chunks(100_000))
    assert max(map(len, chunks)) < 500_000
    numbers = b"".join(chunks).replace(b"[", b"").replace(b"]", b"").split(b",")
    assert max(map(len, numbers)) <= NUMBER_MAX_BYTES
    assert np.array_equal(np.array(numbers, dtype=np.float32), rows.reshape(-1))

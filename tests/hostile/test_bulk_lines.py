"""A line of any length in a bulk file takes bounded memory and harms no other line."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bulk.raw_lines import LINE_MAX_BYTES, LongLine, raw_lines


class Zeros:
    """A file with one long line between two short ones, which is made as it is read."""

    def __init__(self, size: int) -> None:
        self._parts = self._content(size)
        self._read = 0
        self.largest = 0

    def _content(self, size: int) -> Iterator[bytes]:
        yield b"first\n"
        while size:
            asked = self._read
            yield bytes(min(size, asked))
            size -= min(size, asked)
        yield b"\n"
        yield b"last"

    def readline(self, size: int, /) -> bytes:
        """Return at most as many bytes of a line."""
        self._read = size
        self.largest = max(self.largest, size)
        return next(self._parts, b"")


@pytest.mark.parametrize("size", [LINE_MAX_BYTES + 1, 20 * LINE_MAX_BYTES])
def test_a_long_line_takes_bounded_memory(size: int) -> None:
    """A line of any length is skipped in portions, and the lines around it are read."""
    file = Zeros(size)
    tracemalloc.start()
    lines = list(raw_lines(file))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lines == [b"first\n", LongLine(size + 1), b"last"]
    assert file.largest == LINE_MAX_BYTES + 1
    assert peak < 2 * LINE_MAX_BYTES


@given(st.lists(st.binary(max_size=12)), st.integers(1, 8))
def test_lines_are_those_of_the_file(parts: list[bytes], limit: int) -> None:
    """Every line comes as it is in the file, or as its size if it is too long, and none is lost."""
    content = b"\n".join(parts)
    expected = [line if len(line) <= limit else LongLine(len(line)) for line in io.BytesIO(content)]
    assert list(raw_lines(io.BytesIO(content), max_bytes=limit)) == expected

"""The lines of a file as bytes, of which none fills the memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

LINE_MAX_BYTES: Final = 30_000_000
"""Maximum size of a line in bytes, like a request over HTTP. A payload has at most 4 MB, escaped at most 24 MB."""

SKIPPED_PART_BYTES: Final = 65_536
"""Size of the parts in which the rest of a longer line is read and dropped."""


class Lines(Protocol):
    """A file of bytes, as far as it is needed here."""

    def readline(self, size: int, /) -> bytes:
        """Read the rest of a line, with its line break, or as many bytes of it; nothing at the end of the file."""
        ...


@dataclass(frozen=True, slots=True)
class LongLine:
    """A line that is longer than the maximum, and is not kept.

    Attributes:
        size: size of the line in bytes.
    """

    size: int


def raw_lines(file: Lines, *, max_bytes: int = LINE_MAX_BYTES) -> Iterator[bytes | LongLine]:
    """Read lines with their line breaks. Of a line that is too long only the size is returned.

    Args:
        file: the file, which is read as far as the lines are asked for.
        max_bytes: maximum size of a line.
    """
    while line := file.readline(max_bytes + 1):
        if len(line) <= max_bytes:
            yield line
            continue
        size = len(line)
        is_complete = line.endswith(b"\n")
        del line
        while not is_complete and (part := file.readline(SKIPPED_PART_BYTES)):
            size += len(part)
            is_complete = part.endswith(b"\n")
        yield LongLine(size)

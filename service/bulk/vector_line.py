"""A document of a vector file: a line with the vectors of its point, or of its chunks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from qdrant_sink import Vectors
from service.bulk.line import Line


@dataclass(frozen=True, slots=True, eq=False)
class LineVectors:
    """The vectors of a line, or of one of its chunks.

    Attributes:
        row: number of the row in its file, from 1.
        chunk: number of the chunk; None without chunks.
        start: first character of the chunk in the text of the line.
        end: end of the chunk in characters.
        vectors: the vectors.
    """

    row: int
    chunk: int | None
    start: int
    end: int
    vectors: Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorLine(Line):
    """A document with its vectors.

    Attributes:
        points: vectors of the document, or of each of its chunks in their order.
    """

    points: tuple[LineVectors, ...]

    def content(self) -> bytes | None:
        """A digest as of `Line`, which is another one for other chunks. Vectors are not compared."""
        content = Line.content(self)  # the class is made anew for its slots, so super() would not find it
        if content is None or self.points[0].chunk is None:
            return content
        spans = [(point.chunk, point.start, point.end) for point in self.points]
        return hashlib.blake2b(content + repr(spans).encode(), digest_size=16, usedforsecurity=False).digest()

"""The pieces of texts that become points: whole texts, or the chunks of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from embedder import Embedder, EncodedText
from service.operations.ingest_values import Chunking

POINT_BYTES: Final = 3072
"""Memory of a planned point in bytes beside its text, with its entries in the tables of an ingest."""

_CHARACTER_BYTES: Final = 4
_ID_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """The span of a text that becomes a point.

    Attributes:
        text: index of the text.
        chunk: index of the chunk in the text; None without chunking.
        start: first character of the span.
        end: end of the span in characters.
    """

    text: int
    chunk: int | None
    start: int
    end: int

    def content(self, texts: Sequence[str]) -> str:
        """The characters of the piece."""
        return texts[self.text][self.start : self.end]


def cut(
    texts: Sequence[str],
    chunk: Chunking | None,
    embedder: Embedder,
    *,
    max_length: int,
    hold: Callable[[int], None] = lambda _size: None,
) -> Iterator[Piece]:
    """Yield the pieces of texts, in the order of the texts. Blocks for the chunks of each.

    Args:
        texts: the texts.
        chunk: chunking of each text; None for one piece per text.
        embedder: the loaded model, which chunks.
        max_length: tokens beyond which a text without chunking is truncated.
        hold: reservation of further bytes of memory, before the pieces of a text are created. It raises if there are
            not as many.

    Raises:
        InvalidRequest: a text is not valid Unicode, or the chunking is out of range.
        Cancelled: nobody waits for the pieces any more.
    """
    for index, text in enumerate(texts):
        if chunk is None:
            hold(POINT_BYTES + _ID_BYTES * min(len(text) + 2, max_length))
            yield Piece(index, None, 0, len(text))
        else:
            chunks = embedder.split(text, max_tokens=chunk.max_tokens, overlap=chunk.overlap)
            characters = sum(part.end - part.start for part in chunks)
            hold(len(chunks) * POINT_BYTES + characters * (_CHARACTER_BYTES + _ID_BYTES))
            for number, part in enumerate(chunks):
                yield Piece(index, number, part.start, part.end)


def tokenized(
    pieces: Sequence[Piece], texts: Sequence[str], chunk: Chunking | None, embedder: Embedder, *, max_length: int
) -> list[EncodedText]:
    """The tokens of each piece. Blocks; the arguments and the errors are those of `cut`."""
    contents = [piece.content(texts) for piece in pieces]
    return embedder.tokenize(contents, max_length if chunk is None else chunk.max_tokens)

"""The vectors of texts in pieces, as an ingest computes them, for a caller that stores them itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from embedder import PLANS, Embedder, EncodedText, InvalidRequest, Outputs, Priority, Result
from service.operations.embed import LengthLimits
from service.operations.ingest_values import Chunking
from service.operations.text_pieces import Piece, cut, tokenized


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPiece:
    """A piece of a text and its tokens.

    Attributes:
        piece: the piece.
        encoded: its tokens.
    """

    piece: Piece
    encoded: EncodedText


class PieceVectors:
    """Cuts texts and embeds their pieces with the priority of passages. Usable from any event loop.

    Args:
        embedder: the loaded model.
        limits: default limits on the lengths of texts.
    """

    def __init__(self, embedder: Embedder, limits: LengthLimits) -> None:
        self._embedder = embedder
        self._limits = limits

    @property
    def max_length(self) -> int:
        """Tokens beyond which a text without chunking is truncated."""
        return self._limits.passage

    @property
    def window(self) -> int:
        """Tokens that keep the model busy, and whose vectors fit into memory."""
        return self._embedder.window

    async def cut(self, texts: Sequence[str], chunk: Chunking | None) -> list[EncodedPiece]:
        """The pieces of texts, in their order.

        Raises:
            InvalidRequest: a text is not valid Unicode, or the chunking is out of range.
        """
        characters = sum(map(len, texts))
        return await PLANS.run(lambda: self._cut(texts, chunk), characters=characters)

    def _cut(self, texts: Sequence[str], chunk: Chunking | None) -> list[EncodedPiece]:
        length = self._limits.passage
        pieces = list(cut(texts, chunk, self._embedder, max_length=length))
        encoded = tokenized(pieces, texts, chunk, self._embedder, max_length=length)
        return [EncodedPiece(piece, tokens) for piece, tokens in zip(pieces, encoded, strict=True)]

    async def embed(self, pieces: Sequence[EncodedPiece], outputs: Outputs) -> Sequence[Result]:
        """The embedding, or the failure of the model, of each piece.

        Raises:
            InvalidRequest: the pieces are more than the queue of the model holds.
            Overloaded: the queue has no room now.
        """
        try:
            return await self._embedder.embed_tokens(
                [piece.encoded for piece in pieces], outputs, priority=Priority.PASSAGE
            )
        except InvalidRequest as error:
            raise error.at("texts") from None

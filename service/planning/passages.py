"""The passages of a plan: how many there are, and what one has of each thing that is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TEXT_BYTES_PER_TOKEN: Final = 4.25
"""Bytes of UTF-8 per token, by the tokenizer of BGE-M3: mean of the bundled corpus (12 000 tokens in several languages;
4.1 in its English passages)."""

DISTINCT_FACTOR: Final = 1.59
DISTINCT_EXPONENT: Final = 0.834
"""Distinct tokens of a text of T tokens: 1.59 x T^0.834. A fit to parts of 64 to 1024 tokens of the bundled corpus by
the tokenizer of BGE-M3: 51 of 64 tokens, 92 of 128, 164 of 256, 293 of 512, 515 of 1024. A text about one subject has
fewer (this project's documentation: 201 of 512)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passages:
    """Passages of a collection, each of which is one point. Means per passage may be fractions.

    Attributes:
        count: number of passages.
        tokens: mean tokens of a passage, special tokens included.
        distinct: mean weights of a sparse vector, at most one per distinct token.
        text_bytes: mean bytes of the text in UTF-8.
        payload_bytes: mean bytes of the rest of the payload as JSON.
    """

    count: int
    tokens: float
    distinct: float
    text_bytes: float
    payload_bytes: float = 0.0

    @classmethod
    def of_tokens(
        cls, count: int, tokens: float, *, text_bytes: float | None = None, payload_bytes: float = 0.0
    ) -> Passages:
        """Passages of prose with a mean length in tokens; what is not known is estimated from the tokens.

        Args:
            count: number of passages.
            tokens: mean tokens of a passage.
            text_bytes: mean bytes of a text; None for an estimate.
            payload_bytes: mean bytes of the rest of the payload.
        """
        return cls(
            count=count,
            tokens=tokens,
            distinct=min(tokens, DISTINCT_FACTOR * tokens**DISTINCT_EXPONENT),
            text_bytes=TEXT_BYTES_PER_TOKEN * tokens if text_bytes is None else text_bytes,
            payload_bytes=payload_bytes,
        )

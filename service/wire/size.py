"""The size of an answer: bounded from shapes before the model runs, and from the bytes that are sent.

RunPod drops an answer over its limit without a word, so one that is too large is an error. The limit counts the JSON as
the queue's encoder writes it, which puts a space after each comma and colon and a zero into short exponents; over HTTP
the same answer is a little smaller.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import orjson

from service.wire.body import Body
from service.wire.errors import ResponseTooLarge
from service.wire.values import Values

Encoding = Literal["list", "base64"]
NumberType = Literal["float32", "float16"]

_ENVELOPE_BYTES: Final = 64
"""What the queue puts around an answer."""

LIST_NUMBER_MIN_BYTES: Final = 4
"""`0.1,`: no number of a vector is shorter."""


_POSITIVE_EXPONENT_BYTES: Final = 14
"""How much longer `1000000000000000.0` is than `1e15`; a larger number has an exponent in both encoders."""

_BLOCK_BYTES: Final = 1 << 16
"""Bytes that are looked at together, and fit into the cache."""


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """The limit on answers of one kind.

    Attributes:
        max_bytes: the limit.
        remedy: what a caller can do about an answer that is too large.
    """

    max_bytes: int
    remedy: str

    def check_minimum(self, size: int) -> None:
        """Refuse an answer of which so many bytes are certain.

        Raises:
            ResponseTooLarge: saying so, and the ways out.
        """
        if size > self.max_bytes:
            raise ResponseTooLarge(
                f"the answer would have more than {size} bytes, the limit is {self.max_bytes} (MAX_RESPONSE_MB); "
                f"{self.remedy}",
                size=size,
                limit=self.max_bytes,
            )

    def check(self, content: Body | Values, *, reserve: int = 0) -> None:
        """Refuse an answer whose JSON is over the limit.

        Args:
            content: what is sent.
            reserve: bytes that are going to be added.

        Raises:
            ResponseTooLarge: saying how large it is, and the ways out.
        """
        reserve += _ENVELOPE_BYTES
        if content.max_bytes + reserve <= self.max_bytes:
            return
        body = content if isinstance(content, Body) else Body.of(content.json)
        # The two encoders write some numbers differently, none half as long as the other does.
        self.check_minimum(len(body) // 2 + reserve)
        size = len(body) + sum(map(_widening, body.json)) + reserve
        if size > self.max_bytes:  # an upper bound: what stands inside texts counts too
            size = len(json.dumps(orjson.loads(bytes(body)), ensure_ascii=False).encode()) + reserve
        if size > self.max_bytes:
            raise ResponseTooLarge(
                f"the answer has {size} bytes, the limit is {self.max_bytes} (MAX_RESPONSE_MB); {self.remedy}",
                size=size,
                limit=self.max_bytes,
            )


def vectors_min_bytes(tokens: Sequence[int], *, dense: int, colbert: int, encoding: Encoding, dtype: NumberType) -> int:
    """Lower bound on the bytes of the dense and ColBERT vectors of an answer.

    In base64 it counts the digits without padding, in lists four bytes per number; the JSON around them is extra.

    Args:
        tokens: number of tokens per text.
        dense: components of a dense vector; 0 where none are sent.
        colbert: components of a ColBERT row; 0 where none are sent.
        encoding: how vectors are written.
        dtype: of the numbers in base64.
    """
    numbers = len(tokens) * dense + (sum(tokens) - len(tokens)) * colbert
    if encoding == "list":
        return numbers * LIST_NUMBER_MIN_BYTES
    return numbers * (2 if dtype == "float16" else 4) * 4 // 3


def _widening(part: bytes) -> int:
    """The most bytes that the queue's encoder adds: one per comma, colon and exponent, 14 where it writes none.

    `bytes.count` takes a call of `memchr` per match: seven times as long where every tenth byte matches.
    """
    characters = np.frombuffer(part, dtype=np.uint8)
    size = 0
    for start in range(0, len(part), _BLOCK_BYTES):
        block = characters[start : start + _BLOCK_BYTES + 1]  # the last byte may be the `e` of an exponent
        behind = block[np.flatnonzero(block[:-1] == ord("e")) + 1]
        negative = behind == ord("-")
        positive = (behind == ord("+")) | ((behind >= ord("0")) & (behind <= ord("9")))
        block = block[:_BLOCK_BYTES]
        size += int(np.count_nonzero(block == ord(",")) + np.count_nonzero(block == ord(":")))
        size += int(np.count_nonzero(negative)) + _POSITIVE_EXPONENT_BYTES * int(np.count_nonzero(positive))
    return size

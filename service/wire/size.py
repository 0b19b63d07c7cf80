"""The size limit on answers, checked from shapes before the model runs, and from the bytes before they are sent.

RunPod silently drops an answer over its limit, so an answer that is too large becomes an error. The limit counts the
JSON of the queue's encoder, which writes a space after each comma and colon and a zero into short exponents. Over HTTP
the same answer is slightly smaller.
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

RESPONSE_MB: Final = 10.0
"""Maximum answer in megabytes that every transport carries (RunPod's limit for `/run`)."""

_ENVELOPE_BYTES: Final = 64
"""Bytes that the queue adds around an answer."""

LIST_NUMBER_MIN_BYTES: Final = 4
"""Minimum bytes of a number in a list, such as `0.1,`."""

_POSITIVE_EXPONENT_BYTES: Final = 14
"""Bytes by which `1000000000000000.0` exceeds `1e15`; larger numbers have an exponent in both encoders."""

_BLOCK_BYTES: Final = 1 << 16
"""Bytes that are scanned together and fit into the CPU cache."""


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """The size limit on answers of one kind.

    Attributes:
        max_bytes: maximum size in bytes.
        remedy: advice for a caller whose answer is too large.
    """

    max_bytes: int
    remedy: str

    def check_minimum(self, size: int) -> None:
        """Check a lower bound on the size of an answer.

        Raises:
            ResponseTooLarge: the bound exceeds the limit.
        """
        if size > self.max_bytes:
            raise ResponseTooLarge(
                f"the answer must have at most {self.max_bytes} bytes (MAX_RESPONSE_MB), got at least {size}; "
                f"{self.remedy}",
                size=size,
                limit=self.max_bytes,
            )

    def check_parts(self, size: int, numbers: int, encoding: Encoding = "list", dtype: NumberType = "float32") -> None:
        """Check a lower bound on the size of an answer with stored points.

        Args:
            size: minimum bytes of the answer without its numbers.
            numbers: numbers of dense vectors and ColBERT rows.
            encoding: encoding of these vectors.
            dtype: type of the numbers in base64.

        Raises:
            ResponseTooLarge: the bound exceeds the limit.
        """
        self.check_minimum(size + numbers_min_bytes(numbers, encoding, dtype))

    def check(self, content: Body | Values, *, reserve: int = 0) -> None:
        """Check the exact size of an answer.

        Args:
            content: the JSON of the answer.
            reserve: bytes that will be added later.

        Raises:
            ResponseTooLarge: the size exceeds the limit.
        """
        reserve += _ENVELOPE_BYTES
        if content.max_bytes + reserve <= self.max_bytes:
            return
        body = content if isinstance(content, Body) else Body.of(content.json)
        # The encoders differ in some numbers, but never by a factor of two.
        self.check_minimum(len(body) // 2 + reserve)
        size = len(body) + sum(map(_max_added_bytes, body.json)) + reserve
        if size > self.max_bytes:  # an upper bound, which also counts characters inside texts
            size = len(json.dumps(orjson.loads(bytes(body)), ensure_ascii=False).encode()) + reserve
        if size > self.max_bytes:
            raise ResponseTooLarge(
                f"the answer must have at most {self.max_bytes} bytes (MAX_RESPONSE_MB), got {size}; {self.remedy}",
                size=size,
                limit=self.max_bytes,
            )


def vectors_min_bytes(tokens: Sequence[int], *, dense: int, colbert: int, encoding: Encoding, dtype: NumberType) -> int:
    """Lower bound on the bytes of the dense and ColBERT vectors of an answer.

    It counts base64 without padding, or four bytes per number in a list, and none of the surrounding JSON.

    Args:
        tokens: number of tokens per text.
        dense: components of a dense vector; 0 if dense vectors are not sent.
        colbert: components of a ColBERT row; 0 if ColBERT rows are not sent.
        encoding: encoding of the vectors.
        dtype: type of the numbers in base64.
    """
    return numbers_min_bytes(len(tokens) * dense + (sum(tokens) - len(tokens)) * colbert, encoding, dtype)


def numbers_min_bytes(numbers: int, encoding: Encoding, dtype: NumberType) -> int:
    """Lower bound on the bytes of the numbers of arrays: base64 without padding, or four bytes per number in a list."""
    if encoding == "list":
        return numbers * LIST_NUMBER_MIN_BYTES
    return numbers * (2 if dtype == "float16" else 4) * 4 // 3


def _max_added_bytes(part: bytes) -> int:
    """Maximum bytes that the queue's encoder adds: 1 per comma, colon and exponent, 14 if it writes no exponent.

    `bytes.count` calls `memchr` once per match, which takes seven times as long if every tenth byte matches.
    """
    characters = np.frombuffer(part, dtype=np.uint8)
    size = 0
    for start in range(0, len(part), _BLOCK_BYTES):
        block = characters[start : start + _BLOCK_BYTES + 1]  # the last byte may be the `e` of an exponent
        following = block[np.flatnonzero(block[:-1] == ord("e")) + 1]
        negative = following == ord("-")
        positive = (following == ord("+")) | ((following >= ord("0")) & (following <= ord("9")))
        block = block[:_BLOCK_BYTES]
        size += int(np.count_nonzero(block == ord(",")) + np.count_nonzero(block == ord(":")))
        size += int(np.count_nonzero(negative)) + _POSITIVE_EXPONENT_BYTES * int(np.count_nonzero(positive))
    return size

"""The memory that the vectors of an answer take at most once they are rendered, from their shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from embedder import Kind
from service.wire.size import Encoding, NumberType
from service.wire.streamed import NUMBER_MAX_BYTES

CHARACTER_JSON_MAX_BYTES: Final = 6
"""Maximum bytes of a character in JSON: those of a control character."""

CHUNKS_BYTES: Final = 1_048_576
"""Memory of the parts of a large answer that are on their way, compressed or not, in bytes."""

WEIGHT_JSON_MAX_BYTES: Final = 64
"""Maximum bytes of a sparse weight and its index in JSON, as objects of TEI."""

_NUMBER_BYTES: Final = NUMBER_MAX_BYTES + len(",")
_PYTHON_NUMBER_BYTES: Final = 48
"""Memory of a number as a value of Python in a list, in bytes, while its array is converted."""


def rendered_max_bytes(
    tokens: Sequence[int],
    kinds: Sequence[Kind],
    *,
    dense: int,
    colbert: int,
    encoding: Encoding,
    dtype: NumberType = "float32",
    as_values: bool = False,
) -> int:
    """Upper bound on the memory of rendered vectors in bytes, their arrays excluded.

    Args:
        tokens: number of tokens per text, or more.
        kinds: kinds of vectors.
        dense: components of a dense vector.
        colbert: components of a ColBERT row.
        encoding: encoding of the dense vectors and ColBERT rows.
        dtype: type of their numbers in base64.
        as_values: whether the answer consists of values of Python, as the queue expects it.
    """
    rows = [(count - 1) * colbert if "colbert" in kinds else 0 for count in tokens]
    vectors = len(tokens) * (dense if "dense" in kinds else 0)
    size = 2 if dtype == "float16" else 4
    if encoding == "list":
        numbers = (sum(rows) + vectors) * (_PYTHON_NUMBER_BYTES if as_values else _NUMBER_BYTES)
    elif as_values:
        numbers = (sum(rows) + vectors) * size * 4 // 3
    else:  # arrays in the type that is sent, of which one after the other is encoded
        numbers = vectors * size + max(rows, default=0) * size * 4 // 3
    weights = sum(tokens) if "sparse" in kinds else 0
    return (
        CHUNKS_BYTES * (numbers > CHUNKS_BYTES)
        + numbers
        + weights * (2 * _PYTHON_NUMBER_BYTES if as_values else WEIGHT_JSON_MAX_BYTES)
    )


def texts_max_bytes(texts: Sequence[str]) -> int:
    """Upper bound on the bytes of texts in JSON."""
    return CHARACTER_JSON_MAX_BYTES * sum(map(len, texts))

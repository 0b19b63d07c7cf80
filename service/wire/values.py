"""An answer as JSON values, for the queue, whose SDK encodes the JSON itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

import numpy as np
import orjson

from service.wire.body import Base64Array, Body

_NUMBER_MAX_BYTES: Final = 21
"""Maximum bytes of a float32, such as `-1234567890000000.0, `."""

_ROW_MAX_BYTES: Final = 4
"""Maximum bytes of a row's brackets and of the separator after it."""


@dataclass(frozen=True, slots=True)
class Values:
    """A JSON object as dictionaries, lists, strings and numbers.

    Attributes:
        json: the object.
        max_bytes: upper bound on the size of its JSON, from either encoder.
    """

    json: dict[str, Any]
    max_bytes: int

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """Convert an answer to values. The numbers of its arrays are the decimals that `Body.of` writes."""
        json, max_bytes = _object(answer)
        return cls(json, max_bytes)

    def with_member(self, name: str, value: Body) -> Values:
        """The object with another member, whose value contains no base64."""
        json = {**self.json, name: orjson.loads(bytes(value))}
        return Values(json, self.max_bytes + 2 * (len(name) + len(value)) + len('"": , '))


def _object(value: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    json: dict[str, Any] = {}
    max_bytes = len("{}")
    for key, member in value.items():
        json[key], size = _value(member)
        max_bytes += _key_max_bytes(key) + size
    return json, max_bytes


@lru_cache(maxsize=256)
def _key_max_bytes(key: str) -> int:
    return 2 * len(orjson.dumps(key)) + len(": , ")


def _value(value: Any) -> tuple[Any, int]:  # noqa: PLR0911 - a return for each type
    """A JSON value and an upper bound on the bytes of its JSON."""
    kind = type(value)
    if kind is str:
        return value, 2 * len(orjson.dumps(value))
    if kind is int or kind is bool:
        return value, 2 * len(str(value))
    if kind is dict:
        return _object(value)
    if kind is list:
        items = [_value(item) for item in value]
        return [item for item, _ in items], sum(item_size + len(", ") for _, item_size in items) + len("[]")
    if kind is Base64Array:
        return value.text(), len(value) + len('""')
    if isinstance(value, np.ndarray):
        rows = len(value) if value.ndim > 1 else 1
        size = value.size * _NUMBER_MAX_BYTES + rows * _ROW_MAX_BYTES + _ROW_MAX_BYTES
        return orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)), size
    encoded = orjson.dumps(value)
    return orjson.loads(encoded), 2 * len(encoded)

"""An answer as JSON values, for a transport that takes no bytes: the queue's SDK encodes them itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import orjson

from service.wire.body import Base64Array, Body

_NUMBER_MAX_BYTES: Final = 21
"""`-1234567890000000.0, `: no float32 is longer."""

_ROW_MAX_BYTES: Final = 4
"""Brackets of a row, and what is between it and the next."""


@dataclass(frozen=True, slots=True)
class Values:
    """A JSON object as dictionaries, lists, strings and numbers.

    Attributes:
        json: the object.
        max_bytes: limit on its JSON, whichever encoder writes it.
    """

    json: dict[str, Any]
    max_bytes: int

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """Turn an answer into values; the numbers of its arrays are the decimals that `Body.of` writes."""
        json, max_bytes = _object(answer)
        return cls(json, max_bytes)

    def with_member(self, name: str, value: Body) -> Values:
        """The object with one more member, whose value has no base64."""
        json = {**self.json, name: orjson.loads(bytes(value))}
        return Values(json, self.max_bytes + 2 * (len(name) + len(value)) + len('"": , '))


def _object(value: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    members = {key: _value(member) for key, member in value.items()}
    size = sum(2 * len(orjson.dumps(key)) + member_size + len(": , ") for key, (_, member_size) in members.items())
    return {key: member for key, (member, _) in members.items()}, size + len("{}")


def _value(value: Any) -> tuple[Any, int]:
    """A value, and the most bytes that its JSON has."""
    match value:
        case np.ndarray():
            rows = len(value) if value.ndim > 1 else 1
            size = value.size * _NUMBER_MAX_BYTES + rows * _ROW_MAX_BYTES + _ROW_MAX_BYTES
            return orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)), size
        case Base64Array():
            return value.written().decode("ascii"), len(value) + len('""')
        case dict():
            return _object(value)
        case list():
            items = [_value(item) for item in value]
            return [item for item, _ in items], sum(item_size + len(", ") for _, item_size in items) + len("[]")
        case _:
            written = orjson.dumps(value)
            return orjson.loads(written), 2 * len(written)

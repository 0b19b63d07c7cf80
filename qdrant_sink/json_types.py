"""The names of JSON types in messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_NAMES: Final[Mapping[type, str]] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def kind_of(value: object) -> str:
    """Return the JSON type of a value with its article, such as "an object"."""
    return _NAMES.get(type(value), "something that is not JSON")

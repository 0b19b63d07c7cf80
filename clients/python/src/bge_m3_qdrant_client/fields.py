"""Names of keyword parameters in JSON: the rows of the generated tables, and the conversion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Field(NamedTuple):
    """The name of a parameter in JSON, and the fields of its block if it has some."""

    name: str
    block: Mapping[str, Field] | None = None


Fields = Mapping[str, Field]


def as_json(fields: Fields, options: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The JSON of keyword parameters, blocks included.

    Args:
        fields: the fields by parameter.
        options: the parameters.
        method: the name of the method or of the block, for the message of an error.

    Raises:
        TypeError: a parameter is unknown.
    """
    body: dict[str, Any] = {}
    for name, value in options.items():
        field = fields.get(name)
        if field is None:
            raise TypeError(f"{method} has no parameter {name!r}; it has {', '.join(sorted(fields))}")
        nested = field.block is not None and isinstance(value, Mapping)
        body[field.name] = as_json(field.block or {}, value, name) if nested else value
    return body

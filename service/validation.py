"""Translation of pydantic's validation errors into messages with a field path, the limit and the value.

Requests, settings and the collection config are all validated by pydantic, and their errors are translated here. A
message quotes no more of a value than its type, its length, a number or a short word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic_core import ErrorDetails, PydanticCustomError

from embedder.errors import FieldError, InvalidRequest
from qdrant_sink import COLLECTION_NAME, COLLECTION_NAME_RULE, kind_of

BYTE_ORDER_MARK: Final = "\ufeff"
"""Character that some editors write before the JSON of a file. Parsers of users' JSON skip it."""

NEEDED: Final = frozenset({"missing", "needed"})
"""Types of errors about fields that are absent."""

_FIELD_NAME_MAX = 64
"""Maximum characters of one field name in a path, since unknown names come from the caller."""

_QUOTED_MAX = 32
"""Maximum characters of a string that is quoted."""


def field_error(error: ErrorDetails, *, root: str = "input") -> FieldError:
    """Translate an error of pydantic. The message begins with the field path.

    Args:
        error: the error.
        root: name of the whole value, for an error that belongs to none of its fields.
    """
    field, kind = field_path(error["loc"]), error["type"]
    if kind == "needed":
        return FieldError(error["ctx"]["field"], error["msg"])
    if kind == "extra_forbidden":
        return FieldError(field, f"unknown field '{field}'")
    message = rule(error)
    if kind == "value_error" and not field:  # a rule between fields names its field
        field, _, message = message.partition(": ")
    elif kind == "value_error" and message.startswith(("[", ".")):  # a rule about an item begins with its path
        item, _, message = message.partition(" ")
        field += item
    elif kind == "value_error" and message.startswith((f"{field}.", f"{field}:")):  # the whole path stands there
        return FieldError(message.partition(":")[0], message)
    elif kind == "string_unicode" and not field:  # an object has no other strings than its field names
        message = "must have field names of valid Unicode, got a lone surrogate"
    field = field or root
    value = _described(kind, error["input"])
    return FieldError(field, f"{field} {message}" + (f", got {value}" if value else ""))


def needed(*fields: str) -> PydanticCustomError:
    """An error for pydantic that one of several fields must be given; the first one is the field of the error."""
    return PydanticCustomError("needed", f"{' or '.join(fields)} must be given", {"field": fields[0], "fields": fields})


def invalid_field(field: str, message: str) -> InvalidRequest:
    """An error about one field.

    Args:
        field: path of the field.
        message: the message without the field at its beginning, such as "must be at most 3, got 4".
    """
    whole = f"{field} {message}"
    return InvalidRequest(whole, fields=[FieldError(field, whole)])


def rule(error: ErrorDetails) -> str:
    """The rule that the value breaks, without the field and the value."""
    kind = error["type"]
    if kind in _TYPE_NAMES:
        return f"must be {_TYPE_NAMES[kind]}"
    if kind in _RULE_TEXTS:
        return _RULE_TEXTS[kind](error.get("ctx", {}))
    return f"is not valid ({kind})"


def field_path(location: Sequence[int | str]) -> str:
    """Format a location of pydantic: ("qdrant", "ids", 3) becomes `qdrant.ids[3]`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":
            name = part[:_FIELD_NAME_MAX].encode("utf-8", "replace").decode()
            path += f".{name}" if path else name
    return path


_TYPE_NAMES: Final[Mapping[str, str]] = {
    "bool_type": "a boolean",
    "bool_parsing": "true or false",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}

_RULE_TEXTS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "missing": lambda _rule: "is required",
    "string_unicode": lambda _rule: "is not valid Unicode (a lone surrogate)",
    "too_short": lambda rule: f"must have at least {counted(rule['min_length'], 'item')}",
    "too_many_fields": lambda rule: f"must have at most {counted(rule['max'], 'field')}, got {rule['count']}",
    "too_long": lambda rule: f"must have at most {counted(rule['max_length'], 'item')}",
    "string_too_short": lambda rule: f"must have at least {counted(rule['min_length'], 'character')}",
    "string_too_long": lambda rule: f"must have at most {counted(rule['max_length'], 'character')}",
    "greater_than_equal": lambda rule: f"must be at least {_number(rule['ge'])}",
    "greater_than": lambda rule: f"must be above {_number(rule['gt'])}",
    "less_than_equal": lambda rule: f"must be at most {_number(rule['le'])}",
    "literal_error": lambda rule: f"must be {rule['expected']}",
    "string_pattern_mismatch": lambda rule: _PATTERN_RULES.get(rule["pattern"], f"must match {rule['pattern']}"),
    "value_error": lambda rule: str(rule["error"]),
}

_PATTERN_RULES: Final[Mapping[str, str]] = {COLLECTION_NAME: f"must {COLLECTION_NAME_RULE}"}
"""The patterns of strings in words."""

_COUNTED: Final = frozenset({"too_short", "too_long", "string_too_short", "string_too_long"})
_SELF_EXPLANATORY: Final = frozenset({"missing", "string_unicode", "finite_number", "too_many_fields", "value_error"})
"""Error types whose message already describes the value."""


def _described(kind: str, value: object) -> str | None:
    if kind in _SELF_EXPLANATORY or (kind not in _TYPE_NAMES and kind not in _RULE_TEXTS):
        return None
    if kind in _TYPE_NAMES:
        return kind_of(value)
    if isinstance(value, list | tuple | str | dict):
        if kind in _COUNTED:
            return str(len(value))
        if kind == "string_pattern_mismatch":
            return characters(value) if isinstance(value, str) else kind_of(value)
    return shown(value)


def shown(value: object) -> str:
    """Describe a value for a message: numbers and short strings as they are, others by type or length."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return kind_of(value)
    if isinstance(value, str):
        quoted = len(value) <= _QUOTED_MAX and is_unicode(value)
        return f"'{value}'" if quoted else characters(value)
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a very large integer" if value > 0 else "a very small integer"
    return str(value)


def _number(limit: Any) -> str:
    """A limit for a message: an integer with all its digits."""
    return str(limit) if isinstance(limit, int) else f"{limit:.12g}"


def is_unicode(text: str) -> bool:
    """Whether the text is valid Unicode, without lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def characters(text: str) -> str:
    """Describe a string for a message by its length only."""
    return f"a string of {counted(len(text), 'character')}"


def counted(count: int, noun: str) -> str:
    """A number with its noun in singular or plural: `1 item`, `2 items`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

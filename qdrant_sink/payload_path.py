"""Paths of payload keys, the language in which a caller names a part of a payload.

Filters, `groupBy`, `withPayload`, `payloadIndexes` and `tenantKey` all use it. It is Qdrant's own: keys are separated
by dots, `[]` selects every item of an array and `[0]` one item. A key in double quotes may be empty and contain any
character but `"` and the backslash. A key needs no quotes if it consists of letters of any script with their combining
marks, digits, `_` and `-`. Qdrant requires quotes for some of these marks; `str(path)` adds them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

RULE: Final = (
    'must be a path of keys such as topic, metadata.topic, offers[].price or "any key".topic; '
    "a key needs double quotes unless it consists of letters, digits, _ and -"
)
"""The grammar in words, for error messages."""

_INDEX_MAX: Final = 2**64 - 1
"""Largest index of an item in an array."""

_QUOTED: Final = re.compile(r'"([^"\\\ud800-\udfff]*)"')
_ARRAY: Final = re.compile(r"\[(?:0*([0-9]{1,20}))?\]")
_CIRCLED: Final = re.compile("[\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")
"""Circled and squared letters, which Unicode calls symbols and Qdrant letters."""

_JOINERS: Final = "\u200c\u200d"
"""Joiners within words of Hindi, Persian and other languages."""


@dataclass(frozen=True, slots=True)
class PayloadPath:
    """A path of payload keys.

    Attributes:
        parts: the steps from the payload to the value: a string is a key of an object, an integer the index of an item
            of an array, and None means every item of an array. The first one is a key.

    `str(path)` is the path as Qdrant reads it.

    Raises:
        ValueError: a key contains `"` or a backslash, which Qdrant's paths cannot express.
    """

    parts: tuple[str | int | None, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if isinstance(part, str) and ('"' in part or "\\" in part):
                raise ValueError('must not contain " or a backslash in a key, because Qdrant has no path to such a key')

    @staticmethod
    def parse(text: str) -> PayloadPath:
        """Parse a path. Raises ValueError with a message that begins with "must"."""
        return _parsed(text)

    @property
    def has_arrays(self) -> bool:
        """Whether the path has array parts, `[]` or `[0]`."""
        return not all(isinstance(part, str) for part in self.parts)

    @property
    def has_indexes(self) -> bool:
        """Whether the path selects single items of arrays, such as `[0]`."""
        return any(isinstance(part, int) for part in self.parts)

    @property
    def parent(self) -> PayloadPath | None:
        """Path of the object in which the last key is; None if that is the payload itself."""
        return PayloadPath(self.parts[:-1]) if len(self.parts) > 1 else None

    def value_in(self, payload: Mapping[str, Any] | None) -> Any:
        """Return the value at a path without array parts, or None if the payload has none there."""
        value: Any = payload
        for part in self.parts:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def __str__(self) -> str:
        text = ""
        for part in self.parts:
            if isinstance(part, str):
                text += "." * bool(text) + (part if _is_bare_for_qdrant(part) else f'"{part}"')
            else:
                text += "[]" if part is None else f"[{part}]"
        return text


def canonical_path(text: str) -> str:
    """Return a path in the form in which Qdrant reads it. Raises ValueError if it is not a path."""
    return str(PayloadPath.parse(text))


def canonical_value_path(text: str) -> str:
    """Return a path through objects to one value in the form in which Qdrant reads it.

    Raises:
        ValueError: it is not a path, or it has array parts.
    """
    path = PayloadPath.parse(text)
    if path.has_arrays:
        raise ValueError("must be a path through objects to one value, without [] and [0]")
    return str(path)


def canonical_selection_path(text: str) -> str:
    """Return a path that selects a part of a payload in the form in which Qdrant reads it.

    Raises:
        ValueError: it is not a path, or it selects single items of arrays, which Qdrant does not support.
    """
    path = PayloadPath.parse(text)
    if path.has_indexes:
        raise ValueError("must select whole arrays: write [] in place of an index")
    return str(path)


def path_of_key(key: str) -> str:
    """Return the path of one key at the top of a payload in the form in which Qdrant reads it.

    Raises:
        ValueError: the key contains `"` or a backslash.
    """
    return str(PayloadPath((key,)))


@contextmanager
def named(attribute: str) -> Iterator[None]:
    """Prefix errors about a path with the name of the attribute that holds it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{attribute}: {error}") from error


@lru_cache(maxsize=4096)
def _parsed(text: str) -> PayloadPath:
    parts: list[str | int | None] = []
    position = 0
    while not parts or position < len(text):
        if parts and (array := _ARRAY.match(text, position)):
            index = int(array[1]) if array[1] else None
            if index is not None and index > _INDEX_MAX:
                raise ValueError(f"must have indexes of at most {_INDEX_MAX}, got {index}")
            parts.append(index)
            position = array.end()
            continue
        if parts:
            if text[position] != ".":
                raise _invalid(text)
            position += 1
        if quoted := _QUOTED.match(text, position):
            parts.append(quoted[1])
            position = quoted.end()
            continue
        end = position
        while end < len(text) and _is_bare(text[end]):
            end += 1
        if end == position:
            raise _invalid(text)
        parts.append(text[position:end])
        position = end
    return PayloadPath(tuple(parts))


def _invalid(text: str) -> ValueError:
    got = f"a string of {len(text)} character{'s' * (len(text) != 1)}" if text else "an empty string"
    return ValueError(f"{RULE}, got {got}")


def _is_bare(character: str) -> bool:
    """Whether a key may contain the character without quotes.

    Characters that Unicode does not assign yet are allowed, because a newer Qdrant may know them as letters.
    """
    if character in "_-" or character in _JOINERS:
        return True
    category = unicodedata.category(character)
    return category[0] in "LMN" or category == "Cn" or _CIRCLED.match(character) is not None


def _is_bare_for_qdrant(key: str) -> bool:
    """Whether every Qdrant reads the key without quotes. Quotes are never wrong."""
    return bool(key) and all(character in "_-" or unicodedata.category(character)[0] in "LN" for character in key)

"""Limits on the size of a filter, checked before anything of it is parsed.

Parsing and converting a filter takes processor time, and memory of some twenty times its size, and the embedded engine
evaluates it with the interpreter lock held. So its parts are counted first, by their
lengths, and a list that is too long is not entered.
"""

from __future__ import annotations

from typing import Any, Final

from embedder.errors import InvalidRequest

FILTER_DEPTH_MAX: Final = 16
"""Maximum nesting depth of filters."""

CONDITIONS_MAX: Final = 1024
"""Maximum number of conditions of a filter, those of nested filters included.

Without payload indexes the engine compares every point with each: 1 000 conditions and 1 000 points take 0.9 s.
"""

VALUES_MAX: Final = 32_768
"""Maximum number of values of a filter in all its lists: ids, alternatives of a match, points of polygons."""

FILTER_MAX_BYTES: Final = 1_048_576
"""Maximum size of a filter in bytes, as `filter_bytes` counts them."""

TEXT_CHARACTERS_MAX: Final = 4096
"""Maximum number of characters of all conditions on words of a text, such as `match.text`.

Without a text index the engine cuts every point's text and the condition's into words: in 1 000 points of 30 words,
each 1 000 characters take 20 ms.
"""

_LEVELS_MAX: Final = 4 * FILTER_DEPTH_MAX + 8
"""Maximum depth of objects and lists. A nested filter has four for each of its own levels."""

_CONDITION_LISTS: Final = frozenset({"must", "should", "must_not", "conditions"})
_TEXT_MATCHES: Final = frozenset({"text", "text_any", "phrase", "prefix", "substring"})
_NUMBER_BYTES: Final = 8


def check_filter_size(raw: Any, field: str) -> None:
    """Check the size of a filter of any form.

    Raises:
        InvalidRequest: the filter exceeds a limit.
    """
    count = _Count(field)
    if isinstance(raw, dict):
        count.add(raw)


def filter_bytes(raw: Any) -> int:
    """Return the approximate size of a filter's JSON: a byte per character of its keys and strings, 8 per number."""
    size, parts = 0, [raw]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            size += len(part)
        elif isinstance(part, dict):
            size += sum(map(len, part))
            parts += part.values()
        elif isinstance(part, list):
            parts += part
        else:
            size += _NUMBER_BYTES
    return size


class _Count:
    """Counts the parts of a filter, and refuses the first one that exceeds a limit."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._conditions = self._values = self._bytes = self._text_characters = 0

    def add(self, raw: dict[Any, Any]) -> None:
        parts: list[tuple[Any, Any, int]] = [("", raw, 1)]
        while parts:
            name, part, level = parts.pop()
            if isinstance(part, str):
                self._add_text(name, part)
            elif isinstance(part, list):
                self._add_list(name, len(part))
                parts += [(None, item, level + 1) for item in part]
            elif isinstance(part, dict):
                self._add_bytes(sum(len(key) for key in part if isinstance(key, str)))
                if len(part) > CONDITIONS_MAX:
                    raise self._excess("keys in an object", CONDITIONS_MAX, len(part), "leave out unknown ones")
                parts += [(key, value, level + 1) for key, value in part.items()]
            else:
                self._add_bytes(_NUMBER_BYTES)
            if level > _LEVELS_MAX:
                raise InvalidRequest(
                    f"{self._field}: filters must be nested at most {FILTER_DEPTH_MAX} levels deep, got more"
                )

    def _add_list(self, name: Any, length: int) -> None:
        if name in _CONDITION_LISTS:
            self._conditions += length
            if self._conditions > CONDITIONS_MAX:
                advice = "give several values of one key as match.any"
                raise self._excess("conditions", CONDITIONS_MAX, self._conditions, advice)
            return
        self._values += length
        if self._values > VALUES_MAX:
            advice = "send several requests, or store a key to filter by"
            raise self._excess("values in its lists", VALUES_MAX, self._values, advice)

    def _add_text(self, name: Any, text: str) -> None:
        self._add_bytes(len(text))
        if name in _TEXT_MATCHES:
            self._text_characters += len(text)
            if self._text_characters > TEXT_CHARACTERS_MAX:
                what = "characters in conditions on words (text, text_any, phrase, prefix, substring)"
                raise self._excess(what, TEXT_CHARACTERS_MAX, self._text_characters, "search for fewer words")

    def _add_bytes(self, size: int) -> None:
        self._bytes += size
        if self._bytes > FILTER_MAX_BYTES:
            advice = "send several requests, or store a key to filter by"
            raise self._excess("bytes", FILTER_MAX_BYTES, self._bytes, advice)

    def _excess(self, what: str, limit: int, got: int, advice: str) -> InvalidRequest:
        return InvalidRequest(f"{self._field}: must have at most {limit} {what}, got at least {got}; {advice}")

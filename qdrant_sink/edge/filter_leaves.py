"""The conditions of a filter that look at the payload, in the form in which their time is measured.

The time of a filter is bounded by the sum over its conditions: the engine reads the payload for each of them, and may
skip some, so that conditions are measured apart from each other. Conditions on the same key and of the same kind share
one measurement. In it words are replaced by others that no text contains, since the engine stops at a match, and long
lists are cut, which do not matter for the time of a point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from qdrant_sink.filters import ParsedFilter

TEXT_CHARACTER_S: Final = 2.5e-8
"""Estimated seconds per point and character of a condition on words, without a text index."""

PAYLOAD_BYTE_S: Final = 1e-7
"""Maximum seconds per byte of a payload to compare a point with a condition, without an index.

Measured on payloads of 4 MB: 2 to 15 ns for a string, 25 to 85 ns for lists and objects, 65 ns for words of a text.
"""

VERTEX_BYTE_S: Final = 1e-10
"""The same per vertex of a polygon, for a payload of coordinates."""

WORDS_MAX_CHARACTERS: Final = 64
"""Length in characters of the words with which conditions on words are measured."""

VALUES_MEASURED_MAX: Final = 64
"""Maximum number of alternatives of a condition that is measured."""

_WORDS: Final = " ".join(f"q7z{n:x}" for n in range(16))[:WORDS_MAX_CHARACTERS]
_INDEXED: Final[Mapping[type, frozenset[str]]] = {
    bool: frozenset({"bool"}),
    int: frozenset({"integer"}),
    str: frozenset({"keyword", "uuid"}),
}
"""Types of indexes that answer for a value of a type."""

_GEO: Final = ("geo_radius", "geo_bounding_box", "geo_polygon")
_WORD_MATCHES: Final = ("text", "text_any", "phrase", "prefix", "substring")
_CLAUSES: Final = ("must", "should", "must_not")


@dataclass(frozen=True, slots=True)
class Leaf:
    """The conditions of a filter on one payload key and of one kind.

    Attributes:
        name: path of the key, kind of the conditions, and types of indexes that answer them.
        condition: condition that is measured, in canonical form.
        weight: number of measured conditions that take as long as these.
        words_s: seconds that their words take in addition for each point, whatever its payload.
        byte_s: maximum seconds per byte of a payload to compare it with the measured condition.
        key: path of the key; empty for a condition that reads the payload whatever indexes there are.
        indexes: types of indexes on the key with which the engine does not read the payload.
    """

    name: str
    condition: Mapping[str, Any]
    weight: float = 1.0
    words_s: float = 0.0
    byte_s: float = PAYLOAD_BYTE_S
    key: str = ""
    indexes: frozenset[str] = frozenset()


def filter_leaves(where: ParsedFilter) -> tuple[Leaf, ...]:
    """Return the conditions of a filter that look at the payload, those of one key and kind together."""
    leaves: dict[str, Leaf] = {}
    for leaf in _leaves(where):
        other = leaves.get(leaf.name)
        leaves[leaf.name] = (
            leaf
            if other is None
            else replace(other, weight=other.weight + leaf.weight, words_s=other.words_s + leaf.words_s)
        )
    return tuple(leaves.values())


def _leaves(part: Mapping[str, Any]) -> Iterator[Leaf]:
    if "key" in part:
        yield _field_leaf(part)
    elif "nested" in part:
        key = part["nested"]["key"]
        inner = list(_leaves(part["nested"]["filter"])) or [Leaf("", {})]
        for leaf in inner:
            within = {"must": [leaf.condition]} if leaf.condition else {}
            condition = {"nested": {"key": key, "filter": within}}
            yield replace(leaf, name=f"nested {key} {leaf.name}", condition=condition, indexes=frozenset())
    else:
        for name in ("is_empty", "is_null"):
            if name in part:
                yield Leaf(f"{part[name]['key']} {name}", part)
        clauses = [part.get(name, ()) for name in _CLAUSES]
        for conditions in (*clauses, part.get("min_should", {}).get("conditions", ())):
            for condition in conditions:
                yield from _leaves(condition)


def _field_leaf(condition: Mapping[str, Any]) -> Leaf:
    leaf, indexes = _measured_leaf(condition), _indexes(condition)
    return replace(leaf, name=" ".join([leaf.name, *sorted(indexes)]), key=condition["key"], indexes=indexes)


def _indexes(condition: Mapping[str, Any]) -> frozenset[str]:
    """The types of indexes that answer a condition on a key. Any other one reads the payload."""
    if any(kind in condition for kind in _GEO):
        return frozenset({"geo"})
    if "range" in condition:
        is_date = any(isinstance(bound, str) for bound in condition["range"].values())
        return frozenset({"datetime"} if is_date else {"integer", "float"})
    match = condition.get("match", {})
    if "text" in match or "text_any" in match:
        return frozenset({"text"})
    wanted = match.get("value", match.get("any", match.get("except")))
    values = wanted if isinstance(wanted, list) else [wanted]
    types = {type(value) for value in values}
    return _INDEXED.get(types.pop(), frozenset()) if len(types) == 1 else frozenset()


def _measured_leaf(condition: Mapping[str, Any]) -> Leaf:
    [kind] = [name for name in condition if name != "key"]
    name, value = f"{condition['key']} {kind}", condition[kind]
    if kind == "geo_polygon":
        vertices = sum(len(ring["points"]) for ring in (value["exterior"], *value.get("interiors", ())))
        return Leaf(f"{name} {vertices.bit_length()}", condition, byte_s=PAYLOAD_BYTE_S + VERTEX_BYTE_S * vertices)
    if kind != "match":
        return Leaf(name, condition)
    [(match, wanted)] = value.items()
    if match in _WORD_MATCHES:
        weight = max(1.0, len(wanted) / WORDS_MAX_CHARACTERS) if match == "text_any" else 1.0
        measured = {"key": condition["key"], "match": {match: _WORDS}}
        return Leaf(f"{name}.{match}", measured, weight, len(wanted) * TEXT_CHARACTER_S)
    some = wanted[:VALUES_MEASURED_MAX] if isinstance(wanted, list) else wanted
    return Leaf(f"{name}.{match}", {"key": condition["key"], "match": {match: some}})

"""Parse filters in Qdrant's JSON format before they reach a store. Errors contain the path of the mistake.

Every condition of the models of qdrant-client is understood by both stores. `null` in a field is its absence, because
clients write their models with it. This module does not import a client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from embedder.errors import InvalidRequest
from qdrant_sink import filter_values as values
from qdrant_sink.filter_size import FILTER_DEPTH_MAX, check_filter_size, filter_bytes

T = TypeVar("T")

Filter = Mapping[str, Any]
"""A filter in Qdrant's JSON format: {"must": [...], "should": [...], "must_not": [...]}."""

_CLAUSES: Final = ("must", "should", "must_not")
_MATCHES: Final = ("value", "any", "except", "text", "text_any", "phrase", "prefix", "substring")
_EXCEPT_IN_PYTHON: Final = "except_"
"""The name of `except` in the dump of a client's model that was made without aliases."""


class ParsedFilter(dict[str, Any]):
    """A filter in its canonical form. It must not be changed.

    Attributes:
        size_bytes: approximate size of its JSON in bytes; see `filter_bytes`.
    """

    def __init__(self, clauses: Mapping[str, Any]) -> None:
        super().__init__(clauses)
        self.size_bytes = filter_bytes(clauses)
        self._converted: dict[Callable[[ParsedFilter], Any], Any] = {}

    def converted(self, convert: Callable[[ParsedFilter], T]) -> T:
        """Return the filter in the type of a store. `convert` is called once, however many queries have the filter."""
        if convert not in self._converted:
            self._converted[convert] = convert(self)
        result: T = self._converted[convert]
        return result

    def extended(self, **clauses: Sequence[Mapping[str, Any]]) -> ParsedFilter:
        """Return the filter with further canonical conditions. The limits on a caller's filter do not count them."""
        return ParsedFilter(
            {**self, **{name: [*self.get(name, ()), *conditions] for name, conditions in clauses.items()}}
        )


def parse_filter(raw: Any, field: str = "filter") -> ParsedFilter:
    """Return a filter in its canonical form, in which both stores read it.

    The result has no nulls, and its clauses are lists. Payload keys are paths as Qdrant writes them, dates are in UTC,
    and UUIDs are hyphenated. A filter that was parsed is returned as it is.

    Raises:
        InvalidRequest: `raw` is not a valid filter, or exceeds a limit of `filter_size`. The error has a path such as
            `filter.must[0].match`.
    """
    if isinstance(raw, ParsedFilter):
        return raw
    check_filter_size(raw, field)
    return ParsedFilter(_filter(raw, field, 1))


def matches_all(where: Filter) -> bool:
    """Whether a filter matches every point whatever it holds, or has no condition at all at any depth.

    Raises:
        InvalidRequest: `where` is not a valid filter; see `parse_filter`.
    """
    return _outcome(parse_filter(where)) is True


def _filter(raw: Any, path: str, depth: int) -> dict[str, Any]:
    fields = values.parse_object(raw, path, (*_CLAUSES, "min_should"))
    if depth > FILTER_DEPTH_MAX:
        raise InvalidRequest(f"{path}: filters must be nested at most {FILTER_DEPTH_MAX} levels deep")
    result: dict[str, Any] = {}
    for clause in _CLAUSES:
        conditions = fields.get(clause)
        if isinstance(conditions, list):
            result[clause] = [_condition(one, f"{path}.{clause}[{i}]", depth) for i, one in enumerate(conditions)]
        elif conditions is not None:
            result[clause] = [_condition(conditions, f"{path}.{clause}", depth)]
    if "min_should" in fields:
        path = f"{path}.min_should"
        names = ("conditions", "min_count")
        min_should = values.parse_object(fields["min_should"], path, names, required=names)
        conditions = values.parse_list(min_should["conditions"], f"{path}.conditions")
        if not conditions:  # a server ignores such a clause over gRPC, and Qdrant Edge matches no point by it
            raise InvalidRequest(f"{path}.conditions: must have at least 1 condition, got 0")
        result["min_should"] = {
            "conditions": [_condition(one, f"{path}.conditions[{i}]", depth) for i, one in enumerate(conditions)],
            "min_count": values.parse_count(min_should["min_count"], f"{path}.min_count"),
        }
    return result


def _condition(raw: Any, path: str, depth: int) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise InvalidRequest(f"{path}: must be an object, got {values.type_name(raw)}")
    names = [name for name in ("key", *_CONDITIONS) if name in raw]
    name = next((name for name in names if raw[name] is not None), names[0] if names else None)
    if name is None:
        return _filter(raw, path, depth + 1)
    if name == "key":
        return _field_condition(raw, path)
    fields = values.parse_object(raw, path, (name,), required=(name,))
    return {name: _CONDITIONS[name](fields[name], f"{path}.{name}", depth)}


def _field_condition(raw: Mapping[str, Any], path: str) -> dict[str, Any]:
    fields = values.parse_object(raw, path, ("key", *_FIELD_CONDITIONS), required=("key",))
    key = values.parse_path(fields["key"], f"{path}.key")
    names = [name for name in _FIELD_CONDITIONS if name in fields]
    if len(names) != 1:
        got = ", ".join(names) or "none"
        raise InvalidRequest(
            f"{path}: must have key and exactly one of {', '.join(_FIELD_CONDITIONS)}, got {got}"
            + ("; write one condition for each" if names else "")
        )
    [name] = names
    return {"key": key, name: _FIELD_CONDITIONS[name](fields[name], f"{path}.{name}")}


def _match(raw: Any, path: str) -> dict[str, Any]:
    if isinstance(raw, Mapping) and _EXCEPT_IN_PYTHON in raw:
        raw = {"except" if name == _EXCEPT_IN_PYTHON else name: value for name, value in raw.items()}
    fields = values.parse_object(raw, path, _MATCHES)
    if len(fields) != 1:
        raise InvalidRequest(f"{path}: must have exactly one of {', '.join(_MATCHES)}, got {len(fields)}")
    [(name, value)] = fields.items()
    path = f"{path}.{name}"
    if name == "value":
        return {name: values.parse_exact(value, path)}
    if name in ("any", "except"):
        return {name: values.parse_alternatives(value, path)}
    return {name: values.parse_text(value, path)}


def _has_id(raw: Any, path: str, _depth: int) -> list[int | str]:
    return [values.parse_id(value, f"{path}[{i}]") for i, value in enumerate(values.parse_list(raw, path))]


def _has_vector(raw: Any, path: str, _depth: int) -> str:
    return values.parse_text(raw, path)


def _key(raw: Any, path: str, _depth: int) -> dict[str, str]:
    return {"key": values.parse_path(values.parse_object(raw, path, ("key",), required=("key",))["key"], f"{path}.key")}


def _nested(raw: Any, path: str, depth: int) -> dict[str, Any]:
    nested = values.parse_object(raw, path, ("key", "filter"), required=("key", "filter"))
    return {
        "key": values.parse_path(nested["key"], f"{path}.key"),
        "filter": _filter(nested["filter"], f"{path}.filter", depth + 1),
    }


def _slice(raw: Any, path: str, _depth: int) -> dict[str, int]:
    fields = values.parse_object(raw, path, ("total", "index"), required=("total", "index"))
    total = values.parse_count(fields["total"], f"{path}.total", limit=2**32 - 1)
    index = values.parse_count(fields["index"], f"{path}.index", limit=2**32 - 1)
    if index >= total:
        raise InvalidRequest(f"{path}.index: must be below total ({total}), got {index}")
    return {"total": total, "index": index}


_CONDITIONS: Final[Mapping[str, Callable[[Any, str, int], Any]]] = {
    "has_id": _has_id,
    "has_vector": _has_vector,
    "is_empty": _key,
    "is_null": _key,
    "nested": _nested,
    "slice": _slice,
}
_FIELD_CONDITIONS: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    "match": _match,
    "range": values.parse_range,
    "geo_bounding_box": values.parse_geo_bounding_box,
    "geo_radius": values.parse_geo_radius,
    "geo_polygon": values.parse_geo_polygon,
    "values_count": values.parse_values_count,
    "is_empty": values.parse_boolean,
    "is_null": values.parse_boolean,
}


def _outcome(where: Filter) -> bool | None:
    """Return whether a canonical filter matches every point (True), no point (False), or depends on the point."""
    must = [_condition_outcome(condition) for condition in where.get("must", [])]
    should = [_condition_outcome(condition) for condition in where.get("should", [])]
    clauses = [*must, *(_excluded_outcome(condition) for condition in where.get("must_not", []))]
    if should:
        clauses.append(_at_least(1, should))
    if "min_should" in where:
        conditions = [_condition_outcome(condition) for condition in where["min_should"]["conditions"]]
        clauses.append(_at_least(where["min_should"]["min_count"], conditions))
    if False in clauses:
        return False
    return None if None in clauses else True


def _excluded_outcome(condition: Mapping[str, Any]) -> bool | None:
    """Return the outcome of a condition in `must_not`. A filter without conditions has no effect there either."""
    outcome = _condition_outcome(condition)
    if outcome is None or (outcome and not condition.keys() & {"key", *_CONDITIONS}):
        return outcome
    return not outcome


def _at_least(count: int, outcomes: list[bool | None]) -> bool | None:
    if outcomes.count(True) >= count:
        return True
    return False if len(outcomes) - outcomes.count(False) < count else None


def _condition_outcome(condition: Mapping[str, Any]) -> bool | None:
    if "has_id" in condition:
        return None if condition["has_id"] else False
    if "slice" in condition:
        return True if condition["slice"]["total"] == 1 else None
    if "key" in condition:
        return _field_outcome(condition)
    return None if condition.keys() & _CONDITIONS.keys() else _outcome(condition)


def _field_outcome(condition: Mapping[str, Any]) -> bool | None:
    if condition.get("match", {}).get("any") == []:
        return False
    if (bounds := condition.get("values_count")) is not None:
        # Newer versions of Qdrant count a missing value as 0, so that these bounds hold for every point, or for none.
        lowest = max(bounds.get("gte", 0), bounds.get("gt", -1) + 1)
        highest = min(bounds.get("lte", values.COUNT_MAX), bounds.get("lt", values.COUNT_MAX + 1) - 1)
        if lowest > highest:
            return False
        return True if lowest == 0 and highest >= values.ARRAY_LENGTH_MAX else None
    return None

"""Refusals of a Qdrant server in its own words: what strict mode forbids, and what an older version cannot read.

The rules and texts are those of the server's source, in which `check_strict_mode` and the conversions of gRPC messages
make these checks before the engine sees a request.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

from qdrant_client import grpc as pb

Version = tuple[int, int, int]

_CONDITION_SINCE: Final = {"has_vector": (1, 13, 0), "slice": (1, 19, 0)}
_MATCH_SINCE: Final = {
    "phrase": (1, 15, 0),
    "text_any": (1, 15, 4),
    "prefix": (1, 19, 0),
    "substring": (1, 20, 0),
}
_ALL_TYPES: Final = ("bool", "datetime", "float", "geo", "integer", "keyword", "text", "uuid")


class RefusedError(Exception):
    """A request that the server refuses with INVALID_ARGUMENT and this message."""


class PointNotFoundError(Exception):
    """A request sets vectors of a point with this id, which does not exist."""


def strict_mode_error(what: str, solution: str) -> RefusedError:
    """Create the error of a request that strict mode forbids."""
    return RefusedError(f"Bad request: {what}. Help: {solution}")


def check_name(name: str) -> None:
    """Refuse the name of a new collection: by its characters, or because the disk cannot take so many bytes."""
    refused = next((character for character in '<>:"/\\|?*\0\x1f' if character in name), None)
    if refused is not None:
        message = f'collection name cannot contain "{refused}" char'
        raise RefusedError(f"Validation error in body: [collection_name: {message}]")
    if not 1 <= len(name) <= 255:
        message = f"value {json.dumps(name)} invalid, must be from 1 to 255 characters"
        raise RefusedError(f"Validation error in body: [collection_name: {message}]")
    if len(name.encode()) > 255:
        raise OSError(
            f"Service internal error: Can't create directory for collection {name}. Error: failed to create directory "
            f"`/qdrant/storage/collections/{name}`: File name too long (os error 36)"
        )


def check_indexed(where: pb.Filter, indexes: Mapping[str, pb.PayloadSchemaInfo]) -> None:
    """Refuse a filter with a key that has no index of a suitable type."""
    for key, types in _required(where, ""):
        info = indexes.get(key)
        if types and (info is None or pb.PayloadSchemaType.Name(info.data_type).lower() not in types):
            raise strict_mode_error(
                f'Index required but not found for "{key}" of one of the following types: [{", ".join(types)}]',
                "Create an index for this key or use a different filter.",
            )


def check_index_count(limit: int, indexes: Mapping[str, pb.PayloadSchemaInfo]) -> None:
    """Refuse a further payload index, also one that exists already."""
    if len(indexes) >= limit:
        raise strict_mode_error(
            f"Collection already has the maximum number of payload indices ({limit})",
            "Please delete an existing index before creating a new one.",
        )


def strict_forbids_exact(strict: pb.StrictModeConfig) -> bool:
    """Whether strict mode forbids exact searches and counts."""
    return bool(strict.enabled and strict.HasField("search_allow_exact") and not strict.search_allow_exact)


def as_read_by(version: Version, where: pb.Filter) -> pb.Filter:
    """Return the filter as a server of this version reads it: without the conditions that it does not know.

    Raises:
        RefusedError: the filter has a match that the version does not know.
    """
    known = pb.Filter()
    for clause in ("must", "should", "must_not"):
        getattr(known, clause).extend(_known(version, getattr(where, clause)))
    if where.HasField("min_should"):
        conditions = _known(version, where.min_should.conditions)
        known.min_should.CopyFrom(pb.MinShould(conditions=conditions, min_count=where.min_should.min_count))
    return known


def _known(version: Version, conditions: Any) -> list[pb.Condition]:
    known = []
    for condition in conditions:
        kind = condition.WhichOneof("condition_one_of")
        if version < _CONDITION_SINCE.get(kind, version):
            continue
        match = condition.field.match.WhichOneof("match_value") if kind == "field" else None
        if match is not None and version < _MATCH_SINCE.get(match, version):
            raise RefusedError("Malformed Match condition")
        copy = pb.Condition()
        copy.CopyFrom(condition)
        if kind == "filter":
            copy.filter.CopyFrom(as_read_by(version, condition.filter))
        elif kind == "nested":
            copy.nested.filter.CopyFrom(as_read_by(version, condition.nested.filter))
        known.append(copy)
    return known


def _required(where: pb.Filter, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the keys of a filter with the types of index that suit the condition; empty if none is needed."""
    for condition in (*where.must, *where.should, *where.must_not, *where.min_should.conditions):
        kind = condition.WhichOneof("condition_one_of")
        value = getattr(condition, kind)
        if kind == "filter":
            yield from _required(value, prefix)
        elif kind == "nested":
            yield from _required(value.filter, f"{prefix}{value.key.removesuffix('[]')}[].")
        elif kind in ("is_empty", "is_null"):
            yield prefix + value.key, _ALL_TYPES
        elif kind == "field":
            yield prefix + value.key, _types(value)


def _types(condition: Any) -> tuple[str, ...]:
    if condition.HasField("match"):
        return _match_types(condition.match)
    if condition.HasField("range"):
        return ("float", "integer")
    if condition.HasField("datetime_range"):
        return ("datetime",)
    if any(condition.HasField(name) for name in ("geo_radius", "geo_bounding_box", "geo_polygon")):
        return ("geo",)
    return _ALL_TYPES


def _match_types(match: Any) -> tuple[str, ...]:
    kind = match.WhichOneof("match_value")
    value = getattr(match, kind)
    if kind == "keyword":
        return ("keyword", "uuid") if _is_uuid(value) else ("keyword",)
    if kind in ("keywords", "except_keywords"):
        if not value.strings:
            return ()
        return ("keyword", "uuid") if all(map(_is_uuid, value.strings)) else ("keyword",)
    if kind in ("integers", "except_integers"):
        return ("integer",) if value.integers else ()
    return {"integer": ("integer",), "boolean": ("bool",), "prefix": ("keyword",), "substring": ("keyword",)}.get(
        kind, ("text",)
    )


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True

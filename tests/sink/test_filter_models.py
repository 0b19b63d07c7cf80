"""A filter that is written with the models of qdrant-client works as it is, whichever condition it has."""

from __future__ import annotations

import types
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final, Union, get_args, get_origin
from uuid import UUID

import pytest
from pydantic import BaseModel
from qdrant_client import models

from qdrant_sink.edge import EdgeStore
from qdrant_sink.filters import parse_filter
from qdrant_sink.server import ServerStore
from qdrant_sink.server.models import client_filter
from tests.sink.samples import SCHEMA, draft
from tests.sink.writing import write

_PAYLOADS: Final[list[dict[str, Any]]] = [
    {"k": "a b", "n": 1},
    {"k": 1, "n": None},
    {"k": True},
    {"k": ["a", "b"]},
    {"k": "2024-05-01T12:00:00Z"},
    {"k": {"lon": 1.0, "lat": 1.0}},
    {"k": [{"k": "a b"}]},
    {},
]
_VALUES: Final[dict[type, list[Any]]] = {
    str: ["k"],
    int: [1],
    float: [1.0],
    bool: [True, False],
    datetime: [datetime(2024, 5, 1, 12, 0, 0, 123456, UTC)],
    date: [date(2024, 5, 1)],
    UUID: [UUID(int=7)],
}
_CORNERS: Final = [models.GeoPoint(lon=lon, lat=lat) for lon, lat in [(0, 0), (9, 0), (9, 9), (0, 9), (0, 0)]]
_INNER: Final = models.Filter(must=[models.HasVectorCondition(has_vector="dense")])
_RESTRICTED: Final[dict[type, list[Any]]] = {
    models.Filter: [models.Filter(), _INNER],
    models.GeoLineString: [models.GeoLineString(points=_CORNERS)],
    models.HasIdCondition: [models.HasIdCondition(has_id=ids) for ids in ([], [1], [UUID(int=7)], [str(UUID(int=7))])],
    models.Slice: [models.Slice(total=2, index=1)],
}
"""Models that do not accept every value of their fields, and the one that contains itself."""


def _samples(kind: Any) -> tuple[Any, ...]:
    """Return sample values of a type: for a model, one per value of each field, beside the first of required ones."""
    if kind in _VALUES or kind in _RESTRICTED:
        return tuple(_VALUES.get(kind) or _RESTRICTED[kind])
    origin = get_origin(kind)
    if origin is Annotated:
        return _samples(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return tuple(sample for part in get_args(kind) if part is not type(None) for sample in _samples(part))
    if origin is list:
        return ([], *([sample] for sample in _samples(get_args(kind)[0])))
    return tuple(_instances(kind))


def _instances(kind: type[BaseModel]) -> Iterator[BaseModel]:
    required = {name: _samples(field.annotation)[0] for name, field in kind.model_fields.items() if field.is_required()}
    for name, field in kind.model_fields.items():
        for sample in _samples(field.annotation):
            instance = kind.model_construct(**{**required, name: sample})
            if kind is not models.FieldCondition or name != "key":  # a key alone is no condition on any server
                yield kind.model_validate(instance.model_dump(by_alias=True))


def _filters() -> list[models.Filter]:
    conditions = [sample for kind in get_args(models.Condition) for sample in _samples(kind)]
    return [
        *(models.Filter(must=[condition]) for condition in conditions),
        *(models.Filter(**{name: conditions[0]}) for name in ("must", "should", "must_not")),
        *(models.Filter(**{name: conditions[:2]}) for name in ("should", "must_not")),
        models.Filter(min_should=models.MinShould(conditions=conditions[:3], min_count=2)),
    ]


def _classes(value: Any) -> set[type]:
    if isinstance(value, list):
        return set().union(*map(_classes, value)) if value else set()
    if not isinstance(value, BaseModel):
        return set()
    parts = [_classes(getattr(value, name)) for name in type(value).model_fields]
    return {type(value)}.union(*parts)


def test_the_walk_covers_every_condition_of_the_client() -> None:
    """The next test has an instance of every class that a filter of the installed client can contain."""
    reached = set().union(*map(_classes, _filters()))
    assert reached >= {*get_args(models.Condition), *get_args(models.Match), *get_args(models.RangeInterface)}
    assert {models.GeoBoundingBox, models.GeoRadius, models.GeoPolygon, models.ValuesCount} <= reached
    assert {models.MinShould, models.Slice, models.Nested, models.PayloadField} <= reached


@pytest.fixture
def stores(edge_store: EdgeStore, server_store: ServerStore) -> tuple[EdgeStore, ServerStore]:
    """Both stores with the same points."""
    for store in (edge_store, server_store):
        store.ensure("docs", SCHEMA)
        write(store, "docs", [draft(i, payload=payload) for i, payload in enumerate(_PAYLOADS)], SCHEMA)
    return edge_store, server_store


def test_every_condition_of_the_client_is_accepted_by_both_stores(stores: tuple[EdgeStore, ServerStore]) -> None:
    """A client's filter is accepted in every form of its dump, unchanged in meaning, and counts the same points."""
    edge, server = stores
    counts = set()
    for model in _filters():
        dumps = [
            model.model_dump(),
            model.model_dump(exclude_none=True),
            model.model_dump(mode="json", by_alias=True),
            model.model_dump(mode="json", exclude_none=True),
            model.model_dump(mode="json", exclude_unset=True, by_alias=True),
        ]
        canonical = parse_filter(dumps[0])
        assert parse_filter(canonical) == canonical
        for dump in dumps:
            assert client_filter(dump) == client_filter(canonical), dump
        count = edge.count("docs", canonical)
        assert server.count("docs", canonical) == count, canonical
        counts.add(count)
    assert counts > {0, 1, len(_PAYLOADS)}


def test_a_filter_keeps_its_meaning(stores: tuple[EdgeStore, ServerStore]) -> None:
    """The request to the server contains the model that the caller dumped."""
    for model in _filters():
        sent = client_filter(model.model_dump(mode="json", by_alias=True))
        assert _plain(sent) == _plain(model)


def _plain(value: Any) -> Any:
    """Return a model as plain values: single conditions as lists, and dates as times in UTC."""
    if isinstance(value, models.Filter):
        names = ("must", "should", "must_not")
        clauses = {name: getattr(value, name) for name in names if getattr(value, name) is not None}
        lists = {name: clause if isinstance(clause, list) else [clause] for name, clause in clauses.items()}
        return {**{name: _plain(clause) for name, clause in lists.items()}, "min_should": _plain(value.min_should)}
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    return str(value) if isinstance(value, UUID) else value

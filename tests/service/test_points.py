"""Reading stored points: by their ids as they were given, and page by page."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder import Embedder
from qdrant_sink import PointId, Store, Stored, point_id
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json, unpacked
from tests.service.conftest import Serve
from tests.service.ingests import NOTES, job
from tests.sink.stores import EMBEDDED_FIRST, opened

POINTS: Final = {"operation": "points", "collection": NOTES}
UUID: Final = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
IDS: Final[list[int | str]] = ["a", 7, UUID, 2**64 - 1, "1"]
NOON: Final = "2024-05-01T12:00:00Z"
DATES: Final = [NOON, NOON, "2023-01-15", "1960-01-01", "2024-05-01T12:00:00.000001Z"]
DATES_IN_ORDER: Final = ["1960-01-01", "2023-01-15", NOON, DATES[4]]
INDEXES: Final = {"n": "integer", "price": "float", "when": "datetime", "topic": "keyword"}
PAYLOADS: Final[list[Json]] = [
    {"n": n % 2, "price": n / 2, "when": when, "topic": "files" if n % 2 else "data"} for n, when in enumerate(DATES)
]


def _filled(embedder: Embedder, store: Store, **variables: str) -> Client:
    environment = {**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": json.dumps({"payloadIndexes": INDEXES}), **variables}
    client = Client(Operations(Settings.from_environment(environment), embedder, store))
    client.good(job(*(f"text {n}" for n in range(len(IDS))), ids=IDS, payloads=PAYLOADS))
    return client


@pytest.fixture(scope="module", params=EMBEDDED_FIRST)
def reader(
    request: pytest.FixtureRequest, embedder: Embedder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A worker over each kind of store, with a point for each of `IDS`."""
    with opened(request.param, tmp_path_factory.mktemp("points")) as store:
        yield _filled(embedder, store)


def _pages(reader: Client, **fields: Any) -> list[Json]:
    """The pages of a request, each read with the `next` of the one before."""
    pages: list[Json] = []
    after: Json = {}
    while not pages or pages[-1]["next"] is not None:
        pages.append(reader.good({**POINTS, **fields, **after}))
        after = {"after": pages[-1]["next"]}
        assert len(pages) < 20
    return pages


def test_points_come_in_the_order_of_the_ids_as_they_were_given(reader: Client) -> None:
    """Each id has its point with both ids, again if it is repeated; an unknown one is missing, once."""
    answer = reader.good({**POINTS, "ids": ["1", "none", 7, "a", "1", 8, "none", UUID.upper()]})
    assert [(point["requestedId"], point["id"]) for point in answer["points"]] == [
        (raw, _own(raw)) for raw in ("1", 7, "a", "1", UUID.upper())
    ]
    assert answer["missing"] == ["none", 8]
    assert answer["points"][2]["payload"] == {**PAYLOADS[0], "text": "text 0", "id": "a"}
    assert "next" not in answer
    assert "vectors" not in answer["points"][0]


def _own(raw: int | str) -> int | str:
    own = point_id(raw, NOTES)
    return own if isinstance(own, int) else str(own)


def test_ids_are_found_in_their_scope(reader: Client) -> None:
    """A string is derived from the scope in which it was stored, so that another scope does not have it."""
    assert reader.good({**POINTS, "ids": ["a"], "idScope": "elsewhere"})["missing"] == ["a"]
    assert reader.good({**POINTS, "ids": ["a"], "idScope": NOTES})["missing"] == []


def test_vectors_are_those_of_the_text(reader: Client) -> None:
    """The requested kinds come as lists or base64, equal to what `embed` gives up to the normalisation of the store."""
    embedded = reader.good({"texts": ["text 1"], "isPassage": True})["results"][0]
    [listed] = reader.good({**POINTS, "ids": [7], "withVectors": True, "withPayload": False})["points"]
    assert set(listed) == {"id", "requestedId", "vectors"}
    np.testing.assert_allclose(listed["vectors"]["dense"], embedded["dense"], atol=1e-5)
    np.testing.assert_allclose(listed["vectors"]["colbert"], embedded["colbert"], atol=1e-3)
    assert listed["vectors"]["sparse"] == embedded["sparse"]
    fields = {"withVectors": ["dense", "colbert"], "encoding": "base64", "dtype": "float16"}
    [packed] = reader.good({**POINTS, "ids": [7], **fields})["points"]
    assert set(packed["vectors"]) == {"dense", "colbert"}
    np.testing.assert_allclose(unpacked(packed["vectors"]["dense"]), embedded["dense"], atol=1e-3)
    assert unpacked(packed["vectors"]["colbert"]).dtype == np.float16


def test_the_queue_gets_the_same_points(reader: Client) -> None:
    """A job of the queue has the answer of HTTP, vectors in base64 included."""
    raw = {**POINTS, "ids": [7, "a"], "withVectors": True, "encoding": "base64"}
    assert asyncio.run(reader.job(raw)) == reader.good(raw)


@pytest.mark.parametrize("limit", range(1, 7))
def test_pages_by_id_are_disjoint_and_complete(reader: Client, limit: int) -> None:
    """All pages together have every point once, in the order of the ids, integers before UUIDs."""
    pages = _pages(reader, limit=limit, withPayload=["n"])
    paged = [point for page in pages for point in page["points"]]
    whole = reader.good({**POINTS, "limit": 100})["points"]
    assert [point["id"] for point in paged] == [point["id"] for point in whole]
    assert {point["id"] for point in paged} == {_own(raw) for raw in IDS}
    assert all(set(point["payload"]) == {"n"} and "requestedId" not in point for point in paged)


def test_a_filter_selects_the_points_of_pages(reader: Client) -> None:
    """Pages have the matching points only."""
    where = {"must": [{"key": "topic", "match": {"value": "files"}}]}
    pages = _pages(reader, limit=1, filter=where)
    assert sorted(point["payload"]["text"] for page in pages for point in page["points"]) == ["text 1", "text 3"]


@given(
    key=st.sampled_from(["n", "price", "when"]),
    descending=st.booleans(),
    limit=st.integers(1, 6),
    files=st.booleans(),
)
@settings(max_examples=20, deadline=None, database=None)
def test_pages_of_an_order_are_disjoint_and_complete(
    reader: Client, key: str, descending: bool, limit: int, files: bool
) -> None:
    """All pages together have every matching point once, sorted by the key, whatever is equal."""
    fields: Json = {"filter": {"must": [{"key": "topic", "match": {"value": "files"}}]}} if files else {}
    order = {"key": key, "direction": "desc" if descending else "asc"}
    pages = _pages(reader, limit=limit, orderBy=order, **fields)
    payloads = [point["payload"] for page in pages for point in page["points"]]
    chosen = [payload for payload in PAYLOADS if not files or payload["topic"] == "files"]
    assert sorted(payload["price"] for payload in payloads) == [payload["price"] for payload in chosen]
    values = [DATES_IN_ORDER.index(payload["when"]) if key == "when" else payload[key] for payload in payloads]
    assert values == sorted(values, reverse=descending)
    assert all(len(page["points"]) == limit for page in pages[:-1])


def test_an_order_starts_at_a_value(reader: Client) -> None:
    """The order begins with the value of `startFrom`, and dates are given as texts."""
    answer = reader.good({**POINTS, "orderBy": {"key": "price", "startFrom": 1.5}})
    assert [point["payload"]["price"] for point in answer["points"]] == [1.5, 2.0]
    answer = reader.good(
        {**POINTS, "orderBy": {"key": "when", "direction": "desc", "startFrom": "2023-12-31T00:00:00Z"}}
    )
    assert [point["payload"]["when"] for point in answer["points"]] == ["2023-01-15", "1960-01-01"]


@pytest.mark.parametrize("key", ["nowhere", "topic"])
def test_an_order_without_a_suitable_index_names_it(reader: Client, key: str) -> None:
    """The error names the key, the types of index that order, and the setting that adds one."""
    answer = reader.error({**POINTS, "orderBy": {"key": key}}, "store_rejected")
    assert f"'{key}'" in answer["error"]
    assert "integer, float, datetime" in answer["error"]
    assert "payloadIndexes" in answer["error"]


def test_an_index_that_was_configured_later_is_created_for_an_order(embedder: Embedder, tmp_path: Path) -> None:
    """The first order by a configured key creates its index, though nothing is written."""
    with opened("double", tmp_path) as store:
        _filled(embedder, store, QDRANT_COLLECTION_CONFIG="{}").error(
            {**POINTS, "orderBy": {"key": "price"}}, "store_rejected"
        )
        later = Client(
            Operations(
                Settings.from_environment(
                    {**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": json.dumps({"payloadIndexes": INDEXES})}
                ),
                embedder,
                store,
            )
        )
        assert len(later.good({**POINTS, "orderBy": {"key": "price"}})["points"]) == len(IDS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ids": []}, "ids must have at least 1 item, got 0"),
        ({"ids": [1], "limit": 3}, "limit must not be given together with ids"),
        ({"ids": [1], "orderBy": {"key": "n"}}, "orderBy must not be given together with ids"),
        ({"ids": [-1]}, r"ids\[0\] must be from 0"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"limit": 10_001}, "limit must be at most 10000"),
        ({"after": "a"}, "after must be the id of a point, an integer or a UUID"),
        ({"after": {"value": 3}}, "after must be an id without orderBy"),
        ({"after": 3, "orderBy": {"key": "n"}}, "after must be an object of value and id with orderBy"),
        ({"after": {"id": 3}, "orderBy": {"key": "n"}}, "after.value is required"),
        ({"after": {"value": 3, "id": "a"}, "orderBy": {"key": "n"}}, "after.id must be the id of a point"),
        ({"after": {"value": True}, "orderBy": {"key": "n"}}, "after.value must be a number or a date, got a boolean"),
        ({"after": {"value": 3, "x": 1}, "orderBy": {"key": "n"}}, "got a field 'x'"),
        ({"orderBy": {"key": "n", "startFrom": "soon"}}, "orderBy.startFrom must be a number or an RFC 3339 date"),
        ({"orderBy": {"key": "n", "startFrom": 2**53 + 1}}, "orderBy.startFrom must be an integer that is exact"),
        ({"orderBy": {"key": "n", "startFrom": 10**400}}, r"orderBy.startFrom must be from -2\^63 to 2\^63 - 1"),
        ({"orderBy": {"key": "n", "startFrom": 1e300}}, r"orderBy.startFrom must be from -2\^63 to 2\^63 - 1 for 'n'"),
        ({"orderBy": {"key": "n", "startFrom": "2024-01-01"}}, "orderBy.startFrom must be a number for 'n'"),
        ({"orderBy": {"key": "when", "startFrom": 3}}, "orderBy.startFrom must be a date for 'when'"),
        ({"orderBy": {"key": "when"}, "after": {"value": 3}}, "after.value must be a date for 'when'"),
        ({"orderBy": {"key": ""}}, "orderBy.key must be a path"),
        ({"orderBy": {"key": "n", "direction": "up"}}, "orderBy.direction must be 'asc' or 'desc'"),
        ({"dtype": "float16"}, "dtype must be 'float32' with encoding 'list'"),
        ({"withVectors": ["dens"]}, r"withVectors\[0\] must be one of dense"),
    ],
)  # fmt: skip
def test_an_invalid_request_names_its_field(reader: Client, fields: Json, message: str) -> None:
    """The error says which field is wrong, the rule and the value."""
    answer = reader.error({**POINTS, **fields}, "invalid_request")
    assert re.search(message, answer["error"]), answer["error"]


JSONS: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([UUID, DATES[0]]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["value", "id", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@given(after=JSONS, start=JSONS, key=st.sampled_from([*INDEXES, "nowhere", "a.b[]"]), ordered=st.booleans())
@settings(max_examples=60, deadline=None, database=None)
def test_a_hostile_position_is_an_error_or_a_page(
    reader: Client, after: Any, start: Any, key: str, ordered: bool
) -> None:
    """No value of `after` and `startFrom` is a defect of the worker or a refusal of the store without a cause."""
    order = {"orderBy": {"key": key, "startFrom": start}} if ordered else {}
    answer = reader({**POINTS, **order, "after": after})
    if "error" in answer:
        assert answer["error_code"] == "invalid_request" or "payloadIndexes" in answer["error"], answer


class CountedFetches(EdgeStore):
    """Qdrant Edge that counts the points that are read by their ids."""

    fetched = 0

    def fetch(self, collection: str, ids: Sequence[PointId], *selection: Any, **names: Any) -> dict[PointId, Stored]:
        """See `Store.fetch`."""
        self.fetched += len(ids)
        return super().fetch(collection, ids, *selection, **names)


@pytest.mark.parametrize("fields", [{"limit": 40}, {"ids": list(range(40))}], ids=["page", "ids"])
def test_an_answer_that_is_too_large_ends_before_all_points_are_read(
    serve: Serve, tmp_path: Path, fields: Json
) -> None:
    """The size is checked after each portion, and the error says what to ask for instead."""
    store = CountedFetches(tmp_path / "counted")
    worker = serve(store=store, MAX_RESPONSE_MB="0.02")
    worker.good(
        job(*map(str, range(40)), ids=list(range(40)), payloads=[{"long": "x" * 2000}] * 40) | {"includeText": False}
    )
    answer = worker.error({**POINTS, **fields}, "response_too_large")
    assert "lower limit, send fewer ids" in answer["error"]
    assert store.fetched == 4 + 16
    assert len(worker.good({**POINTS, **fields, "withPayload": False})["points"]) == 40
    store.close()


def test_tenants_are_not_read_together(serve: Serve) -> None:
    """Pages of all tenants are refused; those of one tenant, and points by their ids, are not."""
    worker = serve(QDRANT_COLLECTION_CONFIG=json.dumps({"tenantKey": "tenant", "payloadIndexes": {"n": "integer"}}))
    worker.good(job("one", "two", ids=[1, 2], payloads=[{"tenant": "x", "n": 1}, {"tenant": "y", "n": 2}]))
    fields: Json
    for fields in ({}, {"filter": {}}, {"filter": None}, {"orderBy": {"key": "n"}}):
        assert "tenantKey" in worker.error({**POINTS, **fields}, "invalid_request")["error"]
    where = {"must": [{"key": "tenant", "match": {"value": "x"}}]}
    for fields in ({}, {"orderBy": {"key": "n"}}):
        assert [point["id"] for point in worker.good({**POINTS, "filter": where, **fields})["points"]] == [1]
    assert [point["id"] for point in worker.good({**POINTS, "ids": [2]})["points"]] == [2]


def test_points_of_a_missing_collection_are_not_found(serve: Serve) -> None:
    """Every way to read names the collection that does not exist."""
    for fields in ({}, {"ids": [1]}, {"orderBy": {"key": "n"}}):
        assert f"'{NOTES}'" in serve().error({**POINTS, **fields}, "not_found")["error"]

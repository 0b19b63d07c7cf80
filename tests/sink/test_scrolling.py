"""Pages of an order: every point is on one page, at its first value, however many points have the same value."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.errors import InvalidRequest
from qdrant_sink.errors import StoreRejected
from qdrant_sink.filters import Filter
from qdrant_sink.point_order import OrderPosition, OrderValue, PointOrder
from qdrant_sink.points import PointId
from qdrant_sink.schema import PayloadIndex
from qdrant_sink.scrolling import ScrollStore, ordered_page
from qdrant_sink.store import Store
from tests.sink.samples import SCHEMA, draft
from tests.sink.stores import STORES, drop, opened
from tests.sink.writing import write

COLLECTION: Final = "test_scrolling"
POINTS: Final = 40
TYPES: Final = {"n": "integer", "f": "float", "t": "datetime"}
EPOCH: Final = datetime(2024, 1, 1, tzinfo=UTC)
PAGES_MAX: Final = 60


def _id(number: int) -> PointId:
    return number if number % 3 else uuid.uuid5(uuid.NAMESPACE_OID, str(number))


def _values(number: int) -> list[int]:
    """The values of a point: few different ones, and several of some points."""
    return [] if number % 11 == 0 else [(number * 7) % 5, (number * 3) % 8] if number % 4 == 0 else [(number * 7) % 5]


def _payload(number: int) -> dict[str, Any]:
    values = _values(number)
    payload: dict[str, Any] = {"parity": number % 2}
    if values:
        dates = [(EPOCH + timedelta(microseconds=value)).isoformat() for value in values]
        payload |= {"n": values if len(values) > 1 else values[0], "f": [value / 4 for value in values], "t": dates}
    return payload


def _value(key: str, step: int) -> OrderValue:
    values: dict[str, OrderValue] = {"n": step, "f": step / 4, "t": EPOCH + timedelta(microseconds=step)}
    return values[key]


@pytest.fixture(scope="module", params=STORES)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each kind of store, with points of equal, several and no values."""
    with opened(request.param, tmp_path_factory.mktemp(request.param)) as store:
        store.ensure(COLLECTION, SCHEMA)
        for key, kind in TYPES.items():
            store.ensure_index(COLLECTION, key, PayloadIndex(kind))
        drafts = [draft(n, id=_id(n), payload=_payload(n)) for n in range(POINTS)]
        assert write(store, COLLECTION, drafts, SCHEMA).stored == POINTS
        yield store
    if request.param == "server":
        drop(COLLECTION)


@dataclass(frozen=True)
class Reading:
    """A random order with the size of its pages."""

    order: PointOrder
    step: int | None
    limit: int
    parity: int | None

    @property
    def where(self) -> Mapping[str, Any]:
        """The filter."""
        return {} if self.parity is None else {"must": [{"key": "parity", "match": {"value": self.parity}}]}

    def expected(self) -> list[PointId]:
        """The ids in order."""
        sign, ranks = -1 if self.order.descending else 1, []
        for number in range(POINTS):
            values = [
                sign * value for value in _values(number) if self.step is None or sign * value >= sign * self.step
            ]
            if values and (self.parity is None or number % 2 == self.parity):
                point = _id(number)
                rank = (isinstance(point, uuid.UUID), point if isinstance(point, int) else point.int)
                ranks.append((min(values), rank, point))
        return [point for _, _, point in sorted(ranks, key=lambda row: row[:2])]


@st.composite
def readings(draw: st.DrawFn) -> Reading:
    """Draw a reading."""
    key, step = draw(st.sampled_from(sorted(TYPES))), draw(st.none() | st.integers(-1, 9))
    order = PointOrder(key, draw(st.booleans()), None if step is None else _value(key, step))
    return Reading(order, step, draw(st.integers(1, POINTS + 2)), draw(st.none() | st.integers(0, 1)))


def _pages(store: Store, reading: Reading) -> list[list[PointId]]:
    pages: list[list[PointId]] = []
    after: OrderPosition | None = None
    while after is not None or not pages:
        page, after = ordered_page(
            store, COLLECTION, reading.where, reading.order, TYPES[reading.order.key], limit=reading.limit, after=after
        )
        pages.append(page)
        assert len(pages) < PAGES_MAX
    return pages


@given(reading=readings())
@settings(max_examples=25, deadline=None, database=None)
def test_pages_are_disjoint_and_complete(filled: Store, reading: Reading) -> None:
    """All pages together are every matching point once, by value and then by id, and all but the last one are full."""
    pages = _pages(filled, reading)
    assert [point for page in pages for point in page] == reading.expected()
    assert all(len(page) == reading.limit for page in pages[:-1])
    assert pages[-1] or len(pages) == 1


def test_an_order_of_integers_starts_at_a_fraction(filled: Store) -> None:
    """A fraction stands between two integers, in both directions."""
    for descending, least in ((False, 3), (True, 2)):
        order = PointOrder("n", descending, 2.5)
        page, _ = ordered_page(filled, COLLECTION, {}, order, "integer", limit=POINTS)
        assert page == Reading(order, least, POINTS, None).expected()


GREAT: Final = [
    *range(2**53 - 1, 2**53 + 4), 2**60, 2**60 + 1, 2**60 + 127, 2**60 + 128, 2**60 + 129, 2**63 - 1025, 2**63 - 1024,
    2**63 - 513, 2**63 - 2, 2**63 - 1, -(2**53) - 1, -(2**60) - 1, -(2**63) + 1, -(2**63),
]  # fmt: skip
"""Integers of which float64 has not all."""


def test_pages_end_at_integers_that_are_not_exact_as_float64(store: Store, collection: str) -> None:
    """Neighbours that a range cannot tell apart, several of a value and of a point, are on one page each."""
    store.ensure(collection, SCHEMA)
    store.ensure_index(collection, "n", PayloadIndex("integer"))
    values = (
        [[great] for great in GREAT] + [[great] for great in GREAT[::3]] + [[2**60 + 1, 2**60 + 2], [2**60 + 127, 0]]
    )
    drafts = [draft(i, payload={"n": value}) for i, value in enumerate(values)]
    assert write(store, collection, drafts, SCHEMA).stored == len(drafts)
    for descending in (False, True):
        sign = -1 if descending else 1
        expected = sorted(range(len(values)), key=lambda i: (min(sign * value for value in values[i]), i))
        for limit in (1, 2, 7, len(values)):
            assert _read(store, collection, PointOrder("n", descending), "integer", limit) == expected


def test_pages_end_at_a_value_that_is_the_first_of_no_point(store: Store, collection: str) -> None:
    """Where all points of the greatest value have a smaller one too, they are on the page of that one, once."""
    store.ensure(collection, SCHEMA)
    store.ensure_index(collection, "n", PayloadIndex("integer"))
    values = [[0, 9], [3, 9, 5], [1, 9], [2]]
    drafts = [draft(i, payload={"n": value}) for i, value in enumerate(values)]
    assert write(store, collection, drafts, SCHEMA).stored == len(drafts)
    for limit in (1, 2, 3, 4, 7, 8, 100):
        assert _read(store, collection, PointOrder("n"), "integer", limit) == [0, 2, 3, 1]
        assert _read(store, collection, PointOrder("n", descending=True), "integer", limit) == [0, 1, 2, 3]


def test_a_page_that_ends_at_a_date_without_a_position_is_an_error(store: Store, collection: str) -> None:
    """A date of the year 0, which filters do not have, is refused rather than followed by a wrong page."""
    store.ensure(collection, SCHEMA)
    store.ensure_index(collection, "t", PayloadIndex("datetime"))
    drafts = [draft(i, payload={"t": f"{i:04}-06-01T00:00:00Z"}) for i in range(2)]
    assert write(store, collection, drafts, SCHEMA).stored == len(drafts)
    with pytest.raises(InvalidRequest, match="orderBy: a page of 't' must end at a date of the years 1 to 9999"):
        ordered_page(store, collection, {}, PointOrder("t"), "datetime", limit=1)
    assert ordered_page(store, collection, {}, PointOrder("t"), "datetime", limit=2) == ([0, 1], None)


class Misreading:
    """A store that reads the bounds of ranges one step too high or too low, as a server's parser of JSON may.

    Args:
        store: the store.
        towards: infinity to which bounds move.
    """

    def __init__(self, store: Store, towards: float) -> None:
        self._store = store
        self._towards = towards

    def scroll(self, collection: str, where: Filter, *selection: Any, **options: Any) -> Any:
        """See `Store.scroll`."""
        return self._store.scroll(collection, self._misread(where), *selection, **options)

    def scroll_ordered(self, collection: str, where: Filter, order: PointOrder, *, limit: int) -> Any:
        """See `Store.scroll_ordered`."""
        return self._store.scroll_ordered(collection, self._misread(where), order, limit=limit)

    def _misread(self, where: Filter) -> Filter:
        moved = {
            clause: [
                {**one, "range": {name: math.nextafter(value, self._towards) for name, value in one["range"].items()}}
                for one in conditions
            ]
            for clause, conditions in where.items()
        }
        return {**where, **moved}


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("towards", [math.inf, -math.inf])
def test_a_number_that_a_server_misreads_is_an_error(filled: Store, towards: float, descending: bool) -> None:
    """Pages that would repeat or lose points, or never end, are refused with the way out."""
    with pytest.raises(StoreRejected, match="use gRPC in place of REST"):
        _read(Misreading(filled, towards), COLLECTION, PointOrder("f", descending), "float", 3)


def _read(store: ScrollStore, collection: str, order: PointOrder, index_type: str, limit: int) -> list[PointId]:
    """Read all pages."""
    points, after = ordered_page(store, collection, {}, order, index_type, limit=limit)
    while after is not None:
        page, after = ordered_page(store, collection, {}, order, index_type, limit=limit, after=after)
        points += page
        assert page
        assert len(points) < 100
    return points


def test_an_order_without_an_index_is_refused(store: Store, collection: str) -> None:
    """A store does not order by a key without an index, and its error says so."""
    store.ensure(collection, SCHEMA)
    with pytest.raises(StoreRejected, match=r"(?i)no range index for `order_by` key$"):
        store.scroll_ordered(collection, {}, PointOrder("n"), limit=1)

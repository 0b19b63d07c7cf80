"""The catalogue says what a name leads to now and what that collection has, and verifies what it remembers."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from embedder.errors import NotFound
from qdrant_sink.catalogue import SAMPLE_AGE_MAX_S, UNDECIDED_AGE_MAX_S, Catalogue
from qdrant_sink.conformance import conform
from qdrant_sink.edge import EdgeStore
from qdrant_sink.errors import LimitExceeded, SchemaMismatch
from qdrant_sink.payload_form import is_contradicted
from qdrant_sink.points import Point
from qdrant_sink.sampling import PAGE_POINTS, SAMPLE_POINTS, sample_points
from qdrant_sink.schema import VectorNames
from qdrant_sink.store import Store
from tests.sink.samples import SCHEMA, draft, schema_for

OTHER = schema_for(16, 16)
"""The schema of another model."""


@pytest.fixture
def catalogue(store: Store) -> Catalogue:
    """A catalogue of the store under test."""
    return Catalogue(lambda: store, SCHEMA)


@pytest.fixture
def alias(store: Store, collection: str) -> str:
    """An alias of the existing `collection`."""
    store.ensure(collection, SCHEMA)
    name = f"{collection}_alias"
    store.alias(name, collection)
    return name


def test_an_alias_resolves_to_its_collection(catalogue: Catalogue, collection: str, alias: str) -> None:
    """The alias and the name of the collection resolve to the same collection."""
    assert catalogue.resolve(alias) == catalogue.resolve(collection) == collection


def test_an_unknown_name_resolves_to_itself(catalogue: Catalogue, collection: str) -> None:
    """A job that creates its collection uses the requested name."""
    assert catalogue.resolve(collection) == collection
    assert not catalogue.exists(collection)
    with pytest.raises(NotFound, match=f"'{collection}' does not exist"):
        catalogue.recognised(collection)
    catalogue.ensure(collection)
    assert catalogue.exists(collection)
    catalogue.recognised(collection)


def test_a_moved_alias_is_followed_immediately(catalogue: Catalogue, store: Store, collection: str, alias: str) -> None:
    """The next job and the next read use the new target of an alias. An error contains the requested name."""
    catalogue.recognised(alias)
    other = f"{collection}_other"
    store.ensure(other, OTHER)
    store.alias(alias, other)
    assert catalogue.resolve(alias) == other
    for read in (catalogue.recognised, catalogue.exists, catalogue.ensure):
        with pytest.raises(SchemaMismatch) as caught:
            read(alias)
        assert caught.value.collection == alias
        assert f"'{alias}'" in caught.value.message
    catalogue.recognised(collection)


def test_a_read_creates_a_missing_index(store: Store, collection: str) -> None:
    """A collection that lacks only a payload index can be read, and has the index after that."""
    store.ensure(collection, SCHEMA)
    indexed = Catalogue(lambda: store, replace(SCHEMA, payload_indexes={"topic": "keyword"}))
    indexed.recognised(collection)
    assert store.description(collection).payload_indexes["topic"].type == "keyword"


def test_threads_share_one_catalogue(catalogue: Catalogue, collection: str) -> None:
    """Concurrent jobs and searches find the same collection."""
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: catalogue.ensure(collection), range(8)))
        assert all(threads.map(lambda _: catalogue.exists(collection), range(50)))


class Counted:
    """A store that counts the calls of a catalogue."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._store, name)

    def counted(self) -> dict[str, int]:
        """Return the calls since the last time."""
        calls, self.calls = dict(self.calls), Counter()
        return calls


@dataclass
class Clock:
    """A clock that the test moves."""

    now: float = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


def filled(store: Store, collection: str, count: int, **payload: Any) -> None:
    """Store points with this payload."""
    points = [conform(draft(number, payload=payload), SCHEMA) for number in range(count)]
    store.upsert(collection, [point for point in points if isinstance(point, Point)])


def test_a_warm_read_costs_one_description(edge_store: EdgeStore) -> None:
    """Points are sampled once, and every read and every write is verified."""
    store = Counted(edge_store)
    catalogue = Catalogue(lambda: cast("Store", store), SCHEMA)
    catalogue.ensure("notes")
    assert catalogue.to_write("absent") is None
    assert catalogue.guess("absent") is None
    filled(edge_store, "notes", 20, body="some words")
    store.counted()
    first = catalogue.recognised("notes")
    assert (first.text_key, first.schema.text_key) == ("body", "body")
    assert store.counted() == {"description": 1, "scroll": 3, "verify": 1}
    assert catalogue.recognised("notes") is catalogue.guess("notes") is first
    assert store.counted() == {"description": 1, "verify": 1}
    assert catalogue.to_write("notes") is first
    assert store.counted() == {"description": 1, "scroll": 1}


def test_a_set_layout_needs_no_sample(edge_store: EdgeStore) -> None:
    """A catalogue whose config has the layout reads no points."""
    store = Counted(edge_store)
    catalogue = Catalogue(lambda: cast("Store", store), replace(SCHEMA, layout="haystack"))
    catalogue.ensure("notes")
    store.counted()
    for _ in range(2):
        assert catalogue.recognised("notes").schema.layout == "haystack"
        assert catalogue.layouts("notes") == ("haystack",)
        catalogue.to_write("notes")
    assert "scroll" not in store.counted()


def test_points_in_another_form_are_noticed(edge_store: EdgeStore) -> None:
    """A write notices them immediately, and a read within ten minutes."""
    clock = Clock()
    catalogue = Catalogue(lambda: edge_store, SCHEMA, clock=clock)
    catalogue.ensure("notes")
    filled(edge_store, "notes", 20, body="some words")
    assert catalogue.recognised("notes").text_key == "body"
    filled(edge_store, "notes", 20, page_content="some words", metadata={})
    clock.now = SAMPLE_AGE_MAX_S - 1
    assert catalogue.recognised("notes").schema.layout == "plain"
    clock.now = SAMPLE_AGE_MAX_S
    assert catalogue.recognised("notes").schema.layout == "langchain"
    filled(edge_store, "notes", 20, content="some words")
    to_write = catalogue.to_write("notes")
    assert to_write is not None
    assert to_write.written_by(None).text_key == "content"
    assert catalogue.recognised("notes") is to_write


def test_the_first_points_of_an_empty_collection_decide(edge_store: EdgeStore) -> None:
    """The form of a collection without points is that of the config, until somebody writes the first points."""
    catalogue = Catalogue(lambda: edge_store, SCHEMA)
    catalogue.ensure("notes")
    assert catalogue.recognised("notes").form.source == "default"
    filled(edge_store, "notes", 1, page_content="some words", metadata={})
    assert catalogue.recognised("notes").schema.layout == "langchain"
    assert catalogue.layouts("notes") == ("plain", "langchain")


def test_an_undecided_form_is_sampled_again(edge_store: EdgeStore) -> None:
    """A write samples every time, and a read after a minute."""
    clock = Clock()
    catalogue = Catalogue(lambda: edge_store, SCHEMA, clock=clock)
    catalogue.ensure("notes")
    filled(edge_store, "notes", 1, content="some words", body="some words")
    assert catalogue.recognised("notes").ambiguous == {"textKey": ("content", "body")}
    filled(edge_store, "notes", 1, body="some words")
    assert catalogue.recognised("notes").text_key is None
    clock.now = UNDECIDED_AGE_MAX_S
    assert catalogue.recognised("notes").text_key == "body"
    filled(edge_store, "notes", 1, year=1)
    clock.now += SAMPLE_AGE_MAX_S
    assert catalogue.recognised("notes").text_key is None
    filled(edge_store, "notes", 1, body="some words")
    to_write = catalogue.to_write("notes")
    assert to_write is not None
    assert to_write.text_key == "body"


def test_a_collection_that_was_made_again_is_recognised_again(edge_store: EdgeStore) -> None:
    """Nothing of what was remembered holds when the description differs."""
    catalogue = Catalogue(lambda: edge_store, SCHEMA)
    catalogue.ensure("notes")
    before = catalogue.recognised("notes")
    edge_store.ensure("other", replace(SCHEMA, names=VectorNames(dense="", sparse="words"), colbert=None))
    edge_store.alias("alias", "notes")
    catalogue.recognised("alias")
    edge_store.alias("alias", "other")
    after = catalogue.recognised("alias")
    assert before.schema.kinds == ("dense", "sparse", "colbert")
    assert (after.schema.kinds, after.schema.names.dense, after.schema.names.sparse) == (
        ("dense", "sparse"),
        "",
        "words",
    )
    with pytest.raises(SchemaMismatch, match="is absent"):
        edge_store.ensure("other", before.schema)


def test_a_sample_is_small(edge_store: EdgeStore) -> None:
    """Large payloads, and payloads that disagree, are read no further; a small collection is read whole."""
    edge_store.ensure("notes", SCHEMA)
    filled(edge_store, "notes", 100, text="some words")
    assert len(sample_points(edge_store, "notes")) == SAMPLE_POINTS
    assert list(sample_points(edge_store, "notes", points=3)) == [0, 1, 2]
    filled(edge_store, "notes", 100, text="x" * 200_000)
    assert len(sample_points(edge_store, "notes")) == PAGE_POINTS
    filled(edge_store, "notes", 1, year=1)
    assert len(sample_points(edge_store, "notes", suffices=is_contradicted)) == PAGE_POINTS


@pytest.mark.parametrize("maximum", [3, 0])
def test_a_sample_is_read_in_pages_that_strict_mode_allows(edge_store: EdgeStore, maximum: int) -> None:
    """A small `max_query_limit` gives the same sample in smaller pages; a server that allows no page refuses."""

    class SmallPages:
        def scroll(self, *values: Any, limit: int, **named: Any) -> Any:
            if limit > maximum:
                raise LimitExceeded("Limit exceeded", field="limit", maximum=float(maximum))
            return edge_store.scroll(*values, limit=limit, **named)

    edge_store.ensure("notes", SCHEMA)
    filled(edge_store, "notes", 20, text="some words")
    if maximum:
        assert list(sample_points(SmallPages(), "notes", points=10)) == list(range(10))
    else:
        with pytest.raises(LimitExceeded):
            sample_points(SmallPages(), "notes")

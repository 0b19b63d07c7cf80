"""The catalogue says what a name leads to now, and remembers nothing that can become wrong."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from embedder.errors import NotFound
from qdrant_sink.catalogue import Catalogue
from qdrant_sink.errors import SchemaMismatch
from qdrant_sink.store import Store
from tests.sink.samples import SCHEMA, schema_for

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

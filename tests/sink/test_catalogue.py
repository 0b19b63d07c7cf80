"""The catalogue caches by collection, regardless of the requested name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from embedder.errors import NotFound
from qdrant_sink.catalogue import RESOLUTION_MAX_AGE_S, Catalogue
from qdrant_sink.errors import SchemaMismatch
from qdrant_sink.points import Draft, PointId, chunk_id
from qdrant_sink.schema import CollectionSchema, PayloadIndex
from qdrant_sink.store import Store
from qdrant_sink.writing import DocumentLocks, Writer, delete_stale_chunks
from tests.sink.samples import SCHEMA, draft, schema_for
from tests.sink.writing import write

SCOPE = "notes"
OTHER = schema_for(16, 16)
"""The schema of another model."""


class Clock:
    """A clock that is set by the test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


class RecordedStore:
    """A store that records the calls of a catalogue."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.calls: list[str] = []

    def collection_of(self, name: str, *, patient: bool = False) -> str | None:
        """See `Store.collection_of`."""
        self.calls.append("collection_of")
        return self.store.collection_of(name, patient=patient)

    def verify(self, collection: str, schema: CollectionSchema) -> bool:
        """See `Store.verify`."""
        self.calls.append("verify")
        return self.store.verify(collection, schema)

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """See `Store.ensure`."""
        self.calls.append("ensure")
        self.store.ensure(collection, schema)

    def ensure_index(self, collection: str, key: str, index: PayloadIndex) -> None:
        """See `Store.ensure_index`."""
        self.calls.append("ensure_index")
        self.store.ensure_index(collection, key, index)


@pytest.fixture
def clock() -> Clock:
    """A clock that does not advance by itself."""
    return Clock()


@pytest.fixture
def recorded(store: Store) -> RecordedStore:
    """The store under test, with recorded calls."""
    return RecordedStore(store)


@pytest.fixture
def catalogue(recorded: RecordedStore, clock: Clock) -> Catalogue:
    """An empty catalogue."""
    return Catalogue(lambda: recorded, SCHEMA, clock=clock)


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
    assert not catalogue.verify(collection)
    with pytest.raises(NotFound, match=f"'{collection}' does not exist"):
        catalogue.check_read(collection)
    assert catalogue.ensure(collection) == collection
    assert catalogue.verify(collection)
    catalogue.check_read(collection)


def test_a_collection_is_verified_once_for_all_names(
    catalogue: Catalogue, recorded: RecordedStore, collection: str, alias: str
) -> None:
    """Searches in quick succession, by alias or by name, do not verify again."""
    catalogue.check_read(alias)
    assert recorded.calls == ["collection_of", "verify"]
    for _ in range(5):
        catalogue.check_read(alias)
        catalogue.check_read(collection)
        assert catalogue.verify(alias)
    assert recorded.calls == ["collection_of", "verify"]


def test_a_job_does_not_use_cached_names(
    catalogue: Catalogue, recorded: RecordedStore, store: Store, collection: str, alias: str
) -> None:
    """A job that starts after an alias was moved uses the new target, regardless of the cache."""
    catalogue.check_read(alias)
    newer = f"{collection}_newer"
    store.ensure(newer, SCHEMA)
    store.alias(alias, newer)
    assert catalogue.resolve(alias) == newer
    assert recorded.calls == ["collection_of", "verify", "collection_of"]


def test_a_moved_alias_is_resolved_again_after_a_second(
    catalogue: Catalogue, recorded: RecordedStore, clock: Clock, collection: str, alias: str
) -> None:
    """A read uses a cached name for one second at most."""
    catalogue.check_read(alias)
    newer = f"{collection}_newer"
    recorded.store.ensure(newer, SCHEMA)
    recorded.store.alias(alias, newer)
    catalogue.check_read(alias)
    assert recorded.calls == ["collection_of", "verify"]
    clock.now += RESOLUTION_MAX_AGE_S
    catalogue.check_read(alias)
    assert recorded.calls == ["collection_of", "verify"] * 2


def test_a_job_into_a_verified_collection_only_resolves_and_ensures(
    catalogue: Catalogue, recorded: RecordedStore, collection: str, alias: str
) -> None:
    """Small jobs into a verified collection cost the server only two calls each."""
    catalogue.check_read(collection)
    recorded.calls.clear()
    target = catalogue.resolve(alias)
    assert catalogue.verify(alias)
    assert catalogue.ensure(target) == collection
    assert recorded.calls == ["collection_of", "ensure"]


def test_an_alias_that_moved_to_another_schema_is_refused(
    catalogue: Catalogue, clock: Clock, store: Store, collection: str, alias: str
) -> None:
    """A moved alias is verified again. The error contains the requested name."""
    catalogue.check_read(alias)
    other = f"{collection}_other"
    store.ensure(other, OTHER)
    store.alias(alias, other)
    clock.now += RESOLUTION_MAX_AGE_S
    for read in (catalogue.check_read, catalogue.verify, catalogue.ensure):
        with pytest.raises(SchemaMismatch) as caught:
            read(alias)
        assert caught.value.collection == alias
        assert f"'{alias}'" in caught.value.message
    catalogue.check_read(collection)


def test_a_read_creates_a_missing_index(recorded: RecordedStore, store: Store, collection: str) -> None:
    """A collection that lacks only a payload index can be read, and has the index after that."""
    store.ensure(collection, SCHEMA)
    indexed = Catalogue(lambda: recorded, replace(SCHEMA, payload_indexes={"topic": "keyword"}))
    assert not indexed.verify(collection)
    indexed.check_read(collection)
    assert recorded.calls.count("ensure_index") == 1
    assert indexed.verify(collection)


class Names:
    """A store of names. The function `meanwhile` is called once, before an answer is returned."""

    def __init__(self) -> None:
        self.collections: dict[str, str] = {"old": "old", "new": "new", "alias": "old"}
        self.verified: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def collection_of(self, name: str, *, patient: bool = False) -> str | None:
        """What the name stood for when this was called."""
        collection = self.collections.get(name)
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        return collection

    def verify(self, collection: str, _schema: CollectionSchema) -> bool:
        """All collections have the schema."""
        self.verified.append(collection)
        return True

    def ensure(self, collection: str, _schema: CollectionSchema) -> None:
        """Make it."""
        self.collections[collection] = collection

    def ensure_index(self, collection: str, _key: str, _index: PayloadIndex) -> None:
        """All collections have their indexes."""


def test_a_deleted_collection_is_removed_from_the_cache() -> None:
    """A collection that was deleted and created again is verified again."""
    names = Names()
    catalogue = Catalogue(lambda: names, SCHEMA)
    assert catalogue.verify("old")
    del names.collections["old"]
    assert catalogue.resolve("old") == "old"
    names.collections["old"] = "old"
    assert catalogue.verify("old")
    assert names.verified == ["old", "old"]


def test_an_outdated_answer_is_not_cached(clock: Clock) -> None:
    """A thread that asked before the alias moved does not overwrite the newer answer of another thread."""
    names = Names()
    catalogue = Catalogue(lambda: names, SCHEMA, clock=clock)

    def move() -> None:
        clock.now += 0.1
        names.collections["alias"] = "new"
        assert catalogue.resolve("alias") == "new"

    names.meanwhile = move
    assert catalogue.resolve("alias") == "old"
    assert catalogue.resolve("alias", max_age_s=RESOLUTION_MAX_AGE_S) == "new"


def test_a_collection_is_verified_again_after_a_deletion_by_alias() -> None:
    """A collection that was deleted with its alias and created again is verified again."""
    names, clock = Names(), Clock()
    names.collections = {"alias": "old", "old": "old"}
    catalogue = Catalogue(lambda: names, SCHEMA, clock=clock)
    assert catalogue.verify("alias")
    names.collections = {}
    clock.now += RESOLUTION_MAX_AGE_S
    assert catalogue.resolve("alias") == "alias"
    names.collections = {"alias": "old", "old": "old"}
    names.verified.clear()
    clock.now += RESOLUTION_MAX_AGE_S
    assert catalogue.verify("alias")
    assert names.verified == ["old"]


def test_threads_share_one_catalogue(store: Store, collection: str) -> None:
    """Concurrent jobs and searches resolve to the same collection."""
    catalogue = Catalogue(lambda: store, SCHEMA)
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: catalogue.ensure(collection), range(8))) == {collection}
        assert all(threads.map(lambda _: catalogue.verify(collection), range(50)))


def _version(document: PointId, chunks: int) -> list[Draft]:
    return [draft(number, id=chunk_id(document, number, SCOPE)) for number in range(chunks)]


def test_jobs_by_alias_and_by_name_do_not_mix_a_document(store: Store, collection: str, alias: str) -> None:
    """Two versions of a document are written one after the other, also if one job uses an alias."""
    catalogue, locks = Catalogue(lambda: store, SCHEMA), DocumentLocks()
    stored, go_on = threading.Event(), threading.Event()

    def job(name: str, chunks: int, pause: Callable[[], object]) -> None:
        target = catalogue.resolve(name)
        with locks.held(target, SCOPE, {1}):
            assert write(store, target, _version(1, chunks), SCHEMA).stored == chunks
            pause()
            delete_stale_chunks(store, target, {1: chunks}, SCOPE)

    def wait() -> None:
        stored.set()
        assert go_on.wait(30)

    with ThreadPoolExecutor(2) as threads:
        short = threads.submit(job, alias, 2, wait)
        assert stored.wait(30)
        long = threads.submit(job, collection, 9, lambda: None)
        with pytest.raises(TimeoutError):
            long.result(0.1)
        go_on.set()
        short.result(30)
        long.result(30)
    assert store.count(collection) == 9


def test_an_alias_that_moves_during_a_job_does_not_split_it(store: Store, collection: str, alias: str) -> None:
    """All points of a job are stored in the collection to which its name resolved at the start."""
    catalogue = Catalogue(lambda: store, SCHEMA)
    target = catalogue.resolve(alias)
    newer = f"{collection}_newer"

    def portions() -> Iterator[Sequence[Draft]]:
        yield [draft(0), draft(1)]
        store.ensure(newer, SCHEMA)
        store.alias(alias, newer)
        yield [draft(2), draft(3)]

    with ThreadPoolExecutor(2) as senders:
        writer = Writer(store, target, SCHEMA, senders, ensure=lambda: catalogue.ensure(target))
        assert writer.write(portions()).stored == 4
    assert (store.count(collection), store.count(newer)) == (4, 0)

"""A document that is sent again replaces its older version as a whole, whoever else writes it."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdrant_sink.documents import Document, DocumentPaths, chunk_id, new_version, unversioned_chunk_id
from qdrant_sink.errors import AccessDenied, IndexRequired, LimitExceeded
from qdrant_sink.filters import Filter
from qdrant_sink.points import PayloadKeys, Point, PointId, Stored
from qdrant_sink.schema import PayloadIndex
from qdrant_sink.store import Store
from qdrant_sink.writing import Replacement, VersionedCollections
from tests.sink.interleaving import Turns
from tests.sink.samples import SCHEMA, sample_vectors

PATHS = DocumentPaths.of("plain")
DOCUMENT = Document.of(uuid.UUID(int=7), "notes", "doc")
OTHER = Document.of(uuid.UUID(int=8), "notes", "other")

Payload = Mapping[str, Any]


def chunk_payload(document: Document, version: str, number: int, **more: Any) -> Payload:
    """The fields that the worker writes into a chunk."""
    return {"doc_id": document.payload_id, "chunk": number, "doc_key": document.key, "doc_version": version, **more}


@dataclass
class Memory:
    """A store in memory that lets a thread wait before every call.

    Attributes:
        turns: turns of the threads.
        points: payloads by id.
    """

    turns: Turns
    points: dict[PointId, Payload] = field(default_factory=dict)

    def ensure_index(self, _collection: str, _key: str, _index: PayloadIndex) -> None:
        """See `Store.ensure_index`."""

    def upsert(self, points: Mapping[PointId, Payload]) -> None:
        """Store these points as a whole."""
        self.turns.wait()
        self.points.update(points)

    def scroll(
        self, _collection: str, where: Filter, _keys: PayloadKeys, *, limit: int, after: PointId | None = None
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """See `Store.scroll`."""
        self.turns.wait()
        ids = sorted((point for point, payload in self.points.items() if matches(where, payload)), key=str)
        start = 0 if after is None else next((n for n, point in enumerate(ids) if str(point) >= str(after)), len(ids))
        page = {point: Stored(self.points[point]) for point in ids[start : start + limit]}
        return page, ids[start + limit] if len(ids) > start + limit else None

    def set_payload(self, _collection: str, ids: Sequence[PointId], path: str, value: Any) -> None:
        """See `Store.set_payload`."""
        self.turns.wait()
        for point in ids:
            if point in self.points:
                self.points[point] = {**self.points[point], path: value}

    def delete(self, _collection: str, *, ids: Sequence[PointId] = ()) -> int:
        """See `Store.delete`."""
        self.turns.wait()
        return sum(self.points.pop(point, None) is not None for point in ids)


def matches(where: Filter, payload: Payload) -> bool:
    """Whether a payload meets the conditions that a replacement uses."""
    for condition in where["must"]:
        if "is_empty" in condition:
            holds = condition["is_empty"]["key"] not in payload
        elif "range" in condition:
            holds = condition["range"]["gte"] <= payload.get(condition["key"], -1)
        else:
            holds = payload.get(condition["key"]) in condition["match"]["any"]
        if not holds:
            return False
    return True


@dataclass
class Job:
    """One write of a document with so many chunks.

    Attributes:
        name: name in the payload of its chunks.
        chunks: number of chunks.
        skew_ms: how far the clock of its machine is ahead.
        rejected: number of further chunks that are planned, and rejected when they are written.
        version: version of the write, when it has begun.
        acknowledged: whether the job reported success.
    """

    name: str
    chunks: int
    skew_ms: int = 0
    rejected: int = 0
    version: str = ""
    acknowledged: bool = False

    def run(self, memory: Memory) -> None:
        """Write the document and report."""
        replacement = Replacement(memory, "c", PATHS, [DOCUMENT], VersionedCollections(), batch_points=2)
        replacement.begin()
        self.version = replacement.versions[DOCUMENT.key]
        points = {
            chunk_id(DOCUMENT.key, self.version, number): chunk_payload(
                DOCUMENT, self.version, number, by=self.name, doc_chunks=self.chunks + self.rejected
            )
            for number in range(self.chunks)
        }
        ids = list(points)
        for first in range(0, len(ids), 2):
            memory.upsert({point: points[point] for point in ids[first : first + 2]})
        outcome = replacement.commit({DOCUMENT.key: ids}, reduced={DOCUMENT.key} if self.rejected else ())
        self.acknowledged = not outcome.superseded and not outcome.missing


def contents(memory: Memory) -> dict[str, int]:
    """How many chunks of the document each writer has in the store."""
    counts: dict[str, int] = {}
    for payload in memory.points.values():
        if payload["doc_id"] == DOCUMENT.payload_id:
            counts[payload["by"]] = counts.get(payload["by"], 0) + 1
    return counts


def earlier(kind: str, memory: Memory) -> dict[str, int]:
    """Store an earlier version of five chunks; one of an earlier release lacks its fourth."""
    version = new_version()
    for number in range(5):
        if kind == "versioned":
            point, payload = (
                chunk_id(DOCUMENT.key, version, number),
                chunk_payload(DOCUMENT, version, number, doc_chunks=5),
            )
        else:
            point = unversioned_chunk_id(DOCUMENT.id, number, DOCUMENT.scope)
            payload = {"doc_id": "doc", "chunk": number}
        if kind != "none" and not (kind == "unversioned" and number == 3):
            memory.points[point] = {**payload, "by": "earlier"}
    return contents(memory)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "killed"])
@given(data=st.data())
@settings(max_examples=150)
def test_concurrent_writers_leave_one_whole_version(killed: bool, data: st.DataObject) -> None:
    """Whatever the order of their calls and the clocks of their machines, one of the versions remains, and whole.

    Where writers are killed, the last acknowledged version or a later one is whole, or the earlier one if there is
    none. What they leave behind is gone after the next write.
    """
    jobs = [
        Job(
            f"job {n}",
            data.draw(st.integers(1, 5)),
            data.draw(st.sampled_from([-5000, 0, 0, 5000])),
            data.draw(st.sampled_from([0, 0, 1])),
        )
        for n in range(data.draw(st.integers(2, 3)))
    ]
    killed_at = {
        n: data.draw(st.integers(2, 12))
        for n in range(len(jobs))
        if killed and data.draw(st.booleans(), label="killed")
    }
    turns = Turns(lambda count: data.draw(st.integers(0, count - 1)), killed_at)
    memory = Memory(turns)
    ticks = itertools.count(10_000)  # two calls in a millisecond

    def time_ns() -> int:
        skew_ms = jobs[turns.index].skew_ms if turns.index >= 0 else 0
        return (next(ticks) // 2 + skew_ms) * 1_000_000

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qdrant_sink.documents.time", SimpleNamespace(time_ns=time_ns))
        patch.setattr("qdrant_sink.documents.secrets", SimpleNamespace(randbits=random.Random(0).getrandbits))
        before = earlier(data.draw(st.sampled_from(["none", "versioned", "unversioned"])), memory)
        turns.run([lambda job=job: job.run(memory) for job in jobs])  # type: ignore[misc]
        left = contents(memory)
        whole = [job for job in jobs if left.get(job.name) == job.chunks]
        acknowledged = [job for job in jobs if job.acknowledged]
        if not killed_at:
            latest = max(jobs, key=lambda job: job.version)
            assert left == {latest.name: latest.chunks}
            assert latest.acknowledged
        elif acknowledged:
            last = max(acknowledged, key=lambda job: job.version)
            assert any(job.version >= last.version for job in whole)
        else:
            assert whole or before.items() <= left.items()
        final = Job("final", data.draw(st.integers(1, 5)), -10_000)
        final.run(memory)
        assert final.acknowledged
        assert contents(memory) == {"final": final.chunks}


def stored_chunks(store: Store, collection: str, ids: Sequence[PointId], payloads: Sequence[Payload]) -> None:
    """Store chunks with these payloads."""
    dense = sample_vectors(0).dense
    store.upsert(collection, [Point(point, payload, dense=dense) for point, payload in zip(ids, payloads, strict=True)])


def write(store: Store, collection: str, chunks: int, document: Document = DOCUMENT, **options: Any) -> int:
    """Write a document, and return how many chunks of other versions were deleted."""
    replacement = Replacement(store, collection, PATHS, [document], VersionedCollections(), **options)
    replacement.begin()
    version = replacement.versions[document.key]
    numbers = [number for number in range(chunks) if (document.key, number) not in replacement.kept]
    ids = [chunk_id(document.key, version, number) for number in numbers]
    stored_chunks(store, collection, ids, [chunk_payload(document, version, number) for number in numbers])
    outcome = replacement.commit({document.key: ids}, whole=[document.key])
    assert not outcome.superseded
    assert not outcome.missing
    return outcome.deleted


def of(document: Document) -> Filter:
    """The filter of a document's chunks."""
    return {"must": [{"key": "doc_key", "match": {"value": document.key}}]}


def test_a_new_version_replaces_the_older_one_alone(store: Store, collection: str) -> None:
    """Shorter and longer versions leave exactly their own chunks, and other documents are untouched."""
    store.ensure(collection, SCHEMA)
    write(store, collection, 4, OTHER)
    for chunks, deleted in ((9, 0), (2, 9), (7, 2)):
        assert write(store, collection, chunks, batch_points=3) == deleted
        assert store.count(collection, of(DOCUMENT)) == chunks
        assert store.count(collection, of(OTHER)) == 4


@pytest.mark.parametrize(("raw", "in_payload"), [(5, 5), (2**64 - 1, str(2**64 - 1))], ids=["small", "large"])
def test_chunks_of_an_earlier_release_are_replaced(
    store: Store, collection: str, raw: int, in_payload: int | str
) -> None:
    """Chunks without a version go, after any gap, and only those of this document and scope."""
    store.ensure(collection, SCHEMA)
    document, foreign = Document.of(raw, "notes", raw), Document.of(raw, "elsewhere", raw)
    for owner, numbers in ((document, [0, 1, 2, 4000, 4001]), (foreign, [0, 1])):
        ids = [unversioned_chunk_id(owner.id, number, owner.scope) for number in numbers]
        stored_chunks(store, collection, ids, [{"doc_id": in_payload, "chunk": number} for number in numbers])
    stored_chunks(store, collection, [1], [{"text": "a point without chunks"}])
    assert write(store, collection, 2, document) == 5
    assert store.count(collection) == 2 + 2 + 1
    assert write(store, collection, 1, document) == 2


def test_insert_only_completes_a_document_and_deletes_nothing(store: Store, collection: str) -> None:
    """Chunks that are stored are kept with their version, and missing ones join them."""
    store.ensure(collection, SCHEMA)
    write(store, collection, 3)
    write(store, collection, 5, keeps=True)
    assert store.count(collection, of(DOCUMENT)) == 5
    page, _ = store.scroll(collection, of(DOCUMENT), PayloadKeys(("doc_version",)), limit=10)
    assert len({(stored.payload or {})["doc_version"] for stored in page.values()}) == 1
    assert write(store, collection, 2) == 5


@pytest.mark.parametrize("earlier_kind", ["versioned", "unversioned"])
def test_insert_only_completes_an_interrupted_version_and_replaces_the_older_one(
    store: Store, collection: str, earlier_kind: str
) -> None:
    """A write that was to replace a document and was interrupted is completed, and no two versions remain."""
    store.ensure(collection, SCHEMA)
    if earlier_kind == "versioned":
        write(store, collection, 6)
    else:
        ids = [unversioned_chunk_id(DOCUMENT.id, number, DOCUMENT.scope) for number in range(6)]
        stored_chunks(store, collection, ids, [{"doc_id": "doc", "chunk": number} for number in range(6)])
    version = new_version(new_version())
    ids = [chunk_id(DOCUMENT.key, version, number) for number in range(2)]
    stored_chunks(store, collection, ids, [chunk_payload(DOCUMENT, version, number) for number in range(2)])
    assert write(store, collection, 4, keeps=True) == 6
    page, _ = store.scroll(collection, {}, PayloadKeys(("doc_version",)), limit=20)
    assert [(stored.payload or {})["doc_version"] for stored in page.values()] == [version] * 4


def test_insert_only_completes_a_document_of_an_earlier_release(store: Store, collection: str) -> None:
    """Its chunks are kept, and missing ones join them, in as many jobs as it takes."""
    store.ensure(collection, SCHEMA)
    ids = [unversioned_chunk_id(DOCUMENT.id, number, DOCUMENT.scope) for number in range(3)]
    stored_chunks(store, collection, ids, [{"doc_id": "doc", "chunk": number} for number in range(3)])
    for chunks in (3, 4, 6):
        assert write(store, collection, chunks, keeps=True) == 0
        assert store.count(collection) == chunks
    assert store.existing(collection, ids) == set(ids)


@dataclass
class Overtaken(Memory):
    """A store in which another job replaces the document while its chunks without a version are looked for.

    Attributes:
        replaced: number of chunks that the other job has stored.
    """

    replaced: int = 0

    def scroll(
        self, collection: str, where: Filter, keys: PayloadKeys, *, limit: int, after: PointId | None = None
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """See `Store.scroll`."""
        if not self.replaced and any("is_empty" in condition for condition in where["must"]):
            self.replaced, version = 4, new_version()
            for number in range(self.replaced):
                payload = chunk_payload(DOCUMENT, version, number, by="other")
                self.points[chunk_id(DOCUMENT.key, version, number)] = payload
            self.delete_unversioned([0, 1])
        return super().scroll(collection, where, keys, limit=limit, after=after)

    def delete_unversioned(self, numbers: Sequence[int]) -> None:
        """Delete chunks of the document that have no version."""
        for number in numbers:
            del self.points[unversioned_chunk_id(DOCUMENT.id, number, DOCUMENT.scope)]


def test_insert_only_yields_to_a_write_that_replaces_the_document_meanwhile() -> None:
    """The chunks that it found were being deleted, so that the whole version of the other job is kept."""
    memory = Overtaken(Turns(lambda _: 0, {}))
    for number in range(4):
        point = unversioned_chunk_id(DOCUMENT.id, number, DOCUMENT.scope)
        memory.points[point] = {"doc_id": "doc", "chunk": number, "by": "earlier"}
    replacement = Replacement(memory, "c", PATHS, [DOCUMENT], VersionedCollections(), keeps=True)
    replacement.begin()
    assert {number for _, number in replacement.kept} == {2, 3}
    memory.delete_unversioned([2, 3])
    version = replacement.versions[DOCUMENT.key]
    ids = [chunk_id(DOCUMENT.key, version, number) for number in (0, 1)]
    memory.upsert({point: chunk_payload(DOCUMENT, version, n, by="this") for n, point in enumerate(ids)})
    outcome = replacement.commit({DOCUMENT.key: ids}, whole=[DOCUMENT.key])
    assert outcome.superseded == {DOCUMENT.key}
    assert contents(memory) == {"other": 4}


UUID_FORMS = [
    "00000000-0000-0000-0000-00000000000a",
    "00000000-0000-0000-0000-00000000000A",
    "0000000000000000000000000000000a",
    "{00000000-0000-0000-0000-00000000000A}",
    "urn:uuid:00000000-0000-0000-0000-00000000000a",
]


@pytest.mark.parametrize(
    ("identity", "before", "now"),
    [*((uuid.UUID(int=10), form, other) for form, other in itertools.permutations(UUID_FORMS, 2)), (7, "7", 7)],
)
def test_chunks_of_an_earlier_release_are_found_by_any_form_of_the_id(
    identity: PointId, before: str, now: int | str
) -> None:
    """A UUID may have been written in another form, and the layout of LlamaIndex writes integers as text."""
    memory = Memory(Turns(lambda _: 0, {}))
    ids = [unversioned_chunk_id(identity, number, "notes") for number in range(3)]
    memory.points = {point: {"doc_id": before, "chunk": number} for number, point in enumerate(ids)}
    document = Document.of(identity, "notes", now)
    assert Replacement(memory, "c", PATHS, [document], VersionedCollections()).delete() == 3


def test_documents_are_deleted_by_their_ids(store: Store, collection: str) -> None:
    """All versions of a document go, those of an earlier release too."""
    store.ensure(collection, SCHEMA)
    write(store, collection, 4, OTHER)
    write(store, collection, 3)
    ids = [unversioned_chunk_id(DOCUMENT.id, number, "notes") for number in (0, 9)]
    stored_chunks(store, collection, ids, [{"doc_id": "doc", "chunk": number} for number in (0, 9)])
    replacement = Replacement(store, collection, PATHS, [DOCUMENT], VersionedCollections())
    assert replacement.delete() == 5
    assert replacement.delete() == 0
    assert store.count(collection) == 4


class NoIndexes(Memory):
    """A store that allows no further index, and refuses filters without one."""

    def ensure_index(self, _collection: str, _key: str, _index: PayloadIndex) -> None:
        """See `Store.ensure_index`."""
        raise AccessDenied("Qdrant denied access: PERMISSION_DENIED")


@dataclass
class NoScans(Memory):
    """A store that refuses filters on keys without an index."""

    indexes: list[str] = field(default_factory=list)

    def ensure_index(self, _collection: str, key: str, _index: PayloadIndex) -> None:
        """See `Store.ensure_index`."""
        self.indexes.append(key)

    def scroll(
        self, collection: str, where: Filter, keys: PayloadKeys, *, limit: int, after: PointId | None = None
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """See `Store.scroll`."""
        if not {condition.get("key", "doc_key") for condition in where["must"]} <= set(self.indexes):
            raise IndexRequired("an index is required")
        return super().scroll(collection, where, keys, limit=limit, after=after)


def test_a_missing_index_that_cannot_be_made_ends_the_job_first() -> None:
    """Without the right to create the index, nothing is written."""
    memory = NoIndexes(Turns(lambda _: 0, {}))
    with pytest.raises(AccessDenied):
        Job("a", 2).run(memory)
    assert memory.points == {}


def test_indexes_are_made_where_the_store_demands_them() -> None:
    """Under strict mode both filters have their index before the first point is written."""
    memory = NoScans(Turns(lambda _: 0, {}))
    job = Job("a", 2)
    job.run(memory)
    assert job.acknowledged
    assert memory.indexes[:2] == ["doc_key", "chunk"]


def test_chunks_of_an_earlier_release_are_replaced_without_an_index_on_their_ids() -> None:
    """Under strict mode the worker reads all chunks without a key, since ids of two types cannot be indexed."""
    memory = NoScans(Turns(lambda _: 0, {}))
    for owner in (DOCUMENT, OTHER):
        for number in range(3):
            point = unversioned_chunk_id(owner.id, number, owner.scope)
            memory.points[point] = {"doc_id": owner.payload_id, "chunk": number, "by": "earlier"}
    Job("a", 2).run(memory)
    assert contents(memory) == {"a": 2}
    assert len(memory.points) == 2 + 3
    assert memory.indexes.count("doc_id") == 0


class SmallConditions(Memory):
    """A store that allows ten values in a condition."""

    def scroll(
        self, collection: str, where: Filter, keys: PayloadKeys, *, limit: int, after: PointId | None = None
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """See `Store.scroll`."""
        for condition in where["must"]:
            size = len(condition.get("match", {}).get("any", ()))
            if size > 10:
                raise LimitExceeded(f"Condition size limit reached ({size} > 10)", field="condition size", maximum=10)
        return super().scroll(collection, where, keys, limit=limit, after=after)


def test_a_limit_on_conditions_is_kept() -> None:
    """A server that allows few values in a condition takes a job of many documents."""
    memory = SmallConditions(Turns(lambda _: 0, {}))
    documents = [Document.of(number, "notes", number) for number in range(25)]
    for replaced in (0, 25):
        replacement = Replacement(memory, "c", PATHS, documents, VersionedCollections())
        replacement.begin()
        written = {}
        for document in documents:
            version = replacement.versions[document.key]
            point = chunk_id(document.key, version, 0)
            memory.upsert({point: chunk_payload(document, version, 0)})
            written[document.key] = [point]
        assert replacement.commit(written).deleted == replaced
    assert len(memory.points) == 25


class SmallPages(Memory):
    """A store that allows three points in a page."""

    def scroll(
        self, collection: str, where: Filter, keys: PayloadKeys, *, limit: int, after: PointId | None = None
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """See `Store.scroll`."""
        if limit > 3:
            raise LimitExceeded(f'Limit exceeded {limit} > 3 for "limit"', field="limit", maximum=3)
        return super().scroll(collection, where, keys, limit=limit, after=after)


def test_a_limit_on_pages_is_kept() -> None:
    """A server that allows only small pages finds all chunks of a document, too."""
    memory = SmallPages(Turns(lambda _: 0, {}))
    for chunks in (8, 5):
        replacement = Replacement(memory, "c", PATHS, [DOCUMENT], VersionedCollections())
        replacement.begin()
        version = replacement.versions[DOCUMENT.key]
        ids = [chunk_id(DOCUMENT.key, version, number) for number in range(chunks)]
        memory.upsert({point: chunk_payload(DOCUMENT, version, number) for number, point in enumerate(ids)})
        replacement.commit({DOCUMENT.key: ids})
        assert len(memory.points) == chunks


def test_a_write_that_is_under_way_does_not_stop_another() -> None:
    """A job is acknowledged beside a later write that is incomplete, and replaced when that is complete."""
    memory = Memory(Turns(lambda _: 0, {}))
    Job("old", 4).run(memory)
    later = Replacement(memory, "c", PATHS, [DOCUMENT], VersionedCollections())
    job = Replacement(memory, "c", PATHS, [DOCUMENT], VersionedCollections())
    job.begin()
    later.begin()
    later.versions[DOCUMENT.key] = new_version(job.versions[DOCUMENT.key])
    versions = {"later": later.versions[DOCUMENT.key], "job": job.versions[DOCUMENT.key]}

    def store(name: str, numbers: Sequence[int], total: int) -> list[PointId]:
        ids: list[PointId] = [chunk_id(DOCUMENT.key, versions[name], number) for number in numbers]
        for point, number in zip(ids, numbers, strict=True):
            payload = chunk_payload(DOCUMENT, versions[name], number, by=name, doc_chunks=total)
            memory.upsert({point: payload})
        return ids

    first = store("later", [0, 1], 3)
    outcome = job.commit({DOCUMENT.key: store("job", [0, 1], 2)})
    assert not outcome.superseded
    assert contents(memory) == {"later": 2, "job": 2}
    outcome = later.commit({DOCUMENT.key: [*first, *store("later", [2], 3)]})
    assert not outcome.superseded
    assert contents(memory) == {"later": 3}

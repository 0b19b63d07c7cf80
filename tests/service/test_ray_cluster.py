"""A load on a cluster of Ray: whatever is killed, the collection is that of an undisturbed load, without repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pytest

from embedder import Embedder, NotFound
from qdrant_sink import Store, open_server, point_id
from service.bulk import BulkLoad, LoadOptions
from service.bulk.line import Line
from service.operations import Chunking, IngestRequest, Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT
from tests.service.ray_cluster import RayCluster, kill, served_double, wait_until
from tests.service.ray_driver import rows

pytestmark = pytest.mark.slow

ROWS = 2000
REPEATED = 300
ALIAS = "notes"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The settings of workers that share a server."""
    with served_double(tmp_path_factory.mktemp("server")) as address:
        yield {**ENVIRONMENT, **address}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A cluster, which does not outlive its tests."""
    opened = RayCluster()
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def store(server: dict[str, str]) -> Iterator[Store]:
    """The server."""
    settings = Settings.from_environment(server)
    opened = open_server(settings.qdrant_url or "", None, grpc_port=settings.qdrant_grpc_port)
    yield opened
    opened.close()


class Place(NamedTuple):
    """Where a test loads: the cluster, the settings of its workers, their store, and a new collection.

    The alias is the same in all tests, so that the points have the ids of one expected load.
    """

    cluster: RayCluster
    server: dict[str, str]
    store: Store
    collection: str

    @property
    def is_served(self) -> bool:
        """Whether the alias leads to the collection."""
        return self.store.collection_of(ALIAS) == self.collection


@pytest.fixture
def place(cluster: RayCluster, server: dict[str, str], store: Store) -> Place:
    """A cluster of two nodes, and the name of a collection that does not exist."""
    cluster.ensure_nodes(1)
    return Place(cluster, server, store, f"notes-{uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def expected(server: dict[str, str], embedder: Embedder) -> Callable[..., dict[Any, Any]]:
    """The points of a load of one process without any disturbance, into another collection."""

    @cache
    def loaded(chunk: Chunking | None = None) -> dict[Any, Any]:
        collection = f"expected-{uuid4().hex[:8]}"
        settings = Settings.from_environment(server)
        store = open_server(settings.qdrant_url or "", None, grpc_port=settings.qdrant_grpc_port)
        core = Operations(settings, embedder, store)
        request = IngestRequest([""], collection=collection, id_scope=ALIAS, chunk=chunk)
        lines = (Line(number, row["text"], row["id"], row["payload"]) for number, row in enumerate(rows(ROWS)))
        report = BulkLoad(core, LoadOptions(request, collection), None, lambda _message: None).run(lines)
        assert report.failure is None
        held = points(store, collection)
        store.close()
        return held

    return loaded


def points(store: Store, collection: str) -> dict[Any, tuple[dict[str, Any], Any]]:
    """All points, with their payload and their dense vector, by id.

    The ids of chunks differ between two loads of the same document, so chunks have their document and number instead.
    """
    held: dict[Any, Any] = {}
    after = None
    while True:
        page, after = store.scroll(collection, {}, True, limit=500, after=after)
        vectors = store.fetch(collection, list(page), False, ("dense",))
        for point, stored in page.items():
            payload = dict(stored.payload or {})
            key = (payload["doc_id"], payload["chunk"]) if "chunk" in payload else point
            assert key not in held
            kept = {name: value for name, value in payload.items() if name not in ("doc_key", "doc_version")}
            found = vectors[point].vectors
            assert found is not None
            held[key] = kept, found.dense
        if after is None:
            return held


def assert_equal(got: dict[Any, Any], expected: dict[Any, Any]) -> None:
    """Both collections have the same points."""
    assert got.keys() == expected.keys()
    for key, (payload, dense) in got.items():
        assert payload == expected[key][0]
        assert np.allclose(dense, expected[key][1], atol=1e-3)


def count(store: Store, collection: str) -> int:
    """The number of points; 0 if there is no collection yet."""
    with suppress(NotFound):
        return store.count(collection)
    return 0


@pytest.mark.parametrize("killed", ["an actor", "a node"])
def test_a_load_survives(killed: str, place: Place, expected: Callable[..., dict[Any, Any]]) -> None:
    """A load finishes although an actor or a machine is lost, and counts every row once, repeated ones as such."""
    cluster, server, store, collection = place
    wanted = expected()

    def disturb() -> None:
        wait_until(lambda: count(store, collection) > ROWS // 10)
        if killed == "an actor":
            cluster.kill_actor("IngestActor")
        else:
            cluster.kill_node()

    given = {"count": ROWS, "repeated": REPEATED}
    report = cluster.run(disturb, settings=server, rows=given, collection=collection, options={"alias": ALIAS})
    counts = {"lines": ROWS + REPEATED, "stored": ROWS + REPEATED, "skipped": 0, "rejected": 0}
    counts |= {"points": ROWS, "repeated": REPEATED, "replaced": 0}
    assert report == {**counts, "failure": None, "alias": True, "rejects": []}
    assert place.is_served
    assert_equal(points(store, collection), wanted)


@pytest.mark.parametrize("sink", [False, True])
def test_rows_that_replace_others_are_counted_and_named(sink: bool, place: Place) -> None:
    """Two rows of one id and different payloads in different batches: one is named, and the alias does not move."""
    cluster, server, store, collection = place
    given = {"count": 400, "repeated": 0, "replaced": 50}
    report = cluster.run(settings=server, rows=given, collection=collection, sink=sink, options={"alias": ALIAS})
    assert (report["stored"], report["points"], report["replaced"], report["repeated"]) == (450, 400, 50, 0)
    assert (report["failure"], report["alias"], store.count(collection)) == (None, False, 400)
    named = {(row["code"], row["message"]) for row in report["rejects"]}
    assert named == {("replaced", "replaced by another row, which has the same id, and another text or payload")}
    ids = {f"row {number}" for number in range(301, 400, 2)}
    assert {row["point"] for row in report["rejects"]} == {str(point_id(identity, ALIAS)) for identity in ids}


def test_a_killed_driver(place: Place, expected: Callable[..., dict[Any, Any]]) -> None:
    """After the driver was killed, the same load goes on, stores only what is missing, and then moves the alias."""
    cluster, server, store, collection = place
    wanted = expected()
    options = {"alias": ALIAS, "insert_only": True}
    task: dict[str, Any] = {"settings": server, "rows": {"count": ROWS}, "collection": collection, "options": options}
    driver = cluster.driver(**task)
    try:
        wait_until(lambda: count(store, collection) > ROWS // 5)
    finally:
        kill(driver)
    assert not place.is_served
    report = cluster.run(**task)
    assert report["failure"] is None
    assert (report["stored"], report["points"], report["rejected"], report["alias"]) == (ROWS, ROWS, 0, True)
    assert report["skipped"] > ROWS // 10
    assert_equal(points(store, collection), wanted)


@pytest.mark.parametrize("chunk", [None, (32, 4)])
def test_a_sink_survives(chunk: tuple[int, int] | None, place: Place, expected: Callable[..., dict[Any, Any]]) -> None:
    """Rows that are embedded and then stored by the sink are those of a bulk load, also if a machine is lost."""
    cluster, server, store, collection = place
    wanted = expected(None if chunk is None else Chunking(*chunk))

    def disturb() -> None:
        wait_until(lambda: count(store, collection) > ROWS // 10)
        cluster.kill_node()

    given = {"count": ROWS, "repeated": REPEATED}
    options = {"alias": ALIAS, **({} if chunk is None else {"chunk": chunk})}
    report = cluster.run(disturb, settings=server, rows=given, collection=collection, sink=True, options=options)
    assert report["failure"] is None
    assert (report["points"], report["repeated"], report["replaced"]) == (len(wanted), REPEATED, 0)
    assert (report["rejected"], report["alias"]) == (0, True)
    assert_equal(points(store, collection), wanted)

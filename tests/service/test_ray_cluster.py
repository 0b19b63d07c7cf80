"""A load on a cluster of Ray: whatever is killed, the collection is that of an undisturbed load, without repeats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pytest

from embedder import Embedder, NotFound
from qdrant_sink import Store, open_server
from service.bulk import BulkLoad, LoadOptions
from service.bulk.line import Line
from service.operations import Chunking, IngestRequest, Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT
from tests.service.ray_cluster import RayCluster, kill, served_double, wait_until
from tests.service.ray_driver import rows

pytestmark = pytest.mark.slow

ROWS = 3000


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
    """Where a test loads: the cluster, the settings of its workers, their store, and a name that no other test uses."""

    cluster: RayCluster
    server: dict[str, str]
    store: Store
    name: str


@pytest.fixture
def place(cluster: RayCluster, server: dict[str, str], store: Store) -> Place:
    """A cluster of two nodes, and a new name."""
    cluster.ensure_nodes(1)
    return Place(cluster, server, store, f"notes-{uuid4().hex[:8]}")


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


def undisturbed(place: Place, embedder: Embedder, chunk: Chunking | None = None) -> dict[Any, Any]:
    """The points of a load of one process without any disturbance, into another collection."""
    collection = f"{place.name}-expected"
    core = Operations(Settings.from_environment(place.server), embedder, place.store)
    request = IngestRequest([""], collection=collection, id_scope=place.name, chunk=chunk)
    lines = (Line(number, row["text"], row["id"], row["payload"]) for number, row in enumerate(rows(ROWS)))
    report = BulkLoad(core, LoadOptions(request, collection), None, lambda _message: None).run(lines)
    assert report.failure is None
    return points(place.store, collection)


def count(store: Store, collection: str) -> int:
    """The number of points; 0 if there is no collection yet."""
    with suppress(NotFound):
        return store.count(collection)
    return 0


@pytest.mark.parametrize("killed", ["nothing", "an actor", "a node"])
def test_a_load_survives(killed: str, place: Place, embedder: Embedder) -> None:
    """A load finishes although an actor or a machine is lost, and counts every row once."""
    cluster, server, store, name = place
    expected = undisturbed(place, embedder)

    def disturb() -> None:
        wait_until(lambda: count(store, f"{name}-v1") > ROWS // 10)
        if killed == "an actor":
            cluster.kill_actor("IngestActor")
        elif killed == "a node":
            cluster.kill_node()

    report = cluster.run(disturb, settings=server, rows=ROWS, collection=f"{name}-v1", options={"alias": name})
    counts = {"stored": ROWS, "skipped": 0, "rejected": 0}
    assert report == {**counts, "failure": None, "alias": True, "rejects": []}
    assert store.collection_of(name) == f"{name}-v1"
    assert_equal(points(store, name), expected)


def test_a_killed_driver(place: Place, embedder: Embedder) -> None:
    """After the driver was killed, the same load goes on, stores only what is missing, and then moves the alias."""
    cluster, server, store, name = place
    expected = undisturbed(place, embedder)
    options = {"alias": name, "insert_only": True}
    task: dict[str, Any] = {"settings": server, "rows": ROWS, "collection": f"{name}-v1", "options": options}
    driver = cluster.driver(**task)
    try:
        wait_until(lambda: count(store, f"{name}-v1") > ROWS // 5)
    finally:
        kill(driver)
    assert store.collection_of(name) is None
    report = cluster.run(**task)
    assert report["failure"] is None
    assert (report["stored"], report["rejected"], report["alias"]) == (ROWS, 0, True)
    assert report["skipped"] > ROWS // 10
    assert_equal(points(store, name), expected)


@pytest.mark.parametrize("chunk", [None, (32, 4)])
def test_a_sink_survives(chunk: tuple[int, int] | None, place: Place, embedder: Embedder) -> None:
    """Rows that are embedded and then stored by the sink are those of a bulk load, also if a machine is lost."""
    cluster, server, store, name = place
    expected = undisturbed(place, embedder, None if chunk is None else Chunking(*chunk))

    def disturb() -> None:
        wait_until(lambda: count(store, f"{name}-v1") > ROWS // 10)
        cluster.kill_node()

    options = {"alias": name, **({} if chunk is None else {"chunk": chunk})}
    report = cluster.run(disturb, settings=server, rows=ROWS, collection=f"{name}-v1", sink=True, options=options)
    assert report["failure"] is None
    assert (report["stored"], report["rejected"], report["alias"]) == (len(expected), 0, True)
    assert_equal(points(store, name), expected)

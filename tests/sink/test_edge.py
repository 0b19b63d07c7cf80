"""The embedded store keeps what it has acknowledged, and says clearly what it cannot do."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedder.errors import ConfigurationError, InvalidRequest, StoreRejected
from embedder.vectors import SparseVector
from qdrant_sink.edge import EdgeStore
from qdrant_sink.points import Point
from qdrant_sink.schema import Placement
from qdrant_sink.search import Search
from tests.sink.samples import SCHEMA, draft
from tests.sink.writing import write

ROOT = Path(__file__).parents[2]


def test_one_process_owns_the_directory(tmp_path: Path) -> None:
    """A second worker on the same directory refuses to start and names the ways out; afterwards it may."""
    first = EdgeStore(tmp_path)
    with pytest.raises(ConfigurationError, match="QDRANT_PATH: another process owns the directory") as caught:
        EdgeStore(tmp_path)
    assert str(tmp_path) not in str(caught.value)
    first.close()
    EdgeStore(tmp_path).close()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A wrong QDRANT_PATH is found at the start and not by the first job."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="QDRANT_PATH: the directory cannot be written"):
        EdgeStore(tmp_path / "file" / "below")


def test_points_survive_kill_9(tmp_path: Path) -> None:
    """What was acknowledged is there after the process was killed without a goodbye, and can be searched."""
    script = """
        import os, signal, sys
        from qdrant_sink.edge import EdgeStore
        from tests.sink.writing import write
        from tests.sink.samples import SCHEMA, draft
        store = EdgeStore(sys.argv[1])
        store.ensure("docs", SCHEMA)
        assert write(store, "docs", [draft(i) for i in range(50)], SCHEMA).stored == 50
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], cwd=ROOT, check=False, timeout=60
    )
    assert done.returncode == -9
    store = EdgeStore(tmp_path)
    assert store.count("docs") == 50
    [[hit]] = store.query("docs", [Search(dense=draft(7).embedding.dense, using=("dense",), limit=1)])
    assert hit.id == 7
    store.close()


def test_a_collection_that_was_half_made_is_made_again(tmp_path: Path) -> None:
    """A crash while a collection is created leaves nothing that is taken for one."""
    (tmp_path / ".creating-1234" / "segments").mkdir(parents=True)
    store = EdgeStore(tmp_path)
    assert not (tmp_path / ".creating-1234").exists()
    store.ensure("docs", SCHEMA)
    assert store.count("docs") == 0
    store.close()


def test_an_alias_is_there_after_a_restart(tmp_path: Path) -> None:
    """An alias outlives the process, one that was half made does not, and neither is taken for a collection."""
    store = EdgeStore(tmp_path)
    store.ensure("docs_1", SCHEMA)
    store.alias("docs", "docs_1")
    store.close()
    (tmp_path / ".creating-1234").symlink_to("docs_1")
    store = EdgeStore(tmp_path)
    assert not (tmp_path / ".creating-1234").is_symlink()
    assert write(store, "docs", [draft(i) for i in range(3)], SCHEMA).stored == 3
    assert store.count("docs_1") == 3
    store.close()


def test_a_collection_may_lie_on_another_disk(tmp_path: Path) -> None:
    """A link to elsewhere is the operator's and a collection like any other: no alias overwrites it."""
    (tmp_path / "disk").mkdir()
    store = EdgeStore(tmp_path / "disk")
    store.ensure("docs", SCHEMA)
    store.close()
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "docs").symlink_to(tmp_path / "disk" / "docs")
    store = EdgeStore(tmp_path / "edge")
    store.ensure("docs", SCHEMA)
    store.ensure("other", SCHEMA)
    with pytest.raises(InvalidRequest, match="'docs' is the name of a collection"):
        store.alias("docs", "other")
    assert store.count("docs") == 0
    store.close()


def test_what_needs_a_cluster_is_refused(edge_store: EdgeStore) -> None:
    """One machine has no shards and no replicas: said so and not ignored. One of each is what it is."""
    one = replace(SCHEMA, placement=Placement(1, 1, 1), explicit=frozenset(["shards", "replication"]))
    edge_store.ensure("docs", one)
    with pytest.raises(ConfigurationError, match="shards=4, replication=2: Qdrant Edge is one machine; use a server"):
        edge_store.ensure("docs", replace(SCHEMA, placement=Placement(shards=4, replication=2)))


def test_optimised_and_exact_search_agree(edge_store: EdgeStore) -> None:
    """Merging the segments changes no answer."""
    edge_store.ensure("docs", SCHEMA)
    write(edge_store, "docs", [draft(i) for i in range(200)], SCHEMA)
    search = Search(dense=draft(3).embedding.dense, sparse=draft(3).embedding.sparse, limit=5)
    before = edge_store.query("docs", [search])
    edge_store.optimize("docs")
    after = edge_store.query("docs", [search])
    assert [hit.id for hit in before[0]] == [hit.id for hit in after[0]]


@pytest.mark.filterwarnings("ignore")
def test_a_panic_of_the_engine_is_an_error_of_the_seam(
    edge_store: EdgeStore, capfd: pytest.CaptureFixture[str]
) -> None:
    """Even what conformance keeps out ends in an error of the store, and asking goes on."""
    edge_store.ensure("docs", SCHEMA)
    sparse = SparseVector(np.array([3, 2], np.uint32), np.array([1.0], np.float32))
    with pytest.raises(ValueError, match="sparse: indices and values differ in shape"):
        Point(1, {}, sparse=sparse)
    bad: Any = SimpleNamespace(id=1, payload={}, dense=None, sparse=sparse, colbert=None)
    with pytest.raises(StoreRejected, match="Qdrant Edge refused the points") as caught:
        edge_store.upsert("docs", [bad])
    assert type(caught.value.__cause__).__name__ == "PanicException"
    assert edge_store.count("docs") == 0
    capfd.readouterr()


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        ({"dense": np.ones(3, np.float32)}, "vector dimension error: expected dim: 8, got 3"),
        ({"dense": SimpleNamespace(tolist=lambda: ["secret"])}, ""),
    ],
)
def test_words_of_the_engine_are_passed_on_only_where_they_are_harmless(
    edge_store: EdgeStore, vectors: dict[str, Any], reason: str
) -> None:
    """Numbers of a dimension are told; anything that could quote data is not."""
    edge_store.ensure("docs", SCHEMA)
    with pytest.raises(StoreRejected) as caught:
        edge_store.upsert("docs", [Point(1, {}, **vectors)])
    assert caught.value.message.lower() == "qdrant edge refused the points" + (f": {reason}" if reason else "")

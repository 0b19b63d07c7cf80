"""The embedded store keeps acknowledged writes, and reports clearly what it does not support."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embedder.errors import ConfigurationError, InvalidRequest
from embedder.vectors import SparseVector
from qdrant_sink.edge import EdgeStore
from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.settings import SEARCH_THREADS, limit_threads, read_config
from qdrant_sink.errors import StoreRejected, StoreUnavailable
from qdrant_sink.points import Point
from qdrant_sink.schema import NAMES, Placement
from qdrant_sink.searching import run
from tests.sink.samples import SCHEMA, draft, search_by
from tests.sink.writing import write

ROOT = Path(__file__).parents[2]


def _entries(directory: str) -> int:
    return len(list(Path(directory).iterdir()))


def test_one_process_owns_the_directory(tmp_path: Path) -> None:
    """A second worker cannot open a directory that is in use, and the error states the ways out."""
    first = EdgeStore(tmp_path)
    with pytest.raises(ConfigurationError, match="QDRANT_PATH: another process owns the directory") as caught:
        EdgeStore(tmp_path)
    assert str(tmp_path) not in str(caught.value)
    first.close()
    EdgeStore(tmp_path).close()


def test_a_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    """An invalid QDRANT_PATH is reported at the start and not by the first job."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="QDRANT_PATH: the directory cannot be written"):
        EdgeStore(tmp_path / "file" / "below")


def test_others_cannot_enter_a_new_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The texts and vectors of a new store can be read by the user of the worker alone."""
    EdgeStore(tmp_path / "edge").close()
    assert (tmp_path / "edge").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "edge" / ".lock").stat().st_mode & 0o777 == 0o600
    assert not caplog.records


def test_an_existing_directory_keeps_its_mode_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A directory that every user can enter may be shared on purpose: one warning tells how to close it."""
    tmp_path.chmod(0o755)
    with caplog.at_level(logging.WARNING), ExitStack() as stack:
        store = EdgeStore(tmp_path)
        stack.callback(store.close)
        store.ensure("docs", SCHEMA)
    [record] = caplog.records
    assert (
        "QDRANT_PATH: every user of this machine can enter the directory (mode 755); chmod 700" in record.getMessage()
    )
    assert str(tmp_path) not in record.getMessage()
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_points_survive_kill_9(tmp_path: Path) -> None:
    """After kill -9, acknowledged points are stored and can be searched."""
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
    [[hit]] = run(store, "docs", [search_by(dense=draft(7).vectors.dense, using=("dense",), limit=1)])
    assert hit.id == 7
    store.close()


def test_an_incomplete_collection_is_removed(tmp_path: Path) -> None:
    """A crash during the creation of a collection leaves nothing that looks like a collection."""
    (tmp_path / ".creating-1234" / "segments").mkdir(parents=True)
    store = EdgeStore(tmp_path)
    assert not (tmp_path / ".creating-1234").exists()
    store.ensure("docs", SCHEMA)
    assert store.count("docs") == 0
    store.close()


def test_an_alias_survives_a_restart(tmp_path: Path) -> None:
    """An alias survives a restart, and an incomplete one is removed."""
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


def test_a_collection_can_be_on_another_disk(tmp_path: Path) -> None:
    """A symbolic link to another directory is a collection, which an alias cannot replace."""
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


def test_shards_and_replicas_are_refused(edge_store: EdgeStore) -> None:
    """More than one shard or replica is an error, because the store runs on a single machine."""
    single = replace(SCHEMA, placement=Placement(1, 1, 1), explicit=frozenset(["shards", "replication"]))
    edge_store.ensure("docs", single)
    with pytest.raises(
        ConfigurationError, match="shards=4, replication=2: Qdrant Edge runs on a single machine; use a Qdrant server"
    ):
        edge_store.ensure("docs", replace(SCHEMA, placement=Placement(shards=4, replication=2)))


def test_optimised_and_exact_search_agree(edge_store: EdgeStore) -> None:
    """Merging the segments does not change the hits."""
    edge_store.ensure("docs", SCHEMA)
    write(edge_store, "docs", [draft(i) for i in range(200)], SCHEMA)
    search = search_by(dense=draft(3).vectors.dense, sparse=draft(3).vectors.sparse, limit=5)
    before = run(edge_store, "docs", [search])
    edge_store.optimize("docs")
    after = run(edge_store, "docs", [search])
    assert [hit.id for hit in before[0]] == [hit.id for hit in after[0]]


@pytest.mark.filterwarnings("ignore")
def test_a_panic_of_the_engine_is_an_error_of_the_store(
    edge_store: EdgeStore, capfd: pytest.CaptureFixture[str]
) -> None:
    """A panic of the engine is mapped to an error, and the store stays usable."""
    edge_store.ensure("docs", SCHEMA)
    sparse = SparseVector(np.array([3, 2], np.uint32), np.array([1.0], np.float32))
    with pytest.raises(ValueError, match="sparse: indices and values must have the same shape"):
        Point(1, {}, sparse=sparse)
    sizes = {"nbytes": 99, "payload_nbytes": 2}
    bad: Any = SimpleNamespace(id=1, payload={}, dense=None, sparse=sparse, colbert=None, names=NAMES, **sizes)
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
def test_only_harmless_phrases_of_the_engine_are_shown(
    edge_store: EdgeStore, vectors: dict[str, Any], reason: str
) -> None:
    """The sizes of a vector are shown, and text that could quote data is not."""
    edge_store.ensure("docs", SCHEMA)
    with pytest.raises(StoreRejected) as caught:
        edge_store.upsert("docs", [Point(1, {}, **vectors)])
    assert caught.value.message.lower() == "qdrant edge refused the points" + (f": {reason}" if reason else "")


@pytest.mark.slow
def test_the_number_of_open_collections_is_limited(tmp_path: Path) -> None:
    """The least recently used collections are closed without losing writes, so that threads do not accumulate."""
    store = EdgeStore(tmp_path, open_collections=3)
    for i in range(8):
        store.ensure(f"docs_{i}", SCHEMA)
        write(store, f"docs_{i}", [draft(j) for j in range(i + 1)], SCHEMA)
        assert sum(collection.is_open for collection in store._collections.values()) <= 3
    threads = _entries("/proc/self/task")
    assert [store.count(f"docs_{i}") for i in range(8)] == list(range(1, 9))
    assert [name for name, collection in store._collections.items() if collection.is_open] == [
        "docs_5",
        "docs_6",
        "docs_7",
    ]
    assert _entries("/proc/self/task") <= threads + 3 * SEARCH_THREADS
    store.close()
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        store.count("docs_0")


@pytest.mark.slow
def test_collections_are_not_closed_during_writes(tmp_path: Path) -> None:
    """Threads that write to more collections than may be open do not fail."""
    store = EdgeStore(tmp_path, open_collections=2)
    for i in range(4):
        store.ensure(f"docs_{i}", SCHEMA)

    def fill(worker: int) -> None:
        for j in range(8):
            assert write(store, f"docs_{(worker + j) % 4}", [draft(100 * worker + j)], SCHEMA).stored == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, range(4)))
    assert [store.count(f"docs_{i}") for i in range(4)] == [8] * 4
    store.close()


def test_a_collection_in_use_is_not_closed(tmp_path: Path) -> None:
    """A collection in use is not closed. The limit is exceeded until it is free."""
    store = EdgeStore(tmp_path, open_collections=1)
    for name in ("docs", "other"):
        store.ensure(name, SCHEMA)
    with store._collection("docs").opened() as shard:
        assert store.count("other") == 0
        assert shard.info().points_count == 0
        assert all(collection.is_open for collection in store._collections.values())
    assert store.count("other") == 0
    assert not store._collections["docs"].is_open
    store.close()


def test_the_number_of_search_threads_is_limited_and_configurable(tmp_path: Path) -> None:
    """A collection of an earlier version gets the default number of search threads, unless it has its own."""
    store = EdgeStore(tmp_path)
    store.ensure("docs", SCHEMA)
    assert read_config(tmp_path / "docs")["max_search_threads"] == SEARCH_THREADS
    store.close()
    config = tmp_path / "docs" / "edge_config.json"
    stated = read_config(tmp_path / "docs")
    for before, after in (({}, SEARCH_THREADS), ({"max_search_threads": 5}, 5)):
        config.write_text(json.dumps({**{k: v for k, v in stated.items() if k != "max_search_threads"}, **before}))
        limit_threads(tmp_path / "docs")
        assert read_config(tmp_path / "docs") == {**stated, "max_search_threads": after}


def test_a_lack_of_descriptors_is_retryable(tmp_path: Path) -> None:
    """A lack of descriptors raises StoreUnavailable, and a later call succeeds."""
    store = EdgeStore(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # the lowest free descriptor
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(StoreUnavailable, match=r"\(creation of collection 'docs'\): too many open files"):
            store.ensure("docs", SCHEMA)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    store.ensure("docs", SCHEMA)
    assert list(tmp_path.glob(".creating-*")) == []
    store.close()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("service error: mmap of /secret: Cannot allocate memory (os error 12)"),
            "cannot allocate memory",
        ),
        (RuntimeError('Custom { error: Os { code: 11, kind: WouldBlock, message: "x" } }'), "temporarily unavailable"),
        (OSError(30, "x", "/secret"), "read-only file system"),
        (MemoryError(), "cannot allocate memory"),
    ],
)
def test_errors_of_the_system_are_shown_without_paths(error: Exception, message: str) -> None:
    """Errors of the operating system are shown by their own message, without a path."""
    with pytest.raises(StoreUnavailable, match=message) as caught, mapped("points"):
        raise error
    assert "secret" not in caught.value.message
